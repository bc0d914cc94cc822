"""The figures of a report, drawn by matplotlib without a display."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from s3h_ext.report.evaluation_files import RunResults
from s3h_ext.report.metrics import GROUP_SIZES, GROUPS, class_groups
from s3h_ext.report.subclasses import FIGURES as SUBCLASS_FIGURES
from s3h_ext.report.subclasses import Subclasses

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FIGURES", "draw", "group_outcomes"]

#: From this number of classes on, there is no room for their names.
NAMED_CLASSES = 30
#: Above this number, figures show bands and groups instead of single classes.
MATRIX_CLASSES = 200

# Distinct for colour-blind readers and in greyscale; shapes repeat the distinction.
_COLOURS = ("#004488", "#C28500", "#BB5566")
_MARKERS = ("o", "s", "^")
_INK, _GREY = "#1A1A1A", "#6B6B6B"
_GROUP_NAMES = [f"{g} ({n} images)" for g, n in zip(GROUPS, GROUP_SIZES, strict=True)]

# Applied to matplotlib's defaults, so that a user's matplotlibrc has no effect.
_STYLE: dict[str, Any] = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": _GREY,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "text.color": _INK,
    "text.parse_math": False,  # class names are not formulas
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "savefig.dpi": 150,
    "lines.linewidth": 1.8,
}


def draw(results: RunResults, subclasses: Subclasses | None = None) -> dict[str, bytes]:
    """Draw all figures of a run; return PNG files by name.

    The same results give the same bytes with the same matplotlib.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib import style
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise ImportError(
            "a report needs matplotlib: pip install 'matplotlib>=3.8'"
        ) from error
    pictures = {}

    def save(name: str, function: Callable[..., None], *content: Any) -> None:
        figure = Figure(layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1))
        png = io.BytesIO()
        with warnings.catch_warnings():
            # A missing glyph in a class name becomes a box; the page has the full name.
            warnings.filterwarnings("ignore", r"(?s)Glyph .* missing from font")
            function(figure, *content)
            figure.savefig(png, format="png")
        pictures[name] = png.getvalue()

    with style.context(["default", _STYLE], after_reset=True):
        for name, function in FIGURES.items():
            save(name, function, results)
        if subclasses is not None:
            for name, own in SUBCLASS_FIGURES.items():
                save(name, own, subclasses, results.class_names)
    return pictures


def by_frequency(results: RunResults) -> np.ndarray:
    """Return the classes ``[C]``, those with the most training images first."""
    return np.argsort(-results.class_counts, kind="stable")


def group_outcomes(results: RunResults) -> tuple[list[str], np.ndarray]:
    """Return the outcomes for the test images of each group, in percent.

    Returns:
        The names of the ``R`` groups that have test images, and ``[R, 4]``: classified
        correctly; confused with a class of many, medium, few training images.
    """
    groups = class_groups(results.class_counts)
    true, predicted, images = results.confusion.T
    outcome = np.where(true == predicted, 0, 1 + groups[predicted])
    table = np.zeros((len(GROUPS), 4))
    np.add.at(table, (groups[true], outcome), images)
    kept = np.flatnonzero(table.sum(1))
    table = 100.0 * table[kept] / table[kept].sum(1, keepdims=True)
    return [GROUPS[group] for group in kept], table


