"""One process at a time trains in a run's folder."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path
from typing import IO

__all__ = ["FILE", "lock_folder"]

FILE = ".lock"
_HELD = (errno.EACCES, errno.EAGAIN)


def lock_folder(folder: Path) -> IO[bytes]:
    """Keep other processes from training in a folder for as long as this one does.

    The lock goes with the process, however that ends; what is left is an empty file. A
    file system without locks is not locked.

    Args:
        folder: the run's folder, which exists.

    Returns:
        The file that is locked; closing it ends the lock.

    Raises:
        FileExistsError: another process trains there.
    """
    file = (folder / FILE).open("ab")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _HELD:
            return file
        file.close()
        raise FileExistsError(
            f"output: another process is training in {folder}; wait for its end, or "
            "give another --output"
        ) from None
    return file
