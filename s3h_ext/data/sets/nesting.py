"""Finds classes with folders in them: the sign of a root one level too high."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from s3h_ext.data.image_files import ImageFiles
from s3h_ext.data.sets.naming import some

__all__ = ["nesting_note"]


@dataclass(frozen=True)
class _Nested:
    """A class whose images lie in several folders.

    Attributes:
        name: Of the class.
        images: How many images it has.
        below: The path from the class's folder to where these folders are.
        folders: Their names, sorted.
    """

    name: str
    images: int
    below: tuple[str, ...]
    folders: list[str]


def nesting_note(
    files: ImageFiles, classes: Sequence[str], folder: Path, *, is_root: bool
) -> str | None:
    """Tells of classes whose images lie in several folders below the class's own.

    The images count as the class's, wherever below it they are. That is right for
    folders by camera or patient, and wrong where these folders are the classes.

    Args:
        files: The training images, class after class.
        classes: Names of the classes.
        folder: Holds the folders of the classes.
        is_root: It is the root, and not a split in it.

    Returns:
        A sentence or two, ``None`` where there is no such class.
    """
    depth = len(folder.relative_to(files.root).parts) + 1  # of a class's folder
    checked = [
        _nested(files, *labelled, classes, depth) for labelled in enumerate(classes)
    ]
    nested = [item for item in checked if item is not None]
    if not nested:
        return None
    parts = [
        f"the {item.images} images of class {item.name!r} lie in folders below it "
        f"({some(item.folders)})"
        for item in nested[:3]
    ]
    if len(nested) > 3:
        parts.append(f"those of {len(nested) - 3} more classes too")
    text = f"warning: {'; '.join(parts)}: each counts as the class it is in"
    uses = Counter(name for item in nested for name in item.folders)
    if like := sorted(uses.keys() & set(classes)):
        text += f". Folders in them have the names of classes: {some(like)}"
    if shared := sorted(name for name, count in uses.items() if count > 1):
        text += f". Several classes hold folders of the same names: {some(shared)}"
    deeper = [str(folder.joinpath(item.name, *item.below)) for item in nested]
    if not is_root:
        remedy = f"put them directly into {folder}"
    elif len(nested) == 1:
        remedy = f"the root is too high: give {deeper[0]}"
    else:
        remedy = (
            f"the root is too high: give one of {some(deeper, 3)}, or put the folders "
            "of all of them into one"
        )
    return f"{text}. If these folders are the classes, {remedy}"


def _nested(
    files: ImageFiles, label: int, name: str, classes: Sequence[str], depth: int
) -> _Nested | None:
    images = range(*np.searchsorted(files.labels, [label, label + 1]).tolist())
    places = {tuple(files.name(i).split("/")[depth:-1]) for i in images}
    below = os.path.commonprefix(list(places))  # noqa: RUF071  (of tuples, not text)
    folders = {place[len(below)] for place in places if len(place) > len(below)}
    # A single folder is no sign of anything, unless it has the name of a class.
    if len(folders) < 2 and not folders & set(classes):
        return None
    return _Nested(name, len(images), tuple(below), sorted(folders))
