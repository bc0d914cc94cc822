"""The report of a finished run: ``report.html``, one file, and its pictures as PNG."""

from __future__ import annotations

import base64
import html
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

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
from s3h_ext.report.metrics import FEW_BELOW, GROUPS, MANY_ABOVE, class_groups
from s3h_ext.report.subclasses import Subclasses, read_subclasses
from s3h_ext.runs.folder import RunFolder

__all__ = ["try_report", "write_report"]

#: Longest table of classes; of more, those with the lowest accuracy are listed.
LISTED_CLASSES = MATRIX_CLASSES

_GROUP_RULES = (
    f"over {MANY_ABOVE} training images",
    f"{FEW_BELOW} to {MANY_ABOVE}",
    f"under {FEW_BELOW}",
)

_CSS = """
:root { color-scheme: light; }
body { background: #fff; color: #1a1a1a; font: 16px/1.5 system-ui, sans-serif;
  max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; }
p { margin: .5rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .9rem .25rem 0; text-align: right; vertical-align: top;
  border-bottom: 1px solid #d8d8d8; }
th { border-bottom-color: #6b6b6b; vertical-align: bottom; }
th.text, td.text { text-align: left; }
td:first-child { white-space: nowrap; }
table.key { margin-top: 1rem; }
table.key td { font-size: 1.5rem; font-weight: 600; border: 0; }
figure { margin: 1rem 0; }
figure img { max-width: 100%; height: auto; }
figcaption, .note { color: #444; font-size: .92rem; max-width: 46rem; }
pre { white-space: pre-wrap; font-size: .85rem; }
"""


def write_report(folder: RunFolder) -> Path:
    """Draw the report of a finished run from the files in its folder.

    Nothing is trained or evaluated, and the same files give the same report.

    Args:
        folder: the run's folder, as the trainer left it.

    Returns:
        The page, ``report.html`` in ``folder``; its pictures lie next to it too.

    Raises:
        FileNotFoundError: ``folder`` does not hold a finished run.
        ValueError: a file in it does not hold what it should.
        ImportError: matplotlib is missing.
    """
    results = read_results(folder)
    subclasses = read_subclasses(folder)
    pictures = draw(results, subclasses)
    page = _page(
        results,
        pictures,
        subclasses,
        folder.config.read_text(encoding="utf-8") if folder.config.is_file() else None,
    )
    for name, content in pictures.items():
        write_bytes(folder.path / name, content)
    write_text(folder.report, page)
    return folder.report


def try_report(folder: RunFolder) -> Path | None:
    """Write the report, or say on the error stream why there is none.

    A training that took days does not fail over its pictures.
    """
    try:
        return write_report(folder)
    except Exception as error:
        print(
            f"warning: no report: {type(error).__name__}: {error}\n"
            f"The run itself is complete, its results are in {folder}; "
            f"to draw the report later: python -m s3h_ext.report "
            f"{shlex.quote(str(folder))}",
            file=sys.stderr,
        )
        return None


def _percent(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.2f}"


def _table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    text_columns: int = 0,
    kind: str = "",
) -> str:
    """Return a table; the first ``text_columns`` are text, the others numbers."""

    def row(tag: str, cells: Sequence[str]) -> str:
        return "".join(
            f'<{tag} class="text">{html.escape(cell)}</{tag}>'
            if column < text_columns
            else f"<{tag}>{html.escape(cell)}</{tag}>"
            for column, cell in enumerate(cells)
        )

    body = "\n".join(f"<tr>{row('td', cells)}</tr>" for cells in rows)
    return (
        f'<div class="scroll"><table class="{kind}">\n'
        f"<thead><tr>{row('th', header)}</tr></thead>\n<tbody>\n{body}\n</tbody>\n"
        "</table></div>"
    )


