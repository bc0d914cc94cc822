"""Folders whose labels stand in lists or in the files' names; the list of a run."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from s3h_ext.data import load_dataset
from s3h_ext.data.__main__ import main
from s3h_ext.data.sets.check import check
from s3h_ext.data.train_list import list_hash, train_list


@pytest.fixture
def root(tmp_path):
    """A flat folder: 8 cats, 4 dogs and 2 owls, the class in the name."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, count in (("cat", 8), ("dog", 4), ("owl", 2)):
        for number in range(count):
            Image.new("RGB", (8, 8)).save(folder / f"{name}_{number}.png")
    return folder


def files_of(images, names):
    return [
        (images.name(i), names[label]) for i, label in enumerate(images.labels.tolist())
    ]


def write_list(path, rows, form):
    path.parent.mkdir(exist_ok=True)
    if form == "csv":
        lines = ["width,label,path", *(f'8,{label},"{name}"' for name, label in rows)]
    else:
        lines = [f"{name} {label}" for name, label in rows]
    path.write_text("\n".join(lines) + "\n", "utf-8")


ROWS = {
    "train": [("cat_0.png", "cat"), ("dog_0.png", "dog"), ("cat_1.png", "cat")],
    "test": [("dog_1.png", "dog"), ("owl_0.png", "cat")],
    "val": [("cat_5.png", "cat")],
}


@pytest.mark.parametrize("form", ["csv", "txt"])
def test_lists_of_all_splits(root, tmp_path, form):
    for split, rows in ROWS.items():
        write_list(tmp_path / "lists" / f"{split}.{form}", rows, form)
    data = load_dataset("folder", root=root, lists=tmp_path / "lists")
    assert data.class_names == ("cat", "dog")
    for split, rows in ROWS.items():
        assert files_of(getattr(data, split), data.class_names) == rows
    assert check("folder", root, lists=tmp_path / "lists").problems == []


def test_one_list_and_the_rest_is_as_for_folders(root, tmp_path):
    # Quotes, a comma and a byte-order mark, as spreadsheets write them.
    Image.new("RGB", (8, 8)).save(root / "cat, the 9th.png")
    rows = [(path.name, path.name[:3]) for path in sorted(root.iterdir())]
    write_list(tmp_path / "all.csv", rows, "csv")
    path = tmp_path / "all.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    data = load_dataset("folder", root=root, lists=path, test_fraction=0.5)
    assert data.class_names == ("cat", "dog", "owl")
    assert len(data.train) + len(data.test) == 15
    assert any("has no test split" in note for note in data.notes)
    cut = load_dataset("folder", root=root, lists=path, imbalance=7)
    assert cut.class_counts.tolist() == [7, 2, 1]


def test_classes_that_are_numbers_stand_in_their_order(root, tmp_path):
    rows = [("cat_0.png", "10"), ("dog_0.png", "9"), ("owl_0.png", "9")]
    write_list(tmp_path / "a.txt", [*rows, ("owl_1.png", "10")], "txt")
    data = load_dataset(
        "folder", root=root, lists=tmp_path / "a.txt", test_fraction=0.5
    )
    assert data.class_names == ("9", "10")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file,label\na,b\n", "line 1: expected the columns path, label, got none"),
        ("path,label\na.png\n", "line 2: expected 2 cells, got 1"),
        ("path,label\na.png,\n", "line 2: expected a path and a label"),
        ("path,label\n../a.png,b\n", r"line 2: expected a path below the root"),
        ("path,label\n/etc/a.png,b\n", r"line 2: expected a path below the root"),
        ("path,label\na.png,b\na.png,c\n", "line 3: 'a.png' is in line 2 already"),
        ('path,label\n"a.png,b\n', "line 2: unexpected end of data"),
        ("path,label\n", "expected images, got an empty list"),
        ("path,label\ncat_0.png,b\n", "expected two classes or more, got 'b' alone"),
        ("path,label\nno.png,b\ncat_0.png,c\n", "expected the image .*no.png, its"),
    ],
)
def test_lists_that_cannot_be_used(root, tmp_path, text, said):
    (tmp_path / "all.csv").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        load_dataset("folder", root=root, lists=tmp_path / "all.csv")


