"""One process at a time trains in a run's folder."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path
from typing import IO

from s3h_ext.files import open_to_append

__all__ = ["FILE", "lock_folder", "unlock_folder"]

FILE = ".lock"
_TAKEN = (errno.EACCES, errno.EAGAIN)
# A lock is the process's, and closing any file of it ends it: there is one of a folder.
_held: dict[Path, IO[str]] = {}


def lock_folder(folder: Path) -> None:
    """Keep other processes from training in a folder, until it is unlocked.

    The lock goes with the process, however that ends; what is left is an empty file. A
    file system without locks is not locked.

    Args:
        folder: the run's folder, which exists.

    Raises:
        FileExistsError: another process trains there.
    """
    folder = folder.resolve()
    if folder in _held:
        return
    file = open_to_append(folder / FILE)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            file.close()
            raise FileExistsError(
                f"output: another process is training in {folder}; wait for its end, "
                "or give another --output"
            ) from None
    _held[folder] = file


def unlock_folder(folder: Path) -> None:
    """Let other processes train in a folder that this one has locked."""
    if file := _held.pop(folder.resolve(), None):
        file.close()
