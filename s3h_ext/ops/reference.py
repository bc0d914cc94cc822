"""Reference implementations of the similarity operations: slow, simple, any precision.

They form the whole N x M matrix and leave the gradient to autograd. Tests and
benchmarks compare against them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from s3h_ext.ops._arguments import compute_dtype
from s3h_ext.ops.plain.similarity import Problem, logsumexp

__all__ = ["similarity_logsumexp_dense", "supervised_contrastive_dense"]


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
    """Reference of :func:`s3h_ext.ops.similarity_logsumexp`, from the full matrix.

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
    problem, keys = Problem(
        queries,
        keys,
        temperature,
        key_bias,
        query_labels,
        key_labels,
        same_label_bias if isinstance(same_label_bias, Tensor) else None,
        0.0 if isinstance(same_label_bias, Tensor) else same_label_bias,
        self_index,
    ).resolved()
    return logsumexp(problem.scores(slice(0, queries.shape[0]), keys))


def supervised_contrastive_dense(
    features: Tensor,
    labels: Tensor,
    *,
    temperature: float,
    num_classes: int | None = None,
    reduction: str = "mean",
) -> tuple[Tensor, Tensor]:
    """Reference of :func:`s3h_ext.ops.supervised_contrastive`, from the full matrix.

    Args:
        features: ``[N, D]``.
        labels: ``[N]``.
        temperature: divides the dot products.
        num_classes: labels from this number on have no class.
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
    lse = logsumexp(scores.masked_fill(own, -math.inf))
    number = same.sum(dim=1)
    attraction = torch.where(same, scores, 0.0).sum(dim=1) / number.clamp(min=1)
    losses = torch.where(number > 0, lse - attraction, 0.0)
    counted = (number > 0).sum()
    if reduction == "none":
        return losses, counted
    total = losses.sum()
    return (total / counted.clamp(min=1) if reduction == "mean" else total), counted
