"""The presets: one file of options each, with the published numbers to reproduce.

Nothing here imports PyTorch, so that ``--list`` is fast.
"""

from __future__ import annotations

import csv
from pathlib import Path

ROOT = Path(__file__).parent
PUBLISHED = ROOT / "published.csv"
OTHER_FACTORS = (50, 10)
# Data sets that are subsampled by an imbalance factor.
CUT = ("cifar", "octmnist")
_ABOUT = """\
--preset NAME, as in cifar100-lt/ce. The numbers are published top-1 accuracies in
percent, at imbalance factors 100 (cifar100-lt/ce), 50 (cifar100-lt/ce-if50) and 10.
"""


def preset_names() -> list[str]:
    """Return the names of all presets, such as ``"cifar100-lt/hybrid-psc"``.

    Those of CIFAR and OCTMNIST exist for three imbalance factors: 100 under their plain
    names, 50 and 10 with a suffix, as in ``"cifar100-lt/hybrid-psc-if10"``.
    """
    names = [
        p.relative_to(ROOT).with_suffix("").as_posix() for p in ROOT.rglob("*.yaml")
    ]
    names += [
        f"{name}-if{factor}"
        for name in names
        if name.startswith(CUT)
        for factor in OTHER_FACTORS
    ]
    return sorted(names)


def by_data_set() -> dict[str, list[str]]:
    """Return the methods in each data set's presets, without the factors."""
    found: dict[str, list[str]] = {}
    for name in preset_names():
        data_set, _, method = name.partition("/")
        if "-if" not in method:
            found.setdefault(data_set, []).append(method)
    return found


def preset_list() -> str:
    """Return all presets, one line for each data set."""
    lines = [
        f"{data_set}/: {', '.join(found)}"
        + (" (each also as NAME-if50, NAME-if10)" if data_set.startswith(CUT) else "")
        for data_set, found in by_data_set().items()
    ]
    return "\n".join(lines)


def preset_table() -> str:
    """Return all presets with their published numbers."""
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        published = {row["preset"]: row for row in csv.DictReader(file)}
    lines = []
    for data_set, methods in by_data_set().items():
        factors = ("", *(f"-if{f}" for f in OTHER_FACTORS))
        if not data_set.startswith(CUT):
            factors = ("",)
        head = f"{data_set}/"
        if len(factors) > 1:
            head = f"{head:<22}{'if100':>8}{'-if50':>8}{'-if10':>8}"
        lines += ["", head]
        for method in methods:
            rows = [published.get(f"{data_set}/{method}{end}") for end in factors]
            numbers = [f"{float(row['top1']):.2f}" if row else "-" for row in rows]
            papers = [row["paper"] for row in rows if row]
            cells = "".join(f"{number:>8}" for number in numbers) if papers else ""
            lines.append(
                f"  {method:<20}{cells}  {papers[0] if papers else ''}".rstrip()
            )
    return "\n".join([_ABOUT.rstrip(), *lines, ""])