def test_lists_that_do_not_fit_each_other(root, tmp_path):
    lists = tmp_path / "lists"
    lists.mkdir()
    with pytest.raises(FileNotFoundError, match="lists: expected a list, or a folder"):
        load_dataset("folder", root=root, lists=lists)
    write_list(lists / "train.csv", ROWS["train"], "csv")
    write_list(lists / "test.csv", [("owl_0.png", "owl")], "csv")
    with pytest.raises(ValueError, match=r"test\.csv: .* got 'owl' as well"):
        load_dataset("folder", root=root, lists=lists)
    write_list(lists / "test.csv", [("cat_1.png", "cat")], "csv")
    with pytest.raises(ValueError, match=r"test\.csv: .* got 1, such as cat_1\.png"):
        load_dataset("folder", root=root, lists=lists)
    write_list(lists / "test.txt", [("cat_2.png", "cat")], "txt")
    with pytest.raises(ValueError, match="lists: expected one of"):
        load_dataset("folder", root=root, lists=lists)


@pytest.mark.parametrize("pattern", [r"^([a-z]+)_", r"(\d+ )?(?P<label>[a-z]+)_\d"])
@pytest.mark.parametrize("split", [False, True])
def test_labels_in_the_names_of_files(root, pattern, split):
    if split:
        for part, keep in (("train", "01234567"), ("test", "13")):
            (root / part / "deeper").mkdir(parents=True)
            for path in sorted(root.glob("*_*.png")):
                if path.stem[-1] in keep:
                    Image.open(path).save(root / part / f"{path.stem}.{part}.png")
    data = load_dataset("folder", root=root, label_pattern=pattern)
    assert data.class_names == ("cat", "dog", "owl")
    counts = data.class_counts + np.bincount(data.test.labels, minlength=3)
    assert counts.tolist() == ([8 + 2, 4 + 2, 2 + 1] if split else [8, 4, 2])
    for name, label in files_of(data.train, data.class_names):
        assert name.rpartition("/")[2].startswith(label)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("(", "label_pattern: expected a regular expression, got '\\('"),
        ("cat", "label_pattern: expected a group in parentheses"),
        ("(cat|dog)", "finds no label in 2 of 14 images: 'owl_0.png', 'owl_1.png'"),
        ("([a-z])_x?()", "expected images of every class|expected two"),
    ],
)
def test_patterns_that_find_no_labels(root, pattern, said):
    if "x?" in pattern:
        for path in root.glob("[do]*"):
            path.unlink()
    with pytest.raises(ValueError, match=said):
        load_dataset("folder", root=root, label_pattern=pattern)


def test_a_pattern_is_for_folders_without_lists(root):
    with pytest.raises(ValueError, match="label_pattern: digits-lt has the labels"):
        load_dataset("digits-lt", label_pattern="(x)")
    with pytest.raises(ValueError, match="label_pattern: its lists give the labels"):
        load_dataset("folder", root=root, lists=root, label_pattern="(x)")


def test_the_list_of_a_folder_is_a_list_for_it(root, tmp_path, capsys):
    options = ["--root", str(root), "--label-pattern", "^([a-z]+)", "--imbalance", "3"]
    place = tmp_path / "drawn.csv"
    assert main(["list", "folder", *options, "--output", str(place)]) == 0
    data = load_dataset("folder", root=root, label_pattern="^([a-z]+)", imbalance=3)
    assert capsys.readouterr().out == f"{list_hash(data)}  {place}\n"
    assert hashlib.sha256(place.read_bytes()).hexdigest() == list_hash(data)
    lists = tmp_path / "lists"
    lists.mkdir()
    place.rename(lists / "train.csv")
    test = files_of(data.test, data.class_names)
    write_list(lists / "test.csv", test, "csv")
    again = load_dataset("folder", root=root, lists=lists)
    assert train_list(again) == train_list(data)


def test_the_list_of_an_archive_is_of_its_indices(capsysbinary):
    assert main(["list", "digits-lt", "--imbalance", "10", "--val_fraction", ".1"]) == 0
    data = load_dataset("digits-lt", imbalance=10, val_fraction=0.1)
    rows = np.genfromtxt(
        capsysbinary.readouterr().out.decode().splitlines(), delimiter=",", dtype=int
    )[1:]
    assert np.array_equal(rows[:, 0], data.indices)
    assert np.array_equal(rows[:, 1], data.train.labels)
    whole = load_dataset("digits-lt", imbalance=10)
    assert list_hash(whole) != list_hash(data)


def test_errors_name_the_option_as_typed(root, capsys):
    assert main(["list", "folder", "--root", str(root), "--label-pattern", "("]) == 1
    assert "error: --label_pattern: expected a regular" in capsys.readouterr().err
    assert main(["list", "digits-lt", "--val_fraction", "2"]) == 1
    assert "error: --val_fraction: expected a share" in capsys.readouterr().err
