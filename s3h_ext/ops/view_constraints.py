"""Constraints on the source boxes of views, composable and immutable.

A constraint has three independent parts:

    region   which part of the image       Grid: the cells of an overlapping grid
    crop     how to draw a box in it       Whole, PadCrop, RandomResizedCrop, Centre
    overlap  how far sibling views agree   Overlap: bounds on their IoU, or None

:func:`s3h_ext.ops.sample_view_boxes` draws boxes under it. The native code receives the
constraint as plain numbers, so every backend reads the same bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = [
    "FOUR_CORNERS",
    "HALVES",
    "Centre",
    "Constraint",
    "Crop",
    "Grid",
    "Overlap",
    "PadCrop",
    "RandomResizedCrop",
    "Whole",
    "as_constraint",
]

# Numbering of the crops in csrc/common/boxes.h.
_WHOLE, _PADDED, _RESIZED, _CENTRE = range(4)
_PICKS = ("view", "drawn")
_MOST_TRIES = 1000
_MOST_CELLS = 1024
_MOST_PADDING = (1 << 24) - 1


def _check_count(name: str, value: int, low: int, high: int) -> None:
    if not isinstance(value, int):
        raise TypeError(f"{name}: expected an int, got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name}: expected {low} <= {name} <= {high}, got {value}")


def _check_share(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise ValueError(f"{name}: expected 0 < {name} <= 1, got {value}")


@dataclass(frozen=True)
class Grid:
    """A region of the image: a cell of a grid of equal, overlapping cells.

    Sides of a cell are rounded to the nearest pixel (halves up) and at least 1. Along
    each side the first cell begins at one end of the image, the last ends at the other,
    and the others are spread evenly; a single one is centred. ``Grid()`` is the whole
    image.

    Attributes:
        rows: Number of cells from top to bottom.
        columns: Number of cells from left to right.
        height: Height of a cell as a fraction of the image's, in (0, 1].
        width: Width of a cell as a fraction of the image's, in (0, 1].
        pick: How to choose a cell, counted row by row: ``"view"`` takes the view number
            modulo the number of cells, so that sibling views look at different places;
            ``"drawn"`` draws one.

    Example:
        >>> Grid(rows=2, columns=2, height=0.8, width=0.8) == FOUR_CORNERS
        True
    """

    rows: int = 1
    columns: int = 1
    height: float = 1.0
    width: float = 1.0
    pick: str = "view"

    def __post_init__(self) -> None:
        _check_count("rows", self.rows, 1, _MOST_CELLS)
        _check_count("columns", self.columns, 1, _MOST_CELLS)
        _check_share("height", self.height)
        _check_share("width", self.width)
        if self.pick not in _PICKS:
            raise ValueError(f"pick: expected one of {_PICKS}, got {self.pick!r}")


#: The four corner regions of 80 % of each side: the spatial constraint of JigClu (Chen
#: et al., "Jigsaw clustering for unsupervised visual representation learning", CVPR
#: 2021, released code), and our interpretation of S3H's.
FOUR_CORNERS = Grid(rows=2, columns=2, height=0.8, width=0.8)

#: The left and the right half.
HALVES = Grid(columns=2, width=0.5)


@dataclass(frozen=True)
class Whole:
    """The whole region."""


@dataclass(frozen=True)
class PadCrop:
    """The region shifted by up to ``padding`` pixels each way; it may leave the image.

    Attributes:
        padding: Largest shift in source pixels.
    """

    padding: int = 4

    def __post_init__(self) -> None:
        _check_count("padding", self.padding, 0, _MOST_PADDING)


@dataclass(frozen=True)
class Centre:
    """A centred square, for evaluation.

    Attributes:
        share: Side of the square over the region's shorter side, in (0, 1].
            ``224 / 256`` is "resize the shorter side to 256, crop 224 from the centre".
    """

    share: float = 224 / 256

    def __post_init__(self) -> None:
        _check_share("share", self.share)


@dataclass(frozen=True)
class RandomResizedCrop:
    """A random box of the region, distributed as in torchvision.

    The area is uniform in ``scale`` times the region's, the aspect ratio log-uniform in
    ``ratio``, the sides are rounded, and the first of ``tries`` that fits is placed
    uniformly. Fallback: the largest centred box whose ratio is in ``ratio``.

    Attributes:
        scale: Range of the area as a fraction of the region's, in (0, 1].
        ratio: Range of width over height, in [0.1, 10].
        tries: Number of sizes to try.
    """

    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    tries: int = 10

    def __post_init__(self) -> None:
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"scale: expected 0 < low <= high <= 1, got {self.scale}")
        low, high = self.ratio
        if not 0.1 <= low <= high <= 10:
            raise ValueError(
                f"ratio: expected 0.1 <= low <= high <= 10, got {self.ratio}"
            )
        _check_count("tries", self.tries, 1, _MOST_TRIES)


@dataclass(frozen=True)
class Overlap:
    """Bounds on the intersection over union (IoU) of the two views of a pair.

    Views 2k and 2k + 1 of an image are siblings: the even one is drawn freely, the odd
    one until it keeps the bounds. Its first attempt is the box it would have without
    bounds. Fallback: the attempt that comes nearest.

    Attributes:
        least: Smallest IoU allowed, in [0, 1].
        most: Largest IoU allowed, in [least, 1].
        attempts: Largest number of draws of the odd view.
    """

    least: float = 0.0
    most: float = 1.0
    attempts: int = 20

    def __post_init__(self) -> None:
        if not 0 <= self.least <= self.most <= 1:
            raise ValueError(
                "least, most: expected 0 <= least <= most <= 1, got "
                f"{self.least}, {self.most}"
            )
        _check_count("attempts", self.attempts, 1, _MOST_TRIES)


Crop = Whole | PadCrop | RandomResizedCrop | Centre


@dataclass(frozen=True)
class Constraint:
    """A crop in a region, with bounds on the overlap with the sibling view.

    Attributes:
        crop: How to draw a box in the region.
        region: Part of the image to draw it in.
        overlap: Bounds on the IoU of sibling views; ``None`` for no bounds.

    Example:
        >>> corners = Constraint(RandomResizedCrop((0.2, 1.0)), FOUR_CORNERS)
        >>> apart = Constraint(RandomResizedCrop(), overlap=Overlap(most=0.3))
        >>> corners.region.rows, apart.overlap.most
        (2, 0.3)
    """

    crop: Crop = Whole()
    region: Grid = Grid()
    overlap: Overlap | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.crop, Crop):
            raise TypeError(f"crop: expected a crop, got {self.crop!r}")
        if not isinstance(self.region, Grid):
            raise TypeError(f"region: expected a Grid, got {self.region!r}")
        if not isinstance(self.overlap, Overlap | None):
            raise TypeError(
                f"overlap: expected an Overlap or None, got {self.overlap!r}"
            )

    def numbers(self) -> list[float]:
        """Return the constraint as numbers: ``BoxConstraint`` in csrc/common/boxes.h.

        Logarithms are computed here, so that they are the same for every backend.
        """
        crop, region, overlap = self.crop, self.region, self.overlap
        kind, padding, share = _WHOLE, 0, 1.0
        resized = RandomResizedCrop()
        if isinstance(crop, PadCrop):
            kind, padding = _PADDED, crop.padding
        elif isinstance(crop, RandomResizedCrop):
            kind, resized = _RESIZED, crop
        elif isinstance(crop, Centre):
            kind, share = _CENTRE, crop.share
        logarithms = (math.log(value) / 2 for value in resized.ratio)
        bounds: tuple[float, float, int] = (0, 1, 0)
        if overlap is not None:
            bounds = (overlap.least, overlap.most, overlap.attempts)
        values = (
            *(kind, region.rows, region.columns, region.height, region.width),
            _PICKS.index(region.pick),
            *(*resized.scale, *resized.ratio, *logarithms, resized.tries),
            *(padding, share),
            *bounds,
        )
        return [float(value) for value in values]


def as_constraint(constraint: Constraint | Crop) -> Constraint:
    """Return the constraint, wrapping a crop as one of the whole image.

    Raises:
        TypeError: the argument is neither.
    """
    if isinstance(constraint, Constraint):
        return constraint
    if isinstance(constraint, Crop):
        return Constraint(constraint)
    raise TypeError(f"constraint: expected a Constraint or a crop, got {constraint!r}")
