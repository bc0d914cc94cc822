"""Files that cannot be read: found in one pass, and a data set without them."""

import threading

import numpy as np
import pytest

from s3h_ext.data import load_dataset
from s3h_ext.data.__main__ import main
from s3h_ext.data.sets.readable import find_unreadable, without_unreadable
from s3h_ext.data.source.decode import Unreadable, UnreadableImageError

from .photographs import grow, grow_bad, grow_odd


def damage(root, split, label, keep=0):
    """Empties all images of a class but some; returns their names."""
    paths = sorted((root / split / f"class {label}").iterdir())[keep:]
    for path in paths:
        path.write_bytes(b"")
    return {str(path.relative_to(root)) for path in paths}


def test_every_file_is_read_in_threads_and_every_bad_one_is_found(tmp_path):
    grow(tmp_path, (40, 30))
    grow_odd(tmp_path)
    bad = grow_bad(tmp_path)
    grow(tmp_path, (1, 1), split="test")
    files = load_dataset("folder", root=tmp_path).train
    unreadable = Unreadable("skip")
    threads = set()
    record = unreadable.record

    def noting(path, error):
        threads.add(threading.current_thread().name)
        record(path, error)

    unreadable.record = noting
    found = find_unreadable(files, unreadable, workers=3)
    assert {files.path(i).name for i in found.tolist()} == bad
    assert set(unreadable.errors) == {str(files.path(i)) for i in found.tolist()}
    assert np.array_equal(found, np.sort(found))
    assert all(name.startswith("s3h-decode") for name in threads)
    assert not any(t.name.startswith("s3h-decode") for t in threading.enumerate())
    none = files.subset(np.zeros(0, np.int64))
    assert len(find_unreadable(none, unreadable)) == 0
    with pytest.raises(UnreadableImageError, match="class 0/"):
        find_unreadable(files, Unreadable("error"), workers=3)


def test_counts_follow_the_images_that_are_left(tmp_path):
    root = grow(grow(tmp_path, (9, 5, 3)), (1, 1, 1), split="test")
    data = load_dataset("folder", root=root, size=16)
    assert without_unreadable(data, ()) is data
    gone = damage(root, "train", 0, keep=2) | damage(root, "train", 2, keep=2)
    left = without_unreadable(data, gone)
    assert left.class_counts.tolist() == [2, 5, 2]
    assert left.unreadable == tuple(sorted(gone))
    assert left.train.side == 16
    assert left.class_names == data.class_names
    assert left.test is data.test
    # A file that was removed since is as one that cannot be read.
    for name in gone:
        (root / name).unlink()
    again = without_unreadable(load_dataset("folder", root=root, size=16), gone)
    assert again.class_counts.tolist() == [2, 5, 2]
    assert again.unreadable == left.unreadable


def test_a_class_without_a_readable_image_is_left_out_by_name(tmp_path):
    root = grow(tmp_path, (4, 3, 2))
    grow(root, (2, 2, 1), split="test")
    grow(root, (1, 1, 1), split="val")
    data = load_dataset("folder", root=root)
    left = without_unreadable(data, damage(root, "train", 1))
    assert left.class_names == ("class 0", "class 2")
    assert left.class_counts.tolist() == [4, 2]
    for files, labels in ((left.test, [0, 0, 1]), (left.val, [0, 1])):
        assert files.labels.tolist() == labels
        for index, label in enumerate(labels):
            assert f"/{left.class_names[label]}/" in files.name(index)
    assert left.notes[-1] == (
        "left out, because none of their training images can be read: 'class 1' "
        "(and 2 test images)"
    )


def test_too_little_is_refused(tmp_path):
    root = grow(tmp_path, (4, 3, 2))
    grow(root, (0, 2, 0), split="test")
    data = load_dataset("folder", root=root)
    first, second = damage(root, "train", 0), damage(root, "train", 1)
    with pytest.raises(ValueError, match="test: all images belong to 'class 1'"):
        without_unreadable(data, second)
    said = "at least two classes, .* 'class 0', 'class 1'"
    with pytest.raises(ValueError, match=said):
        without_unreadable(data, first | second)


def test_check_decodes_every_split_and_lists_every_bad_file(tmp_path, capsys):
    root = grow(tmp_path, (40, 2))
    bad = grow_bad(root)
    lost = damage(root, "train", 1)
    grow(root, (2, 1), split="test")
    lost |= damage(root, "test", 1)
    command = ["check", "folder", "--root", str(root)]
    assert main([*command]) == 1  # one of the bad files is not there
    assert "1 of 47 images are missing" in capsys.readouterr().out
    assert main([*command, "--decode"]) == 1
    said = capsys.readouterr()
    wrong = [line for line in said.out.splitlines() if line.startswith("wrong: ")]
    for name in {f"train/class 0/{name}" for name in bad} | lost:
        assert sum(line.startswith(f"wrong: {root / name}: ") for line in wrong) == 1
    assert len(wrong) == len(bad) + len(lost) + 4
    assert "train: 7 of 47 images cannot be read" in said.out
    assert "test: 1 of 3 images cannot be read" in said.out
    assert "train: no readable image of 'class 1'" in said.out
    assert "test: no readable image of 'class 1'" in said.out
    assert "train without unreadable images: 40 images, 40 to 0 a class" in said.out
    assert "reading train: 100%" in said.err


def test_check_says_that_all_can_be_read(tmp_path, capsys):
    root = grow(tmp_path, (4, 4))
    assert main(["check", "folder", "--root", str(root), "--decode"]) == 0
    text = capsys.readouterr().out
    assert "train: all images can be read" in text
    assert "test: all images can be read" in text
    assert main(["check", "cifar10", "--root", str(root), "--decode"]) == 1
    assert "decode: cifar10 has no image files" in capsys.readouterr().err
