"""Dot products with class sums: the attraction of contrastive losses, without a matrix.

``Σ_{j: y_j = y_i} q_i·k_j = q_i·S_{y_i}``, so summing the keys of each class first
replaces N×M dot products by N.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor

from s3h_ext.ops._arguments import (
    check_integers,
    check_matrices,
    compute_dtype,
    meet_under_autocast,
    refuse_forward_mode,
)
from s3h_ext.ops._autograd import differentiate
from s3h_ext.ops._library import LIBRARY
from s3h_ext.ops.plain import class_sums as plain

_ARGUMENTS = (
    "Tensor queries, Tensor? keys, Tensor query_classes, Tensor? key_classes, "
    "int num_classes"
)
LIBRARY.define(f"class_sum_dots({_ARGUMENTS}) -> Tensor")
LIBRARY.define(
    "class_sum_dots_backward(Tensor grad, bool need_queries, bool need_keys, "
    f"{_ARGUMENTS}) -> (Tensor, Tensor)"
)


def class_sum_dots(
    queries: Tensor,
    keys: Tensor | None = None,
    *,
    query_classes: Tensor,
    key_classes: Tensor | None = None,
    num_classes: int,
) -> Tensor:
    r"""Return ``q_i · Σ_{j: y_j = y_i} k_j``.

    With ``keys=None`` the queries are the keys, and row i is left out of its sum.
    16-bit inputs are summed and returned in float32. Under autocast, mixed types are
    converted to the wider one. Queries and keys have first derivatives only. The result
    does not depend on the number of threads.

    Args:
        queries: ``[N, D]`` float32, float64, bfloat16 or float16.
        keys: ``[M, D]`` of the same type, or None.
        query_classes: ``[N]`` integers; rows with a class outside [0, num_classes) get
            0.
        key_classes: ``[M]`` integers, only with ``keys``.
        num_classes: number of classes.

    Returns:
        ``[N]``, float64 for float64 queries, otherwise float32.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a shape, device, number or combination is invalid.

    Example:
        >>> import torch
        >>> rows = torch.eye(3)
        >>> class_sum_dots(
        ...     rows, rows, query_classes=torch.tensor([0, 0, 1]),
        ...     key_classes=torch.tensor([0, 1, 1]), num_classes=2)
        tensor([1., 0., 1.])
    """
    queries, keys = meet_under_autocast(queries, keys)
    check_matrices(queries, keys)
    refuse_forward_mode("class_sum_dots", queries, keys)
    if (keys is None) != (key_classes is None):
        raise ValueError("keys and key_classes must be given together")
    rows, device = queries.shape[0], queries.device
    check_integers("query_classes", query_classes, rows, device)
    if keys is not None:
        check_integers("key_classes", key_classes, keys.shape[0], device)
    if num_classes < 0:
        raise ValueError(f"num_classes must not be negative, got {num_classes}")
    return cast(
        Tensor,
        _call(queries, keys, query_classes, key_classes, num_classes),
    )


def _fake_forward(queries: Tensor, *args: Any) -> Tensor:
    return queries.new_empty(queries.shape[0], dtype=compute_dtype(queries.dtype))


def _fake_backward(
    grad: Tensor,
    need_queries: bool,
    need_keys: bool,
    queries: Tensor,
    keys: Tensor | None,
    *arguments: Any,
) -> tuple[Tensor, Tensor]:
    rows, depth = queries.shape
    columns = keys.shape[0] if keys is not None and need_keys else 0
    return (
        queries.new_empty(rows if need_queries else 0, depth),
        queries.new_empty(columns, depth),
    )


_call = differentiate(
    "class_sum_dots",
    _fake_forward,
    _fake_backward,
    sources=2,
    asked=True,
    plain=(plain.class_sum_dots, plain.class_sum_dots_backward),
)
