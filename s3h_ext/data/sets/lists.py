"""The standard lists of ImageNet-LT, Places-LT and iNaturalist 2018.

A list has one image per line, ``relative/path.JPEG label``. Those of ImageNet-LT and
Places-LT are from Liu et al. ("Large-scale long-tailed recognition in an open world",
CVPR 2019), that of iNaturalist 2018 is the challenge's own split; git blob hashes
identify the standard files.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from s3h_ext.data.dataset import ImageFiles, LongTailDataset
from s3h_ext.data.sets.naming import check_classes

__all__ = [
    "LISTED",
    "blob_hash",
    "check_below",
    "list_rows",
    "parse_list",
    "read_listed",
    "shared_names",
]


@dataclass(frozen=True)
class ListFile:
    """One list: its file name, and the line count and git hash of the standard file.

    ``blob`` is ``None`` if the hash is not known.
    """

    file: str
    images: int
    blob: str | None


@dataclass(frozen=True)
class ListedDataset:
    """A data set that is defined by lists.

    Attributes:
        classes: Number of classes.
        lists: ``"train"``, ``"test"`` and, if there is one, ``"val"``.
        mean: Mean of each channel, for pixels in [0, 1], as in published baselines.
        std: Standard deviation of each channel.
        layout: Expected contents of the root, as text for the user.
    """

    classes: int
    lists: Mapping[str, ListFile]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    layout: str


#: Mean and standard deviation of ImageNet's images.
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

#: The data sets by name.
LISTED = {
    "imagenet-lt": ListedDataset(
        1000,
        {
            "train": ListFile(
                "ImageNet_LT_train.txt",
                115_846,
                "a063f095fcd475db4cf8b0658c4b73955535bbf9",
            ),
            "val": ListFile(
                "ImageNet_LT_val.txt",
                20_000,
                "3ed3188b2f44829ce2dec1cc27040d8d40984088",
            ),
            "test": ListFile(
                "ImageNet_LT_test.txt",
                50_000,
                "76a2fb9749d6cd29e765cc4f8c270f2504131e2f",
            ),
        },
        *IMAGENET,
        "train/n01440764/n01440764_190.JPEG and "
        "val/n01440764/ILSVRC2012_val_00029930.JPEG (ILSVRC 2012)",
    ),
    "inat18": ListedDataset(
        8142,
        {
            "train": ListFile(
                "iNaturalist18_train.txt",
                437_513,
                "4accdb7584d2f0a5106c40a33ed6afa392189bcc",
            ),
            # Published tables test on the challenge's validation images.
            "test": ListFile(
                "iNaturalist18_val.txt",
                24_426,
                "4c23900857fd0f5adcd4cc0dffef345039eeb05f",
            ),
        },
        (0.466, 0.471, 0.380),
        (0.195, 0.194, 0.192),
        "train_val2018/Plantae/7291/*.jpg (iNaturalist 2018)",
    ),
    "places-lt": ListedDataset(
        365,
        {
            "train": ListFile(
                "Places_LT_train.txt",
                62_500,
                "6392252f8ae867bc8a5e841cc1b29e5b8ef4b636",
            ),
            "val": ListFile(
                "Places_LT_val.txt",
                7_300,
                "b93a2ca58ccb7f3b671c176f395a70bf52c95533",
            ),
            "test": ListFile("Places_LT_test.txt", 36_500, None),
        },
        *IMAGENET,
        "train/airfield/00004851.jpg and the same for val (Places365-Standard)",
    ),
}


def read_listed(name: str, root: Path, folder: Path) -> LongTailDataset:
    """Read a data set of :data:`LISTED`; opens no image.

    Paths are relative to ``root``; the lists are in ``folder``.

    Raises:
        ValueError: a list is unusable, or splits share images.
        FileNotFoundError: a list, or the first image of one, does not exist.
    """
    spec = LISTED[name]
    files, hashes, notes = {}, {}, []
    for split, standard in spec.lists.items():
        path = folder / standard.file
        if not path.is_file():
            continue
        content = path.read_bytes()
        hashes[split] = blob_hash(content)
        if standard.blob is not None and hashes[split] != standard.blob:
            notes.append(f"{path.name} is not the standard list (hashes differ)")
        files[split] = parse_list(content, path, root, spec.classes)
    _untangle(spec, files, hashes, notes)
    for split in ("train", "test"):
        if split not in files:
            raise FileNotFoundError(
                f"{name}: expected {spec.lists[split].file} in {folder}; "
                "see docs/photographs.md for where to get it"
            )
    for split, images in files.items():
        if not images.path(0).is_file():
            raise FileNotFoundError(
                f"{name}: expected the image {images.path(0)}, the first of the "
                f"{split} list; {root} must hold {spec.layout}"
            )
    names = _names_from_paths(files["train"], spec.classes)
    check_classes(files["train"].labels, names)
    return LongTailDataset(
        name,
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
    """Keep test images out of training and out of the split used for selection.

    Some repositories ship ImageNet-LT's 50,000-line test list under the name of the
    20,000-line val list: selecting a model on it means selecting on test images.
    """
    val, test = spec.lists.get("val"), spec.lists["test"]
    if val and "val" in files and hashes["val"] in (test.blob, hashes.get("test")):
        files.setdefault("test", files["val"])
        del files["val"]
        notes.append(
            f"{val.file} holds the test list: it is used only for testing, and there "
            "is no validation split"
        )
    for first, second in combinations(files, 2):
        if shared := shared_names(files[first], files[second]):
            raise ValueError(
                f"{spec.lists[second].file}: expected no image of the {first} list, "
                f"got {len(shared)}, such as {os.fsdecode(min(shared))}"
            )


def shared_names(first: ImageFiles, second: ImageFiles) -> set[bytes]:
    """Return the paths that both sets of files contain."""

    def names(files: ImageFiles) -> set[bytes]:
        ends = (files.starts + files.lengths).tolist()
        return {
            files.names[a:b] for a, b in zip(files.starts.tolist(), ends, strict=True)
        }

    return names(first) & names(second)


def _names_from_paths(files: ImageFiles, classes: int) -> tuple[str, ...]:
    """Name each class by the folder of its first image, if these names differ."""
    labels, first = np.unique(files.labels, return_index=True)
    names = [str(label) for label in range(classes)]
    for label, index in zip(labels.tolist(), first.tolist(), strict=True):
        names[label] = Path(files.name(index)).parent.name
    if len(set(names)) < classes:
        return tuple(str(label) for label in range(classes))
    return tuple(names)


def blob_hash(content: bytes) -> str:
    """Return the hash that ``git hash-object`` prints for this content.

    Example:
        >>> blob_hash(b"")
        'e69de29bb2d1d6434b8b29ae775ad8c2e48c5391'
    """
    digest = hashlib.sha1(usedforsecurity=False)
    digest.update(b"blob %d\0" % len(content))
    digest.update(content)
    return digest.hexdigest()


def parse_list(
    content: bytes, path: Path, root: Path, num_classes: int | None = None
) -> ImageFiles:
    """Parse a list; paths may contain spaces, the label follows the last one.

    Args:
        content: Content of the list file, UTF-8 (or the file system's encoding).
        path: Path of the list file, for messages.
        root: Folder that the list's paths are relative to.
        num_classes: C: labels must be in 0 .. C - 1. ``None`` for no bound.

    Raises:
        ValueError: a line is not ``path label``, its label is out of range, its path
            leaves the root, or there are no lines; the message has file and line.
    """
    names, labels = [], []
    for row, name, label in list_rows(path, content.decode("utf-8", "surrogateescape")):
        if not (label.isascii() and label.isdigit()):
            line = f"{name} {label}"[:100]
            raise ValueError(f"{path}, line {row}: expected 'path label', got {line!r}")
        if num_classes is not None and int(label) >= num_classes:
            raise ValueError(
                f"{path}, line {row}: expected a label of 0 .. {num_classes - 1}, got "
                f"{int(label)}"
            )
        check_below(path, row, name)
        names.append(name)
        labels.append(int(label))
    if not labels:
        raise ValueError(f"{path}: expected an image in each line, got an empty list")
    return ImageFiles.of(root, names, labels)


def list_rows(path: Path, text: str) -> Iterator[tuple[int, str, str]]:
    """Yield the number, the path and the label of each line, split at the last space.

    Raises:
        ValueError: a line is a single word.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        parts = line.rsplit(None, 1)
        if len(parts) == 1:
            raise ValueError(
                f"{path}, line {number}: expected 'path label', got {line[:100]!r}"
            )
        if parts:
            yield number, parts[0], parts[1]


def check_below(path: Path, row: int, name: str) -> None:
    """Reject the path of an image that leaves the root."""
    if os.path.isabs(name) or ".." in name.split("/"):
        raise ValueError(
            f"{path}, line {row}: expected a path below the root, got {name!r}"
        )
