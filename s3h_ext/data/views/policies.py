"""Learned and random augmentation policies: lists of operations on uint8 images.

:mod:`s3h_ext.ops.augment` defines the operations. Magnitudes are ten levels between
none and the maximum of Cubuk et al., "AutoAugment: Learning augmentation policies from
data", CVPR 2019. Details follow the PyTorch code shared in the long-tailed literature:
shears interpolate bicubically, translation and rotation take the nearest pixel, the
fill is grey 128, rotations are counter-clockwise, and other signed operations take
either sign with equal probability.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from s3h_ext.checks import COUNT, check, number_in
from s3h_ext.ops.augment import Operation

__all__ = ["CIFAR10_POLICY", "AutoAugment", "Policy", "RandAugment"]

_LEVELS = 10
_GREATEST_TRANSLATION = 150 / 331

#: The 25 sub-policies that AutoAugment found on CIFAR-10 (CVPR 2019, appendix): two
#: operations each, as (probability, operation, level), applied in order.
CIFAR10_POLICY = (
    ((0.1, Operation.INVERT, 7), (0.2, Operation.CONTRAST, 6)),
    ((0.7, Operation.ROTATE, 2), (0.3, Operation.TRANSLATE_X, 9)),
    ((0.8, Operation.SHARPNESS, 1), (0.9, Operation.SHARPNESS, 3)),
    ((0.5, Operation.SHEAR_Y_CUBIC, 8), (0.7, Operation.TRANSLATE_Y, 9)),
    ((0.5, Operation.AUTO_CONTRAST, 8), (0.9, Operation.EQUALIZE, 2)),
    ((0.2, Operation.SHEAR_Y_CUBIC, 7), (0.3, Operation.POSTERIZE, 7)),
    ((0.4, Operation.COLOUR, 3), (0.6, Operation.BRIGHTNESS, 7)),
    ((0.3, Operation.SHARPNESS, 9), (0.7, Operation.BRIGHTNESS, 9)),
    ((0.6, Operation.EQUALIZE, 5), (0.5, Operation.EQUALIZE, 1)),
    ((0.6, Operation.CONTRAST, 7), (0.6, Operation.SHARPNESS, 5)),
    ((0.7, Operation.COLOUR, 7), (0.5, Operation.TRANSLATE_X, 8)),
    ((0.3, Operation.EQUALIZE, 7), (0.4, Operation.AUTO_CONTRAST, 8)),
    ((0.4, Operation.TRANSLATE_Y, 3), (0.2, Operation.SHARPNESS, 6)),
    ((0.9, Operation.BRIGHTNESS, 6), (0.2, Operation.COLOUR, 8)),
    ((0.5, Operation.SOLARIZE, 2), (0.0, Operation.INVERT, 3)),
    ((0.2, Operation.EQUALIZE, 0), (0.6, Operation.AUTO_CONTRAST, 0)),
    ((0.2, Operation.EQUALIZE, 8), (0.6, Operation.EQUALIZE, 4)),
    ((0.9, Operation.COLOUR, 9), (0.6, Operation.EQUALIZE, 6)),
    ((0.8, Operation.AUTO_CONTRAST, 4), (0.2, Operation.SOLARIZE, 8)),
    ((0.1, Operation.BRIGHTNESS, 3), (0.7, Operation.COLOUR, 0)),
    ((0.4, Operation.SOLARIZE, 5), (0.9, Operation.AUTO_CONTRAST, 3)),
    ((0.9, Operation.TRANSLATE_Y, 9), (0.7, Operation.TRANSLATE_Y, 9)),
    ((0.9, Operation.AUTO_CONTRAST, 2), (0.8, Operation.SOLARIZE, 3)),
    ((0.8, Operation.EQUALIZE, 8), (0.1, Operation.INVERT, 3)),
    ((0.7, Operation.TRANSLATE_Y, 9), (0.9, Operation.AUTO_CONTRAST, 1)),
)

_FACTORS = (
    Operation.COLOUR,
    Operation.CONTRAST,
    Operation.BRIGHTNESS,
    Operation.SHARPNESS,
)
_SHEARS = (
    Operation.SHEAR_X,
    Operation.SHEAR_Y,
    Operation.SHEAR_X_CUBIC,
    Operation.SHEAR_Y_CUBIC,
)


def _magnitude(
    operation: Operation, share: float, height: int, width: int, turns: bool
) -> tuple[float, float]:
    """Return (m, s): the operation's magnitude is m + s times a random sign."""
    if operation in _SHEARS:
        return 0.0, 0.3 * share
    if operation == Operation.TRANSLATE_X:
        return 0.0, _GREATEST_TRANSLATION * share * width
    if operation == Operation.TRANSLATE_Y:
        return 0.0, _GREATEST_TRANSLATION * share * height
    if operation == Operation.ROTATE:
        return (0.0, 30 * share) if turns else (30 * share, 0.0)
    if operation in _FACTORS:
        return 1.0, 0.9 * share
    if operation == Operation.POSTERIZE:
        return float(np.round(8 - 4 * share)), 0.0
    if operation == Operation.SOLARIZE:
        return 256 * (1 - share), 0.0
    return 0.0, 0.0


