"""timm's RandAugment, configured by timm's own strings.

``rand-m9-n3-mstd0.5-inc1``: after ``rand``, in any order, ``m`` is the magnitude
(default 10), ``n`` the number of operations per view (2), ``mstd`` the standard
deviation of the magnitude (0; above 100 it is uniform from 0 to m), ``mmax`` its upper
limit (10), ``inc1`` makes all operations stronger with the magnitude, ``p`` is the
probability of each operation (0.5). The fifteen operations and their ranges are those
of timm's ``data/auto_augment.py``.

There are two differences. Geometric operations take the nearest pixel, while timm draws
bilinear or bicubic, and fill with grey 128. Magnitudes are multiples of 1/1024, so that
every device draws the same.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from s3h_ext.checks import Rule
from s3h_ext.ops.augment import Operation

__all__ = ["TimmRandAugment", "parse_randaugment"]

_LEVELS = 10.0  # the largest magnitude
_UNIFORM_ABOVE = 100.0
_STEP = 1 / 1024
_HALF = 2.0**-25  # half the step between uniforms

_Row = tuple[Operation, float, float, float, bool]
#: Operation, and four properties of its magnitude with L = m / 10: offset, growth with
#: L, growth with L under a random sign, and whether the growth is truncated to an
#: integer.
_COMMON: tuple[_Row, ...] = (
    (Operation.AUTO_CONTRAST, 0.0, 0.0, 0.0, False),
    (Operation.EQUALIZE, 0.0, 0.0, 0.0, False),
    (Operation.INVERT, 0.0, 0.0, 0.0, False),
    (Operation.ROTATE, 0.0, 0.0, 30.0, False),
    (Operation.SOLARIZE_ADD, 0.0, 110.0, 0.0, True),
    (Operation.SHEAR_X, 0.0, 0.0, 0.3, False),
    (Operation.SHEAR_Y, 0.0, 0.0, 0.3, False),
    # As fractions of the image's side.
    (Operation.TRANSLATE_X, 0.0, 0.0, 0.45, False),
    (Operation.TRANSLATE_Y, 0.0, 0.0, 0.45, False),
)
_FACTORS = (
    Operation.COLOUR,
    Operation.CONTRAST,
    Operation.BRIGHTNESS,
    Operation.SHARPNESS,
)
_PLAIN: tuple[_Row, ...] = (
    *_COMMON,
    (Operation.POSTERIZE, 0.0, 4.0, 0.0, True),
    (Operation.SOLARIZE, 0.0, 256.0, 0.0, True),
    *((factor, 0.1, 1.8, 0.0, False) for factor in _FACTORS),
)
_INCREASING: tuple[_Row, ...] = (
    *_COMMON,
    (Operation.POSTERIZE, 4.0, -4.0, 0.0, True),
    (Operation.SOLARIZE, 256.0, -256.0, 0.0, True),
    *((factor, 1.0, 0.0, 0.9, False) for factor in _FACTORS),
)


# Cached, as copying a table to a GPU would synchronise in every step.
@lru_cache(maxsize=64)
def _tables(
    increasing: bool, height: int, width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return operations ``[15]`` and the rows' numbers with limits, ``[15, 6]``."""
    codes, values = [], []
    for operation, start, growth, signed, whole in (
        _INCREASING if increasing else _PLAIN
    ):
        if operation == Operation.TRANSLATE_X:
            signed *= width
        if operation == Operation.TRANSLATE_Y:
            signed *= height
        low, high = -math.inf, math.inf
        if operation == Operation.POSTERIZE:
            low, high = 0.0, 8.0
        if operation in _FACTORS:
            low = 0.1
        codes.append(int(operation))
        values.append((start, growth, signed, float(whole), low, high))
    return (
        torch.tensor(codes, device=device),
        torch.tensor(values, dtype=torch.float64, device=device),
    )


