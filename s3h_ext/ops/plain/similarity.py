"""Row-wise log-sum-exp of similarities, in chunks of rows.

Needs O((N + M) D) memory plus a chunk of fixed size.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from s3h_ext.ops._arguments import compute_dtype, outside_autocast

__all__ = [
    "Problem",
    "logsumexp",
    "similarity_logsumexp",
    "similarity_logsumexp_backward",
]

_CHUNK_ELEMENTS = 1 << 22


class Problem(NamedTuple):
    """The arguments that forward and backward share, in the schema's order."""

    queries: Tensor
    keys: Tensor | None
    temperature: float
    key_bias: Tensor | None
    query_labels: Tensor | None
    key_labels: Tensor | None
    same_label_bias: Tensor | None
    same_label_value: float
    self_index: Tensor | None

    def resolved(self) -> tuple[Problem, Tensor]:
        """Return the problem with keys, in the dtype of the computation; and the keys.

        In the symmetric case the queries are the keys and row i does not see itself.
        """
        dtype = compute_dtype(self.queries.dtype)
        queries = self.queries.to(dtype)
        if self.keys is not None:
            keys = self.keys.to(dtype)
            return self._replace(queries=queries, keys=keys), keys
        index = torch.arange(queries.shape[0], device=queries.device)
        problem = self._replace(
            queries=queries,
            keys=queries,
            key_labels=self.query_labels,
            self_index=index,
        )
        return problem, queries

    def scores(self, rows: slice, keys: Tensor) -> Tensor:
        """Return the scores ``x_ij`` of some rows, -inf if a pair is excluded."""
        scores = self.queries[rows] @ keys.T / self.temperature
        if self.key_bias is not None:
            scores = scores + self.key_bias.to(scores.dtype)
        if self.query_labels is not None and self.key_labels is not None:
            own = self.query_labels[rows, None]
            same = (own == self.key_labels[None, :]) & (own >= 0)
            if self.same_label_bias is None:
                shifted = scores + self.same_label_value
            else:
                shifted = scores + self.same_label_bias[rows, None].to(scores.dtype)
            scores = torch.where(same, shifted, scores)
        if self.self_index is not None:
            columns = torch.arange(keys.shape[0], device=keys.device)
            excluded = self.self_index[rows, None] == columns
            scores = scores.masked_fill(excluded, -math.inf)
        return scores


def logsumexp(scores: Tensor) -> Tensor:
    """Row-wise log-sum-exp whose gradient for an empty row is zero, not NaN."""
    if scores.shape[1] == 0:
        scores = torch.nn.functional.pad(scores, (0, 1), value=-math.inf)
    top = scores.detach().amax(dim=1, keepdim=True)
    top = torch.where(top == -math.inf, torch.zeros_like(top), top)
    total = (scores - top).exp().sum(dim=1)
    empty = total == 0
    lse = torch.where(empty, torch.ones_like(total), total).log() + top[:, 0]
    lse = torch.where(empty, torch.full_like(lse, -math.inf), lse)
    return torch.where(top[:, 0] == math.inf, top[:, 0], lse)


def _chunks(rows: int, columns: int) -> list[slice]:
    """Return row ranges whose scores fit into a chunk."""
    step = max(1, _CHUNK_ELEMENTS // max(1, columns))
    return [slice(i, min(rows, i + step)) for i in range(0, rows, step)]


@outside_autocast
def similarity_logsumexp(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The operator ``s3h::similarity_logsumexp``.

    Returns:
        ``[N]``, float64 for float64 queries, otherwise float32; and two empty tensors,
        because the backward needs no more.
    """
    problem, keys = Problem(*arguments[: len(Problem._fields)]).resolved()
    lse = problem.queries.new_empty(problem.queries.shape[0])
    for rows in _chunks(lse.shape[0], keys.shape[0]):
        lse[rows] = logsumexp(problem.scores(rows, keys))
    on_cpu = lse.device.type == "cpu"
    kept = lse.new_empty(0, dtype=torch.float64 if on_cpu else torch.float32)
    return lse, kept, lse.new_empty(0, dtype=torch.float32)


@outside_autocast
def similarity_logsumexp_backward(
    grad: Tensor,
    lse: Tensor,
    kept: Tensor,
    scores: Tensor,
    need_queries: bool,
    need_keys: bool,
    *arguments: Any,
) -> tuple[Tensor, Tensor]:
    """The operator ``s3h::similarity_logsumexp_backward``.

    Returns:
        Gradients of queries ``[N, D]`` and keys ``[M, D]`` in the type of the queries;
        ``[0, D]`` for one that is not requested.
    """
    given = Problem(*arguments[: len(Problem._fields)])
    problem, keys = given.resolved()
    queries, symmetric = problem.queries, given.keys is None
    need_keys = need_keys and not symmetric
    grad_queries = torch.zeros_like(queries if need_queries else queries[:0])
    grad_keys = torch.zeros_like(keys if need_keys else keys[:0])
    for rows in _chunks(queries.shape[0], keys.shape[0]):
        x = problem.scores(rows, keys)
        empty = lse[rows] == -math.inf
        # Not e^(x - lse): for large scores, lse lacks precision.
        weights = x.softmax(dim=1) * (grad[rows] / problem.temperature)[:, None]
        weights = weights.masked_fill(empty[:, None], 0.0)
        if need_queries:
            grad_queries[rows] += weights @ keys
        if need_keys:
            grad_keys += weights.T @ queries[rows]
        if symmetric and need_queries:
            grad_queries += weights.T @ queries[rows]
    stored = given.queries.dtype
    return grad_queries.to(stored), grad_keys.to(stored)
