"""Checks of the operations' arguments; errors name the argument as the caller did."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

P = ParamSpec("P")
R = TypeVar("R")

Reduction = Literal["mean", "sum", "none"]
#: Numbered as in the operator schemas.
REDUCTIONS = ("none", "mean", "sum")

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def meet_under_autocast(
    queries: Tensor, keys: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Under autocast, convert matrices of different types to the wider one."""
    if keys is None or keys.dtype == queries.dtype:
        return queries, keys
    if not torch.is_autocast_enabled(queries.device.type):
        return queries, keys
    widest = torch.promote_types(queries.dtype, keys.dtype)
    return queries.to(widest), keys.to(widest)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which operations compute and return for an input dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def outside_autocast(
    function: Callable[Concatenate[Tensor, P], R],
) -> Callable[Concatenate[Tensor, P], R]:
    """Run a kernel with autocast disabled.

    Autocast stays on inside an operation and would round the products to 16 bits, but
    only in the forward: the backward runs outside of it.
    """

    @wraps(function)
    def run(first: Tensor, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with torch.autocast(first.device.type, enabled=False):
            return function(first, *args, **kwargs)

    return run


def refuse_forward_mode(operator: str, *tensors: Tensor | None) -> None:
    """Reject tangents, which an operator without a forward derivative would drop."""
    # unpack_dual checks this too, but torch.compile cannot trace it.
    if forward_ad._current_level < 0:
        return
    for tensor in tensors:
        if tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None:
            raise NotImplementedError(
                f"{operator} has no forward-mode derivative: use backward, or detach "
                "its inputs"
            )


def check_tensor(name: str, value: Any) -> None:
    """Reject lists and arrays, which have no device."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")


def check_matrices(queries: Tensor, keys: Tensor | None, name: str = "queries") -> None:
    """Check queries ``[N, D]``, called ``name``, and keys ``[M, D]`` of equal type."""
    check_tensor(name, queries)
    if queries.ndim != 2:
        raise ValueError(f"{name} must be [N, D], got shape {tuple(queries.shape)}")
    if queries.dtype not in _FLOATS:
        raise TypeError(
            f"{name} must be float32, float64, bfloat16 or float16, got {queries.dtype}"
        )
    if keys is None:
        return
    check_tensor("keys", keys)
    if keys.ndim != 2 or keys.shape[1] != queries.shape[1]:
        raise ValueError(
            f"keys must be [M, {queries.shape[1]}] like the queries, "
            f"got shape {tuple(keys.shape)}"
        )
    if keys.dtype != queries.dtype:
        raise TypeError(
            f"keys must have the queries' type {queries.dtype}, got {keys.dtype}"
        )
    if keys.device != queries.device:
        raise ValueError(f"keys must be on {queries.device}, got {keys.device}")


def check_temperature(temperature: Any) -> float:
    """Return the temperature, a positive finite number, as a float."""
    # float first: asking an abstract class takes longer.
    if not isinstance(temperature, (float, numbers.Real)):
        remedy = "; to learn it, divide the rows by its square root and pass 1.0"
        raise TypeError(
            f"temperature must be a number, got {type(temperature).__name__}"
            + (remedy if isinstance(temperature, Tensor) else "")
        )
    # Compare: under torch.compile a number may be symbolic, which math rejects.
    number = float(temperature)
    if not 0.0 < number < math.inf:
        raise ValueError(f"temperature must be finite and above 0, got {temperature}")
    return number


def check_reduction(reduction: Reduction) -> Reduction:
    """Return the reduction after checking its name."""
    if reduction not in REDUCTIONS:
        raise ValueError(
            f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}"
        )
    return reduction


def check_vector(name: str, tensor: Tensor, size: int, device: torch.device) -> None:
    """Check shape ``[size]`` and device."""
    check_tensor(name, tensor)
    if tensor.shape != (size,):
        raise ValueError(f"{name} must have shape ({size},), got {tuple(tensor.shape)}")
    if tensor.device != device:
        raise ValueError(f"{name} must be on {device}, got {tensor.device}")


def check_bias(
    name: str, tensor: Tensor | None, size: int, device: torch.device
) -> None:
    """Check for floating-point ``[size]`` without gradient, or None."""
    if tensor is None:
        return
    check_vector(name, tensor, size, device)
    if tensor.dtype not in _FLOATS:
        raise TypeError(f"{name} must be floating point, got {tensor.dtype}")
    if tensor.requires_grad:
        raise ValueError(
            f"{name} must not require a gradient, because none is computed; "
            f"pass {name}.detach()"
        )


def check_integers(
    name: str, tensor: Tensor | None, size: int, device: torch.device
) -> None:
    """Check for integers ``[size]``, or None."""
    if tensor is None:
        return
    check_vector(name, tensor, size, device)
    if tensor.dtype not in _INTEGERS:
        raise TypeError(f"{name} must be integers, got {tensor.dtype}")
