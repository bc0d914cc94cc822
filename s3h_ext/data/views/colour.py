"""Colour changes of a view as one matrix.

Brightness, contrast about a fixed grey, saturation, hue (a rotation in YIQ) and
greyscale are linear, so they combine into one 3 x 4 matrix with one clamp after it.
This differs from torchvision's jitter, which rotates hue in HSV, takes contrast about
the image's mean, applies the operations in random order and clamps after each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["ColorJitter", "colour_matrix", "draw_colour"]

# Slots of a view's uniforms, see s3h_ext/data/views/recipes.py.
_GREY, _JITTER, _BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(3, 9)

# ITU-R BT.601 luma, and the NTSC chroma axes in which hue is rotated.
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


def draw_colour(
    uniforms: Tensor, jitter: ColorJitter | None, grey: float
) -> Tensor | None:
    """Turn a view's uniforms into its colour matrix.

    Args:
        uniforms: float64 ``[..., draws]`` in [0, 1), at least nine with ``jitter``,
            four without.
        jitter: Colour jitter or ``None``.
        grey: Probability of greyscale.

    Returns:
        float32 ``[..., 3, 4]``, or ``None`` if nothing can change.
    """
    if jitter is None and grey == 0:
        return None
    one = torch.ones(uniforms.shape[:-1], dtype=torch.float64, device=uniforms.device)
    brightness = contrast = saturation = one
    angle = torch.zeros_like(one)
    if jitter is not None:
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
    if grey > 0:
        # Greyscale is saturation 0 after everything else; hue keeps the luma, so it
        # equals saturation 0 before it.
        saturation = torch.where(uniforms[..., _GREY] < grey, 0.0, saturation)
    return colour_matrix(brightness, contrast, saturation, angle)


def colour_matrix(
    brightness: Tensor, contrast: Tensor, saturation: Tensor, angle: Tensor
) -> Tensor:
    """Compose brightness, contrast, saturation and hue, in this order.

    On a pixel x in [0, 1]: ``b x``; ``c x + (1 - c) / 2``; ``s x + (1 - s) luma(x)``;
    and a rotation of the two chroma axes of YIQ by ``angle`` (radians). All are float64
    ``[...]``. The result is float32 ``[..., 3, 4]``, the matrix with the offset as its
    last column.
    """
    # Saturation scales the two chroma axes and hue rotates them: in RGB, that is the
    # luma part, plus s cos(angle) times the rest, plus s sin(angle) times the rest
    # rotated by 90 degrees. Python numbers instead of tensors avoid copies to the
    # device.
    cosine, sine = saturation * torch.cos(angle), saturation * torch.sin(angle)
    gain = brightness * contrast
    # Saturation and hue keep greys, so contrast's offset passes through them.
    offset = (1 - contrast) * _MID_GREY
    rows = []
    for row, turned in enumerate(_QUARTER_TURN):
        entries = [
            (luma + cosine * ((row == column) - luma) + sine * turned[column]) * gain
            for column, luma in enumerate(_LUMA)
        ]
        rows.append(torch.stack([*entries, offset], dim=-1))
    return torch.stack(rows, dim=-2).to(torch.float32)
