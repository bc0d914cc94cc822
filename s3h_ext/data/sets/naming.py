"""Names of classes and folders in messages: the first few, and how many more."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from s3h_ext.data.dataset import LongTailDataset

__all__ = ["check_classes", "class_lines", "classes_by_size", "empty_classes", "some"]


def some(
    names: Sequence[str], limit: int = 5, *, show: Callable[[str], str] = repr
) -> str:
    """Return the first names in quotes, and how many more there are.

    Example:
        >>> some(["a", "b", "c", "d"], limit=2)
        "'a', 'b' and 2 more"
    """
    shown = ", ".join(map(show, names[:limit]))
    more = len(names) - limit
    return f"{shown} and {more} more" if more > 0 else shown


def classes_by_size(
    counts: NDArray[np.int64], names: Sequence[str], limit: int = 3
) -> str:
    """Return the largest and the smallest ``limit`` classes with their sizes.

    Example:
        >>> classes_by_size(np.array([5, 9, 2]), ["cat", "dog", "owl"], limit=1)
        "'dog' 9, ..., 'owl' 2"
    """
    order = np.argsort(-counts, kind="stable").tolist()
    shown = [f"{names[label]!r} {counts[label]}" for label in order]
    if len(shown) > 2 * limit:
        shown = [*shown[:limit], "...", *shown[-limit:]]
    return ", ".join(shown)


def empty_classes(labels: NDArray[np.int64], classes: Sequence[str]) -> list[str]:
    """Return the names of the classes without an image, for labels int64 ``[N]``."""
    counts = np.bincount(labels, minlength=len(classes))
    return [classes[label] for label in np.flatnonzero(counts == 0).tolist()]


def check_classes(labels: NDArray[np.int64], names: Sequence[str]) -> None:
    """Raise a ValueError if a class has no training image."""
    if missing := empty_classes(labels, names):
        raise ValueError(
            f"train: expected images of every class, found none of {some(missing)}"
        )


def class_lines(dataset: LongTailDataset) -> list[str]:
    """Return lines that let a user check that the right classes were found.

    They show the largest and the smallest classes, and any without test images.
    """
    names, counts = dataset.class_names, dataset.class_counts
    lines = [f"{len(names)} classes: {classes_by_size(counts, names)}"]
    if missing := empty_classes(dataset.test.labels, names):
        lines.append(
            f"no test image of {len(missing)} of {len(names)} classes: {some(missing)}"
        )
    return lines
