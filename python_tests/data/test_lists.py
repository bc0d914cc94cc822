"""Standard lists: parsing, hashes, and the lists that are not what they are called."""

import re
from pathlib import Path

import numpy as np
import pytest

from python_tests.processes import python
from s3h_ext.data import ImageFiles, load_dataset
from s3h_ext.data.__main__ import main
from s3h_ext.data.sets.lists import LISTED, blob_hash, parse_list


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def write_lists(root, **lists):
    """Writes lists of ImageNet-LT and the first image of each."""
    for split, lines in lists.items():
        file = LISTED["imagenet-lt"].lists[split].file
        (root / file).write_text("".join(f"{line}\n" for line in lines))
        touch(root, lines[0].rpartition(" ")[0])


def every_class(prefix, count=1000):
    return [f"{prefix}/n{c:08d}/{c}.JPEG {c}" for c in range(count)]


def test_a_list_is_read_as_it_is_written(tmp_path):
    path = tmp_path / "list.txt"
    # A Windows line, a tab, an empty line, no text in UTF-8 and no last newline.
    path.write_bytes("a b/ü 1.jpg 2\r\nc\t0\n\nd  11\n".encode() + b"\xff.jpg 3")
    files = parse_list(path.read_bytes(), path, tmp_path / "root")
    names = [files.name(i) for i in range(4)]
    assert names == ["a b/ü 1.jpg", "c", "d", "\udcff.jpg"]
    assert files.labels.tolist() == [2, 0, 11, 3]
    assert files.path(1) == tmp_path / "root" / "c"
    part = files.subset(np.array([3, 0]))
    assert [part.name(i) for i in range(2)] == ["\udcff.jpg", "a b/ü 1.jpg"]
    assert part.labels.tolist() == [3, 2]
    assert part.names is files.names


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a.jpg 0\nb.jpg\n", "line 2: expected 'path label', got 'b.jpg'"),
        ("a.jpg -1\n", "line 1: expected 'path label'"),
        ("a.jpg 0\nb.jpg 5\n", "line 2: expected a label of 0 .. 4, got 5"),
        ("/etc/a.jpg 0\n", "line 1: expected a path below the root"),
        ("a/../../b.jpg 0\n", "line 1: expected a path below the root"),
        ("\n", "got an empty list"),
    ],
)
def test_a_bad_line_is_named(tmp_path, content, message):
    path = tmp_path / "list.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"list.txt.*{message}"):
        parse_list(path.read_bytes(), path, tmp_path, 5)


