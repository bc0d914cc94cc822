"""Plain-PyTorch forms of the operations: the oracle, and the portable kernels.

:func:`similarity_logsumexp_dense` forms the whole N x M matrix and is differentiated
by autograd: slow, obvious, float64-able; tests and benchmarks compare against it.
The chunked pair needs O((N + M) D) memory beside a chunk of fixed size, and is what
runs on devices without a native kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

_CHUNK_ELEMENTS = 1 << 22


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the type the operations calculate and answer in for an input type."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def outside_autocast(
    function: Callable[Concatenate[Tensor, P], R],
) -> Callable[Concatenate[Tensor, P], R]:
    """Has a kernel multiply in the types that it chose.

    Autocast stays on inside an operation and would round the products to 16 bits, in
    the forward and not in the backward, which runs outside of it.
    """

    @wraps(function)
    def run(first: Tensor, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with torch.autocast(first.device.type, enabled=False):
            return function(first, *args, **kwargs)

    return run


def _scores(
    rows: slice,
    queries: Tensor,
    keys: Tensor,
    temperature: float,
    key_bias: Tensor | None,
    query_labels: Tensor | None,
    key_labels: Tensor | None,
    same_label_bias: Tensor | float,
    self_index: Tensor | None,
) -> Tensor:
    """Returns the scores ``x_ij`` of some rows, -inf where a pair is excluded."""
    scores = queries[rows] @ keys.T / temperature
    if key_bias is not None:
        scores = scores + key_bias.to(scores.dtype)
    if query_labels is not None and key_labels is not None:
        own = query_labels[rows, None]
        same = (own == key_labels[None, :]) & (own >= 0)
        if isinstance(same_label_bias, Tensor):
            shifted = scores + same_label_bias[rows, None].to(scores.dtype)
        else:
            shifted = scores + same_label_bias
        scores = torch.where(same, shifted, scores)
    if self_index is not None:
        columns = torch.arange(keys.shape[0], device=keys.device)
        scores = scores.masked_fill(self_index[rows, None] == columns, -math.inf)
    return scores


def _logsumexp(scores: Tensor) -> Tensor:
    """Row-wise log-sum-exp whose gradient is zero, not NaN, in an empty row."""
    if scores.shape[1] == 0:
        scores = torch.nn.functional.pad(scores, (0, 1), value=-math.inf)
    top = scores.detach().amax(dim=1, keepdim=True)
    top = torch.where(top == -math.inf, torch.zeros_like(top), top)
    total = (scores - top).exp().sum(dim=1)
    empty = total == 0
    lse = torch.where(empty, torch.ones_like(total), total).log() + top[:, 0]
    lse = torch.where(empty, torch.full_like(lse, -math.inf), lse)
    return torch.where(top[:, 0] == math.inf, top[:, 0], lse)


def _resolve(
    queries: Tensor,
    keys: Tensor | None,
    query_labels: Tensor | None,
    key_labels: Tensor | None,
    self_index: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Returns (queries, keys, key_labels, self_index) with the defaults filled in."""
    dtype = compute_dtype(queries.dtype)
    queries = queries.to(dtype)
    if keys is None:
        index = torch.arange(queries.shape[0], device=queries.device)
        return queries, queries, query_labels, index
    return queries, keys.to(dtype), key_labels, self_index


def similarity_logsumexp_dense(
    queries: Tensor,
    keys: Tensor | None = None,
    *,
    temperature: float,
    key_bias: Tensor | None = None,
    query_labels: Tensor | None = None,
    key_labels: Tensor | None = None,
    same_label_bias: Tensor | float = 0.0,
    self_index: Tensor | None = None,
) -> Tensor:
    """The oracle of :func:`s3h_ext.ops.similarity_logsumexp`, by the full matrix.

    Args:
        queries: ``[N, D]``.
        keys: ``[M, D]``, or None for the symmetric case.
        temperature: divides the dot products.
        key_bias: ``[M]``.
        query_labels: ``[N]``.
        key_labels: ``[M]``.
        same_label_bias: a number or ``[N]``.
        self_index: ``[N]``.

    Returns:
        ``[N]``, float64 for float64 queries, else float32; differentiable twice.
    """
    queries, keys, key_labels, self_index = _resolve(
        queries, keys, query_labels, key_labels, self_index
    )
    everything = slice(0, queries.shape[0])
    return _logsumexp(
        _scores(
            everything,
            queries,
            keys,
            temperature,
            key_bias,
            query_labels,
            key_labels,
            same_label_bias,
            self_index,
        )
    )


