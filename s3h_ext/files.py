"""Writes files that are either complete or absent."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: the name appears when the content is complete.

    Raises:
        OSError: the disk is full or the folder not writable; an existing file remains.
    """
    try:
        write_pieces(path, [content])
    except BaseException:
        with suppress(OSError):
            _partial(path).unlink(missing_ok=True)
        raise


def write_pieces(path: Path, pieces: Iterable[bytes]) -> None:
    """Like :func:`write_bytes`, but stream pieces, which need not fit in memory.

    If ``pieces`` raises, the pieces written so far remain in a ``.partial`` file.
    """
    partial = _partial(path)
    try:
        with open_new(partial) as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        if error.filename is None:  # a failed write does not name the file
            error.filename = str(path)
        raise


def open_new(path: Path) -> IO[bytes]:
    """Open a file for overwriting; a link of its name is replaced.

    An untrusted folder may contain links to other users' files.
    """
    if path.is_symlink():
        path.unlink()
    return open(path, "wb", opener=_no_link)


def open_to_append(path: Path) -> IO[str]:
    r"""Open a text file for appending; a link of its name is rejected.

    Non-UTF-8 bytes in file or class names are escaped, e.g. ``\udce9``.
    """
    return open(path, "a", encoding="utf-8", errors="backslashreplace", opener=_no_link)


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def write_text(path: Path, text: str) -> None:
    r"""Write text in UTF-8, as :func:`write_bytes` does.

    Non-UTF-8 bytes in file or class names are escaped, e.g. ``\udce9``.
    """
    write_bytes(path, text.encode(errors="backslashreplace"))
