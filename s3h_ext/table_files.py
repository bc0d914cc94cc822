"""CSV that a spreadsheet takes for text where it is text.

A cell that begins with ``=``, ``+``, ``-``, ``@`` or a control character is a formula
to a spreadsheet, and names of classes and files come from anywhere. Such text gets an
apostrophe before it, and reading takes that away again. Numbers stay as they are.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from typing import Any

__all__ = ["format_row", "format_rows", "plain_text"]

# Text that has apostrophes before that already gets one more, so both ways are exact.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")


def format_row(cells: Iterable[Any]) -> str:
    r"""Return a line of CSV; text of ``cells`` is no formula in it.

    Example:
        >>> format_row(["=1+1", -1, "a,b"])
        '\'=1+1,-1,"a,b"\n'
    """
    text = io.StringIO(newline="")
    # With both in the end of a line, text that has one of them is quoted.
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
