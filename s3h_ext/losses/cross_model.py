"""Balanced contrast against the keys of another model (S3H)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from s3h_ext.losses._common import (
    ContrastiveModule,
    check_columns,
    check_labels,
    check_num_classes,
    class_counts,
    class_index,
    classes_of,
    same_class_bias,
)
from s3h_ext.losses._reduction import (
    ContrastiveStats,
    Reduced,
    reduce,
    with_stats,
)
from s3h_ext.ops import class_sum_dots, gather_rows, similarity_logsumexp
from s3h_ext.ops._arguments import Reduction, check_matrices, check_temperature


@with_stats
def cross_model_contrastive_loss(
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
) -> Reduced:
    r"""Balanced contrast of one model's rows against another model's keys.

    ``L_i = −1/|P(i)| Σ_{p in P(i)} log( exp(s_ip) / Σ_{a≠e_i} exp(s_ia)/w_ia )``

    This is :func:`balanced_contrastive_loss` with keys other than the anchors: the
    other model's rows, then a queue, then one centre per class. e_i is the key that row
    i must not see, if any; it shows the same image and so has its label. w_ia is the
    number of keys of a's class that row i sees. Keys that require a gradient get one,
    so detach those of a momentum model. An anchor without a positive is skipped. Empty
    slots of a queue affect neither the loss nor a gradient.

    Args:
        features: anchors ``[N, D]``, unit rows.
        labels: ``[N]`` integers below C; negative: no class.
        keys: ``[M, D]`` from the other model.
        key_labels: ``[M]`` integers below C; negative: no class, the key matches no
            anchor.
        centres: class centres ``[C, D]`` or None.
        queue: ``[Q, D]`` earlier keys, or None.
        queue_labels: ``[Q]`` integers below C; negative: an empty slot. Only with
            ``queue``.
        self_index: ``[N]``: e_i, an index into ``keys``; a value out of range: none.
        temperature: τ, > 0.
        reduction: ``"mean"`` over counted anchors, ``"sum"``, or ``"none"`` ``[N]``.
        num_classes: C if known; with centres, it must be their number.
        gather: use the keys of all processes, see :mod:`s3h_ext.losses`. ``self_index``
            still refers to this process's own ``keys``; queue and centres must be the
            same in every process.
        return_stats: also return :class:`ContrastiveStats`.

    Returns:
        The loss, and the stats if asked for.

    Raises:
        ValueError: a shape, label, temperature or reduction is invalid.
        TypeError: an argument has the wrong type.

    Example:
        >>> z = torch.nn.functional.normalize(torch.randn(8, 16), dim=1)
        >>> labels = torch.arange(8) % 3
        >>> cross_model_contrastive_loss(z, labels, z.detach(), labels).shape
        torch.Size([])
    """
    temperature = check_temperature(temperature)
    num_classes = check_num_classes(num_classes)
    check_matrices(features, None, "features")
    if centres is not None:
        centres = check_columns("centres", centres, features)
        num_classes = classes_of("centres", centres, num_classes)
    labels = check_labels("labels", labels, features, "features", num_classes)
    keys = check_columns("keys", keys, features)
    key_labels = check_labels("key_labels", key_labels, keys, "keys", num_classes)
    if self_index is not None:
        self_index = check_labels("self_index", self_index, features, "features")
    if not len(keys):
        self_index = None  # it does not apply to queue and centres
    if (queue is None) != (queue_labels is None):
        raise ValueError("queue and queue_labels must be given together")
    if gather:
        local = len(keys)
        (keys, key_labels), start = gather_rows(keys, key_labels)
        if self_index is not None:
            inside = (self_index >= 0) & (self_index < local)
            self_index = torch.where(inside, self_index + start, -1)
    seen, seen_labels = [keys], [key_labels]
    empty: Tensor | None = None
    if queue is not None and queue_labels is not None:
        queue = check_columns("queue", queue, features)
        queue_labels = check_labels(
            "queue_labels", queue_labels, queue, "queue", num_classes
        )
        empty = queue_labels < 0
        # masked_fill, as 0 times the content of an empty slot may be NaN.
        seen.append(queue.masked_fill(empty[:, None], 0))
        seen_labels.append(queue_labels)
    if centres is not None:
        seen.append(centres)
        seen_labels.append(torch.arange(len(centres), device=labels.device))
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
        # An index out of range must not select another part of the joined keys.
        self_index = torch.where(inside, self_index, -1)
    key_bias = -counts.index_select(0, key_classes).log()
    if empty is not None:
        places = slice(len(keys), len(keys) + len(empty))
        key_bias[places].masked_fill_(empty, -math.inf)
    lse = similarity_logsumexp(
        features,
        every_key,
        temperature=temperature,
        key_bias=key_bias,
        query_labels=torch.where(classes < size, classes, -1),
        key_labels=torch.where(key_classes < size, key_classes, -1),
        same_label_bias=same_class_bias(number, positives),
        self_index=self_index,
        assume_normalized=True,
    )
    attraction = dots / (temperature * positives.clamp(min=1))
    counted = (classes < size) & (positives > 0)
    return reduce(lse - attraction, counted, reduction, gather)


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
            return_stats=return_stats,
            **self.settings(),
        )
