"""Image folders with one sub-folder per class."""

from __future__ import annotations

import errno
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from s3h_ext.data.dataset import SPLITS, ImageFiles, LongTailDataset
from s3h_ext.data.longtail import hold_out, pick_subset, sorted_profile
from s3h_ext.data.sets.lists import IMAGENET
from s3h_ext.data.sets.naming import check_classes, some
from s3h_ext.data.sets.own_lists import label_by_pattern, read_own_lists

__all__ = [
    "EXTENSIONS",
    "TEST_FRACTION",
    "class_folders",
    "image_names",
    "read_folder",
    "read_image_folder",
    "split_folders",
]

#: Fraction of images held out for testing if a folder has no test split.
TEST_FRACTION = 0.2
# The held-out test images are always the same.
_TEST_SEED = 0

#: Extensions of image files; other files are ignored.
EXTENSIONS = frozenset(
    ".jpg .jpeg .png .bmp .webp .tif .tiff .gif .ppm .pgm .jfif".split()
)

# As whole words: seg_train, Test, val2017.
_TRAIN = re.compile(r"(?:.*[\W\d_])?train(?:ing)?(?:[\W\d_].*)?")
_OTHER = re.compile(
    r"(?:.*[\W\d_])?(?:val|valid|validation|test|testing|dev|eval)(?:[\W\d_].*)?"
)
_BESIDE_TRAIN = re.compile(r"(?:val|valid|validation|test|testing|dev|eval)[\W\d_]*")


def read_image_folder(
    root: Path,
    imbalance: float | None,
    profile: str,
    test_fraction: float | None,
    *,
    lists: Path | None = None,
    pattern: str | None = None,
) -> LongTailDataset:
    """Read the data set ``"folder"`` without opening any image.

    The arguments and errors are those of :func:`~s3h_ext.data.load_dataset`.
    """
    notes: list[str] = []
    folders = {"train": lists or root}
    if lists is not None:
        files, names = read_own_lists(root, lists)
    else:
        folders = split_folders(root)
        if pattern is None:
            names = class_folders(folders["train"])
            files = {
                split: read_folder(folder, names, relative_to=root)
                for split, folder in folders.items()
            }
        else:
            paths = {
                split: (_prefix(folder, root), image_names(folder))
                for split, folder in folders.items()
            }
            files, names = label_by_pattern(root, paths, pattern)
        if beside := passed_over(root):
            notes.append(
                f"ignored, because they are beside {folders['train']}: {some(beside)}"
            )
    train = files["train"]
    check_classes(train.labels, names)
    is_root = folders["train"] == root
    nested = None
    if lists is None and pattern is None:
        nested = _nesting_note(train, names, folders["train"], is_root)
    if nested:
        notes.append(nested)
    if "test" not in files:
        test_fraction = TEST_FRACTION if test_fraction is None else test_fraction
        try:
            kept, held = hold_out(
                train.labels,
                fraction=test_fraction,
                seed=_TEST_SEED,
                argument="test_fraction",
            )
        except ValueError as error:
            remedy = f"put them into {root / 'test'}, the training images into "
            remedy += str(root / "train")
            if lists is not None:
                remedy = "list them in test.csv beside train.csv"
            raise ValueError(
                f"{error}; {lists or root} has no test images: {remedy}"
            ) from error
        train, files["test"] = train.subset(kept), train.subset(held)
        notes.append(
            f"{lists or root} has no test split: {len(held)} images, "
            f"{test_fraction:g} of each class, were held out as one"
        )
    elif test_fraction is not None:
        raise ValueError(
            f"test_fraction: {folders.get('test', lists)} already holds the test "
            "images; "
            f"expected None, got {test_fraction}"
        )
    elif lists is None and folders["test"].name == "val":
        notes.append(f"{folders['test']} is the test split")
    for split in ("val", "test"):
        if split in files and len(files[split]) == 0:
            raise ValueError(
                f"{folders[split]}: expected a folder of images for each class, found "
                "none; if its images have no labels, move it elsewhere"
            )
    if imbalance is not None:
        available = np.bincount(train.labels, minlength=len(names)).astype(np.int64)
        counts = sorted_profile(available, imbalance=imbalance, profile=profile)
        train = train.subset(pick_subset(train.labels, counts))
    return LongTailDataset(
        *("folder", train, files.get("val"), files["test"], names),
        *IMAGENET,
        notes=tuple(notes),
    )


def _prefix(folder: Path, root: Path) -> str:
    """Return the prefix of a folder's paths relative to the root."""
    return "" if folder == root else f"{folder.relative_to(root)}/"


def _only_splits(folders: Sequence[str]) -> bool:
    """Return whether all folders are named like splits, one of them for training."""
    names = [name.lower() for name in folders]
    if all(name in SPLITS for name in names):
        return True
    train = [bool(_TRAIN.fullmatch(name)) for name in names]
    rest = [n for n, is_train in zip(names, train, strict=True) if not is_train]
    return any(train) and all(map(_OTHER.fullmatch, rest))


