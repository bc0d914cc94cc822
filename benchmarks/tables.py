"""Results as CSV files that grow."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path


def append(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Adds rows of the same columns to a table, which is made with the first ones.

    Raises:
        ValueError: the table has other columns.
    """
    columns, new = list(rows[0]), not path.exists()
    if not new:
        with path.open(newline="", encoding="utf-8") as stream:
            header = next(csv.reader(stream), [])
        if header != columns:
            raise ValueError(
                f"{path}: expected the columns {','.join(columns)}, got "
                f"{','.join(header)}"
            )
    with path.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)
