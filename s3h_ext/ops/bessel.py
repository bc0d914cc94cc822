"""Logarithm of the modified Bessel function, the normaliser of directional statistics.

Elementwise, so the portable implementation serves every device.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from s3h_ext.ops._autograd import differentiate
from s3h_ext.ops._library import LIBRARY
from s3h_ext.ops.plain import bessel as plain

LIBRARY.define("log_bessel(Tensor squares, float order) -> Tensor")
LIBRARY.define(
    "log_bessel_backward(Tensor grad, Tensor squares, float order) -> Tensor"
)


def log_bessel(squares: Tensor, order: float) -> Tensor:
    r"""Return ``log( I_ν(x) / x^ν )`` at ``x² = squares``.

    I_ν is the modified Bessel function of the first kind of order ν. Nothing overflows,
    and x = 0 is allowed. The accuracy is that of float64 at any order. ``squares`` has
    a first derivative only; nothing else is stored for it.

    Args:
        squares: float64 of any shape, >= 0.
        order: ν, at least -1/2.

    Returns:
        float64, same shape as ``squares``.

    Raises:
        TypeError: ``squares`` is not float64.

    Example:
        >>> x = torch.tensor([1.0], dtype=torch.float64)
        >>> ratio = log_bessel(x.square(), 0.0).exp() / torch.special.i0(x)
        >>> ratio.round(decimals=12)
        tensor([1.], dtype=torch.float64)
    """
    if squares.dtype != torch.float64:
        raise TypeError(f"squares must be float64, got {squares.dtype}")
    return cast(Tensor, _call(squares, order))


def _fake_forward(squares: Tensor, order: float) -> Tensor:
    return torch.empty_like(squares)


def _fake_backward(grad: Tensor, squares: Tensor, order: float) -> Tensor:
    return torch.empty_like(squares)


_call = differentiate(
    "log_bessel",
    _fake_forward,
    _fake_backward,
    plain=(plain.log_bessel, plain.log_bessel_backward),
)