def _draw_classes(figure: Figure, results: RunResults) -> None:
    order = by_frequency(results)
    classes = len(order)
    counts, accuracy = results.class_counts[order], results.metrics.per_class[order]
    groups = class_groups(counts)
    rank = np.arange(1, classes + 1)
    figure.set_size_inches(9, 6.5)
    top, bottom = figure.subplots(2, sharex=True, height_ratios=(2, 3))
    for axes in (top, bottom):
        axes.grid(axis="x", visible=False)

    size = float(np.clip(3600 / classes, 8, 70))
    for group, (name, colour, marker) in enumerate(
        zip(_GROUP_NAMES, _COLOURS, _MARKERS, strict=True)
    ):
        chosen = groups == group
        if not chosen.any():
            continue
        how = {"color": colour, "marker": marker, "linewidth": 0}
        seen = chosen & (counts > 0)  # a logarithmic axis has no 0
        top.scatter(rank[seen], counts[seen], size, label=name, **how)
        tested = chosen & ~np.isnan(accuracy)
        if not tested.any():
            continue
        if classes <= MATRIX_CLASSES:
            how |= {"linewidth": 0.5, "edgecolor": "white", "zorder": 3}
            bottom.scatter(rank[tested], accuracy[tested], size, **how)
        else:
            _scatter_bands(bottom, rank[tested], accuracy[tested], classes / 60, how)
        mean = accuracy[tested].mean()
        bottom.hlines(
            mean,
            rank[chosen].min() - 0.5,
            rank[chosen].max() + 0.5,
            color=colour,
            label=f"{GROUPS[group]}: mean {mean:.1f}",
        )
    _log_if_wide(top, counts[counts > 0].tolist())
    top.margins(y=0.1)
    top.set_ylabel("training images")
    top.set_title("Training images of each class")
    top.legend(loc="upper right", markerscale=max(1.0, 6.0 / size**0.5))
    for edge in rank[1:][np.diff(groups) != 0]:
        for axes in (top, bottom):
            axes.axvline(edge - 0.5, color=_GREY, linewidth=0.8, linestyle=":")
    _percent_axis(bottom)
    bottom.set_ylabel("accuracy (%)")
    bottom.set_title(
        "Accuracy of each class on the test split"
        if classes <= MATRIX_CLASSES
        else f"Accuracy on the test split, bands of about {classes / 60:.0f} classes: "
        "mean and middle half"
    )
    # Below the class names, however long they are.
    handles, labels = bottom.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    margin = 0.7 + 0.005 * classes
    bottom.set_xlim(1 - margin, classes + margin)
    bottom.set_xlabel("classes, from most to fewest training images")
    if classes <= NAMED_CLASSES:
        _name_ticks(bottom.xaxis, [results.class_names[i] for i in order], rank)


def _scatter_bands(
    axes: Axes, rank: np.ndarray, accuracy: np.ndarray, width: float, how: Any
) -> None:
    """Draw thousands of classes as bands of neighbours within a group.

    With only a few test images per class, single classes would all lie on a few lines.
    """
    count = max(1, round(len(rank) / width))
    for ranks, values in zip(
        np.array_split(rank, count), np.array_split(accuracy, count), strict=True
    ):
        low, high = np.percentile(values, (25, 75))
        axes.vlines(ranks.mean(), low, high, color=how["color"], alpha=0.4, linewidth=4)
        axes.scatter(
            ranks.mean(),
            values.mean(),
            36,
            **(how | {"linewidth": 0.5, "edgecolor": "white", "zorder": 3}),
        )


def _draw_curves(figure: Figure, results: RunResults) -> None:
    history = results.history
    split = "val" if any("val_top1" in row for row in history) else "test"
    measured = [f"{split}_{name}" for name in ("top1", *GROUPS)]
    apart = {"epoch", "lr", "images_per_second", *measured}
    names = dict.fromkeys(name for row in history for name in row)
    terms = [name for name in names if name not in apart]
    marker = "o" if len(history) <= 30 else None

    def plot(axes: Axes, name: str, **how: Any) -> None:
        points = [(row["epoch"], row[name]) for row in history if name in row]
        if points:
            every = max(1, len(points) // 20)
            how = {"markersize": 4, "markevery": every} | how
            axes.plot(*zip(*points, strict=True), **how)

    figure.set_size_inches(9, 8.5)
    loss, rate, accuracy = figure.subplots(3, sharex=True, height_ratios=(3, 2, 3))
    # Five colours and four line styles: all terms of a method look different.
    colours = (_INK, *_COLOURS, _GREY)
    for number, name in enumerate(terms):
        plot(
            loss,
            name,
            label=name,
            linestyle=("-", "--", "-.", ":")[number % 4],
            color=colours[number % len(colours)],
            marker=marker,
        )
    what = "Loss and its terms" if len(terms) > 1 else "Loss"
    loss.set_title(f"{what}, mean over the epoch")
    if len(terms) > 1:
        loss.legend(frameon=True, framealpha=0.85, edgecolor="none")
    _log_if_wide(loss, [row[name] for row in history for name in terms if name in row])

    plot(rate, "lr", color=_INK, marker=marker)
    rate.set_title("Learning rate at the end of the epoch")
    _log_if_wide(rate, [row["lr"] for row in history if "lr" in row])

    whole = {"label": "all images", "color": _INK, "linewidth": 2.4, "marker": "D"}
    plot(accuracy, measured[0], **whole)
    for name, colour, shape in zip(GROUPS, _COLOURS, _MARKERS, strict=True):
        how = {"label": f"{name}-shot classes", "color": colour, "marker": shape}
        plot(accuracy, f"{split}_{name}", **how)
    where = "held-out images" if split == "val" else "the test split"
    accuracy.set_title(f"Accuracy on {where} (%)")
    _percent_axis(accuracy)
    if any(name in row for row in history for name in measured):
        accuracy.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=4)
    accuracy.set_xlabel("epoch")
    accuracy.xaxis.get_major_locator().set_params(integer=True)


