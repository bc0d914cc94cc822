"""Addresses and checksums of the official files.

CIFAR: https://www.cs.toronto.edu/~kriz/cifar.html. MedMNIST v2 (Yang et al., Scientific
Data 2023): Zenodo record 10519652, addresses and checksums of its ``medmnist/info.py``.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from s3h_ext.checks import check_choice

__all__ = [
    "MEDMNIST_FACTS",
    "MEDMNIST_SIZES",
    "OFFICIAL_FILES",
    "OfficialFile",
    "download_command",
    "find_official",
    "md5_of",
]

MEDMNIST_SIZES = (28, 64, 128, 224)


@dataclass(frozen=True)
class OfficialFile:
    """A file to download.

    Attributes:
        name: Name on the command line.
        url: Official address.
        file: File name on disk.
        md5: Checksum.
        folder: Folder that the archive unpacks to; ``None`` if it is not unpacked.
        members: Required files in that folder -> their checksums.
    """

    name: str
    url: str
    file: str
    md5: str
    folder: str | None = None
    members: Mapping[str, str] = field(default_factory=dict)


_KRIZ = "https://www.cs.toronto.edu/~kriz"
_ZENODO = "https://zenodo.org/records/10519652/files"

_CIFAR = (
    OfficialFile(
        name="cifar10",
        url=f"{_KRIZ}/cifar-10-python.tar.gz",
        file="cifar-10-python.tar.gz",
        md5="c58f30108f718f92721af3b95e74349a",
        folder="cifar-10-batches-py",
        members={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
            "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
        },
    ),
    OfficialFile(
        name="cifar100",
        url=f"{_KRIZ}/cifar-100-python.tar.gz",
        file="cifar-100-python.tar.gz",
        md5="eb9058c3a382ffc7106e4002c42a8d85",
        folder="cifar-100-python",
        members={
            "train": "16019d7e3df5f24257cddd939b257f8d",
            "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
            "meta": "7973b15100ade9c7d40fb424638fde48",
        },
    ),
)
#: Name -> channels, class names, and the checksum for each image size.
MEDMNIST_FACTS: Mapping[str, Any] = json.loads(
    Path(__file__).with_name("medmnist.json").read_text(encoding="utf-8")
)

#: (name, image size) -> official file; CIFAR has one size, 32.
OFFICIAL_FILES: Mapping[tuple[str, int], OfficialFile] = {
    **{(source.name, 32): source for source in _CIFAR},
    **{
        (name, size): OfficialFile(
            name, f"{_ZENODO}/{file}?download=1", file=file, md5=md5
        )
        for name, facts in MEDMNIST_FACTS.items()
        for size, md5 in zip(MEDMNIST_SIZES, facts["md5"].values(), strict=True)
        for file in [f"{name}{'' if size == 28 else f'_{size}'}.npz"]
    },
}


def find_official(name: str, size: int | None = None) -> OfficialFile:
    """Return the official file of a data set; without ``size`` the smallest one.

    Raises:
        ValueError: there is no such data set, or not in this size.

    Example:
        >>> find_official("octmnist", 64).file
        'octmnist_64.npz'
    """
    sizes = sorted(known for title, known in OFFICIAL_FILES if title == name)
    check_choice("name", name, sorted({title for title, _ in OFFICIAL_FILES}))
    if size is not None and size not in sizes:
        raise ValueError(f"size: {name} comes in {sizes} pixels, got {size}")
    return OFFICIAL_FILES[name, sizes[0] if size is None else size]


def download_command(name: str, root: str | Path, size: int | None) -> str:
    """Return the command that downloads a data set."""
    command = f"python -m s3h_ext.data download {name} --root {shlex.quote(str(root))}"
    return command if size is None else f"{command} --size {size}"


def md5_of(path: Path) -> str:
    """Return the MD5 of a file, as 32 hexadecimal digits."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
