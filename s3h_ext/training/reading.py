"""Unreadable photographs: found before a run begins and reported in the log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from s3h_ext.data import Feed, ImageFiles, LongTailDataset
from s3h_ext.data.sets.naming import some
from s3h_ext.data.sets.readable import find_unreadable, without_unreadable
from s3h_ext.data.source.decode import UnreadableImageError
from s3h_ext.training.distributed import World

if TYPE_CHECKING:  # imports TensorBoard
    from s3h_ext.training.runlog import RunLog

__all__ = ["LeftOut", "read_once"]


def read_once(dataset: LongTailDataset, feed: Feed, world: World) -> LongTailDataset:
    """Read every photograph once, so that counts exclude unreadable ones.

    Each process reads its part; ``feed.unreadable`` records the failures.

    Returns:
        The data set without unreadable training images. Validation and test images
        remain; unreadable ones are skipped in every evaluation.

    Raises:
        UnreadableImageError: no image of a split can be read.
        ValueError: fewer than two classes have readable training images.
    """
    splits = {"train": dataset.train, "val": dataset.val, "test": dataset.test}
    names: list[str] = []
    notes: list[str] = []
    for split, files in splits.items():
        if not isinstance(files, ImageFiles):
            continue
        own = world.share(len(files))
        part = files.subset(np.arange(own.start, own.stop))
        title = f"reading {split}" if world.first else None
        found = find_unreadable(
            part, feed.unreadable, workers=feed.workers, title=title
        )
        bad = np.concatenate(world.gather(found + own.start))
        if len(bad) == len(files) > 0:
            raise UnreadableImageError(
                f"{split}: none of the {len(files)} images can be read"
            )
        if split == "train":
            names = [files.name(index) for index in bad.tolist()]
        elif lost := _lost(dataset, files, bad):
            notes.append(f"{split}: no readable image of {some(lost)}")
    dataset = without_unreadable(dataset, names)
    return replace(dataset, notes=(*dataset.notes, *notes)) if notes else dataset


def _lost(
    dataset: LongTailDataset, files: ImageFiles, bad: NDArray[np.int64]
) -> list[str]:
    """Return the classes of a split that have images, but no readable ones."""
    readable = np.delete(files.labels, bad)
    lost = np.setdiff1d(files.labels, readable)
    return [dataset.class_names[label] for label in lost.tolist()]


class LeftOut:
    """Reports each image that could not be read, once.

    ``known`` images have been reported before; new ones are added.
    """

    def __init__(self, feed: Feed, known: dict[str, str], world: World) -> None:
        self._feed, self._known, self._world = feed, known, world

    def tell(self, log: RunLog) -> dict[str, str]:
        """Report new images of this process; return all of them."""
        errors = self._feed.unreadable.errors.copy()  # other threads may add to it
        self._report(errors, log.tell)
        return errors

    def note(self, log: RunLog) -> None:
        """Report new images of all processes in the log; all must call it together."""
        for errors in self._world.gather(self.tell(log)):
            self._report(errors, log.note)

    def _report(self, errors: dict[str, str], say: Callable[[str], None]) -> None:
        for path in sorted(errors.keys() - self._known.keys()):
            self._known[path] = errors[path]
            say(f"left out: {path}: {errors[path]}")
