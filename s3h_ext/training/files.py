"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file or nothing: the name appears when the content is complete."""
    write_pieces(path, [content])


def write_pieces(path: Path, pieces: Iterable[bytes]) -> None:
    """Do the same with what comes piece by piece and need not fit in memory.

    What there is when ``pieces`` raise is left in a file whose name ends in
    ``.partial``.
    """
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.writelines(pieces)
    os.replace(partial, path)


def write_text(path: Path, text: str) -> None:
    r"""Write text in UTF-8, as :func:`write_bytes` does.

    What is no UTF-8 in the name of a file or class is written out, as ``\udce9``.
    """
    write_bytes(path, text.encode(errors="backslashreplace"))