def _figure(png: bytes, title: str, caption: str) -> str:
    data = base64.b64encode(png).decode()
    return (
        f'<figure><img src="data:image/png;base64,{data}" '
        f'alt="{html.escape(title)}" />\n'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def _page(
    results: RunResults,
    pictures: dict[str, bytes],
    subclasses: Subclasses | None,
    config: str | None,
) -> str:
    summary = results.summary
    title = f"{summary['method']} on {summary['dataset']}"
    single = len(results.class_counts) <= MATRIX_CLASSES
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{html.escape(_facts(summary))}</p>",
        _key_numbers(results),
        f'<p class="note">{html.escape(_remarks(results))}</p>',
        "<h2>Groups of classes</h2>",
        _group_table(results),
        "<h2>Class frequency and accuracy</h2>",
        _figure(
            pictures["classes.png"],
            "Training images and test accuracy of each class, by frequency",
            ("Each mark is a class. " if single else "")
            + "A line is the mean over the classes of its group: classes count alike, "
            "however many test images they have.",
        ),
        "<h2>Confusion</h2>",
        _figure(
            pictures["confusion.png"],
            "Confusion matrix, classes ordered by frequency",
            "A row is what the test images of a class were taken for. Dotted lines "
            "part the groups. What lies below the diagonal was taken for a more "
            "frequent class.",
        )
        if single
        else _figure(
            pictures["confusion.png"],
            "Outcomes for the test images of each group of classes",
            "A row is what the test images of a group were taken for. Every cell of "
            "the full matrix that is not 0 is in confusion.csv.",
        ),
        "<h2>Calibration</h2>",
        _figure(
            pictures["reliability.png"],
            "Reliability diagram and distribution of the confidence",
            "Bars under the dashed line are predictions more confident than right. "
            "A bin with few images (lower panel) says little. Expected calibration "
            "error after Guo et al. 2017: the mean gap, weighted by the images in the "
            "bin.",
        ),
        "<h2>Training</h2>",
        _figure(
            pictures["curves.png"],
            "Loss terms, learning rate and accuracy over the epochs",
            "The accuracy shown for each epoch is that of the weights at its end.",
        ),
        *_subclasses(pictures, subclasses),
        "<h2>Classes</h2>",
        _class_table(results, subclasses),
        "<h2>Run</h2>",
        _run_table(summary),
    ]
    if config is not None:
        parts.append(
            "<details><summary>config.yaml</summary>\n"
            f"<pre>{html.escape(config)}</pre></details>"
        )
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8" />\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1" />\n'
        f"<title>{html.escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _subclasses(pictures: dict[str, bytes], found: Subclasses | None) -> list[str]:
    """Return the part on sub-classes, nothing where the run has none."""
    if found is None:
        return []
    rows, used = np.diff(found.offsets), found.perplexity()
    divided = rows > 1
    return [
        "<h2>Sub-classes</h2>",
        f'<p class="note">Of the {rows[divided].mean():.1f} sub-classes that a divided '
        f"class has on average, {used[divided].mean():.1f} are in use: the perplexity "
        "of their shares of the class's training images.</p>",
        '<p class="note">The classes with the most sub-classes, on training images '
        "without augmentation. Colours mean the same in all three pictures.</p>",
        _figure(
            pictures["subclass-sizes.png"],
            "Training images of each sub-class over the training",
            "Estimated from the moving averages at the start of an epoch, from when "
            "classes are split; at the end, counted.",
        ),
        _figure(
            pictures["subclass-maps.png"],
            "Training images of a class on their first two principal components",
            "A small mark is an image's features, a large one a prototype. Each class "
            "has axes of its own. Sub-classes that overlap here may be apart in other "
            "directions.",
        ),
        _figure(
            pictures["subclass-examples.png"],
            "Example images of each sub-class",
            "A line is a sub-class: its number, how many training images it has, and "
            "ten of them, evenly from the nearest to the farthest of its prototype.",
        ),
    ]


def _facts(summary: dict[str, Any]) -> str:
    return (
        f"Imbalance factor {summary['imbalance']:g}, {summary['epochs']} epochs, "
        f"seed {summary['seed']}. Everything is measured on the test split with the "
        "weights after the last epoch, in percent."
    )


