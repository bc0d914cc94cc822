"""The results tables: finished runs beside the published numbers."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s3h_ext.files import write_bytes
from s3h_ext.presets import preset_names
from s3h_ext.runs.folder import RunFolder
from s3h_ext.runs.title import option_changes

__all__ = [
    "Published",
    "Row",
    "Run",
    "collect",
    "draw",
    "markdown",
    "read_published",
]

_COLUMNS = ("preset", "top1", "epoch", "paper", "read_in")
_UNCHECKED = "not checked"


@dataclass(frozen=True)
class Published:
    """A number from a paper.

    Attributes:
        preset: the preset that stands for it.
        top1: in percent on the balanced test images.
        epoch: which epoch the paper reports: ``best`` on the test images, ``last``, or
            ``not stated``.
        paper: whose method it is.
        read_in: where the number was read, or ``not checked`` where it is from memory.
    """

    preset: str
    top1: float
    epoch: str
    paper: str
    read_in: str


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its summary, and what makes it more than the preset.

    Attributes:
        folder: of the run.
        summary: the content of ``summary.json``.
        changes: options that differ from the preset's, as ``name value``.
    """

    folder: Path
    summary: Mapping[str, Any]
    changes: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """Runs of one preset with the same changes, one per seed, and the paper's number.

    Attributes:
        preset: name of the preset.
        changes: options that differ from it.
        runs: by rising seed; none where nothing was run.
        published: the paper's number for the preset, if there is one.
    """

    preset: str
    changes: tuple[str, ...]
    runs: tuple[Run, ...]
    published: Published | None

    def mean(self, name: str) -> tuple[float, float | None] | None:
        """Mean and standard deviation (two runs or more) of a number of the summary."""
        values = [run.summary[name] for run in self.runs]
        if not values or any(value is None for value in values):
            return None
        spread = statistics.stdev(values) if len(values) > 1 else None
        return statistics.fmean(values), spread

    @property
    def difference(self) -> float | None:
        """Ours minus the published number, in points of top-1."""
        ours = self.mean("top1")
        if ours is None or self.published is None:
            return None
        return ours[0] - self.published.top1


def read_published(path: Path) -> list[Published]:
    """Read the published numbers.

    Raises:
        ValueError: the table is not as expected; the message names file and line.
    """
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != _COLUMNS:
            raise ValueError(
                f"{path}: expected the columns {', '.join(_COLUMNS)}, got "
                f"{', '.join(reader.fieldnames or ()) or 'none'}"
            )
        found = []
        for row in reader:
            try:
                top1 = float(row["top1"])
                if not 0 <= top1 <= 100:
                    raise ValueError(f"top1: expected percent, got {top1}")
                if row["preset"] not in preset_names():
                    raise ValueError(f"preset: there is no {row['preset']!r}")
            except ValueError as error:
                raise ValueError(f"{path}, line {reader.line_num}: {error}") from None
            found.append(
                Published(
                    row["preset"], top1, row["epoch"], row["paper"], row["read_in"]
                )
            )
        return found


#: What the table takes from a summary.
_NEEDED = (
    *("preset", "seed", "top1", "many", "medium", "few"),
    *("best_top1", "best_split"),
)


def _read_run(folder: Path) -> Run | None:
    """The run in ``folder``; None where it belongs to no preset."""
    run = RunFolder(folder)
    try:
        summary, options = run.read_summary(), run.read_config()
        preset = options["preset"]
        missing = [name for name in _NEEDED if name not in summary]
        if missing:
            raise ValueError(f"{run.summary} has no {', '.join(missing)}")
    except (ValueError, KeyError, OSError) as error:
        raise ValueError(f"{folder}: not a finished run: {error}") from error
    if preset not in preset_names():
        return None
    changes = option_changes(options, summary.get("first_stage"))
    return Run(folder, summary, changes)


def collect(folder: Path, published: Iterable[Published]) -> list[Row]:
    """Return the rows of the runs under ``folder`` and of all published numbers.

    Rows come in the order of ``published``, then by name; a preset's own row before
    those with changed options. Folders without ``summary.json`` are not finished and
    are left out.

    Raises:
        ValueError: a run cannot be read, or two have the same options and seed.
    """
    numbers = {entry.preset: entry for entry in published}
    groups: dict[tuple[str, tuple[str, ...]], dict[int, Run]] = defaultdict(dict)
    for path in sorted(folder.glob("*/summary.json")):
        run = _read_run(path.parent)
        if run is None:
            continue
        seeds = groups[run.summary["preset"], run.changes]
        seed = run.summary["seed"]
        if seed in seeds:
            raise ValueError(
                f"{run.folder} and {seeds[seed].folder} are runs of the same options "
                f"and seed {seed}; keep one"
            )
        seeds[seed] = run
    for name in numbers:
        groups.setdefault((name, ()), {})
    place = {name: number for number, name in enumerate(numbers)}
    return [
        Row(
            preset,
            changes,
            tuple(seeds[seed] for seed in sorted(seeds)),
            numbers.get(preset),
        )
        for (preset, changes), seeds in sorted(
            groups.items(), key=lambda g: (place.get(g[0][0], len(place)), g[0])
        )
    ]


