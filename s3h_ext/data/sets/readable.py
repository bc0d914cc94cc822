"""Finds image files that cannot be read, and removes them from a data set."""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from s3h_ext.data.dataset import ImageFiles, LongTailDataset
from s3h_ext.data.sets.naming import some
from s3h_ext.data.source.decode import PillowDecoder, Unreadable, decoding_threads

__all__ = ["find_unreadable", "without_unreadable"]

_BLOCK = 16


def find_unreadable(
    files: ImageFiles,
    unreadable: Unreadable,
    *,
    workers: int = 0,
    title: str | None = None,
) -> NDArray[np.int64]:
    """Decode every image once, in threads, and discard the pixels.

    ``unreadable`` records those that cannot be read. ``workers=0`` uses one thread per
    CPU. ``title`` is the title of a progress bar on stderr, if one is wanted.

    Returns:
        Positions of the images that cannot be read, ascending.
    """
    decoder = PillowDecoder(files, unreadable, workers=workers)

    def read(start: int) -> list[int]:
        stop = min(start + _BLOCK, len(files))
        return [i for i in range(start, stop) if decoder.image(i) is None]

    bad: list[int] = []
    # Update a log file only occasionally.
    every = 0.1 if sys.stderr.isatty() else 30.0
    how = {"unit": "image", "disable": title is None, "mininterval": every}
    with (
        tqdm(total=len(files), desc=title, **how) as bar,
        decoding_threads(workers) as pool,
    ):
        for positions in pool.map(read, range(0, len(files), _BLOCK)):
            bad += positions
            bar.update(min(_BLOCK, len(files) - bar.n))
    return np.array(bad, np.int64)


def without_unreadable(
    dataset: LongTailDataset, names: Collection[str]
) -> LongTailDataset:
    """Remove training images, and classes that have none left.

    Unknown names are ignored. All names are listed in ``unreadable``.

    Raises:
        ValueError: fewer than two classes, or no test image, would be left.
    """
    if not names or not isinstance(dataset.train, ImageFiles):
        return dataset
    names, train = set(names), dataset.train
    kept = [i for i in range(len(train)) if train.name(i) not in names]
    train = train.subset(np.array(kept, np.int64))
    counts = np.bincount(train.labels, minlength=dataset.num_classes)
    dataset = replace(dataset, train=train, unreadable=tuple(sorted(names)))
    return dataset if counts.all() else _without_classes(dataset, counts > 0)


def _without_classes(
    dataset: LongTailDataset, present: NDArray[np.bool_]
) -> LongTailDataset:
    names = dataset.class_names
    lost = [names[label] for label in np.flatnonzero(~present)]
    if present.sum() < 2:
        raise ValueError(
            "train: expected readable images of at least two classes, found "
            f"none of {some(lost)}"
        )
    numbers = np.cumsum(present, dtype=np.int64) - 1

    def others(files: ImageFiles) -> ImageFiles:
        part = files.subset(np.flatnonzero(present[files.labels]))
        return replace(part, labels=numbers[part.labels])

    train, val, test = dataset.train, dataset.val, dataset.test
    assert isinstance(train, ImageFiles)
    assert isinstance(test, ImageFiles)
    rest = others(test)
    if not len(rest):
        raise ValueError(
            f"test: all images belong to {some(lost)}, and no training image of these "
            "can be read"
        )
    note = (
        f"left out, because none of their training images can be read: {some(lost)} "
        f"(and {len(test) - len(rest)} test images)"
    )
    return replace(
        dataset,
        train=others(train),
        val=others(val) if isinstance(val, ImageFiles) else val,
        test=rest,
        class_names=tuple(np.array(names, object)[present].tolist()),
        notes=(*dataset.notes, note),
    )
