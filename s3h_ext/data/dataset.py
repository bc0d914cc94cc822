"""Sets of images in memory or in files, and long-tailed data sets made of them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from s3h_ext.checks import COUNT, check

__all__ = ["SPLITS", "ImageFiles", "ImageSet", "LongTailDataset"]

SPLITS = ("train", "val", "test")


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
        """Return the images at ``indices`` (int64 ``[M]``), in that order."""
        return ImageSet(self.images[indices], self.labels[indices])


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Image files and their labels; files are opened only when needed.

    All paths share one byte string, which subsets share too: a million of them take
    about 80 MB, instead of 200 MB as Python objects.

    Attributes:
        root: Folder that the paths are relative to.
        names: All paths joined, as file-system bytes.
        starts: int64 ``[N]``, position of each path in ``names``.
        lengths: int64 ``[N]``, length of each path in bytes.
        labels: int64 ``[N]``.
        side: Height and width of their views in pixels.

    Example:
        >>> files = ImageFiles.of("photos", ["cat/1.jpg", "dog/2.jpg"], [0, 1])
        >>> files.subset(np.array([1])).name(0), len(files)
        ('dog/2.jpg', 2)
    """

    #: Every image is decoded to RGB.
    channels: ClassVar[int] = 3

    root: Path
    names: bytes
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    labels: NDArray[np.int64]
    side: int = 224

    def __post_init__(self) -> None:
        check(COUNT, size=self.side)
        for field in ("starts", "lengths", "labels"):
            array = getattr(self, field)
            if array.dtype != np.int64 or array.shape != (len(self.labels),):
                raise ValueError(
                    f"{field}: expected int64 [{len(self.labels)}], got "
                    f"{array.dtype} {list(array.shape)}"
                )

    @classmethod
    def of(
        cls, root: str | Path, names: Iterable[str], labels: Iterable[int]
    ) -> ImageFiles:
        """Return a set of files.

        Args:
            root: Folder that the names are relative to.
            names: N paths.
            labels: N class numbers.

        Raises:
            ValueError: the numbers of labels and names differ.
        """
        encoded = [os.fsencode(name) for name in names]
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        return cls(
            Path(root),
            b"".join(encoded),
            lengths.cumsum() - lengths,
            lengths,
            np.fromiter(labels, np.int64),
        )

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Return the path of an image, relative to the root."""
        start = int(self.starts[index])
        return os.fsdecode(self.names[start : start + int(self.lengths[index])])

    def path(self, index: int) -> Path:
        """Return the path of an image."""
        return self.root / self.name(index)

    def subset(self, indices: NDArray[np.int64]) -> ImageFiles:
        """Return the files at ``indices`` (int64 ``[M]``), in that order."""
        return ImageFiles(
            self.root,
            self.names,
            self.starts[indices],
            self.lengths[indices],
            self.labels[indices],
            self.side,
        )


@dataclass(frozen=True, eq=False)
class LongTailDataset:
    """A long-tailed training set, an optional validation set, and a test set.

    Attributes:
        name: Name given to :func:`load_dataset`.
        train: Training images, without those held out in ``val``: an :class:`ImageSet`
            in memory or an :class:`ImageFiles`, as for the other splits.
        val: Images held out of the training set, with the same class proportions, or a
            data set's own validation images, or ``None``.
        test: Test images; never used to choose anything.
        class_names: One name per class.
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel, for pixels in [0, 1].
        notes: Remarks about the data for readers of results, one sentence each.
        unreadable: Training images left out because they cannot be read: their names
            relative to the root.
        indices: int64 ``[N]``, positions in the training split of the archive that the
            images come from; ``None`` for others.
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
    indices: NDArray[np.int64] | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def class_counts(self) -> NDArray[np.int64]:
        """Training images per class, int64 ``[C]``, without those in ``val``."""
        counts = np.bincount(self.train.labels, minlength=self.num_classes)
        return counts.astype(np.int64)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels; for photographs, those of their views."""
        if isinstance(self.train, ImageFiles):
            return self.train.side, self.train.side, self.train.channels
        _, height, width, channels = self.train.images.shape
        return height, width, channels