def test_two_dots_inside_a_name_are_a_name(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("a..b/c...jpg 0\n")
    assert parse_list(path.read_bytes(), path, tmp_path).name(0) == "a..b/c...jpg"


def test_hash_is_that_of_git():
    assert blob_hash(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_the_standard_lists_have_their_hashes_and_lengths(data_root):
    seen = 0
    for spec in LISTED.values():
        for standard in spec.lists.values():
            path = data_root / "lists" / standard.file
            if path.is_file():
                assert blob_hash(path.read_bytes()) == standard.blob
                files = parse_list(path.read_bytes(), path, data_root, spec.classes)
                assert len(files) == standard.images
                assert len(np.unique(files.labels)) == spec.classes
                seen += 1
    assert seen == 5


def test_imagenet_lt_has_its_own_validation_split(tmp_path):
    lines = every_class("train")
    write_lists(
        tmp_path,
        train=[*lines, "train/n00000000/x.JPEG 0"],
        val=[line.replace("/n", "/v") for line in lines[:5]],
        test=every_class("val"),
    )
    data = load_dataset("imagenet-lt", root=tmp_path, size=64)
    assert (len(data.train), len(data.val), len(data.test)) == (1001, 5, 1000)
    assert data.class_names[7] == "n00000007"
    assert data.class_counts[:2].tolist() == [2, 1]
    assert data.image_shape == (64, 64, 3)
    assert data.test.name(3) == "val/n00000003/3.JPEG"
    assert len([n for n in data.notes if "is not the standard list" in n]) == 3
    with pytest.raises(ValueError, match="has its own validation split"):
        load_dataset("imagenet-lt", root=tmp_path, val_fraction=0.1)
    with pytest.raises(ValueError, match="imagenet-lt is long-tailed by its list"):
        load_dataset("imagenet-lt", root=tmp_path, imbalance=10)


@pytest.mark.parametrize("with_test", [True, False])
def test_the_test_list_under_the_name_of_val_selects_nothing(tmp_path, with_test):
    test = every_class("val")
    lists = {"train": every_class("train"), "val": test}
    write_lists(tmp_path, **lists, **({"test": test} if with_test else {}))
    if not with_test:
        # Without a test list next to it, it is known by its hash.
        spec = LISTED["imagenet-lt"].lists
        content = (tmp_path / spec["val"].file).read_bytes()
        assert blob_hash(content) != spec["test"].blob
        with pytest.raises(FileNotFoundError, match="expected ImageNet_LT_test.txt"):
            load_dataset("imagenet-lt", root=tmp_path)
        return
    data = load_dataset("imagenet-lt", root=tmp_path)
    assert data.val is None
    assert len(data.test) == 1000
    assert any("holds the test list" in note for note in data.notes)


def test_the_real_test_list_under_the_name_of_val_is_known(tmp_path, data_root):
    real = (data_root / "lists" / "ImageNet_LT_test.txt").read_bytes()
    (tmp_path / "ImageNet_LT_val.txt").write_bytes(real)
    write_lists(tmp_path, train=every_class("train"))
    touch(tmp_path, "val/n01440764/ILSVRC2012_val_00029930.JPEG")
    data = load_dataset("imagenet-lt", root=tmp_path)
    assert data.val is None
    assert len(data.test) == 50_000


@pytest.mark.parametrize(
    ("first", "second"), [("train", "val"), ("val", "test"), ("train", "test")]
)
def test_splits_that_share_images_are_refused(tmp_path, first, second):
    lists = {name: every_class(name) for name in ("train", "val", "test")}
    lists[second][3] = lists[first][17]
    write_lists(tmp_path, **lists)
    message = f"ImageNet_LT_{second}.txt: expected no image of the {first} list, got 1"
    with pytest.raises(ValueError, match=message):
        load_dataset("imagenet-lt", root=tmp_path)


def test_a_train_list_in_place_of_the_only_other_list_is_refused(tmp_path):
    lines = [f"train_val2018/{label}/1.jpg {label}\n" for label in range(8142)]
    for split in ("train", "val"):
        (tmp_path / f"iNaturalist18_{split}.txt").write_text("".join(lines))
    with pytest.raises(ValueError, match="no image of the train list, got 8142, such"):
        load_dataset("inat18", root=tmp_path)


def test_what_is_missing_is_said_with_the_layout(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected ImageNet_LT_train.txt in"):
        load_dataset("imagenet-lt", root=tmp_path)
    lists = tmp_path / "lists"
    lists.mkdir()
    write_lists(lists, train=every_class("train"), test=every_class("val"))
    with pytest.raises(FileNotFoundError, match="must hold train/n01440764"):
        load_dataset("imagenet-lt", root=tmp_path, lists=lists)
    write_lists(tmp_path, train=every_class("train", 999), test=every_class("val"))
    with pytest.raises(ValueError, match="found none of '999'"):
        load_dataset("imagenet-lt", root=tmp_path)


def test_check_says_what_is_there(tmp_path, capsys):
    arguments = ["check", "imagenet-lt", "--root", str(tmp_path)]
    assert main(arguments) == 1
    assert "ILSVRC2012_img_train.tar" in capsys.readouterr().out
    train = every_class("train")
    write_lists(tmp_path, train=[*train, "train/more.JPEG 0"], test=every_class("val"))
    assert main(arguments) == 1
    text = capsys.readouterr().out
    assert "train: 1001 images, 2 to 1 a class, 1000 classes (0 many, 0 medium" in text
    assert "is missing" in text
    assert "not the standard list" in text
    assert "wrong: train: 1000 of 1001 images are missing, the first is" in text
    touch(tmp_path, "train/more.JPEG")
    touch(tmp_path, *(line.rpartition(" ")[0] for line in train))
    touch(tmp_path, *(line.rpartition(" ")[0] for line in every_class("val")))
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "own imbalance 2\n" in text
    assert "possible factors" not in text
    assert "all is well" in text
    assert main([*arguments, "--imbalance", "10", "1.5"]) == 1
    message = "imbalance: imagenet-lt is long-tailed by its list; .*, got 10, 1.5"
    assert re.search(message, capsys.readouterr().err)
    assert main([*arguments, "--size", "64"]) == 1
    assert "size: imagenet-lt has no fixed size" in capsys.readouterr().err
    elsewhere = ["check", "cifar10", "--root", str(tmp_path), "--lists", str(tmp_path)]
    assert main(elsewhere) == 1
    assert "--lists: cifar10 has no lists; expected None" in capsys.readouterr().err
    too_long = f"train/{'a' * 300}.JPEG 0"
    write_lists(tmp_path, train=[*train, too_long], test=every_class("val"))
    assert main(arguments) == 1
    assert "1 of 1001 images are missing" in capsys.readouterr().out


BIG = """
import pathlib, sys, time
from s3h_ext.data import load_dataset
start = time.process_time()  # whatever else the machine does
data = load_dataset("inat18", root=sys.argv[1])
counts = data.class_counts
taken = time.process_time() - start
# Not ru_maxrss, which a process that starts another one hands on to it.
status = pathlib.Path("/proc/self/status").read_text().splitlines()
peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
assert (len(data.train), data.num_classes, counts.min()) == (437_513, 8_142, 1)
assert data.train.name(437_512).endswith("437512.jpg")
print(taken, peak)
"""


def test_a_list_as_large_as_inaturalist_loads_quickly_and_small(tmp_path):
    random = np.random.default_rng(0)
    rest = random.integers(0, 4000, 437_513 - 8142)
    labels = [*range(8142), *rest.tolist()]
    name = "train_val2018/Plantae/{0}/9f8ecb39e5f767e39e9b28e34488f179{1}.jpg"
    lines = [f"{name.format(c, i)} {c}\n" for i, c in enumerate(labels)]
    (tmp_path / "iNaturalist18_train.txt").write_text("".join(lines))
    (tmp_path / "iNaturalist18_val.txt").write_text("a/0/b.jpg 0\n")
    touch(tmp_path, name.format(0, 0), "a/0/b.jpg")
    seconds, mebibytes = map(float, python("-c", BIG, tmp_path).stdout.split())
    assert seconds < 10
    assert mebibytes < 1024


def test_files_are_checked():
    places = (np.arange(2), np.ones(2, np.int64))
    with pytest.raises(ValueError, match=r"labels: expected int64 \[2\]"):
        ImageFiles(Path("."), b"ab", *places, np.zeros(2, np.int32))
    with pytest.raises(ValueError, match=r"starts: expected int64 \[1\]"):
        ImageFiles.of(".", ["a", "b"], [0])
