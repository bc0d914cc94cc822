"""Long-tailed data sets of photographs: standard lists, or any image folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from s3h_ext.data.image_files import ImageFiles
from s3h_ext.data.longtail import hold_out, pick_subset, sorted_profile
from s3h_ext.data.sets.folders import (
    class_folders,
    passed_over,
    read_folder,
    split_folders,
)
from s3h_ext.data.sets.lists import ListedDataset, blob_hash, find_list, parse_list
from s3h_ext.data.sets.naming import empty_classes, some
from s3h_ext.data.sets.nesting import nesting_note

__all__ = ["PHOTOGRAPHS", "Photographs", "read_photographs"]

#: Share of a folder's images that are its test split where it has none.
TEST_FRACTION = 0.2
#: Data sets that are files on the disk.
PHOTOGRAPHS = ("imagenet-lt", "inat18", "places-lt", "folder")

# What a folder without test images holds out is always the same.
_TEST_SEED = 0
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, eq=False)
class Photographs:
    """A data set of photographs as it lies on the disk.

    Attributes:
        train: All training images.
        val: The data set's own validation images, if it has any.
        test: The test images.
        class_names: One name per class.
        mean: Per channel, of pixels in [0, 1].
        std: Per channel.
        notes: What a reader of results should know, a sentence each.
    """

    train: ImageFiles
    val: ImageFiles | None
    test: ImageFiles
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notes: tuple[str, ...] = ()


def read_photographs(
    name: str,
    root: Path,
    *,
    lists: Path | None = None,
    imbalance: float | None = None,
    profile: str = "exp",
    test_fraction: float | None = None,
) -> Photographs:
    """Reads which photographs there are; opens none of them.

    Args:
        name: One of :data:`PHOTOGRAPHS`.
        root: What the lists' paths are relative to; or the image folder.
        lists: Folder of the list files; ``None`` for ``root``.
        imbalance: Largest over smallest class, for ``"folder"``; ``None`` leaves the
            classes as they are.
        profile: ``"exp"`` or ``"step"``.
        test_fraction: Share of each class that becomes the test split of a folder that
            has none; ``None`` for 0.2, and for one that has test images.

    Raises:
        ValueError: an argument or a list is unusable, or splits share images.
        FileNotFoundError: the images or the lists are not there.
    """
    if name == "folder":
        return _read_folder(root, imbalance, profile, test_fraction)
    if imbalance is not None:
        raise ValueError(
            f"imbalance: {name} is long-tailed by its list; expected None, got "
            f"{imbalance:g}"
        )
    return _read_listed(find_list(name), name, root, root if lists is None else lists)


def _read_listed(
    spec: ListedDataset, name: str, root: Path, folder: Path
) -> Photographs:
    files, notes = {}, []
    hashes = {}
    for split, standard in spec.lists.items():
        path = folder / standard.file
        if not path.is_file():
            continue
        content = path.read_bytes()
        hashes[split] = blob_hash(content)
        if standard.blob is not None and hashes[split] != standard.blob:
            notes.append(f"{path.name} is not the standard list, by its hash")
        files[split] = parse_list(content, path, root, spec.classes)
    _untangle(spec, files, hashes, notes)
    for split in ("train", "test"):
        if split not in files:
            raise FileNotFoundError(
                f"{name}: expected {spec.lists[split].file} in {folder}; "
                "docs/photographs.md says where to get it"
            )
    for split, found in files.items():
        if not found.path(0).is_file():
            raise FileNotFoundError(
                f"{name}: expected the image {found.path(0)}, the first of the "
                f"{split} list; {root} must hold {spec.layout}"
            )
    names = _names_from_paths(files["train"], spec.classes)
    _check_classes(files["train"], names)
    return Photographs(
        files["train"],
        files.get("val"),
        files["test"],
        names,
        spec.mean,
        spec.std,
        tuple(notes),
    )


def _untangle(
    spec: ListedDataset,
    files: dict[str, ImageFiles],
    hashes: dict[str, str],
    notes: list[str],
) -> None:
    """Keeps test images out of training and out of what epochs are compared on.

    Some repositories ship ImageNet-LT's 50,000-line test list under the name of the
    20,000-line val list: a run that selects by it selects on the test images.
    """
    val, test = spec.lists.get("val"), spec.lists["test"]
    if val and "val" in files and hashes["val"] in (test.blob, hashes.get("test")):
        files.setdefault("test", files["val"])
        del files["val"]
        notes.append(
            f"{val.file} holds the test list: it is used for testing alone, and there "
            "is no validation split"
        )
    for first, second in combinations(files, 2):
        if shared := _shared(files[first], files[second]):
            raise ValueError(
                f"{spec.lists[second].file}: expected no image of the {first} list, "
                f"got {len(shared)}, such as {os.fsdecode(min(shared))}"
            )


def _shared(first: ImageFiles, second: ImageFiles) -> set[bytes]:
    def names(files: ImageFiles) -> set[bytes]:
        ends = (files.starts + files.lengths).tolist()
        return {
            files.names[a:b] for a, b in zip(files.starts.tolist(), ends, strict=True)
        }

    return names(first) & names(second)


def _names_from_paths(files: ImageFiles, classes: int) -> tuple[str, ...]:
    """Names each class by the folder of its first image, if these names differ."""
    labels, first = np.unique(files.labels, return_index=True)
    names = [str(label) for label in range(classes)]
    for label, index in zip(labels.tolist(), first.tolist(), strict=True):
        names[label] = Path(files.name(index)).parent.name
    if len(set(names)) < classes:
        return tuple(str(label) for label in range(classes))
    return tuple(names)


def _check_classes(train: ImageFiles, names: tuple[str, ...]) -> None:
    missing = empty_classes(train.labels, names)
    if missing:
        raise ValueError(
            f"train: expected images of every class, found none of {some(missing)}"
        )


def _read_folder(
    root: Path, imbalance: float | None, profile: str, test_fraction: float | None
) -> Photographs:
    folders = split_folders(root)
    names = class_folders(folders["train"])
    files = {
        split: read_folder(folder, names, relative_to=root)
        for split, folder in folders.items()
    }
    train, notes = files["train"], []
    _check_classes(train, names)
    if beside := passed_over(root):
        notes.append(f"left out, as they are beside {folders['train']}: {some(beside)}")
    nested = nesting_note(
        train, names, folders["train"], is_root=folders["train"] == root
    )
    if nested is not None:
        notes.append(nested)
    if "test" not in files:
        test_fraction = TEST_FRACTION if test_fraction is None else test_fraction
        if not 0 < test_fraction < 1:
            raise ValueError(
                f"test_fraction: {root} has no test images; expected the share to hold "
                f"out, in (0, 1), got {test_fraction}"
            )
        try:
            kept, held = hold_out(
                train.labels,
                fraction=test_fraction,
                seed=_TEST_SEED,
                argument="test_fraction",
            )
        except ValueError as error:
            raise ValueError(
                f"{error}; {root} has no test images: put them into {root / 'test'}, "
                f"the training images into {root / 'train'}"
            ) from error
        train, files["test"] = train.subset(kept), train.subset(held)
        notes.append(
            f"{root} has no test split: {len(held)} images, {test_fraction:g} of each "
            "class, were held out as one"
        )
    elif test_fraction is not None:
        raise ValueError(
            f"test_fraction: {folders['test']} has the test images; expected None, got "
            f"{test_fraction}"
        )
    elif folders["test"].name == "val":
        notes.append(f"{folders['test']} is the test split")
    for split in ("val", "test"):
        if split in files and len(files[split]) == 0:
            raise ValueError(
                f"{folders[split]}: expected a folder of images for each class, found "
                "none; if it has no labels, move it elsewhere"
            )
    if imbalance is not None:
        available = np.bincount(train.labels, minlength=len(names)).astype(np.int64)
        counts = sorted_profile(available, imbalance=imbalance, profile=profile)
        train = train.subset(pick_subset(train.labels, counts))
    return Photographs(
        train, files.get("val"), files["test"], names, *_IMAGENET, tuple(notes)
    )