def _key_numbers(results: RunResults) -> str:
    summary = results.summary
    header = ["top-1", *GROUPS, "macro-F1", "worst class", "calibration error"]
    names = ["top1", *GROUPS, "macro_f1", "worst_class", "calibration_error"]
    return _table(header, [[_percent(summary.get(name)) for name in names]], kind="key")


def _remarks(results: RunResults) -> str:
    summary, per_class = results.summary, results.metrics.per_class
    worst = np.flatnonzero(per_class == np.nanmin(per_class))
    name = f"Worst class: {results.class_names[worst[0]]}"
    if len(worst) > 1:
        name += f" and {len(worst) - 1} more"
    split = summary["best_split"]
    best = f"Best epoch: {_percent(summary['best_top1'])} top-1 on "
    if split == "test":
        best += (
            "the test split. That maximum was picked by test images, so it is no "
            "estimate for new ones; the numbers above are."
        )
    else:
        best += "the held-out images."
    return f"{name}. {best}"


def _group_table(results: RunResults) -> str:
    groups = class_groups(results.class_counts)
    names, outcomes = group_outcomes(results)
    by_name = dict(zip(names, outcomes, strict=True))
    rows = []
    for number, (name, rule) in enumerate(zip(GROUPS, _GROUP_RULES, strict=True)):
        chosen = groups == number
        if not chosen.any():
            continue
        taken = by_name.get(name, np.full(4, np.nan))
        rows.append(
            [
                f"{name} ({rule})",
                str(int(chosen.sum())),
                str(int(results.class_counts[chosen].sum())),
                str(int(results.test_counts[chosen].sum())),
                _percent(results.summary.get(name)),
                *(_percent(value) for value in taken[1:]),
            ]
        )
    header = ["group", "classes", "training images", "test images", "accuracy"]
    header += [f"taken for another {name}-shot class" for name in GROUPS]
    return _table(header, rows, text_columns=1)


def _class_table(results: RunResults, subclasses: Subclasses | None) -> str:
    classes = len(results.class_names)
    per_class = results.metrics.per_class
    order = by_frequency(results)
    note = "From most to fewest training images."
    if classes > LISTED_CLASSES:
        # Stable: of equals, the more frequent comes first; classes without test
        # images, whose accuracy is NaN, come last.
        order = order[np.argsort(per_class[order], kind="stable")][:LISTED_CLASSES]
        note = (
            f"The {LISTED_CLASSES} of {classes} classes with the lowest accuracy; all "
            "are in per_class.csv."
        )
    true, predicted, images = results.confusion.T
    totals = np.bincount(predicted, images, classes)
    hits = np.zeros(classes)
    hits[true[true == predicted]] = images[true == predicted]
    wrong = results.confusion[true != predicted]
    # The last of equal classes wins below, so that the lowest number does.
    wrong = wrong[np.lexsort((-wrong[:, 1], wrong[:, 2]))]
    mistaken = {int(t): (int(p), int(n)) for t, p, n in wrong}
    in_use: dict[int, str] = {}
    if subclasses is not None:
        pairs = zip(subclasses.perplexity(), np.diff(subclasses.offsets), strict=True)
        in_use = {c: f"{used:.1f} of {own}" for c, (used, own) in enumerate(pairs)}
    rows = []
    # Where the pictures have no room for names, they have ranks.
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
    return f'<p class="note">{note}</p>\n' + _table(header, rows, text_columns=2)


def _run_table(summary: dict[str, Any]) -> str:
    rows = [
        ["preset", str(summary["preset"] or "none")],
        ["training images", str(summary["train_images"])],
        ["parameters", f"{summary['parameters']:,}"],
        ["time", _duration(summary["seconds"])],
        ["speed", f"{summary['images_per_second']:.0f} images/s in training"],
        ["device", f"{summary['device']}, {summary['precision']}"],
        ["threads", str(summary["threads"])],
        *([name, str(version)] for name, version in summary["versions"].items()),
    ]
    return _table(["", ""], rows, text_columns=2)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
