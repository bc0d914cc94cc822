"""Roots one level too high, as they are told from folders within classes."""

import numpy as np
import pytest

from s3h_ext.data import load_dataset
from s3h_ext.data.__main__ import main
from s3h_ext.data.sets.naming import classes_by_size, some


def grow(root, sizes):
    for folder, count in sizes.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            (root / folder / f"{number}.JPG").touch()
    return root


SIGN = {f"Dataset/{digit}": 20 for digit in range(10)} | {"Examples": 10}
BRAIN = {"yes": 15, "no": 9, "augmented data/yes": 100, "augmented data/no": 90}
DEEP = {f"repo/Dataset/{digit}": 4 for digit in range(7)} | {"docs": 3}
PARTS = {f"part {n}/{name}": 3 for n in (1, 2) for name in ("cat", "dog")}
MASKS = {f"{name}/{kind}": 3 for name in "ab" for kind in ("images", "masks")}
PATIENTS = {f"{name}/{name}{n}": 3 for name in "abcde" for n in range(2)}
DROPPED = {"cat": 5, "dog": 5, "dog/cat": 4}


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        (
            SIGN,
            "the 200 images of class 'Dataset' lie in folders below it ('0', '1', '2', "
            "'3', '4' and 5 more): each image has the class of its top folder. If "
            "these folders are the classes, the root is too high: give {root}/Dataset",
        ),
        (
            BRAIN,
            "the 190 images of class 'augmented data' lie in folders below it ('no', "
            "'yes'): each image has the class of its top folder. Subfolders with the "
            "name of a class: 'no', 'yes'. If these folders are the classes, the root "
            "is too high: give {root}/augmented data",
        ),
        (DEEP, "the root is too high: give {root}/repo/Dataset"),
        (
            PARTS,
            "Several classes have subfolders of the same name: 'cat', 'dog'. If these "
            "folders are the classes, the root is too high: give one of '{root}/part "
            "1', '{root}/part 2', or move all their folders into one",
        ),
        (MASKS, "have subfolders of the same name: 'images', 'masks'"),
        (
            PATIENTS,
            "class 'c' lie in folders below it ('c0', 'c1'); the same in 2 more",
        ),
        (DROPPED, "Subfolders with the name of a class: 'cat'"),
    ],
)
def test_folders_in_classes_are_told_and_the_deeper_root_is_named(
    tmp_path, capsys, sizes, said
):
    root = grow(tmp_path, sizes)
    said = said.format(root=root)
    notes = load_dataset("folder", root=root).notes
    (warning,) = [note for note in notes if note.startswith("warning: ")]
    assert said in warning
    assert main(["check", "folder", "--root", str(root)]) == 0
    text = capsys.readouterr().out
    assert f"{warning}\n" in text
    assert text.endswith("no errors, but see the warning\n")


@pytest.mark.parametrize(
    "sizes",
    [
        {"a": 5, "b": 5},
        {"a/images": 5, "b/images": 5},
        {"a": 5, "a/more": 2, "b": 5, "b/deeper/still": 3},
    ],
)
def test_one_folder_within_a_class_is_no_sign(tmp_path, capsys, sizes):
    root = grow(tmp_path, sizes)
    assert main(["check", "folder", "--root", str(root)]) == 0
    text = capsys.readouterr().out
    assert "warning" not in text
    assert text.endswith("all is well\n")


def test_below_a_split_the_root_stays(tmp_path):
    sizes = {f"train/{name}": count for name, count in SIGN.items()}
    root = grow(tmp_path, sizes | {"test/Examples": 2})
    (warning,) = load_dataset("folder", root=root).notes
    assert warning.endswith(f"are the classes, put them directly into {root}/train")


def test_check_names_the_largest_and_smallest_classes_and_those_without(
    tmp_path, capsys
):
    sizes = {f"train/c{n}": n + 1 for n in range(9)}
    root = grow(tmp_path, sizes | {"test/c0": 3, "test/c4": 1})
    assert main(["check", "folder", "--root", str(root)]) == 0
    text = capsys.readouterr().out
    assert "few): 'c8' 9, 'c7' 8, 'c6' 7, ..., 'c2' 3, 'c1' 2, 'c0' 1\n" in text
    assert (
        "test: 4 images, 3 to 0 a class, 9 classes; none of 'c1', 'c2', 'c3', 'c5', "
        "'c6' and 2 more\n"
    ) in text


def test_names_are_cut_where_there_are_too_many():
    assert some(["a"]) == "'a'"
    assert some(list("abcde")) == "'a', 'b', 'c', 'd', 'e'"
    assert some([f"{n}" for n in range(1000)]).endswith("'4' and 995 more")
    assert classes_by_size(np.array([1, 3, 2]), "abc") == "'b' 3, 'c' 2, 'a' 1"
    assert classes_by_size(np.arange(9), "abcdefghi", 1) == "'i' 8, ..., 'a' 0"
