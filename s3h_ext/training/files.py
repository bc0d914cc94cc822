"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file or nothing: the name appears when the content is complete."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def write_text(path: Path, text: str) -> None:
    r"""Write text in UTF-8, as :func:`write_bytes` does.

    What is no UTF-8 in the name of a file or class is written out, as ``\udce9``.
    """
    write_bytes(path, text.encode(errors="backslashreplace"))