def split_folders(root: Path) -> dict[str, Path]:
    """Return the folders of the splits.

    These are ``root/train`` and, if they exist, ``root/val`` and ``root/test``; or the
    root itself as ``"train"`` if it has no folder ``train``. A ``val`` without a
    ``test`` is returned as ``"test"``, as ImageNet is published.

    Raises:
        FileNotFoundError: ``root`` is not a folder.
        ValueError: ``root`` holds only splits, and none is called ``train``; or a split
            beside ``train`` has another name than these; or ``train`` may be a class.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"root: expected a folder of images, got {root}")
    names = sorted(_folders(root))
    if not (root / "train").is_dir():
        if names and _only_splits(names):
            raise ValueError(
                f"root: expected a folder for each class in {root}, or 'train' and, "
                f"beside it, 'val' and 'test', got {', '.join(map(repr, names))}"
            )
        return {"train": root}
    beside = passed_over(root)
    if stray := [n for n in beside if _BESIDE_TRAIN.fullmatch(n.lower())]:
        raise ValueError(
            f"root: expected 'val' and 'test' beside 'train' in {root}, got "
            f"{', '.join(map(repr, stray))}; rename it, or move it elsewhere to "
            "leave it out"
        )
    if beside and not _folders(root / "train"):
        raise ValueError(
            f"root: {root / 'train'} is taken for the training split and has no folder "
            f"of a class; if 'train' is a class, beside {beside[0]!r}, move all the "
            "classes into one folder that is called 'train'"
        )
    splits = {split: root / split for split in SPLITS if (root / split).is_dir()}
    if "test" not in splits and "val" in splits:
        splits["test"] = splits.pop("val")
    return splits


def passed_over(root: Path) -> list[str]:
    """Return the folders beside ``root/train`` that are not splits, sorted."""
    if not (root / "train").is_dir():
        return []
    return sorted(name for name in _folders(root) if name not in SPLITS)


def class_folders(root: Path) -> tuple[str, ...]:
    """Return the class names: the folders in ``root``, sorted, without hidden ones.

    Raises:
        FileNotFoundError: ``root`` holds fewer than two folders.
    """
    names = _folders(root)
    if len(names) < 2:
        raise FileNotFoundError(
            f"root: expected a folder for each class in {root}, found {len(names)}"
        )
    return tuple(sorted(names))


def _folders(root: Path) -> list[str]:
    with os.scandir(root) as entries:
        return [e.name for e in entries if _is_folder(e) and not e.name.startswith(".")]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno != errno.ELOOP:  # a link to itself is not a folder
            raise
        return False


def read_folder(
    root: Path, classes: Sequence[str], *, relative_to: Path | None = None
) -> ImageFiles:
    """List the images of an image folder, class by class and sorted by name.

    Paths are relative to ``relative_to``, or to ``root``; the index of a name in
    ``classes`` is its label.

    Raises:
        ValueError: ``root`` holds a class that is not in ``classes``.
    """
    unknown = sorted(set(_folders(root)) - set(classes))
    if unknown:
        raise ValueError(
            f"{root}: expected the classes of the training images, got {some(unknown)} "
            "too"
        )
    base = root if relative_to is None else relative_to
    prefix = _prefix(root, base)
    names, labels = [], []
    # On a network drive this takes minutes; who waits at a terminal is told of it.
    how = {"unit": "class", "delay": 2, "leave": False, "disable": None}
    for label, name in enumerate(tqdm(classes, desc=f"listing {root}", **how)):
        images = sorted(image_names(root / name, f"{prefix}{name}/", within=(root,)))
        names += images
        labels += [label] * len(images)
    return ImageFiles.of(base, names, labels)


def image_names(
    folder: Path, prefix: str = "", *, within: Sequence[Path] = ()
) -> Iterator[str]:
    """Yield the images in a folder and its sub-folders, unordered, without hidden ones.

    Links are followed, except back to a folder that contains them (``within``). A name
    is the prefix and the path relative to ``folder``. A missing folder yields nothing.
    """
    if not folder.is_dir() or any(folder.samefile(outer) for outer in within):
        return
    within = (*within, folder)
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                below = f"{prefix}{entry.name}/"
                yield from image_names(folder / entry.name, below, within=within)
            elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                yield prefix + entry.name


def _nesting_note(
    files: ImageFiles, classes: Sequence[str], folder: Path, is_root: bool
) -> str | None:
    """Warn about classes whose images are spread over several sub-folders.

    That is correct for folders by camera or patient. It is wrong if these folders are
    the classes and the root is one level too high.
    """
    depth = len(folder.relative_to(files.root).parts) + 1  # of a class's folder
    parts, deeper, uses = [], [], Counter[str]()
    for label, name in enumerate(classes):
        images = range(*np.searchsorted(files.labels, [label, label + 1]).tolist())
        places = {tuple(files.name(i).split("/")[depth:-1]) for i in images}
        below = os.path.commonprefix(list(places))  # noqa: RUF071  (of tuples)
        inside = {place[len(below)] for place in places if len(place) > len(below)}
        # A single sub-folder means nothing, unless it has the name of a class.
        if len(inside) < 2 and not inside & set(classes):
            continue
        parts.append(
            f"the {len(images)} images of class {name!r} lie in folders below it "
            f"({some(sorted(inside))})"
        )
        deeper.append(str(folder.joinpath(name, *below)))
        uses.update(inside)
    if not parts:
        return None
    if len(parts) > 3:
        parts[3:] = [f"the same in {len(parts) - 3} more classes"]
    text = f"warning: {'; '.join(parts)}: each image has the class of its top folder"
    if like := sorted(uses.keys() & set(classes)):
        text += f". Subfolders with the name of a class: {some(like)}"
    if shared := sorted(name for name, count in uses.items() if count > 1):
        text += f". Several classes have subfolders of the same name: {some(shared)}"
    if not is_root:
        remedy = f"put them directly into {folder}"
    elif len(deeper) == 1:
        remedy = f"the root is too high: give {deeper[0]}"
    else:
        remedy = (
            f"the root is too high: give one of {some(deeper, 3)}, or move all "
            "their folders into one"
        )
    return f"{text}. If these folders are the classes, {remedy}"
