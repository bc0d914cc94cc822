"""Images in memory, and long-tailed data sets of them or of files."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from s3h_ext.data.image_files import ImageFiles

__all__ = ["ImageSet", "LongTailDataset"]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images and their labels.

    Attributes:
        images: uint8 ``[N, H, W, C]``.
        labels: int64 ``[N]``.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise ValueError(
                "images: expected uint8 [N, H, W, C], got "
                f"{self.images.dtype} {list(self.images.shape)}"
            )
        if self.labels.dtype != np.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels: expected int64 [{len(self.images)}], got "
                f"{self.labels.dtype} {list(self.labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: NDArray[np.int64]) -> ImageSet:
        """Returns the images at ``indices`` (int64 ``[M]``), in that order."""
        return ImageSet(self.images[indices], self.labels[indices])


@dataclass(frozen=True, eq=False)
class LongTailDataset:
    """A long-tailed training set, an optional part of it to select by, a test set.

    Attributes:
        name: As given to :func:`load_dataset`.
        train: The training images, without those held out in ``val``: an
            :class:`ImageSet` in memory, or an :class:`~.image_files.ImageFiles`, as the
            other two are.
        val: The held-out part of the training set, as long-tailed as it, or a data
            set's own validation images, or ``None``.
        test: The untouched test split; never used to choose anything.
        class_names: One name per class.
        mean: Per channel, of pixels in [0, 1].
        std: Per channel, of pixels in [0, 1].
        notes: What a reader of results should know of the data, a sentence each.
        unreadable: Names of training images that were left out because they cannot be
            read, relative to the root.
    """

    name: str
    train: ImageSet | ImageFiles
    val: ImageSet | ImageFiles | None
    test: ImageSet | ImageFiles
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notes: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def class_counts(self) -> NDArray[np.int64]:
        """Training images per class, int64 ``[C]``, after ``val`` was held out."""
        counts = np.bincount(self.train.labels, minlength=self.num_classes)
        return counts.astype(np.int64)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width, channels; for photographs those of their views."""
        if isinstance(self.train, ImageFiles):
            return self.train.side, self.train.side, self.train.channels
        _, height, width, channels = self.train.images.shape
        return height, width, channels
