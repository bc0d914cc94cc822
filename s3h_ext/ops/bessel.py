"""Logarithm of the modified Bessel function, the normaliser of directional statistics.

Elementwise, so the portable form serves every device.
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
    r"""Returns ``log( I_ν(x) / x^ν )`` at ``x² = squares``.

    I_ν is the modified Bessel function of the first kind, ν the order. Nothing
    overflows, and x = 0 is no exception. Errors are those of float64 at any order.
    Gradients flow to the squares, once; they alone are kept for it.

    Args:
        squares: float64 of any shape, 0 or more.
        order: ν, at least -1/2.

    Returns:
        float64 of the squares' shape.

    Raises:
        TypeError: the squares are not float64.

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
