"""Dot products with class sums."""

from __future__ import annotations

import torch
from torch import Tensor

from s3h_ext.ops._arguments import compute_dtype

__all__ = ["class_sum_dots", "class_sum_dots_backward"]


def _sums(rows: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """Return class sums ``[num_classes + 1, D]``, the last for rows without class."""
    sums = rows.new_zeros(num_classes + 1, rows.shape[1])
    return sums.index_add_(0, _place(classes, num_classes), rows)


def _place(classes: Tensor, num_classes: int) -> Tensor:
    classes = classes.long()  # a smaller type may not hold num_classes
    inside = (classes >= 0) & (classes < num_classes)
    return torch.where(inside, classes, num_classes)


def class_sum_dots(
    queries: Tensor,
    keys: Tensor | None,
    query_classes: Tensor,
    key_classes: Tensor | None,
    num_classes: int,
) -> Tensor:
    """The operator ``s3h::class_sum_dots``."""
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


def class_sum_dots_backward(
    grad: Tensor,
    need_queries: bool,
    need_keys: bool,
    queries: Tensor,
    keys: Tensor | None,
    query_classes: Tensor,
    key_classes: Tensor | None,
    num_classes: int,
) -> tuple[Tensor, Tensor]:
    """The operator ``s3h::class_sum_dots_backward``."""
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
