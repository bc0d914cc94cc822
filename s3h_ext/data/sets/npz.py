"""Reads images and labels from ``.npz`` files, zip files of plain numpy arrays.

For each split SPLIT a file holds ``SPLIT_images`` and ``SPLIT_labels``. Pickles are
never read, all bytes are verified by the zip file's checksums, and memory is allocated
as data arrive, so a forged shape allocates nothing.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from s3h_ext.data.dataset import SPLITS, ImageSet
from s3h_ext.data.sets.archive import Archive, ArchiveError, histograms

__all__ = ["Layout", "NpzSplit", "read_arrays", "read_npz_split"]

#: The array of class names in a user's file.
_NAMES = "class_names"
# A file that claims more is rejected.
_MAX_IMAGES, _MAX_CLASSES, _MAX_TEXT = 10_000_000, 100_000, 1 << 20
_BLOCK = 512


@dataclass(frozen=True)
class Layout:
    """Expected contents of a file.

    Attributes:
        classes: C, labels are 0 .. C - 1.
        shape: Shape of an image; ``None``: any ``(H, W)``, ``(H, W, 1)`` or
            ``(H, W, 3)``.
    """

    classes: int
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class NpzSplit:
    """One split: labels ``[N]``, pixel histograms, and images if they are kept.

    The histogram is int64 ``[C, 256]``, the images are uint8 ``[N, H, W, C]``, with C
    channels.
    """

    labels: NDArray[np.int64]
    histogram: NDArray[np.int64]
    images: NDArray[np.uint8] | None


def read_npz_split(
    path: Path, split: str, layout: Layout, *, keep: bool = False
) -> NpzSplit:
    """Read one split of a file, some images at a time.

    Raises:
        FileNotFoundError: there is no such file.
        ArchiveError: the file is damaged, or does not hold uint8 images ``[N, ...]``
            and whole numbers ``[N]`` or ``[N, 1]`` as labels.
    """
    with _opened(path) as archive:
        return _read(path, archive, split, layout, keep)


def read_arrays(path: Path) -> Archive:
    """Read a user's file; ``class_names`` and ``val`` are optional.

    Without names, classes are named by their numbers, up to the largest label of the
    training images.

    Raises:
        ValueError: a split is missing or has images of another shape than the training
            images.
        FileNotFoundError, ArchiveError: see :func:`read_npz_split`.
    """
    with _opened(path) as archive:
        held = [
            split for split in SPLITS if f"{split}_images.npy" in archive.namelist()
        ]
        names = None
        if f"{_NAMES}.npy" in archive.namelist():
            names = _read_names(path, archive)
        layout = Layout(_MAX_CLASSES if names is None else len(names))
        splits = {}
        for split in dict.fromkeys(("train", *held, "test")):
            part = _read(path, archive, split, layout, keep=True)
            assert part.images is not None
            splits[split] = ImageSet(part.images, part.labels)
            layout = Layout(
                int(part.labels.max()) + 1
                if names is None and split == "train"
                else layout.classes,
                part.images.shape[1:],
            )
            if layout.classes < 2:
                raise ArchiveError(f"{path}: expected two classes or more, got one")
    if names is None:
        names = tuple(map(str, range(layout.classes)))
    return Archive(splits["train"], splits["test"], names, splits.get("val"))


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except ArchiveError:
        raise
    except Exception as error:  # a damaged file can fail anywhere in the reader
        raise ArchiveError(
            f"{path}: damaged or not an .npz file ({type(error).__name__}: {error})"
        ) from error


def _read(
    path: Path, archive: zipfile.ZipFile, split: str, layout: Layout, keep: bool
) -> NpzSplit:
    wanted = [f"{split}_{kind}" for kind in ("images", "labels")]
    missing = [key for key in wanted if f"{key}.npy" not in archive.namelist()]
    if missing:
        raise ArchiveError(f"{path}: expected the arrays {', '.join(missing)} in it")
    labels = _read_labels(path, archive, f"{split}_labels", layout.classes)
    count, key = len(labels), f"{split}_images"
    with _array(path, archive, key) as (file, shape, dtype):
        expected = layout.shape
        if expected is None and len(shape) in (3, 4):
            expected = shape[1:]
            if min(expected) < 1 or expected[2:] not in ((), (1,), (3,)):
                expected = None
        size = expected or ("height", "width", "1 or 3 channels, or none")
        fits = expected is not None and shape in (
            (count, *expected),
            (count, *expected[:2]) if expected[2:] == (1,) else None,
        )
        if dtype != np.uint8 or not fits or expected is None:
            raise ArchiveError(
                f"{path}: {key}: expected uint8 {(count, *size)}, got {dtype} {shape}"
            )
        height, width, channels = (*expected, 1)[:3]
        histogram = np.zeros((channels, 256), np.int64)
        whole = (count, height, width, channels)
        images = np.empty(whole, np.uint8) if keep else None
        for start in range(0, count, _BLOCK):
            part = min(_BLOCK, count - start)
            content = _exactly(file, part * height * width * channels)
            pixels = np.frombuffer(content, np.uint8).reshape(part, *whole[1:])
            histogram += histograms(pixels)
            if images is not None:
                images[start : start + part] = pixels
        if file.read(1):
            raise ArchiveError(f"{path}: {key}: longer than its shape")
    return NpzSplit(labels, histogram, images)


def _read_labels(
    path: Path, archive: zipfile.ZipFile, key: str, classes: int
) -> NDArray[np.int64]:
    with _array(path, archive, key) as (file, shape, dtype):
        sound = dtype.kind in "iu" and shape[1:] in ((), (1,))
        if not sound or not shape or not 0 < shape[0] <= _MAX_IMAGES:
            raise ArchiveError(
                f"{path}: {key}: expected whole numbers, one for each image, [N] or "
                f"[N, 1], got {dtype} {shape}"
            )
        content = _exactly(file, shape[0] * dtype.itemsize)
        labels = np.frombuffer(content, dtype)
    if not 0 <= labels.min() <= labels.max() < classes:
        raise ArchiveError(
            f"{path}: {key}: expected labels 0 .. {classes - 1}, got {labels.min()} to "
            f"{labels.max()}"
        )
    return labels.astype(np.int64)


def _read_names(path: Path, archive: zipfile.ZipFile) -> tuple[str, ...]:
    with _array(path, archive, _NAMES) as (file, shape, dtype):
        size = shape[0] * dtype.itemsize if len(shape) == 1 else 0
        if dtype.kind != "U" or not 0 < size <= _MAX_TEXT:
            raise ArchiveError(
                f"{path}: {_NAMES}: expected text, one for each class, got {dtype} "
                f"{shape}"
            )
        names = tuple(np.frombuffer(_exactly(file, size), dtype).tolist())
    if len(set(names)) < len(names):
        raise ArchiveError(f"{path}: {_NAMES}: expected names that differ")
    return names


@contextmanager
def _array(
    path: Path, archive: zipfile.ZipFile, key: str
) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype[Any]]]:
    """Open an array and skip its header, checking that it is in C order."""
    with archive.open(f"{key}.npy") as file:
        version = np.lib.format.read_magic(file)
        reader: Any = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if reader is None:
            raise ArchiveError(f"{path}: {key}: unknown numpy format {version}")
        shape, fortran, dtype = reader(file)
        if fortran and len(shape) > 1:
            raise ArchiveError(
                f"{path}: {key}: expected C order, got Fortran order; save it again "
                "after numpy.ascontiguousarray"
            )
        yield file, shape, dtype


def _exactly(file: IO[bytes], count: int) -> bytes:
    content = file.read(count)
    if len(content) != count:
        raise EOFError("an array is shorter than its shape")
    return content
