"""Reads the unpacked official CIFAR-10 and CIFAR-100 archives.

The archives are pickles, and a pickle can run any code. Here, it can resolve only three
names, which are stand-ins for those in numpy's own pickles; any other name is rejected,
and no numpy parser sees its bytes.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s3h_ext.checks import check_choice
from s3h_ext.data.dataset import ImageSet
from s3h_ext.data.sets.archive import Archive, ArchiveError
from s3h_ext.data.sets.pickles import RefusedGlobalError, load_plain
from s3h_ext.text import describe_value

__all__ = ["LAYOUTS", "find_folder", "read_archive", "read_pickle"]

_SIDE = 32
_ROW = 3 * _SIDE * _SIDE


@dataclass(frozen=True)
class Layout:
    """Names of folder, files and keys in an archive."""

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    labels: str
    names: str
    num_classes: int


#: Kind of archive -> its layout.
LAYOUTS = {
    "cifar10": Layout(
        folder="cifar-10-batches-py",
        train=tuple(f"data_batch_{number}" for number in range(1, 6)),
        test=("test_batch",),
        meta="batches.meta",
        labels="labels",
        names="label_names",
        num_classes=10,
    ),
    "cifar100": Layout(
        folder="cifar-100-python",
        train=("train",),
        test=("test",),
        meta="meta",
        labels="fine_labels",
        names="fine_label_names",
        num_classes=100,
    ),
}


def read_archive(kind: str, root: str | Path) -> Archive:
    """Read an unpacked CIFAR archive, which may hold only a part of the official rows.

    Args:
        kind: ``"cifar10"`` or ``"cifar100"``.
        root: The unpacked folder (``cifar-10-batches-py``, ``cifar-100-python``) or its
            parent.

    Raises:
        ValueError: ``kind`` is unknown.
        FileNotFoundError: the folder or one of its files is missing.
        ArchiveError: a file is truncated, is not such an archive, tries to run code, or
            its images and labels do not match.
    """
    check_choice("kind", kind, LAYOUTS)
    layout = LAYOUTS[kind]
    folder = find_folder(kind, Path(root))
    return Archive(
        _read_split(layout, folder, layout.train),
        _read_split(layout, folder, layout.test),
        _read_names(layout, folder / layout.meta),
    )


def read_pickle(path: str | Path) -> dict[str, Any]:
    """Read a pickled dictionary of lists, numbers, strings and uint8 arrays.

    Strings of Python 2 pickles are returned as ``bytes``; keys always as ``str``.

    Raises:
        FileNotFoundError: there is no such file.
        ArchiveError: the file is truncated or not a pickle, asks for a global that is
            not part of a plain numpy array, or does not hold a dictionary.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        raw = path.read_bytes()
        content = load_plain(raw, _ALLOWED)
    except RefusedGlobalError as error:
        raise ArchiveError(
            f"{path}: the pickle imports {error}; only plain numpy arrays "
            "are allowed, so it was not read further"
        ) from None
    except Exception as error:
        # A broken pickle may raise almost any error; the file is unusable anyway.
        raise ArchiveError(
            f"{path}: truncated or not a pickle of the official archive "
            f"({type(error).__name__}: {error})"
        ) from error
    if not isinstance(content, dict):
        raise ArchiveError(
            f"{path}: expected a pickled dictionary, got {type(content).__name__}"
        )
    return {
        _text(key): value.array if isinstance(value, _Array) else value
        for key, value in content.items()
        if isinstance(key, (bytes, str))
    }


class _Global:
    """Stand-in for a name of numpy that a pickle may call, but not use otherwise."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., object]) -> None:
        self._function = function

    def __call__(self, *arguments: object) -> object:
        return self._function(*arguments)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("state set on a name")


class _Dtype:
    """uint8; the state that numpy pickles with it adds nothing."""

    __slots__ = ()

    def __init__(self, code: object, *flags: object) -> None:
        if code not in (b"u1", "u1", b"|u1", "|u1"):
            raise pickle.UnpicklingError(
                f"expected an array of uint8, got {describe_value(code)}"
            )

    def __setstate__(self, state: object) -> None:
        pass


class _Array:
    """Receives numpy's array state: (version, shape, dtype, Fortran order, bytes)."""

    __slots__ = ("array",)

    def __init__(self, kind: object, shape: object, typecode: object) -> None:
        if kind is not _NDARRAY:
            raise pickle.UnpicklingError("array of an unknown kind")
        self.array: NDArray[np.uint8] = np.empty(0, np.uint8)

    def __setstate__(self, state: object) -> None:
        if not (isinstance(state, tuple) and len(state) == 5):
            raise pickle.UnpicklingError("array with an unknown state")
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _Dtype) or not isinstance(raw, (bytes, str)):
            raise pickle.UnpicklingError("array with an unknown state")
        if not (
            isinstance(shape, tuple)
            and 1 <= len(shape) <= 4
            and all(type(size) is int and size >= 0 for size in shape)
        ):
            raise pickle.UnpicklingError("array with an impossible shape")
        if isinstance(raw, str):
            raw = raw.encode("latin1")
        # Raises before anything is allocated if the bytes do not fill the shape.
        flat = np.frombuffer(raw, np.uint8)
        self.array = flat.reshape(shape, order="F" if fortran else "C")


