"""Denominator and attraction of a contrastive loss over a subset of the keys."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from s3h_ext.losses._common import Keys, class_counts, key_sum_dots
from s3h_ext.ops import class_sum_dots, similarity_logsumexp
from s3h_ext.ops._arguments import compute_dtype, outside_autocast


class Seen(NamedTuple):
    """Denominators and attractions of A anchors over a subset of their keys.

    Attributes:
        lse: ``[A]``, log-sum-exp of the scores of the keys.
        dots: ``[A]``, (weighted) sum of the dot products with the positives.
        number: ``[A]``, number of positives, or the sum of their weights.
    """

    lse: Tensor
    dots: Tensor
    number: Tensor

    def join(self, other: Seen) -> Seen:
        """Combine with the results over other, disjoint keys."""
        # If both are -inf, the gradient of logaddexp is NaN.
        nothing = (self.lse == -math.inf) & (other.lse == -math.inf)
        lse = torch.logaddexp(self.lse.masked_fill(nothing, 0), other.lse)
        return Seen(
            lse.masked_fill(nothing, -math.inf),
            self.dots + other.dots,
            self.number + other.number,
        )


class Classes(NamedTuple):
    """Positives defined by class: the keys of the anchor's class.

    Attributes:
        anchors: class of each anchor, ``[A]`` in [0, size]; size means no class.
        keys: class of each key, ``[M]``, likewise.
        size: number of classes.
    """

    anchors: Tensor
    keys: Tensor
    size: int

    def of(self, key: Tensor) -> Tensor:
        """Return ``[A]``: whether the given key of each anchor is a positive."""
        same = self.keys.index_select(0, key) == self.anchors
        return same & (self.anchors < self.size)


class Weights(NamedTuple):
    """Positives defined by a mask of weights.

    Attributes:
        mask: ``[B, S]``, weight of each of S samples as a positive of a batch sample.
        anchors: number of views of each sample that are anchors.
    """

    mask: Tensor
    anchors: int

    def of(self, key: Tensor) -> Tensor:
        """Return ``[A]``: the weight of the given key of each anchor as a positive."""
        chosen = self.mask.gather(1, key.unflatten(0, (-1, self.anchors)))
        return chosen.flatten()

    def sums(self, keys: Tensor) -> Tensor:
        """Return the weighted sums ``[A, D]`` of the keys ``[S, D]`` of S samples."""
        return (self.mask @ keys).repeat_interleave(self.anchors, 0)

    def totals(self, filled: Tensor) -> Tensor:
        """Return the sums of weights ``[A]`` over the samples marked in ``filled``."""
        return (self.mask @ filled).repeat_interleave(self.anchors)


def see_batch(
    anchors: Tensor,
    batch: Keys,
    views: int,
    positives: Classes | Weights,
    temperature: float,
) -> Seen:
    """Return what anchors of a batch see of the batch's other rows.

    Args:
        anchors: ``[A, D]``.
        batch: all rows of the batch, ``views`` of each sample.
        views: V, views per sample.
        positives: which rows, or samples, are positives.
        temperature: τ.
    """
    lse = similarity_logsumexp(
        anchors,
        batch.rows,
        temperature=temperature,
        self_index=batch.own,
        assume_normalized=True,
    )
    if isinstance(positives, Classes):
        dots = key_sum_dots(anchors, batch, positives.keys, positives.size)
        counts = class_counts(positives.keys, positives.size, dots.dtype)
        return Seen(lse, dots, counts.index_select(0, positives.anchors) - 1)
    return Seen(lse, *_weighted(anchors, batch, views, positives))


@outside_autocast
def _weighted(
    anchors: Tensor, batch: Keys, views: int, positives: Weights
) -> tuple[Tensor, Tensor]:
    """Return dots and number of :class:`Seen`, without each anchor's own row."""
    rows = (anchors if batch.rows is None else batch.rows).to(positives.mask.dtype)
    own = batch.own
    if own is None:
        own = torch.arange(len(rows), device=rows.device)
    anchors = anchors.to(rows.dtype)
    samples = rows.unflatten(0, (-1, views)).sum(dim=1)
    dots = (anchors * positives.sums(samples)).sum(dim=1)
    # A sample's weight with itself counts for its other views: subtract the own row.
    weight = positives.of(own // views)
    dots = dots - weight * anchors.square().sum(dim=1)
    return dots, positives.totals(rows.new_full((len(samples),), views)) - weight


@outside_autocast
def see_own_views(rows: Tensor, views: int, anchors: int, temperature: float) -> Seen:
    """Return what the first ``anchors`` views of each sample see of its other views.

    Args:
        rows: ``[B·V, D]``, sample-major.
        views: V, views per sample.
        anchors: number of anchors per sample.
        temperature: τ.
    """
    samples = rows.to(compute_dtype(rows.dtype)).unflatten(0, (-1, views))
    dots = samples[:, :anchors] @ samples.mT  # [B, anchors, V]
    own = torch.eye(views, dtype=torch.bool, device=rows.device)[:anchors]
    lse = (dots / temperature).masked_fill(own, -math.inf).logsumexp(dim=2).flatten()
    others = lse.new_full(lse.shape, views - 1)
    return Seen(lse, dots.masked_fill(own, 0).sum(dim=2).flatten(), others)


def see_keys(
    anchors: Tensor,
    keys: Tensor,
    empty: Tensor | None,
    self_index: Tensor | None,
    positives: Classes | Weights | None,
    temperature: float,
) -> Seen:
    """Return what anchors see of keys from outside the batch.

    Args:
        anchors: ``[A, D]``.
        keys: ``[M, D]``.
        empty: ``[M]``, True for empty slots; None if there are none.
        self_index: ``[A]``, index of the key that an anchor must not see; an index out
            of range excludes none.
        positives: which keys are positives; None if none are.
        temperature: τ.
    """
    bias: Tensor | None = None
    if empty is not None:
        # masked_fill, as 0 times the content of an empty slot may be NaN.
        keys = keys.masked_fill(empty[:, None], 0)
        bias = keys.new_zeros(len(keys), dtype=compute_dtype(keys.dtype))
        bias.masked_fill_(empty, -math.inf)
    lse = similarity_logsumexp(
        anchors,
        keys,
        temperature=temperature,
        key_bias=bias,
        self_index=self_index,
        assume_normalized=True,
    )
    if positives is None:
        return Seen(lse, torch.zeros_like(lse), torch.zeros_like(lse))
    if isinstance(positives, Classes):
        dots = class_sum_dots(
            anchors,
            keys,
            query_classes=positives.anchors,
            key_classes=positives.keys,
            num_classes=positives.size,
        )
        counts = class_counts(positives.keys, positives.size, dots.dtype)
        number = counts.index_select(0, positives.anchors)
    else:
        dots, number = _weighted_keys(anchors, keys, empty, positives)
    if self_index is None or not len(keys):
        return Seen(lse, dots, number)
    inside = (self_index >= 0) & (self_index < len(keys))
    own = torch.where(inside, self_index, 0)
    share = torch.where(inside, positives.of(own), 0).to(dots.dtype)
    if empty is not None:
        share = share.masked_fill(empty.index_select(0, own), 0)
    product = anchors.to(dots.dtype) * keys.index_select(0, own).to(dots.dtype)
    return Seen(lse, dots - share * product.sum(dim=1), number - share)


@outside_autocast
def _weighted_keys(
    anchors: Tensor, keys: Tensor, empty: Tensor | None, positives: Weights
) -> tuple[Tensor, Tensor]:
    dtype = positives.mask.dtype
    dots = (anchors.to(dtype) * positives.sums(keys.to(dtype))).sum(dim=1)
    filled = dots.new_ones(len(keys))
    if empty is not None:
        filled = filled.masked_fill(empty, 0)
    return dots, positives.totals(filled)
