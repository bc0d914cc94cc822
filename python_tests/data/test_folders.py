"""Image folders: classes by their names, splits, cuts, held-out images."""

import numpy as np
import pytest

from s3h_ext.data import load_dataset
from s3h_ext.data.__main__ import main
from s3h_ext.data.sets.folders import split_folders

SIZES = {"Zwiebel": 20, "äpfel": 9, "red onion": 4, "1": 2}


def grow(root, sizes=SIZES, prefix=""):
    for name, count in sizes.items():
        folder = root / prefix / name
        (folder / "deeper").mkdir(parents=True)
        for number in range(count):
            where = folder / "deeper" if number % 3 == 2 else folder
            (where / f"{name} {number}.jpg").touch()
        (folder / "notes.txt").touch()
        (folder / ".hidden.jpg").touch()
    (root / prefix / ".git").mkdir()
    return root


def names(files):
    return [files.name(i) for i in range(len(files))]


def test_single_images_leave_none_to_test_with(tmp_path):
    for name in "abc":
        (tmp_path / name).mkdir()
        (tmp_path / name / "one.jpg").touch()
    message = r"test_fraction: 0.2 of the largest class \(size 1\) is less .*; .*test"
    with pytest.raises(ValueError, match=message):
        load_dataset("folder", root=tmp_path)


def test_classes_keep_their_names_and_images_are_found(tmp_path):
    data = load_dataset("folder", root=grow(tmp_path), test_fraction=0.25)
    assert data.class_names == ("1", "Zwiebel", "red onion", "äpfel")
    assert data.class_counts.tolist() == [1, 15, 3, 7]
    found = sorted(names(data.train) + names(data.test))
    assert len(found) == sum(SIZES.values())
    assert "red onion/deeper/red onion 2.jpg" in found
    assert not any("notes" in name or "hidden" in name for name in found)
    for files in (data.train, data.test):
        for i, label in enumerate(files.labels):
            assert files.name(i).startswith(f"{data.class_names[label]}/")
            assert files.path(i).is_file()


def test_held_out_images_are_always_the_same_and_it_is_said(tmp_path):
    grow(tmp_path)
    first = load_dataset("folder", root=tmp_path, seed=0)
    second = load_dataset("folder", root=tmp_path, seed=1)
    assert names(first.test) == names(second.test)
    assert set(names(first.test)).isdisjoint(names(first.train))
    assert np.bincount(first.test.labels).tolist() == [0, 4, 1, 2]
    assert (
        f"{tmp_path} has no test split: 7 images, 0.2 of each class" in first.notes[0]
    )
    held = load_dataset("folder", root=tmp_path, val_fraction=0.25, seed=0)
    other = load_dataset("folder", root=tmp_path, val_fraction=0.25, seed=1)
    assert names(held.val) != names(other.val)
    assert sorted(names(held.val) + names(held.train)) == sorted(names(first.train))


def test_a_folder_is_cut_to_a_profile(tmp_path):
    grow(tmp_path, {"a": 40, "b": 100, "c": 30, "d": 60})
    grow(tmp_path / "set", prefix="train", sizes={"a": 40, "b": 100, "c": 30, "d": 60})
    grow(tmp_path / "set", prefix="test", sizes={"a": 2, "c": 1})
    root = tmp_path / "set"
    data = load_dataset("folder", root=root, imbalance=20)
    # 100 * 20 ** (-k / 3) over b, d, a, c
    assert data.class_counts.tolist() == [13, 100, 5, 36]
    assert data.test.labels.tolist() == [0, 0, 2]
    step = load_dataset("folder", root=root, imbalance=20, profile="step")
    assert step.class_counts.tolist() == [5, 100, 5, 60]
    less = load_dataset("folder", root=root, imbalance=100)
    assert set(names(less.train)) < set(names(data.train))


def test_splits_of_a_folder(tmp_path):
    for split in ("train", "val"):
        grow(tmp_path, prefix=split)
    data = load_dataset("folder", root=tmp_path)
    assert data.val is None
    assert names(data.test)[0].startswith("val/1/")
    assert data.notes == (f"{tmp_path / 'val'} is the test split",)
    grow(tmp_path, prefix="test")
    data = load_dataset("folder", root=tmp_path)
    assert names(data.test)[0].startswith("test/1/")
    assert names(data.val)[0].startswith("val/1/")
    assert data.notes == ()


@pytest.mark.parametrize("split", ["val", "test"])
def test_nothing_is_held_out_of_a_folder_with_test_images(tmp_path, split):
    for name in ("train", split):
        grow(tmp_path, prefix=name)
    said = f"test_fraction: .*{split} already holds the test images; .*0.3"
    with pytest.raises(ValueError, match=said):
        load_dataset("folder", root=tmp_path, test_fraction=0.3)


def test_a_class_that_is_called_train_is_not_taken_for_a_split_in_silence(tmp_path):
    grow(tmp_path, {"bus": 3, "car": 3, "train": 3})
    (tmp_path / "train" / "deeper").rename(tmp_path / "bus" / "more")
    with pytest.raises(ValueError, match="if 'train' is a class, beside 'bus', move"):
        load_dataset("folder", root=tmp_path)
    grow(tmp_path, prefix="train", sizes={"steam": 9, "electric": 9})
    data = load_dataset("folder", root=tmp_path)
    assert data.class_names == ("electric", "steam")
    assert data.notes[0].endswith(f"beside {tmp_path / 'train'}: 'bus', 'car'")


