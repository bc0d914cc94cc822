"""What a checkpoint file must be before PyTorch may open it.

``torch.load(weights_only=True)`` executes no foreign code, but it does what a hostile
file asks within its own list of names: ``bytearray(2**40)`` is on that list. So the
instructions in the file are run first by a machine that only counts, with stand-ins in
place of tensors.
"""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from s3h_ext.data.sets.pickles import PlainUnpickler
from s3h_ext.text import describe_value

__all__ = ["audit_checkpoint", "is_plain"]

_LOCAL_FILE = b"PK\x03\x04"
_STORAGES = {
    name: torch.empty(0, dtype=dtype).element_size()
    for name, dtype in {
        "BFloat16Storage": torch.bfloat16,
        "BoolStorage": torch.bool,
        "ByteStorage": torch.uint8,
        "CharStorage": torch.int8,
        "DoubleStorage": torch.float64,
        "FloatStorage": torch.float32,
        "HalfStorage": torch.float16,
        "IntStorage": torch.int32,
        "LongStorage": torch.int64,
        "ShortStorage": torch.int16,
    }.items()
}


class _Inert(dict[Any, Any]):
    """Stands for a tensor or an ordered dictionary; forgets its state."""

    def __setstate__(self, state: object) -> None:
        pass


class _Maker:
    """Stands for what makes one."""

    __slots__ = ()

    def __call__(self, *arguments: object) -> _Inert:
        return _Inert()

    def __setstate__(self, state: object) -> None:
        raise ValueError("state set on a global")


_ALLOWED: Mapping[tuple[str, str], object] = {
    ("collections", "OrderedDict"): _Maker(),
    ("torch._utils", "_rebuild_tensor_v2"): _Maker(),
    ("torch._utils", "_rebuild_parameter"): _Maker(),
    **{("torch", name): size for name, size in _STORAGES.items()},
}


class _Auditor(PlainUnpickler):
    def __init__(self, content: bytes, records: Mapping[str, int]) -> None:
        super().__init__(content, _ALLOWED)
        self._records = records

    def persistent_load(self, pid: Any) -> Any:
        """Checks a storage's claim against the record that holds it."""
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage"):
            raise ValueError("a persistent object that is no storage")
        _, width, key, _, count = pid
        held = self._records.get(f"data/{key}") if isinstance(key, str) else None
        if held is None:
            raise ValueError(f"there is no storage {describe_value(key)}")
        if type(width) is not int or type(count) is not int or width * count != held:
            raise ValueError(f"storage {key} does not have the size it claims")
        return _Inert()


def audit_checkpoint(path: Path) -> None:
    """Raises unless ``path`` is sound and asks for nothing but plain state.

    Every byte is read once, for the checksums.

    Raises:
        ValueError: a checksum is wrong, or the file is not laid out as ``torch.save``
            does it: stored records, one ``data.pkl``, known names in it, storages as
            large as they claim.
        Exception: almost any other: not such a file at all.
    """
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        # PyTorch looks at the start of a file, zipfile at its end.
        if file.read(len(_LOCAL_FILE)) != _LOCAL_FILE:
            raise ValueError("there is something before the archive")
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("a record is compressed")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError("the records claim more than the file holds")
        # PyTorch ignores case when it looks for a record.
        names = Counter(entry.filename.lower() for entry in entries)
        if any(count > 1 for count in names.values()):
            raise ValueError("a record is there twice")
        if len({name.partition("/")[0] for name in names}) != 1:
            raise ValueError("expected all records in one folder")
        damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"the checksum of {damaged} is wrong")
        records = {entry.filename.partition("/")[2]: entry for entry in entries}
        if "data.pkl" not in records:
            raise ValueError("expected a record data.pkl")
        _Auditor(
            archive.read(records["data.pkl"]),
            {name: entry.file_size for name, entry in records.items()},
        ).load()


def is_plain(value: object, *, budget: int = 10_000) -> bool:
    """Tells whether ``value`` is small nested options, as YAML can hold them.

    A dictionary that contains itself, or one part many times over, runs out of the
    budget of steps.

    Example:
        >>> is_plain({"optim": {"lr": 0.1}}), is_plain({"lr": object()})
        (True, False)
    """
    stack = [(value, 0)]
    while stack:
        budget -= 1
        item, depth = stack.pop()
        if budget < 0 or depth > 20:
            return False
        if isinstance(item, dict):
            if not all(isinstance(key, str) for key in item):
                return False
            stack += [(part, depth + 1) for part in item.values()]
        elif isinstance(item, (list, tuple)):
            stack += [(part, depth + 1) for part in item]
        elif not (item is None or isinstance(item, (bool, int, float, str))):
            return False
    return True
