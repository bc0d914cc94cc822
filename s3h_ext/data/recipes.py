"""Augmentation recipes: what to draw for a view, described and not yet rendered.

A recipe turns the uniforms of a view into a :class:`ViewSpec`: a source box, a flip and
a 3 x 4 colour matrix. :mod:`s3h_ext.data.render` turns the description into pixels.
Uniforms have fixed slots, so that two recipes given the same draws crop and flip alike,
whatever else they do:

    0 flip   1 top   2 left   3 greyscale
    4 jitter 5 brightness 6 contrast 7 saturation
    8 hue    9, 10, 11 free
    12 + 2t, 13 + 2t   area and aspect ratio of try t of a resized crop

Brightness, contrast about a fixed grey, saturation, hue (a rotation in YIQ) and
greyscale are linear, so they become one matrix with one clamp after it. This is not
torchvision's jitter, which turns hue in HSV, takes contrast about the image's mean,
applies the operations in random order and clamps after each.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "RECIPES",
    "ColorJitter",
    "PadCrop",
    "Recipe",
    "ResizedCrop",
    "ViewSpec",
    "colour_matrix",
    "get_recipe",
]

_FLIP, _TOP, _LEFT, _GREY, _JITTER = 0, 1, 2, 3, 4
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = 5, 6, 7, 8
_TRIES = 12

# ITU-R BT.601 luma, and the NTSC chroma axes that hue is turned about.
_LUMA = (0.299, 0.587, 0.114)
_IN_PHASE = (0.595716, -0.274453, -0.321263)
_QUADRATURE = (0.211456, -0.522591, 0.311135)
_MID_GREY = 0.5


def _quarter_turn() -> list[list[float]]:
    # I -> Q, Q -> -I, written in RGB. The columns of the inverse of [luma, I, Q] are
    # the cross products of its rows over its determinant.
    y, i, q = (np.asarray(axis) for axis in (_LUMA, _IN_PHASE, _QUADRATURE))
    determinant = (y * np.cross(i, q)).sum()
    from_i, from_q = np.cross(q, y) / determinant, np.cross(y, i) / determinant
    turned: list[list[float]] = (np.outer(from_q, i) - np.outer(from_i, q)).tolist()
    return turned


_QUARTER_TURN = _quarter_turn()


@dataclass(frozen=True)
class ViewSpec:
    """What to render, one entry per view; leading dimensions are free.

    Attributes:
        box: int64 ``[..., 4]``: top, left, height, width in source pixels. A box that
            leaves the image sees black there.
        flip: bool ``[...]``: mirror left to right.
        colour: float32 ``[..., 3, 4]`` on pixels in [0, 1], the result clamped to
            [0, 1]; or ``None``, meaning the identity.
        resized: Whether boxes are resized to the output (bilinear); if not, every box
            has the output's size.
    """

    box: Tensor
    flip: Tensor
    colour: Tensor | None
    resized: bool

    def narrow(self, dim: int, start: int, stop: int) -> ViewSpec:
        """Returns the views ``start .. stop - 1`` along a leading dimension."""
        length = stop - start
        colour = self.colour
        return replace(
            self,
            box=self.box.narrow(dim, start, length),
            flip=self.flip.narrow(dim, start, length),
            colour=None if colour is None else colour.narrow(dim, start, length),
        )

    def flatten(self) -> ViewSpec:
        """Returns the same views with one leading dimension."""
        colour = self.colour
        return replace(
            self,
            box=self.box.reshape(-1, 4),
            flip=self.flip.reshape(-1),
            colour=None if colour is None else colour.reshape(-1, 3, 4),
        )


@dataclass(frozen=True)
class PadCrop:
    """Shifts the image by up to ``padding`` pixels each way, black outside it."""

    padding: int = 4

    def boxes(self, uniforms: Tensor, height: int, width: int) -> Tensor:
        """Returns int64 ``[..., 4]`` for float64 uniforms ``[..., draws]``."""
        shifts = uniforms[..., _TOP : _LEFT + 1] * (2 * self.padding + 1)
        corner = shifts.to(torch.int64) - self.padding
        size = corner.new_empty(corner.shape)
        size[..., 0].fill_(height)
        size[..., 1].fill_(width)
        return torch.cat([corner, size], dim=-1)


@dataclass(frozen=True)
class ResizedCrop:
    """A random box of the image, to be resized to the image's size.

    The box of torchvision's ``RandomResizedCrop``: area uniform in ``scale`` times the
    image's, aspect ratio (width over height) log-uniform in ``ratio``, sides rounded,
    the first of ``tries`` that fits. If none does, the largest centred box whose ratio
    lies in ``ratio``.

    The geometry is float64 with operations that every IEEE machine rounds alike and
    without a library's ``exp``, so that boxes are the same bits everywhere.
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
        if self.tries < 1:
            raise ValueError(f"tries: expected at least 1, got {self.tries}")

    def boxes(self, uniforms: Tensor, height: int, width: int) -> Tensor:
        """Returns int64 ``[..., 4]`` for float64 uniforms ``[..., draws]``."""
        end = _TRIES + 2 * self.tries
        area, aspect = uniforms[..., _TRIES:end:2], uniforms[..., _TRIES + 1 : end : 2]
        low, high = self.scale
        side = ((area * (high - low) + low) * (height * width)).sqrt()
        low, high = (math.log(value) / 2 for value in self.ratio)
        stretch = _exp(aspect * (high - low) + low)
        widths = (side * stretch).round().to(torch.int64)
        heights = (side / stretch).round().to(torch.int64)
        fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
        # argmax gives the first of equals: the first try that fits.
        first = fits.to(torch.int8).argmax(dim=-1, keepdim=True)
        fallback = self._fallback(height, width)
        found = fits.any(dim=-1)
        h = torch.where(found, heights.gather(-1, first).squeeze(-1), fallback[0])
        w = torch.where(found, widths.gather(-1, first).squeeze(-1), fallback[1])
        top = (uniforms[..., _TOP] * (height - h + 1)).to(torch.int64)
        left = (uniforms[..., _LEFT] * (width - w + 1)).to(torch.int64)
        top = torch.where(found, top, (height - h) // 2)
        left = torch.where(found, left, (width - w) // 2)
        return torch.stack([top, left, h, w], dim=-1)

    def _fallback(self, height: int, width: int) -> tuple[int, int]:
        low, high = self.ratio
        if width < low * height:
            return max(1, round(width / low)), width
        if width > high * height:
            return height, max(1, round(height * high))
        return height, width


@dataclass(frozen=True)
class ColorJitter:
    """Colour changes applied together with probability ``probability``.

    Factors are uniform in ``1 - strength .. 1 + strength`` (not below 0), the hue angle
    in ``-hue .. hue`` turns.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    probability: float = 0.8


@dataclass(frozen=True)
class Recipe:
    """A composition: crop, flip, colour jitter, greyscale; each may be left out.

    Attributes:
        crop: How the box is drawn; ``None`` for the whole image.
        flip: Probability of mirroring left to right.
        jitter: Colour jitter or ``None``.
        grey: Probability of greyscale.
    """

    crop: PadCrop | ResizedCrop | None = None
    flip: float = 0.0
    jitter: ColorJitter | None = None
    grey: float = 0.0

    @property
    def draws(self) -> int:
        """How many uniforms a view needs."""
        if isinstance(self.crop, ResizedCrop):
            return _TRIES + 2 * self.crop.tries
        if self.jitter is not None:
            return _HUE + 1
        if self.crop is not None or self.flip > 0 or self.grey > 0:
            return _GREY + 1
        return 0

    def describe(self, uniforms: Tensor, height: int, width: int) -> ViewSpec:
        """Describes the views that the uniforms stand for.

        Args:
            uniforms: float32 ``[..., draws]`` in [0, 1), at least :attr:`draws`.
            height: Of the source and of the output.
            width: Of the source and of the output.

        Returns:
            One view per leading element.

        Raises:
            ValueError: too few uniforms.

        Example:
            >>> spec = get_recipe("crop-flip").describe(torch.zeros(1, 4), 32, 32)
            >>> spec.box.tolist(), spec.flip.tolist()
            ([[-4, -4, 32, 32]], [True])
        """
        if uniforms.shape[-1] < self.draws:
            raise ValueError(
                f"uniforms: expected [..., {self.draws}], got {list(uniforms.shape)}"
            )
        leading = uniforms.shape[:-1]
        # A 24-bit uniform times an integer is exact in float64, so no product is
        # rounded up to the end of its range.
        wide = uniforms.to(torch.float64)
        if self.crop is None:
            box = torch.zeros(*leading, 4, dtype=torch.int64, device=uniforms.device)
            box[..., 2].fill_(height)
            box[..., 3].fill_(width)
        else:
            box = self.crop.boxes(wide, height, width)
        if self.flip > 0:
            flip = wide[..., _FLIP] < self.flip
        else:
            flip = torch.zeros(leading, dtype=torch.bool, device=uniforms.device)
        return ViewSpec(
            box, flip, self._colour(wide), isinstance(self.crop, ResizedCrop)
        )

    def _colour(self, uniforms: Tensor) -> Tensor | None:
        if self.jitter is None and self.grey == 0:
            return None
        one = torch.ones(
            uniforms.shape[:-1], dtype=torch.float64, device=uniforms.device
        )
        brightness = contrast = saturation = one
        angle = torch.zeros_like(one)
        if self.jitter is not None:
            jitter = self.jitter
            on = uniforms[..., _JITTER] < jitter.probability

            def factor(slot: int, strength: float) -> Tensor:
                low = max(0.0, 1 - strength)
                drawn = uniforms[..., slot] * (1 + strength - low) + low
                return torch.where(on, drawn, one)

            brightness = factor(_BRIGHTNESS, jitter.brightness)
            contrast = factor(_CONTRAST, jitter.contrast)
            saturation = factor(_SATURATION, jitter.saturation)
            turn = (uniforms[..., _HUE] * 2 - 1) * (2 * math.pi * jitter.hue)
            angle = torch.where(on, turn, angle)
        if self.grey > 0:
            # Greyscale is saturation 0 after everything else; hue keeps the luma, so
            # it may as well be saturation 0 before it.
            saturation = torch.where(uniforms[..., _GREY] < self.grey, 0.0, saturation)
        return colour_matrix(brightness, contrast, saturation, angle)


def colour_matrix(
    brightness: Tensor, contrast: Tensor, saturation: Tensor, angle: Tensor
) -> Tensor:
    """Composes brightness, contrast, saturation and hue, in this order.

    On a pixel x in [0, 1]: ``b x``; ``c x + (1 - c) / 2``; ``s x + (1 - s) luma(x)``;
    and a rotation of the two chroma axes of YIQ by ``angle``.

    Args:
        brightness: float64 ``[...]``, 1 for none.
        contrast: float64 ``[...]``, 1 for none.
        saturation: float64 ``[...]``, 1 for none, 0 for grey.
        angle: float64 ``[...]`` in radians, 0 for none.

    Returns:
        float32 ``[..., 3, 4]``: the matrix and, as its last column, the offset.
    """
    # Saturation scales the two chroma axes and hue turns them: in RGB that is the luma
    # part, plus s cos(angle) of what is not luma, plus s sin(angle) of it turned by a
    # right angle. Numbers instead of constant tensors: nothing to copy to the device.
    cosine, sine = saturation * torch.cos(angle), saturation * torch.sin(angle)
    gain = brightness * contrast
    # Saturation and hue leave greys alone, so contrast's offset passes through them.
    offset = (1 - contrast) * _MID_GREY
    rows = []
    for row, turned in enumerate(_QUARTER_TURN):
        entries = [
            (luma + cosine * ((row == column) - luma) + sine * turned[column]) * gain
            for column, luma in enumerate(_LUMA)
        ]
        rows.append(torch.stack([*entries, offset], dim=-1))
    return torch.stack(rows, dim=-2).to(torch.float32)


#: The named recipes.
RECIPES = {
    "none": Recipe(),
    "crop": Recipe(crop=PadCrop()),
    "crop-gray": Recipe(crop=PadCrop(), grey=0.2),
    "crop-flip": Recipe(crop=PadCrop(), flip=0.5),
    "crop-flip-gray": Recipe(crop=PadCrop(), flip=0.5, grey=0.2),
    "crop-flip-jitter-gray": Recipe(
        crop=PadCrop(), flip=0.5, jitter=ColorJitter(), grey=0.2
    ),
    "supcon": Recipe(crop=ResizedCrop(), flip=0.5, jitter=ColorJitter(), grey=0.2),
}


def get_recipe(name: str) -> Recipe:
    """Returns a named recipe.

    Raises:
        ValueError: there is no such recipe; the message names the nearest.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"recipe: expected one of {', '.join(RECIPES)}, got {name!r}; "
            f"did you mean {near!r}?"
        )
    return RECIPES[name]


def _exp(x: Tensor) -> Tensor:
    # Taylor by Horner, one rounding per operation; |x| <= log(10) / 2 leaves an error
    # below 1e-12, far less than the rounding of a side to whole pixels.
    result = torch.ones_like(x)
    for n in range(18, 0, -1):
        result = result * x / n + 1
    return result
