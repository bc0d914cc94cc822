"""Balanced contrast against the keys of another model (S3H)."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from s3h_ext.losses._common import (
    ContrastiveModule,
    ContrastiveStats,
    Reduction,
    check_columns,
    check_labels,
    class_counts,
    class_index,
    reduce,
    same_class_bias,
)
from s3h_ext.ops import class_sum_dots, gather_rows, similarity_logsumexp


@overload
def cross_model_contrastive_loss(
    features: Tensor,
    labels: Tensor,
    keys: Tensor,
    key_labels: Tensor,
    *,
    centres: Tensor | None = ...,
    queue: Tensor | None = ...,
    queue_labels: Tensor | None = ...,
    self_index: Tensor | None = ...,
    temperature: float = ...,
    reduction: Reduction = ...,
    num_classes: int | None = ...,
    gather: bool = ...,
    return_stats: Literal[False] = ...,
) -> Tensor: ...
@overload
def cross_model_contrastive_loss(
    *args: Any, return_stats: bool, **kwargs: Any
) -> Tensor | tuple[Tensor, ContrastiveStats]: ...
# The overload above leaves the arguments to the one before it.
def cross_model_contrastive_loss(  # type: ignore[misc]
    features: Tensor,
    labels: Tensor,
    keys: Tensor,
    key_labels: Tensor,
    *,
    centres: Tensor | None = None,
    queue: Tensor | None = None,
    queue_labels: Tensor | None = None,
    self_index: Tensor | None = None,
    temperature: float = 0.1,
    reduction: Reduction = "mean",
    num_classes: int | None = None,
    gather: bool = False,
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, ContrastiveStats]:
    r"""Balanced contrast of one model's rows against another model's keys.

    ``L_i = −1/|P(i)| Σ_{p in P(i)} log( exp(s_ip) / Σ_{a≠e_i} exp(s_ia)/w_ia )``

    The equation of :func:`balanced_contrastive_loss` with keys that are not the
    anchors: the other model's rows, then a queue, then one centre for each class. e_i
    is the key that row i must not see, if any, of the same image and so with its label;
    w_ia is the number of keys of a's class that row i sees. Keys that require a
    gradient get one: detach a momentum model's. An anchor without a positive is
    skipped.

    Args:
        features: ``[N, D]``.
        labels: ``[N]`` integers; negative: no class.
        keys: ``[M, D]`` from the other model.
        key_labels: ``[M]``.
        centres: ``[C, D]`` or None; with centres labels are within [0, C).
        queue: ``[Q, D]`` earlier keys, or None.
        queue_labels: ``[Q]``; negative: an empty place, which equals nothing but is
            seen. With ``queue`` only.
        self_index: ``[N]``: e_i, an index into ``keys``; any other value: none.
        temperature: τ.
        reduction: ``"mean"`` over counted anchors, ``"sum"``, or ``"none"`` ``[N]``.
        num_classes: upper bound of the labels where there are no centres; optional.
        gather: take the keys of all processes, see :mod:`s3h_ext.losses`. There
            ``self_index`` counts this process's own keys, and queue and centres are the
            same everywhere.
        return_stats: also return :class:`ContrastiveStats`.

    Returns:
        The loss, and the stats if asked for.

    Raises:
        ValueError: a shape, temperature or reduction is not as above.
        TypeError: a type is not as above.

    Example:
        >>> z = torch.nn.functional.normalize(torch.randn(8, 16), dim=1)
        >>> labels = torch.arange(8) % 3
        >>> cross_model_contrastive_loss(z, labels, z.detach(), labels).shape
        torch.Size([])
    """
    check_labels(features, labels, 2)
    check_columns("keys", keys, features)
    check_labels(keys, key_labels, 2)
    if not len(keys):
        self_index = None  # it says nothing of queue and centres
    if (queue is None) != (queue_labels is None):
        raise ValueError("queue and queue_labels must be given together")
    if gather:
        local = len(keys)
        (keys, key_labels), start = gather_rows(keys, key_labels)
        if self_index is not None:
            inside = (self_index >= 0) & (self_index < local)
            self_index = torch.where(inside, self_index + start, -1)
    seen, seen_labels = [keys], [key_labels]
    if queue is not None and queue_labels is not None:
        check_columns("queue", queue, features)
        check_labels(queue, queue_labels, 2)
        seen.append(queue)
        seen_labels.append(queue_labels)
    if centres is not None:
        check_columns("centres", centres, features)
        num_classes = centres.shape[0]
        seen.append(centres)
        seen_labels.append(torch.arange(num_classes, device=labels.device))
    rows = features.shape[0]
    classes, size = class_index(torch.cat([labels, *seen_labels]), num_classes)
    classes, key_classes = classes[:rows], classes[rows:]
    every_key = torch.cat(seen)
    dots = class_sum_dots(
        features,
        every_key,
        query_classes=classes,
        key_classes=key_classes,
        num_classes=size,
    )
    counts = class_counts(key_classes, size, dots.dtype)
    number = counts.index_select(0, classes)
    positives = number
    if self_index is not None:
        inside = (self_index >= 0) & (self_index < keys.shape[0])
        own = torch.where(inside, self_index, 0)
        same = inside & (key_classes.index_select(0, own) == classes)
        same = same & (classes < size)
        excluded = features.to(dots.dtype) * keys.index_select(0, own).to(dots.dtype)
        dots = dots - torch.where(same, excluded.sum(dim=1), 0)
        positives = number - same.to(number.dtype)
        # Other places of the joined keys are not meant by the index.
        self_index = torch.where(inside, self_index, -1)
    lse = similarity_logsumexp(
        features,
        every_key,
        temperature=temperature,
        key_bias=-counts.index_select(0, key_classes).log(),
        query_labels=torch.where(classes < size, classes, -1),
        key_labels=torch.where(key_classes < size, key_classes, -1),
        same_label_bias=same_class_bias(number, positives),
        self_index=self_index,
        assume_normalized=True,
    )
    attraction = dots / (temperature * positives.clamp(min=1))
    counted = (classes < size) & (positives > 0)
    return reduce(lse - attraction, counted, reduction, return_stats, gather)


class CrossModelContrastiveLoss(ContrastiveModule):
    """Module form of :func:`cross_model_contrastive_loss`."""

    def forward(
        self,
        features: Tensor,
        labels: Tensor,
        keys: Tensor,
        key_labels: Tensor,
        *,
        centres: Tensor | None = None,
        queue: Tensor | None = None,
        queue_labels: Tensor | None = None,
        self_index: Tensor | None = None,
        return_stats: bool = False,
    ) -> Tensor | tuple[Tensor, ContrastiveStats]:
        """See :func:`cross_model_contrastive_loss`."""
        return cross_model_contrastive_loss(
            features,
            labels,
            keys,
            key_labels,
            centres=centres,
            queue=queue,
            queue_labels=queue_labels,
            self_index=self_index,
            temperature=self.temperature,
            reduction=self.reduction,
            num_classes=self.num_classes,
            gather=self.gather,
            return_stats=return_stats,
        )
