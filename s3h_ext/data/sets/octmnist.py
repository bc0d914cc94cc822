"""Reads the OCTMNIST files of MedMNIST, which are zip files of plain numpy arrays."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from s3h_ext.data.dataset import ImageSet
from s3h_ext.data.sets.archive import Archive, ArchiveError
from s3h_ext.data.sets.registry import find_official

__all__ = ["OCT_CLASSES", "SPLITS", "NpzSplit", "read_octmnist", "read_octmnist_split"]

OCT_CLASSES = (
    "choroidal neovascularization",
    "diabetic macular edema",
    "drusen",
    "normal",
)
SPLITS = ("train", "val", "test")
# The largest split has 97,477; what claims far more is not OCTMNIST.
_MAX_IMAGES = 200_000
_BLOCK = 512


@dataclass(frozen=True, eq=False)
class NpzSplit:
    """One split: labels ``[N]``, the histogram of its pixels, images if they were kept.

    The histogram is int64 ``[1, 256]``, the images are uint8 ``[N, size, size, 1]``.
    """

    labels: NDArray[np.int64]
    histogram: NDArray[np.int64]
    images: NDArray[np.uint8] | None


def read_octmnist(root: str | Path, size: int | None = None) -> Archive:
    """Reads the images of an OCTMNIST file, one byte a pixel.

    The official validation split is not read: what is held out is cut from the
    long-tailed training images, so that it is as long-tailed as they are.

    Args:
        root: Folder of the ``.npz`` file.
        size: Side of the images: 28 (``None``), 64, 128 or 224.

    Raises:
        ValueError: there is no such size.
        FileNotFoundError: no such file.
        ArchiveError: see :func:`read_octmnist_split`.
    """
    path = Path(root) / find_official("octmnist", size).file
    splits = []
    for name in ("train", "test"):
        split = read_octmnist_split(path, name, size=size or 28, keep=True)
        assert split.images is not None
        splits.append(ImageSet(split.images, split.labels))
    train, test = splits
    return Archive(train, test, OCT_CLASSES)


def read_octmnist_split(
    path: Path, split: str, *, size: int, keep: bool = False
) -> NpzSplit:
    """Reads one split of an OCTMNIST file, some images at a time.

    Every byte passes the zip file's checksums. No pickle is looked at.

    Raises:
        FileNotFoundError: no such file.
        ArchiveError: the file is damaged, or does not hold uint8 images
            ``[N, size, size]`` and uint8 labels ``[N, 1]`` in 0 .. 3.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(path, archive, split, size, keep)
    except ArchiveError:
        raise
    except Exception as error:  # a damaged file can fail anywhere in the reader
        raise ArchiveError(
            f"{path}: damaged or not an .npz file ({type(error).__name__}: {error})"
        ) from error


def _read(
    path: Path, archive: zipfile.ZipFile, split: str, size: int, keep: bool
) -> NpzSplit:
    wanted = [f"{part}_{kind}" for part in SPLITS for kind in ("images", "labels")]
    missing = [key for key in wanted if f"{key}.npy" not in archive.namelist()]
    if missing:
        raise ArchiveError(f"{path}: expected the arrays {', '.join(missing)} in it")
    key = f"{split}_labels"
    with _array(path, archive, key) as (file, shape):
        if len(shape) != 2 or shape[1] != 1 or not 0 < shape[0] <= _MAX_IMAGES:
            raise ArchiveError(f"{path}: {key}: expected uint8 [N, 1], got {shape}")
        count = shape[0]
        labels = np.frombuffer(_exactly(file, count), np.uint8).astype(np.int64)
    if labels.max() >= len(OCT_CLASSES):
        raise ArchiveError(
            f"{path}: {key}: expected labels 0 .. {len(OCT_CLASSES) - 1}, got "
            f"{labels.max()}"
        )
    key = f"{split}_images"
    histogram = np.zeros((1, 256), np.int64)
    with _array(path, archive, key) as (file, shape):
        if shape != (count, size, size):
            raise ArchiveError(
                f"{path}: {key}: expected uint8 {(count, size, size)}, got {shape}"
            )
        # Memory is taken as it is written to, so a false shape takes none.
        images = np.empty((count, size, size, 1), np.uint8) if keep else None
        for start in range(0, count, _BLOCK):
            part = min(_BLOCK, count - start)
            pixels = np.frombuffer(_exactly(file, part * size * size), np.uint8)
            histogram += np.bincount(pixels, minlength=256)
            if images is not None:
                images[start : start + part] = pixels.reshape(part, size, size, 1)
        if file.read(1):
            raise ArchiveError(f"{path}: {key}: longer than its shape")
    return NpzSplit(labels, histogram, images)


@contextmanager
def _array(
    path: Path, archive: zipfile.ZipFile, key: str
) -> Iterator[tuple[IO[bytes], tuple[int, ...]]]:
    """Opens an array behind its header; checks that it is uint8 in C order."""
    with archive.open(f"{key}.npy") as file:
        version = np.lib.format.read_magic(file)
        reader: Any = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if reader is None:
            raise ArchiveError(f"{path}: {key}: unknown numpy format {version}")
        shape, fortran, dtype = reader(file)
        if dtype != np.uint8:
            raise ArchiveError(f"{path}: {key}: expected uint8, got {dtype}")
        if fortran and len(shape) > 1:
            raise ArchiveError(
                f"{path}: {key}: expected C order, got Fortran order; save it again "
                "after numpy.ascontiguousarray"
            )
        yield file, shape


def _exactly(file: IO[bytes], count: int) -> bytes:
    content = file.read(count)
    if len(content) != count:
        raise EOFError("an array is shorter than its shape")
    return content
