"""Sub-classes of a finished run: the stored data, and the figures of the report."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from s3h_ext.files import write_bytes
from s3h_ext.runs.folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Subclasses", "read_subclasses", "write_subclasses"]

# Eight colours that colour-blind readers can distinguish, by Okabe and Ito; markers
# distinguish rows that share one.
_COLOURS = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#F0E442",
    "#000000",
)
_MARKERS = "os^Dv<>P"
_HATCHES = ("", "///", "...", "xx")


@dataclass(frozen=True, eq=False)
class Subclasses:
    """The arrays of :func:`s3h_ext.methods.subclass_analysis.analyse_subclasses`.

    Attributes:
        offsets: ``[C + 1]``: class c owns the rows from ``offsets[c]`` on.
        moments: ``[m]``, as fractions of the training.
        sizes: ``[m, S]``, training images of each row at those moments.
        classes: ``[k]``, the classes shown, with R rows in total.
        images: uint8 ``[R, E, H, W, C]``, examples of each row, padded with black.
        points: ``[P, 2]``, training images on the maps.
        point_rows: ``[P]``, their rows.
        centres: ``[R, 2]``, prototypes on the maps.
        explained: ``[k, 2]``, fraction of the variance on each axis.
    """

    offsets: np.ndarray
    moments: np.ndarray
    sizes: np.ndarray
    classes: np.ndarray
    images: np.ndarray
    points: np.ndarray
    point_rows: np.ndarray
    centres: np.ndarray
    explained: np.ndarray

    def rows(self, label: int) -> slice:
        """Return a class's rows among all S."""
        return slice(int(self.offsets[label]), int(self.offsets[label + 1]))

    def perplexity(self) -> np.ndarray:
        """Return each class's effective number of rows at the end, ``[C]``.

        The perplexity ``exp(-sum p log p)`` of their shares p of the class's images: K
        for K rows of equal size, 1 if one row has all images or there are none.
        """
        starts = self.offsets[:-1]
        sizes = self.sizes[-1].astype(np.float64)
        totals = np.repeat(np.add.reduceat(sizes, starts), np.diff(self.offsets))
        shares = sizes / np.maximum(totals, 1)
        logs = np.log(np.where(shares > 0, shares, 1))
        return np.exp(-np.add.reduceat(shares * logs, starts))


def write_subclasses(
    folder: RunFolder,
    arrays: Mapping[str, np.ndarray],
    pictures: Callable[[np.ndarray], np.ndarray],
) -> None:
    """Write ``subclasses.npz``: the method's arrays, and the example images themselves.

    ``pictures`` maps the method's image positions ``[R, E]`` to uint8
    ``[R, E, H, W, C]``.
    """
    content = dict(arrays)
    examples = content.pop("examples")
    images = pictures(np.maximum(examples, 0))
    images[examples < 0] = 0
    buffer = io.BytesIO()
    content["images"] = images
    save: Any = np.savez_compressed  # its annotations allow no other names
    save(buffer, **content)
    write_bytes(folder.subclasses, buffer.getvalue())


def read_subclasses(folder: RunFolder) -> Subclasses | None:
    """Read ``subclasses.npz``; ``None`` if the run has none.

    Raises:
        ValueError: the file has invalid contents.
    """
    path = folder.subclasses
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as content:
            found = Subclasses(**{name: content[name] for name in content.files})
        if found.sizes.shape != (len(found.moments), found.offsets[-1]):
            raise ValueError("sizes do not fit the offsets")
    except Exception as error:  # a damaged file can fail anywhere in the reader
        raise ValueError(f"{path}: {type(error).__name__}: {error}") from error
    return found


def draw_sizes(figure: Figure, found: Subclasses, names: Sequence[str]) -> None:
    """Draw the sizes of the sub-classes over the training."""
    grid = _grid(figure, len(found.classes), 3.2)
    for axes, label in zip(grid, found.classes.tolist(), strict=True):
        sizes = found.sizes[:, found.rows(label)]
        bands = axes.stackplot(
            100 * found.moments, sizes.T, colors=_COLOURS, edgecolor="white"
        )
        for number, band in enumerate(bands):
            band.set_linewidth(0.5)
            band.set_hatch(_HATCHES[number // len(_COLOURS) % len(_HATCHES)])
        axes.set_title(f"{names[label]}: {sizes.shape[1]} sub-classes")
        axes.set_xlabel("training done (%)")
        axes.set_ylabel("training images")
        axes.set_ylim(0)
        axes.margins(x=0)


def draw_examples(figure: Figure, found: Subclasses, names: Sequence[str]) -> None:
    """Draw example images, one line for each sub-class."""
    rows, count = found.images.shape[:2]
    figure.set_size_inches(9, 0.95 + 0.78 * rows)
    grid = figure.subplots(rows, count, squeeze=False)
    number = 0
    for label in found.classes.tolist():
        own = found.rows(label)
        for row in range(own.start, own.stop):
            for axes in grid[number]:
                axes.axis("off")
            there = found.images[number][: int(found.sizes[-1, row])]
            for axes, image in zip(grid[number], there, strict=False):
                axes.imshow(
                    image.squeeze(-1) if image.shape[-1] == 1 else image,
                    cmap="gray",
                    vmin=0,
                    vmax=255,
                )
            place = {
                "transform": grid[number, 0].transAxes,
                "ha": "right",
                "va": "center",
            }
            colour = _COLOURS[(row - own.start) % len(_COLOURS)]
            # A colour patch, because coloured text would be hard to read.
            grid[number, 0].text(-0.08, 0.5, "\N{BLACK SQUARE}", color=colour, **place)
            grid[number, 0].text(
                -0.38,
                0.5,
                f"{names[label][:14]}, no. {row - own.start + 1}\n"
                f"{found.sizes[-1, row]:.0f} images",
                **place,
            )
            number += 1


def draw_maps(figure: Figure, found: Subclasses, names: Sequence[str]) -> None:
    """Draw each shown class on its first two principal components."""
    grid = _grid(figure, len(found.classes), 4.0)
    start = 0
    for place, (axes, label) in enumerate(
        zip(grid, found.classes.tolist(), strict=True)
    ):
        own = found.rows(label)
        for row in range(own.start, own.stop):
            number = row - own.start
            how: dict[str, Any] = {
                "color": _COLOURS[number % len(_COLOURS)],
                "marker": _MARKERS[number // len(_COLOURS) % len(_MARKERS)],
            }
            chosen = found.points[found.point_rows == row]
            axes.scatter(*chosen.T, 9, linewidth=0, alpha=0.6, **how)
            axes.scatter(
                *found.centres[start + number],
                90,
                edgecolor="black",
                linewidth=1.2,
                zorder=3,
                **how,
            )
        start += own.stop - own.start
        first, second = 100 * found.explained[place]
        axes.set_title(names[label])
        axes.set_xlabel(f"component 1 ({first:.0f} % of the variance)")
        axes.set_ylabel(f"component 2 ({second:.0f} %)")


FIGURES = {
    "subclass-sizes.png": draw_sizes,
    "subclass-examples.png": draw_examples,
    "subclass-maps.png": draw_maps,
}


def _grid(figure: Figure, count: int, height: float) -> list[Any]:
    lines = -(-count // 2)
    figure.set_size_inches(9, height * lines)
    grid = figure.subplots(lines, min(count, 2), squeeze=False).ravel().tolist()
    for axes in grid[count:]:
        axes.axis("off")
    return grid[:count]