def _draw_confusion(figure: Figure, results: RunResults) -> None:
    if len(results.class_counts) > MATRIX_CLASSES:
        _draw_group_confusion(figure, results)
        return
    order = by_frequency(results)
    classes = len(order)
    rank = np.empty(classes, np.int64)
    rank[order] = np.arange(classes)
    true, predicted, images = results.confusion.T
    matrix = np.zeros((classes, classes))
    matrix[rank[true], rank[predicted]] = images
    totals = matrix.sum(1, keepdims=True)
    share = np.divide(100.0 * matrix, totals, where=totals > 0, out=matrix * np.nan)
    named = classes <= NAMED_CLASSES
    side = max(6.0, 0.45 * classes + 2.5) if named else 9.0
    figure.set_size_inches(side + 1.2, side)
    axes = figure.subplots()
    # Errors are a few percent of a row and would be white on a linear scale.
    mesh = axes.imshow(share, cmap="Blues", norm=_power_norm(), interpolation="nearest")
    bar = figure.colorbar(mesh, ax=axes, shrink=0.8, pad=0.02)
    bar.set_ticks([0, 1, 5, 10, 25, 50, 75, 100])
    bar.set_label("share of the true class's test images (%)")
    axes.grid(visible=False)
    # With few classes the figure is narrow; its caption states the order.
    axes.set_title("Confusion matrix", pad=22)
    groups = class_groups(results.class_counts[order])
    for edge in np.flatnonzero(np.diff(groups)):
        for line in (axes.axhline, axes.axvline):
            line(edge + 0.5, color=_GREY, linewidth=1.0, linestyle=":")
    for group, name in enumerate(GROUPS):
        where = np.flatnonzero(groups == group)
        if len(where):
            axes.annotate(
                name,
                (where.mean(), 1),
                (0, 5),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                ha="center",
                color="#444444",
            )
    if named:
        names = [results.class_names[i] for i in order]
        _name_ticks(axes.xaxis, names, np.arange(classes))
        axes.set_yticks(np.arange(classes), [_short(name) for name in names])
        _annotate(axes, share, 11 if classes <= 12 else 7)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
    else:
        step = 10 if classes <= 120 else 20
        ticks = np.array([1, *range(step, classes + 1, step)])
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_ticks(ticks - 1, ticks)
        axes.set_xlabel("predicted class (rank by training images)")
        axes.set_ylabel("true class (rank by training images)")


