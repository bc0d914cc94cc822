"""The report of a finished run: a single ``report.html``, and its pictures as PNG."""

from __future__ import annotations

import base64
import shlex
import sys
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from s3h_ext.files import write_bytes, write_text
from s3h_ext.report.evaluation_files import RunResults, read_results
from s3h_ext.report.figures import (
    MATRIX_CLASSES,
    NAMED_CLASSES,
    by_frequency,
    draw,
    group_outcomes,
)
from s3h_ext.report.metrics import GROUP_SIZES, GROUPS, class_groups
from s3h_ext.report.subclasses import Subclasses, read_subclasses
from s3h_ext.runs.folder import RunFolder

__all__ = ["try_report", "write_report"]

#: Longest table of classes; of more classes, those with the lowest accuracy are listed.
LISTED_CLASSES = MATRIX_CLASSES

#: The header of a table and its rows.
Table = tuple[list[str], list[list[str]]]


def write_report(folder: RunFolder) -> Path:
    """Draw the report of a finished run from the files in its folder.

    Nothing is trained or evaluated, and the same files give the same report.

    Returns:
        The page, ``report.html`` in ``folder``, with its pictures next to it.

    Raises:
        FileNotFoundError: ``folder`` does not hold a finished run.
        ValueError: a file has invalid contents.
        ImportError: matplotlib is missing.
    """
    results = read_results(folder)
    subclasses = read_subclasses(folder)
    pictures = draw(results, subclasses)
    config = folder.config.read_text("utf-8") if folder.config.is_file() else None
    try:
        page = _page(results, pictures, subclasses, config)
    except (KeyError, jinja2.UndefinedError) as error:
        raise ValueError(f"{folder.summary}: a value is missing: {error}") from error
    for name, content in pictures.items():
        write_bytes(folder.path / name, content)
    write_text(folder.report, page)
    return folder.report


def try_report(folder: RunFolder) -> Path | None:
    """Write the report, or print to stderr why there is none.

    An error in drawing must not fail a run that took days.
    """
    try:
        return write_report(folder)
    except Exception as error:
        print(
            f"warning: no report: {type(error).__name__}: {error}\n"
            f"The run itself is complete; its results are in {folder}. "
            f"To draw the report later: python -m s3h_ext.report "
            f"{shlex.quote(str(folder))}",
            file=sys.stderr,
        )
        return None


def _percent(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.2f}"


def _page(
    results: RunResults,
    pictures: dict[str, bytes],
    subclasses: Subclasses | None,
    config: str | None,
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("s3h_ext.report", "."),
        autoescape=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["percent"] = _percent
    embedded = {n: base64.b64encode(png).decode() for n, png in pictures.items()}
    per_class, classes = results.metrics.per_class, len(results.class_names)
    worst = np.flatnonzero(per_class == np.nanmin(per_class))
    return environment.get_template("page.html").render(
        summary=results.summary,
        key_numbers=_key_numbers(results.summary),
        worst=[results.class_names[number] for number in worst],
        group_table=_group_table(results),
        pictures=embedded,
        single=classes <= MATRIX_CLASSES,
        subclasses=None if subclasses is None else _mean_subclasses(subclasses),
        classes=classes,
        listed=LISTED_CLASSES if classes > LISTED_CLASSES else None,
        class_table=_class_table(results, subclasses),
        run_table=_run_table(results.summary),
        config=config,
    )


def _mean_subclasses(found: Subclasses) -> tuple[float, float]:
    """Return the mean number of sub-classes of a divided class, and of those in use."""
    rows = np.diff(found.offsets)
    divided = rows > 1
    return float(rows[divided].mean()), float(found.perplexity()[divided].mean())


def _key_numbers(summary: dict[str, Any]) -> list[tuple[str, str]]:
    header = ["top-1", *GROUPS, "macro-F1", "worst class", "calibration error"]
    names = ["top1", *GROUPS, "macro_f1", "worst_class", "calibration_error"]
    values = (_percent(summary.get(name)) for name in names)
    return list(zip(header, values, strict=True))


def _group_table(results: RunResults) -> Table:
    groups = class_groups(results.class_counts)
    names, outcomes = group_outcomes(results)
    by_name = dict(zip(names, outcomes, strict=True))
    rows = []
    for number, (name, rule) in enumerate(zip(GROUPS, GROUP_SIZES, strict=True)):
        chosen = groups == number
        if not chosen.any():
            continue
        taken = by_name.get(name, np.full(4, np.nan))
        rows.append(
            [
                f"{name} ({rule} training images)",
                str(int(chosen.sum())),
                str(int(results.class_counts[chosen].sum())),
                str(int(results.test_counts[chosen].sum())),
                _percent(results.summary.get(name)),
                *(_percent(value) for value in taken[1:]),
            ]
        )
    header = ["group", "classes", "training images", "test images", "accuracy"]
    header += [f"wrong: {name}" for name in GROUPS]
    return header, rows


def _class_table(results: RunResults, subclasses: Subclasses | None) -> Table:
    classes = len(results.class_names)
    per_class = results.metrics.per_class
    order = by_frequency(results)
    if classes > LISTED_CLASSES:
        # Stable: in a tie, the more frequent class comes first; classes without test
        # images, whose accuracy is NaN, come last.
        order = order[np.argsort(per_class[order], kind="stable")][:LISTED_CLASSES]
    true, predicted, images = results.confusion.T
    totals = np.bincount(predicted, images, classes)
    hits = np.zeros(classes)
    hits[true[true == predicted]] = images[true == predicted]
    wrong = results.confusion[true != predicted]
    # In a tie the last class wins below, so sort the lowest number last.
    wrong = wrong[np.lexsort((-wrong[:, 1], wrong[:, 2]))]
    mistaken = {int(t): (int(p), int(n)) for t, p, n in wrong}
    in_use: dict[int, str] = {}
    if subclasses is not None:
        pairs = zip(subclasses.perplexity(), np.diff(subclasses.offsets), strict=True)
        in_use = {c: f"{used:.1f} of {own}" for c, (used, own) in enumerate(pairs)}
    rows = []
    # If the pictures have no room for names, they show ranks.
    ranked = classes > NAMED_CLASSES
    rank = np.empty(classes, np.int64)
    rank[by_frequency(results)] = np.arange(1, classes + 1)
    for c in order.tolist():
        tested = int(results.test_counts[c])
        other = ""
        if c in mistaken:
            taken, count = mistaken[c]
            other = f"{results.class_names[taken]} ({100 * count / tested:.0f} %)"
        rows.append(
            [
                results.class_names[c],
                other,
                *([str(rank[c])] if ranked else []),
                str(int(results.class_counts[c])),
                *([in_use[c]] if in_use else []),
                str(tested),
                _percent(per_class[c]),
                _percent(100 * hits[c] / totals[c] if totals[c] else None),
            ]
        )
    header = ["class", "most often mistaken for", *(["rank"] if ranked else [])]
    header += ["training images", *(["sub-classes in use"] if in_use else [])]
    header += ["test images", "accuracy", "precision"]
    return header, rows


def _run_table(summary: dict[str, Any]) -> list[list[str]]:
    return [
        ["preset", str(summary["preset"] or "none")],
        ["training images", str(summary["train_images"])],
        ["parameters", f"{summary['parameters']:,}"],
        ["time", _duration(summary["seconds"])],
        ["speed", f"{summary['images_per_second']:.0f} images/s in training"],
        ["device", f"{summary['device']}, {summary['precision']}"],
        ["threads", str(summary["threads"])],
        *([name, str(version)] for name, version in summary["versions"].items()),
    ]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