def _number(value: tuple[float, float | None] | None) -> str:
    if value is None:
        return ""
    mean, spread = value
    return f"{mean:.2f}" if spread is None else f"{mean:.2f} ± {spread:.2f}"


def markdown(rows: Sequence[Row], *, not_run: bool = True) -> str:
    """Return a Markdown table.

    Args:
        rows: of :func:`collect`.
        not_run: whether to list the rows without a run.
    """
    text = io.StringIO()
    print(
        "| preset | published (epoch) | ours, last epoch | n | difference | many | "
        "medium | few | best epoch* |\n|---|---|---|---|---|---|---|---|---|",
        file=text,
    )
    for row in rows:
        if not row.runs and not not_run:
            continue
        name = f"`{row.preset}`" + "".join(f", {change}" for change in row.changes)
        published = ""
        if row.published is not None:
            mark = "†" if row.published.read_in == _UNCHECKED else ""
            published = f"{row.published.top1:.2f}{mark} ({row.published.epoch})"
        ours = _number(row.mean("top1")) or "not run"
        gap = "" if row.difference is None else f"{row.difference:+.2f}"
        cells = [name, published, ours, str(len(row.runs) or ""), gap]
        cells += [_number(row.mean(n)) for n in ("many", "medium", "few")]
        on_test = all(run.summary.get("best_split") == "test" for run in row.runs)
        cells.append(_number(row.mean("best_top1")) if on_test else "")
        print("| " + " | ".join(cells) + " |", file=text)
    return text.getvalue()


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw every run beside the published number of its preset, misses first.

    Of the data sets that have published numbers. A run with changed options has another
    mark, and its changes below its name.
    """
    from matplotlib.figure import Figure

    compared = {_dataset(row) for row in rows if row.published is not None}
    shown = [row for row in rows if row.runs and _dataset(row) in compared]
    shown.sort(key=lambda row: (row.difference is None, row.difference or 0.0))
    shown.reverse()  # the first is drawn at the top
    names = ["\n".join((row.preset, *row.changes)) for row in shown]
    lines = sum(1.4 + 0.6 * len(row.changes) for row in shown)
    figure = Figure(figsize=(8, 1.2 + 0.27 * max(1, lines)), layout="constrained")
    axes = figure.subplots()
    drawn: list[float] = []
    for place, row in enumerate(shown):
        ours = row.mean("top1")
        assert ours is not None
        mean, spread = ours[0], ours[1] or 0.0
        drawn += [mean - spread, mean + spread]
        if row.published is not None:
            theirs = row.published.top1
            drawn.append(theirs)
            axes.plot([theirs, mean], [place, place], color="#BBBBBB", lw=2)
            axes.plot(theirs, place, "o", color="#6B6B6B", mfc="white")
            text, left = f"{mean - theirs:+.1f}", min(mean - spread, theirs)
            axes.annotate(
                text,
                (left, place),
                (-9, 0),
                textcoords="offset points",
                ha="right",
                va="center",
                fontsize=8,
            )
        mark = {"fmt": "D", "mfc": "white"} if row.changes else {"fmt": "s"}
        axes.errorbar(mean, place, xerr=spread, color="#004488", capsize=3, **mark)
    axes.plot([], [], "o", color="#6B6B6B", mfc="white", label="published")
    axes.plot([], [], "s", color="#004488", label="ours, last epoch (± std)")
    axes.plot(
        [], [], "D", color="#004488", mfc="white", label="ours with other options"
    )
    axes.set_yticks(range(len(shown)), names, fontsize=8)
    axes.set_ylim(-0.7, len(shown) - 0.3 if shown else 0.7)
    axes.set_xlim(math.floor(min(drawn, default=0)) - 4)
    axes.set_xlabel("top-1 accuracy on the balanced test images, percent")
    axes.grid(axis="x", color="#E4E4E4")
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.legend(loc="outside upper left", ncols=3, frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=150, metadata={"Software": None})
    write_bytes(path, picture.getvalue())


def _dataset(row: Row) -> str:
    return row.preset.partition("/")[0]