def supervised_contrastive_dense(
    features: Tensor,
    labels: Tensor,
    *,
    temperature: float,
    num_classes: int | None = None,
    reduction: str = "mean",
) -> tuple[Tensor, Tensor]:
    """The oracle of :func:`s3h_ext.ops.supervised_contrastive`, by the full matrix.

    Args:
        features: ``[N, D]``.
        labels: ``[N]``.
        temperature: divides the dot products.
        num_classes: labels from here on are no class.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        The loss and the number of counted rows; differentiable twice.
    """
    features = features.to(compute_dtype(features.dtype))
    own = torch.eye(labels.shape[0], dtype=torch.bool, device=labels.device)
    known = labels >= 0
    if num_classes is not None:
        known = known & (labels < num_classes)
    same = (labels[:, None] == labels) & known[:, None] & ~own
    scores = features @ features.T / temperature
    lse = _logsumexp(scores.masked_fill(own, -math.inf))
    number = same.sum(dim=1)
    attraction = torch.where(same, scores, 0.0).sum(dim=1) / number.clamp(min=1)
    losses = torch.where(number > 0, lse - attraction, 0.0)
    counted = (number > 0).sum()
    if reduction == "none":
        return losses, counted
    total = losses.sum()
    return (total / counted.clamp(min=1) if reduction == "mean" else total), counted


def _chunks(rows: int, columns: int) -> list[slice]:
    """Returns row ranges whose scores stay below the chunk's size."""
    step = max(1, _CHUNK_ELEMENTS // max(1, columns))
    return [slice(i, min(rows, i + step)) for i in range(0, rows, step)]


@outside_autocast
def similarity_logsumexp_chunked(
    queries: Tensor,
    keys: Tensor | None,
    temperature: float,
    key_bias: Tensor | None,
    query_labels: Tensor | None,
    key_labels: Tensor | None,
    same_label_bias: Tensor | None,
    same_label_value: float,
    self_index: Tensor | None,
    *flags: bool,
) -> tuple[Tensor, Tensor]:
    """Forward of the operation in chunks of rows; arguments as in its schema.

    Returns:
        ``[N]``, float64 for float64 queries, else float32; and an empty one, for the
        backward needs no more.
    """
    queries, keys, key_labels, self_index = _resolve(
        queries, keys, query_labels, key_labels, self_index
    )
    bias = same_label_value if same_label_bias is None else same_label_bias
    lse = queries.new_empty(queries.shape[0])
    for rows in _chunks(queries.shape[0], keys.shape[0]):
        lse[rows] = _logsumexp(
            _scores(
                rows,
                queries,
                keys,
                temperature,
                key_bias,
                query_labels,
                key_labels,
                bias,
                self_index,
            )
        )
    return lse, lse.new_empty(
        0, dtype=torch.float64 if lse.device.type == "cpu" else torch.float32
    )


@outside_autocast
def similarity_logsumexp_chunked_backward(
    grad: Tensor,
    lse: Tensor,
    kept: Tensor,
    queries: Tensor,
    keys: Tensor | None,
    temperature: float,
    key_bias: Tensor | None,
    query_labels: Tensor | None,
    key_labels: Tensor | None,
    same_label_bias: Tensor | None,
    same_label_value: float,
    self_index: Tensor | None,
    need_queries: bool,
    need_keys: bool,
    *flags: bool,
) -> tuple[Tensor, Tensor]:
    """Backward of the operation in chunks of rows; arguments as in its schema.

    Returns:
        Gradients of queries ``[N, D]`` and keys ``[M, D]`` in the queries' type; the
        one not asked for is ``[0, D]``.
    """
    stored = queries.dtype
    symmetric = keys is None
    queries, keys, key_labels, self_index = _resolve(
        queries, keys, query_labels, key_labels, self_index
    )
    bias = same_label_value if same_label_bias is None else same_label_bias
    need_keys = need_keys and not symmetric
    grad_queries = torch.zeros_like(queries if need_queries else queries[:0])
    grad_keys = torch.zeros_like(keys if need_keys else keys[:0])
    for rows in _chunks(queries.shape[0], keys.shape[0]):
        scores = _scores(
            rows,
            queries,
            keys,
            temperature,
            key_bias,
            query_labels,
            key_labels,
            bias,
            self_index,
        )
        empty = lse[rows] == -math.inf
        # Not e^(scores - lse): where scores are large, lse lacks the digits.
        weights = scores.softmax(dim=1) * (grad[rows] / temperature)[:, None]
        weights = weights.masked_fill(empty[:, None], 0.0)
        if need_queries:
            grad_queries[rows] += weights @ keys
        if need_keys:
            grad_keys += weights.T @ queries[rows]
        if symmetric and need_queries:
            grad_queries += weights.T @ queries[rows]
    return grad_queries.to(stored), grad_keys.to(stored)
