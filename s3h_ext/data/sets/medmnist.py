"""MedMNIST's 2-D sets with one label per image, from their official files.

Yang et al., "MedMNIST v2", Scientific Data 2023. Classes and channels are those of its
``medmnist/info.py``. ChestMNIST is excluded: its images have several labels each.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from s3h_ext.data.dataset import SPLITS, ImageSet
from s3h_ext.data.sets.archive import Archive
from s3h_ext.data.sets.npz import Layout, NpzSplit, read_npz_split
from s3h_ext.data.sets.registry import MEDMNIST_FACTS, find_official

__all__ = ["MEDMNIST", "read_medmnist", "read_medmnist_split"]

#: Name -> class names.
MEDMNIST: Mapping[str, tuple[str, ...]] = {
    name: tuple(facts["classes"]) for name, facts in MEDMNIST_FACTS.items()
}


def read_medmnist(name: str, root: str | Path, size: int | None = None) -> Archive:
    """Read the images of a set of :data:`MEDMNIST`, one byte per pixel and channel.

    Raises:
        ValueError: there is no such size.
        FileNotFoundError: there is no such file.
        ArchiveError: see :func:`~s3h_ext.data.sets.npz.read_npz_split`.
    """
    path = Path(root) / find_official(name, size).file
    sets = {}
    for split in SPLITS:
        part = read_medmnist_split(name, path, split, size=size or 28, keep=True)
        assert part.images is not None
        sets[split] = ImageSet(part.images, part.labels)
    return Archive(sets["train"], sets["test"], MEDMNIST[name], sets["val"])


def read_medmnist_split(
    name: str, path: Path, split: str, *, size: int, keep: bool = False
) -> NpzSplit:
    """Read one split of a file: uint8 ``[N, size, size]`` or ``[..., 3]``.

    Raises:
        FileNotFoundError, ArchiveError: see
            :func:`~s3h_ext.data.sets.npz.read_npz_split`.
    """
    coloured = MEDMNIST_FACTS[name]["channels"] == 3
    shape = (size, size, 3) if coloured else (size, size)
    return read_npz_split(path, split, Layout(len(MEDMNIST[name]), shape), keep=keep)