@dataclass(frozen=True)
class TimmRandAugment:
    """Uniformly drawn operations, each applied with a probability and random magnitude.

    Slots of the uniforms: 4k operation k, 4k + 1 whether it is applied, 4k + 2 its
    sign, 4k + 3 its magnitude.

    Attributes:
        count: Operations per view, ``n``.
        magnitude: Mean magnitude, ``m``.
        deviation: Standard deviation of the magnitude, ``mstd``.
        greatest: Upper limit of the magnitude, ``mmax``.
        increasing: Whether all operations get stronger with the magnitude, ``inc``.
        probability: Probability of applying an operation, ``p``.
    """

    count: int = 2
    magnitude: float = 10.0
    deviation: float = 0.0
    greatest: float = 10.0
    increasing: bool = False
    probability: float = 0.5

    @property
    def draws(self) -> int:
        """Number of uniforms per view."""
        return 4 * self.count

    def describe(
        self, uniforms: Tensor, height: int, width: int
    ) -> tuple[Tensor, Tensor]:
        """Choose operations for an image of the given size.

        ``uniforms`` are float64 ``[..., draws]`` in [0, 1), multiples of 2**-24.

        Returns:
            Operations, int64 ``[..., n]``, and magnitudes, float64 ``[..., n]``.

        Example:
            >>> policy = parse_randaugment("rand-n1-m5")
            >>> uniforms = torch.tensor([[0.25, 0.0, 0.9, 0.5]]).double()
            >>> operations, magnitudes = policy.describe(uniforms, 32, 32)
            >>> Operation(int(operations)).name, float(magnitudes)
            ('ROTATE', 15.0)
        """
        codes, table = _tables(self.increasing, height, width, uniforms.device)
        which, applied, sign, noise = (
            uniforms[..., : self.draws].unflatten(-1, (self.count, 4)).unbind(-1)
        )
        rows = (which * len(codes)).to(torch.int64)
        start, growth, signed, whole, low, high = table[rows].unbind(-1)
        level = self._magnitudes(noise) / _LEVELS
        grown = growth * level
        grown = torch.where(whole > 0, grown.trunc(), grown)
        turned = signed * level * torch.where(sign < 0.5, -1.0, 1.0)
        magnitudes = (start + grown + turned).maximum(low).minimum(high)
        operations = torch.where(applied < self.probability, codes[rows], 0)
        return operations, magnitudes

    def _magnitudes(self, noise: Tensor) -> Tensor:
        if self.deviation == 0:
            drawn = torch.full_like(noise, self.magnitude)
        elif self.deviation > _UNIFORM_ABOVE:
            drawn = noise * self.magnitude
        else:
            normal = torch.special.ndtri(noise + _HALF)
            drawn = self.magnitude + self.deviation * normal
        drawn = (drawn / _STEP).round() * _STEP
        return drawn.clamp(0.0, self.greatest)


_FIELDS = {
    "n": "count",
    "m": "magnitude",
    "mstd": "deviation",
    "mmax": "greatest",
    "inc": "increasing",
    "p": "probability",
}
_NUMBER = r"\d{1,4}(?:\.\d{1,6})?"


def parse_randaugment(text: str, argument: str = "recipe") -> TimmRandAugment:
    """Parse timm's string into a policy.

    Raises:
        ValueError: a part is unknown, repeated or out of range.

    Example:
        >>> parse_randaugment("rand-m9-mstd0.5-inc1").increasing
        True
    """
    parts = text.split("-")[1:]
    found: dict[str, float] = {}
    for part in parts:
        match = re.fullmatch(rf"([a-z]+)(inf|{_NUMBER})", part)
        key = match[1] if match else part
        if not match or key not in _FIELDS or key in found:
            raise ValueError(
                f"{argument}: expected parts n, m, mstd, mmax, inc and p with a number "
                f"each, once, as in 'rand-n2-m10-mstd0.5', got {part!r} in {text!r}"
            )
        found[key] = float(match[2])
    checks: dict[str, Rule] = {
        "n": ("a whole number from 1 to 16", lambda v: v in range(1, 17)),
        "m": ("a number from 0 to 100", lambda v: 0 <= v <= 100),
        "mstd": ("a number", lambda v: v >= 0),
        "mmax": ("a number from 1 to 100", lambda v: 1 <= v <= 100),
        "inc": ("0 or 1", lambda v: v in (0, 1)),
        "p": ("a probability", lambda v: 0 <= v <= 1),
    }
    for key, value in found.items():
        expected, holds = checks[key]
        if not holds(value):
            raise ValueError(
                f"{argument}: expected {expected} behind {key!r} in {text!r}, got "
                f"{value:g}"
            )
    values: dict[str, Any] = {_FIELDS[key]: value for key, value in found.items()}
    values |= {"count": int(found.get("n", 2)), "increasing": found.get("inc") == 1}
    return TimmRandAugment(**values)