@pytest.mark.parametrize(
    "folders",
    ["training validation testing", "seg_train seg_test", "Train Val", "test val"],
)
def test_splits_are_not_taken_for_classes(tmp_path, folders):
    for split in folders.split():
        grow(tmp_path, prefix=split)
    with pytest.raises(ValueError, match="root: expected a folder for each class"):
        load_dataset("folder", root=tmp_path)


@pytest.mark.parametrize("stray", ["valid", "validation", "test2017"])
def test_a_split_of_another_name_is_not_left_out_in_silence(tmp_path, stray):
    for split in ("train", "test", "annotations", "test_labels"):
        grow(tmp_path, prefix=split)
    assert load_dataset("folder", root=tmp_path).val is None
    grow(tmp_path, prefix=stray)
    with pytest.raises(ValueError, match=f"'train' in .*, got '{stray}'; rename it"):
        load_dataset("folder", root=tmp_path)


def test_classes_may_sound_like_splits(tmp_path):
    for number, names in enumerate(
        ["devices valley", "test-positive test-negative", "training-shoe boot"]
    ):
        root = tmp_path / str(number)
        for name in names.split():
            (root / name).mkdir(parents=True)
        assert split_folders(root) == {"train": root}


def test_folders_that_cannot_be_used_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="root: expected a folder of images"):
        load_dataset("folder", root=tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="expected a folder for each class"):
        load_dataset("folder", root=tmp_path)
    grow(tmp_path, prefix="train")
    (tmp_path / "test" / "other").mkdir(parents=True)
    (tmp_path / "test" / "äpfel").mkdir()
    with pytest.raises(ValueError, match="training images, got 'other' too"):
        load_dataset("folder", root=tmp_path)
    (tmp_path / "test" / "other").rename(tmp_path / "test" / "1")
    with pytest.raises(ValueError, match="test: expected a folder of .*, found none"):
        load_dataset("folder", root=tmp_path)
    (tmp_path / "train" / "empty").mkdir()
    with pytest.raises(ValueError, match="every class, found none of 'empty'"):
        load_dataset("folder", root=tmp_path)


def test_links_are_followed_but_not_in_circles(tmp_path):
    grow(tmp_path / "elsewhere", {"c": 3})
    root = grow(tmp_path / "set", {"a": 3, "b": 3})
    (root / "c").symlink_to(tmp_path / "elsewhere" / "c")
    (root / "a" / "loop").symlink_to(".")
    (root / "a" / "across").symlink_to("../b")
    (root / "b" / "across").symlink_to("../a")
    (root / "b" / "itself").symlink_to("itself")
    data = load_dataset("folder", root=root, test_fraction=0.1)
    found = sorted(names(data.train) + names(data.test))
    places = ["a/ a", "b/ b", "c/ c", "a/across/ b", "b/across/ a"]
    expected = []
    for folder, name in map(str.split, places):
        expected += [f"{folder}{name} 0.jpg", f"{folder}{name} 1.jpg"]
        expected.append(f"{folder}deeper/{name} 2.jpg")
    assert found == sorted(expected)
    # All that is in it is in the other classes.
    (root / "round").symlink_to(".")
    with pytest.raises(ValueError, match="every class, found none of 'round'"):
        load_dataset("folder", root=root)


@pytest.mark.parametrize("splits", [("Train", "Val"), ("TRAIN",), ("val", "test")])
def test_splits_that_are_not_called_train_are_no_classes(tmp_path, splits):
    for split in splits:
        grow(tmp_path, prefix=split)
    said = f"or 'train' and, .*, got {', '.join(map(repr, sorted(splits)))}$"
    with pytest.raises(ValueError, match=said):
        load_dataset("folder", root=tmp_path)
    grow(tmp_path, prefix="bus", sizes={"a": 3})
    assert load_dataset("folder", root=tmp_path).num_classes == len(splits) + 1


def test_check_counts_and_says_what_a_cut_leaves(tmp_path, capsys):
    grow(tmp_path, {"a": 40, "b": 100, "c": 30})
    assert main(["check", "folder", "--root", str(tmp_path), "--imbalance", "10"]) == 0
    text = capsys.readouterr().out
    assert "train: 136 images, 80 to 24 a class, 3 classes" in text
    assert "has no test split: 34 images" in text
    assert "own imbalance 3.33\n" in text
    # 80 * 10 ** (-k / 2) over 80, 32 and 24
    said = "cut to imbalance 10, profile exp: 113 images, 80 to 8 a class; 1 of 3"
    assert said in text
    assert main(["check", "folder", "--root", str(tmp_path), "--imbalance", "99"]) == 1
    assert "imbalance 99 is impossible" in (said := capsys.readouterr().out)
    assert "a class would be empty" in said
    with pytest.raises(ValueError, match="99 leaves no image"):
        load_dataset("folder", root=tmp_path, imbalance=99)
    assert main(["check", "folder", "--root", str(tmp_path / "a")]) == 1
    assert "Lay the images out as ROOT/CLASS/IMAGE" in capsys.readouterr().out
