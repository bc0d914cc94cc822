"""Dot products with class sums: the attraction of contrastive losses, without a matrix.

``Σ_{j: y_j = y_i} q_i·k_j = q_i·S_{y_i}``, so summing the keys of each class first
replaces N×M dot products by N.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from s3h_ext.ops._arguments import (
    check_integers,
    check_matrices,
    meet_under_autocast,
    refuse_forward_mode,
)
from s3h_ext.ops._library import LIBRARY, implement_cuda, registry
from s3h_ext.ops.reference import compute_dtype
from s3h_ext.ops.similarity import CPU, CUDA

_ARGUMENTS = (
    "Tensor queries, Tensor? keys, Tensor query_classes, Tensor? key_classes, "
    "int num_classes"
)
LIBRARY.define(f"class_sum_dots({_ARGUMENTS}) -> Tensor")
LIBRARY.define(
    f"class_sum_dots_backward(Tensor grad, {_ARGUMENTS}, bool need_queries, "
    "bool need_keys) -> (Tensor, Tensor)"
)


def class_sum_dots(
    queries: Tensor,
    keys: Tensor | None = None,
    *,
    query_classes: Tensor,
    key_classes: Tensor | None = None,
    num_classes: int,
) -> Tensor:
    r"""Returns ``q_i · Σ_{j: y_j = y_i} k_j``.

    With ``keys=None`` the queries are the keys, and row i is left out of its sum.
    Inputs of 16 bits are summed and answered in float32. Under autocast, queries and
    keys of different types meet in the wider one. Gradients flow to queries and keys,
    once. The result does not depend on the number of threads.

    Args:
        queries: ``[N, D]`` float32, float64, bfloat16 or float16.
        keys: ``[M, D]`` of the same type, or None.
        query_classes: ``[N]`` integers; a class outside [0, num_classes) has no sum,
            and 0 for its rows.
        key_classes: ``[M]`` integers, with ``keys`` only.
        num_classes: how many sums there are.

    Returns:
        ``[N]``, float64 for float64 queries, else float32.

    Raises:
        TypeError: an argument's type is not one of the above.
        ValueError: a shape, device, number or combination is not as above.

    Example:
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
    operators: Any = torch.ops.s3h
    return cast(
        Tensor,
        operators.class_sum_dots(
            queries, keys, query_classes, key_classes, num_classes
        ),
    )


def _sums(rows: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """Returns class sums ``[num_classes + 1, D]``; the last one takes no class."""
    sums = rows.new_zeros(num_classes + 1, rows.shape[1])
    return sums.index_add_(0, _place(classes, num_classes), rows)


def _place(classes: Tensor, num_classes: int) -> Tensor:
    classes = classes.long()  # the number may be beyond a smaller type's range
    inside = (classes >= 0) & (classes < num_classes)
    return torch.where(inside, classes, num_classes)


def _forward_plain(
    queries: Tensor,
    keys: Tensor | None,
    query_classes: Tensor,
    key_classes: Tensor | None,
    num_classes: int,
) -> Tensor:
    queries = queries.to(compute_dtype(queries.dtype))
    place = _place(query_classes, num_classes)
    if keys is None or key_classes is None:
        sums = _sums(queries, query_classes, num_classes)
        others = sums.index_select(0, place) - queries
    else:
        sums = _sums(keys.to(queries.dtype), key_classes, num_classes)
        others = sums.index_select(0, place)
    dots = (queries * others).sum(dim=1)
    return torch.where(place < num_classes, dots, 0)


def _backward_plain(
    grad: Tensor,
    queries: Tensor,
    keys: Tensor | None,
    query_classes: Tensor,
    key_classes: Tensor | None,
    num_classes: int,
    need_queries: bool,
    need_keys: bool,
) -> tuple[Tensor, Tensor]:
    stored = queries.dtype
    queries = queries.to(compute_dtype(stored))
    place = _place(query_classes, num_classes)
    grad = torch.where(place < num_classes, grad, 0)[:, None]
    weighted = _sums(grad * queries, query_classes, num_classes)
    weighted[num_classes] = 0
    if keys is None or key_classes is None:
        sums = _sums(queries, query_classes, num_classes)
        grad_queries = grad * (sums.index_select(0, place) - 2 * queries)
        grad_queries += weighted.index_select(0, place)
        return grad_queries.to(stored), queries.new_empty(0, queries.shape[1]).to(
            stored
        )
    sums = _sums(keys.to(queries.dtype), key_classes, num_classes)
    grad_queries = grad * sums.index_select(0, place)
    grad_keys = weighted.index_select(0, _place(key_classes, num_classes))
    return (
        grad_queries[: queries.shape[0] if need_queries else 0].to(stored),
        grad_keys[: keys.shape[0] if need_keys else 0].to(stored),
    )


def _fake_forward(queries: Tensor, *args: Any) -> Tensor:
    return queries.new_empty(queries.shape[0], dtype=compute_dtype(queries.dtype))


def _fake_backward(
    grad: Tensor,
    queries: Tensor,
    keys: Tensor | None,
    query_classes: Tensor,
    key_classes: Tensor | None,
    num_classes: int,
    need_queries: bool,
    need_keys: bool,
) -> tuple[Tensor, Tensor]:
    rows, depth = queries.shape
    columns = keys.shape[0] if keys is not None and need_keys else 0
    return (
        queries.new_empty(rows if need_queries else 0, depth),
        queries.new_empty(columns, depth),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.num_classes = inputs[4]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    need_queries, need_keys = ctx.needs_input_grad[:2]
    operators: Any = torch.ops.s3h
    grad_queries, grad_keys = operators.class_sum_dots_backward(
        grad, *ctx.saved_tensors, ctx.num_classes, need_queries, need_keys
    )
    return (
        grad_queries if need_queries else None,
        grad_keys if need_keys else None,
        None,
        None,
        None,
    )


def _refuse_double_backward(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError(
        "class_sum_dots has no second derivative: call backward without "
        "create_graph=True"
    )


if not CPU.loaded:
    CPU.implement_failure("class_sum_dots", "class_sum_dots_backward", key="CPU")
implement_cuda(
    CUDA, class_sum_dots=_forward_plain, class_sum_dots_backward=_backward_plain
)
registry.register_fake("s3h::class_sum_dots", _fake_forward, lib=LIBRARY)
registry.register_fake("s3h::class_sum_dots_backward", _fake_backward, lib=LIBRARY)
registry.register_autograd(
    "s3h::class_sum_dots", _backward, setup_context=_setup_context, lib=LIBRARY
)
registry.register_autograd(
    "s3h::class_sum_dots_backward", _refuse_double_backward, lib=LIBRARY
)