def _draw_group_confusion(figure: Figure, results: RunResults) -> None:
    names, table = group_outcomes(results)
    figure.set_size_inches(9, 1.6 + 0.9 * len(names))
    axes = figure.subplots()
    axes.imshow(
        table, cmap="Blues", norm=_power_norm(), aspect="auto", interpolation="nearest"
    )
    _annotate(axes, table, 13, "{:.1f}")
    axes.grid(visible=False)
    axes.set_title("Predictions for the test images of each group (% of the row)")
    axes.set_xticks(
        range(4), ["right class", *(f"wrong,\na {name}-shot class" for name in GROUPS)]
    )
    axes.set_yticks(range(len(names)), [f"{name}-shot" for name in names])
    axes.set_xlabel("predicted")
    axes.set_ylabel("true class")


def _draw_reliability(figure: Figure, results: RunResults) -> None:
    bins = results.calibration
    count = len(bins.images)
    width = 100.0 / count
    middle = (np.arange(count) + 0.5) * width
    filled = bins.images > 0
    figure.set_size_inches(7, 7)
    top, bottom = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    top.bar(
        middle[filled],
        bins.accuracy[filled],
        width,
        color="#7FA6D0",
        edgecolor="white",
        label="accuracy in the bin",
    )
    low = np.minimum(bins.accuracy, bins.confidence)[filled]
    gap = np.abs(bins.accuracy - bins.confidence)[filled]
    top.bar(
        middle[filled],
        gap,
        width,
        low,
        color="none",
        edgecolor=_COLOURS[2],
        hatch="///",
        linewidth=1,
        label="gap to the mean confidence",
    )
    top.plot([0, 100], [0, 100], "--", color=_INK, label="perfect calibration")
    _percent_axis(top)
    top.set_ylim(0, 100)
    top.set_ylabel("accuracy (%)")
    error = bins.error
    said = f"{error:.2f} %" if np.isfinite(error) else "not defined"
    top.set_title(f"Reliability, expected calibration error {said}")
    top.legend(loc="upper left")
    top.grid(axis="x", visible=False)
    share = 100.0 * bins.images / bins.images.sum()
    bottom.bar(middle, share, width, color=_GREY, edgecolor="white")
    bottom.set_ylabel("images (%)")
    bottom.set_xlabel(f"confidence of the prediction (%), {count} bins of equal width")
    bottom.set_xlim(0, 100)
    bottom.grid(axis="x", visible=False)


#: File name -> function that draws it.
FIGURES: Mapping[str, Callable[[Any, RunResults], None]] = {
    "classes.png": _draw_classes,
    "curves.png": _draw_curves,
    "confusion.png": _draw_confusion,
    "reliability.png": _draw_reliability,
}


def _power_norm() -> Any:
    from matplotlib.colors import PowerNorm

    return PowerNorm(0.5, vmin=0, vmax=100)


def _percent_axis(axes: Axes) -> None:
    axes.set_ylim(-4, 104)  # room for complete markers at 0 and 100
    axes.set_yticks(range(0, 101, 20))


def _log_if_wide(axes: Axes, values: Sequence[float]) -> None:
    """Use a logarithmic scale if a linear one would flatten most values."""
    if values and min(values) > 0 and max(values) > 15 * min(values):
        from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

        axes.set_yscale("log")
        decades = np.log10(max(values) / min(values))
        axes.yaxis.set_major_locator(
            LogLocator(subs=(1, 2, 5) if decades < 2 else (1,))
        )
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())


def _short(name: str) -> str:
    """Shorten a name in the middle: names of one data set often begin alike."""
    return name if len(name) <= 18 else f"{name[:8]}…{name[-9:]}"


def _name_ticks(axis: Any, names: Sequence[str], places: np.ndarray) -> None:
    names = [_short(name) for name in names]
    slanted = max(map(len, names)) * len(names) > 70
    axis.set_ticks(
        places,
        names,
        rotation=45 if slanted else 0,
        rotation_mode="anchor" if slanted else "default",
        ha="right" if slanted else "center",
    )


def _annotate(axes: Axes, share: np.ndarray, size: float, form: str = "{:.0f}") -> None:
    for (row, column), value in np.ndenumerate(share):
        if value > 0:
            text = form.format(value)
            axes.text(
                column,
                row,
                "<1" if text == "0" else text,  # not zero
                ha="center",
                va="center",
                size=size,
                color="white" if value > 45 else _INK,
            )
