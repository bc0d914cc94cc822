"""Addresses and checksums of the official files.

CIFAR: https://www.cs.toronto.edu/~kriz/cifar.html. MedMNIST v2 (Yang et al., Scientific
Data 2023): Zenodo record 10519652, addresses and checksums of its ``medmnist/info.py``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from s3h_ext.checks import check_choice

__all__ = [
    "MEDMNIST_SIZES",
    "OFFICIAL_FILES",
    "OfficialFile",
    "find_official",
    "md5_of",
]

MEDMNIST_SIZES = (28, 64, 128, 224)


@dataclass(frozen=True)
class OfficialFile:
    """A file to download.

    Attributes:
        name: As on the command line.
        url: The official address.
        file: Its name on the disk.
        md5: Its checksum.
        folder: What the archive unpacks to; ``None`` where the file is used as it is.
        members: The files in that folder that are needed -> their checksums.
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
#: Checksums of the files in MEDMNIST_SIZES.
_MEDMNIST = {
    "pathmnist": (
        "a8b06965200029087d5bd730944a56c1",
        "55aa9c1e0525abe5a6b9d8343a507616",
        "ac42d08fb904d92c244187169d1fd1d9",
        "2c51a510bcdc9cf8ddb2af93af1eadec",
    ),
    "dermamnist": (
        "0744692d530f8e62ec473284d019b0c7",
        "b70a2f5635c6199aeaa28c31d7202e1f",
        "2defd784463fa5243564e855ed717de1",
        "8974907d8e169bef5f5b96bc506ae45d",
    ),
    "octmnist": (
        "c68d92d5b585d8d81f7112f81e2d0842",
        "e229e9440236b774d9f0dfef9d07bdaf",
        "0a97e76651ace45c5d943ee3f65b63ae",
        "abc493b6d529d5de7569faaef2773ba3",
    ),
    "pneumoniamnist": (
        "28209eda62fecd6e6a2d98b1501bb15f",
        "8f4eceb4ccffa70c672198ea285246c6",
        "05b46931834c231683c68f40c47b2971",
        "d6a3c71de1b945ea11211b03746c1fe1",
    ),
    "retinamnist": (
        "bd4c0672f1bba3e3a89f0e4e876791e4",
        "afda852cc34dcda56f86ad2b2457dbcc",
        "e48e916a24454daf90583d4e6efb1a18",
        "eae7e3b6f3fcbda4ae613ebdcbe35348",
    ),
    "breastmnist": (
        "750601b1f35ba3300ea97c75c52ff8f6",
        "742edef2a1fd1524b2efff4bd7ba9364",
        "363e4b3f8d712e9b5de15470a2aaadf1",
        "b56378a6eefa9fed602bb16d192d4c8b",
    ),
    "bloodmnist": (
        "7053d0359d879ad8a5505303e11de1dc",
        "2b94928a2ae4916078ca51e05b6b800b",
        "adace1e0ed228fccda1f39692059dd4c",
        "b718ff6835fcbdb22ba9eacccd7b2601",
    ),
    "tissuemnist": (
        "ebe78ee8b05294063de985d821c1c34b",
        "123ece2eba09d0aa5d698fda57103344",
        "61b955355d7425a89687b06cca3ce0c2",
        "b077128c4a949f0a4eb01517f9037b9c",
    ),
    "organamnist": (
        "68e3f8846a6bd62f0c9bf841c0d9eacc",
        "2dcccc29b88e6da5a01161ef20cda288",
        "eeae80d0a227a8d099027e1b3cfd3b60",
        "50747347e05c87dd3aaf92c49f9f3170",
    ),
    "organcmnist": (
        "b9ceb9546e10131b32923c5bbeaea2b1",
        "3ce34a8724ea6f548e6db4744d03b6a9",
        "773c1f009daa3fe5d9a2a201b2a7ed94",
        "050f5e875dc056f6768abf94ec9995d1",
    ),
    "organsmnist": (
        "9ab87b696fb54e2a387ebe992d6ed5f1",
        "53a6d115339d874c25e309a994ff46d3",
        "ded0c5fa01a95dc4978b956f613e9b8e",
        "b354719e553fbbb2513d5533f52a4cb1",
    ),
}

#: (name, image size) -> where it comes from; CIFAR has one size, 32.
OFFICIAL_FILES: Mapping[tuple[str, int], OfficialFile] = {
    **{(source.name, 32): source for source in _CIFAR},
    **{
        (name, size): OfficialFile(
            name, f"{_ZENODO}/{file}?download=1", file=file, md5=md5
        )
        for name, sums in _MEDMNIST.items()
        for size, md5 in zip(MEDMNIST_SIZES, sums, strict=True)
        for file in [f"{name}{'' if size == 28 else f'_{size}'}.npz"]
    },
}


def find_official(name: str, size: int | None = None) -> OfficialFile:
    """Returns the official file of a data set; without a size that of the smallest.

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


def md5_of(path: Path) -> str:
    """Returns the MD5 of a file, as 32 hexadecimal digits."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