# Cached, as copying a table to a GPU would synchronise in every step.
@lru_cache(maxsize=64)
def _autoaugment_tables(
    height: int, width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return operations ``[25, 2]`` and (probability, m, s) ``[25, 2, 3]``."""
    values = [
        [
            (p, *_magnitude(op, level / (_LEVELS - 1), height, width, False))
            for p, op, level in pair
        ]
        for pair in CIFAR10_POLICY
    ]
    codes = [[int(op) for _, op, _ in pair] for pair in CIFAR10_POLICY]
    return (
        torch.tensor(codes, device=device),
        torch.tensor(values, dtype=torch.float64, device=device),
    )


@lru_cache(maxsize=64)
def _randaugment_tables(
    share: float, height: int, width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return operations ``[14]`` and (m, s) ``[14, 2]``."""
    values = [_magnitude(op, share, height, width, True) for op in _RANDOM]
    return (
        torch.tensor([int(op) for op in _RANDOM], device=device),
        torch.tensor(values, dtype=torch.float64, device=device),
    )


def _sign(uniform: Tensor) -> Tensor:
    return torch.where(uniform < 0.5, -1.0, 1.0).to(torch.float64)


@dataclass(frozen=True)
class AutoAugment:
    """One of the 25 sub-policies found on CIFAR-10, drawn for each view.

    Slots of the uniforms: 0 sub-policy, 1 and 2 whether each operation is applied, 3
    and 4 their signs.
    """

    @property
    def draws(self) -> int:
        """Number of uniforms per view."""
        return 5

    def describe(
        self, uniforms: Tensor, height: int, width: int
    ) -> tuple[Tensor, Tensor]:
        """Choose operations for an image of the given size.

        ``uniforms`` are float64 ``[..., draws]`` in [0, 1).

        Returns:
            Operations, int64 ``[..., 2]``, and magnitudes, float64 ``[..., 2]``.

        Example:
            >>> uniforms = torch.tensor([[0.05, 0.0, 0.9, 0.0, 0.0]]).double()
            >>> operations, magnitudes = AutoAugment().describe(uniforms, 32, 32)
            >>> Operation(int(operations[0, 0])).name, round(float(magnitudes[0, 0]), 3)
            ('ROTATE', 6.667)
            >>> Operation(int(operations[0, 1])).name
            'NONE'
        """
        codes, table = _autoaugment_tables(height, width, uniforms.device)
        rows = (uniforms[..., 0] * len(CIFAR10_POLICY)).to(torch.int64)
        probability, fixed, signed = table[rows].unbind(-1)
        operations = torch.where(uniforms[..., 1:3] < probability, codes[rows], 0)
        return operations, fixed + signed * _sign(uniforms[..., 3:5])


@dataclass(frozen=True)
class RandAugment:
    """Uniformly drawn operations, all of the same magnitude.

    Cubuk et al., "RandAugment: practical automated data augmentation with a reduced
    search space", CVPR Workshops 2020: 14 operations (one of them does nothing) with
    AutoAugment's ranges, shears by the nearest pixel, rotations with either sign.

    Slots of the uniforms: 2k operation k, 2k + 1 its sign.

    Attributes:
        count: Number of operations, N in the paper.
        magnitude: M in the paper, from 0 to 30.
    """

    count: int = 2
    magnitude: float = 10.0

    def __post_init__(self) -> None:
        check(COUNT, count=self.count)
        check(number_in("[0, 30]"), magnitude=self.magnitude)

    @property
    def draws(self) -> int:
        """Number of uniforms per view."""
        return 2 * self.count

    def describe(
        self, uniforms: Tensor, height: int, width: int
    ) -> tuple[Tensor, Tensor]:
        """Choose ``count`` operations, see :meth:`AutoAugment.describe`."""
        codes, table = _randaugment_tables(
            self.magnitude / 30, height, width, uniforms.device
        )
        rows = (uniforms[..., : self.draws : 2] * len(_RANDOM)).to(torch.int64)
        fixed, signed = table[rows].unbind(-1)
        return codes[rows], fixed + signed * _sign(uniforms[..., 1 : self.draws : 2])


_RANDOM = (
    Operation.NONE,
    Operation.AUTO_CONTRAST,
    Operation.EQUALIZE,
    Operation.ROTATE,
    Operation.SOLARIZE,
    Operation.COLOUR,
    Operation.POSTERIZE,
    Operation.CONTRAST,
    Operation.BRIGHTNESS,
    Operation.SHARPNESS,
    Operation.SHEAR_X,
    Operation.SHEAR_Y,
    Operation.TRANSLATE_X,
    Operation.TRANSLATE_Y,
)

Policy = AutoAugment | RandAugment