def _refuse(*arguments: object) -> object:
    raise pickle.UnpicklingError("call of the array type")


_NDARRAY = _Global(_refuse)
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _Global(_Array),
    ("numpy._core.multiarray", "_reconstruct"): _Global(_Array),
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Global(_Dtype),
}


def find_folder(kind: str, root: Path) -> Path:
    """Return the folder of an archive's files: ``root``, or the official one in it.

    Raises:
        FileNotFoundError: a file is missing.
    """
    layout = LAYOUTS[kind]
    if not root.is_dir():
        raise FileNotFoundError(f"root: expected a folder, got {root}")
    wanted = (*layout.train, *layout.test, layout.meta)
    for folder in (root / layout.folder, root):
        if any((folder / name).is_file() for name in wanted):
            missing = [name for name in wanted if not (folder / name).is_file()]
            if missing:
                raise FileNotFoundError(
                    f"{folder}: incomplete archive, missing {', '.join(missing)}"
                )
            return folder
    packed = next(
        (path for path in sorted(root.glob("cifar-*.tar.gz")) if path.is_file()), None
    )
    hint = f"; {packed.name} is in that folder: unpack it" if packed is not None else ""
    raise FileNotFoundError(
        f"root: expected the unpacked folder {layout.folder} (files "
        f"{', '.join(wanted)}) in {root}, or that folder itself{hint}"
    )


def _read_split(layout: Layout, folder: Path, names: tuple[str, ...]) -> ImageSet:
    parts = [_read_part(layout, folder / name) for name in names]
    rows = np.concatenate([images for images, _ in parts])
    images = rows.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)
    labels = np.concatenate([labels for _, labels in parts])
    return ImageSet(np.ascontiguousarray(images), labels)


def _read_part(
    layout: Layout, path: Path
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    content = read_pickle(path)
    for key in ("data", layout.labels):
        if key not in content:
            raise ArchiveError(
                f"{path}: expected the keys data and {layout.labels}, got "
                f"{', '.join(sorted(content))[:200] or 'none'}"
            )
    images, labels = content["data"], content[layout.labels]
    if not isinstance(images, np.ndarray) or images.shape != (len(images), _ROW):
        got = images.shape if isinstance(images, np.ndarray) else type(images).__name__
        raise ArchiveError(f"{path}: data: expected uint8 [N, {_ROW}], got {got}")
    if len(images) == 0:
        raise ArchiveError(f"{path}: data: expected at least one image, got none")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise ArchiveError(f"{path}: {layout.labels}: expected a list of integers")
    if len(labels) != len(images):
        raise ArchiveError(
            f"{path}: {layout.labels}: expected {len(images)} labels, one per image, "
            f"got {len(labels)}"
        )
    wrong = next((x for x in labels if not 0 <= x < layout.num_classes), None)
    if wrong is not None:
        raise ArchiveError(
            f"{path}: {layout.labels}: expected labels 0 .. {layout.num_classes - 1}, "
            f"got {describe_value(wrong)}"
        )
    return images, np.asarray(labels, np.int64)


def _read_names(layout: Layout, path: Path) -> tuple[str, ...]:
    names = read_pickle(path).get(layout.names)
    if (
        not isinstance(names, list)
        or len(names) != layout.num_classes
        or not all(isinstance(name, (bytes, str)) for name in names)
    ):
        raise ArchiveError(
            f"{path}: {layout.names}: expected a list of {layout.num_classes} names"
        )
    return tuple(_text(name) for name in names)


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    return str(value)
