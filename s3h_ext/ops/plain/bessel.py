"""Logarithm of the modified Bessel function of the first kind, and its derivative.

``log I_ν(x)`` never overflows, but I_ν does: at ν = 63 it is 1e-150 at x = 0.3 and
1e300 at x = 750. The von Mises-Fisher distribution needs a function that is smooth in
x²::

    g(s) = log( I_ν(√s) / √s^ν ),    g'(s) = I_{ν+1}(√s) / (2 √s I_ν(√s))

By Debye's expansion, uniform in x (DLMF 10.41.3), with w = √(ν² + s) and t = ν/w it is
``w − ν log(ν + w) − ½ log(2πw) + log Σ_k u_k(t)/ν^k``: x and its logarithm cancel, and
so does the singularity at 0. From order 32 on, eight terms reach float64 precision.
Smaller orders follow from there by ``h_{ν−1} = 2ν h_ν + s h_{ν+1}`` for h_ν =
I_ν(x)/x^ν (DLMF 10.29.1), a sum of positive terms.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

__all__ = ["log_bessel", "log_bessel_backward"]

_TERMS = 8
_LEAST_ORDER = 32


def _debye() -> list[list[tuple[int, float]]]:
    """Return u_k for k = 0 .. 8 as pairs (power of t, coefficient).

    ``u_{k+1} = ½ t² (1 − t²) u_k' + ⅛ ∫_0^t (1 − 5v²) u_k(v) dv`` (DLMF 10.41.9).
    """
    polynomials = [{0: Fraction(1)}]
    for _ in range(_TERMS):
        following: dict[int, Fraction] = {}
        for power, value in polynomials[-1].items():
            one = value * (Fraction(power, 2) + Fraction(1, 8) / (power + 1))
            three = value * (Fraction(-power, 2) - Fraction(5, 8) / (power + 3))
            following[power + 1] = following.get(power + 1, Fraction(0)) + one
            following[power + 3] = following.get(power + 3, Fraction(0)) + three
        polynomials.append(following)
    return [[(p, float(v)) for p, v in u.items()] for u in polynomials]


_DEBYE = _debye()


def _at_high_order(order: float, squares: Tensor) -> tuple[Tensor, Tensor]:
    """Return g and ``h_{ν+1} / h_ν``, which is 2 g', for orders of 32 or more."""
    coefficients = [0.0] * (3 * _TERMS + 1)
    for k, polynomial in enumerate(_DEBYE):
        for power, value in polynomial:
            coefficients[power] += value / order**k
    w = (squares + order * order).sqrt()
    t = order / w
    series, slope = torch.zeros_like(t), torch.zeros_like(t)
    for value in reversed(coefficients):
        slope = slope * t + series
        series = series * t + value
    log = w - order * (w + order).log() - 0.5 * (2 * math.pi * w).log() + series.log()
    ratio = 1 / (w + order) - (0.5 + t * slope / series) / (w * w)
    return log, ratio


def _log_and_ratio(order: float, squares: Tensor) -> tuple[Tensor, Tensor]:
    above = max(0, math.ceil(_LEAST_ORDER - order))
    log, ratio = _at_high_order(order + above, squares)
    for step in range(above):
        factor = 2 * (order + above - step) + squares * ratio
        log, ratio = log + factor.log(), 1 / factor
    return log, ratio


def log_bessel(squares: Tensor, order: float) -> Tensor:
    """The operator ``s3h::log_bessel``: g, of the squares' shape."""
    return _log_and_ratio(order, squares)[0]


def log_bessel_backward(grad: Tensor, squares: Tensor, order: float) -> Tensor:
    """The operator ``s3h::log_bessel_backward``: grad times g'."""
    return grad * (0.5 * _log_and_ratio(order, squares)[1])
