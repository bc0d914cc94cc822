"""CSV whose text cells are not read as formulas by spreadsheets.

Spreadsheets treat a cell that begins with ``=``, ``+``, ``-``, ``@`` or a control
character as a formula, and names of classes and files are untrusted. Such text gets a
leading apostrophe, which reading removes again. Numbers do not change.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from typing import Any

__all__ = ["format_row", "format_rows", "plain_text"]

# Text that already has leading apostrophes gets one more, so reading inverts writing.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")


def format_row(cells: Iterable[Any]) -> str:
    r"""Return a line of CSV in which text ``cells`` are not formulas.

    Example:
        >>> format_row(["=1+1", -1, "a,b"])
        '\'=1+1,-1,"a,b"\n'
    """
    text = io.StringIO(newline="")
    # With both characters in the line end, text that contains either is quoted.
    csv.writer(text, lineterminator="\r\n").writerow(
        f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell
        for cell in cells
    )
    return text.getvalue().removesuffix("\r\n") + "\n"


def format_rows(rows: Iterable[Iterable[Any]]) -> str:
    """Return lines of CSV."""
    return "".join(map(format_row, rows))


def plain_text(cell: str) -> str:
    """Return the text that :func:`format_row` was given.

    Example:
        >>> plain_text("'=1+1")
        '=1+1'
    """
    return cell[1:] if cell[:1] == "'" and _FORMULA.match(cell) else cell
