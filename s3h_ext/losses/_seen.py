"""What the anchors of a contrastive loss see of some of their keys."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from s3h_ext.losses._common import Keys, class_counts, key_sum_dots
from s3h_ext.ops import class_sum_dots, similarity_logsumexp
from s3h_ext.ops._arguments import compute_dtype, outside_autocast


class Seen(NamedTuple):
    """The denominator and the attraction of A anchors.

    Attributes:
        lse: ``[A]``, log-sum-exp of the scores of the keys.
        dots: ``[A]``, sum of the dot products with the positives.
        number: ``[A]``, how many positives there are, or the sum of their weights.
    """

    lse: Tensor
    dots: Tensor
    number: Tensor

    def join(self, other: Seen) -> Seen:
        """Returns what is seen of the keys of both."""
        # Where both are -inf the gradient of logaddexp is NaN.
        nothing = (self.lse == -math.inf) & (other.lse == -math.inf)
        lse = torch.logaddexp(self.lse.masked_fill(nothing, 0), other.lse)
        return Seen(
            lse.masked_fill(nothing, -math.inf),
            self.dots + other.dots,
            self.number + other.number,
        )


class Classes(NamedTuple):
    """Positives are the keys of the anchor's class.

    Attributes:
        anchors: ``[A]`` in [0, size], where size means no class.
        keys: ``[M]`` likewise.
        size: number of classes.
    """

    anchors: Tensor
    keys: Tensor
    size: int

    def of(self, key: Tensor) -> Tensor:
        """Returns ``[A]``, whether a key of each anchor is a positive of it."""
        same = self.keys.index_select(0, key) == self.anchors
        return same & (self.anchors < self.size)


class Weights(NamedTuple):
    """Positives are what a mask says.

    Attributes:
        mask: ``[B, S]``, how much a sample is a positive of one of the batch.
        anchors: how many of a sample's views are anchors.
    """

    mask: Tensor
    anchors: int

    def of(self, key: Tensor) -> Tensor:
        """Returns ``[A]``, how much a key of each anchor is a positive of it."""
        chosen = self.mask.gather(1, key.unflatten(0, (-1, self.anchors)))
        return chosen.flatten()

    def sums(self, keys: Tensor) -> Tensor:
        """Returns ``[A, D]``, the weighted sums of the keys of S samples ``[S, D]``."""
        return (self.mask @ keys).repeat_interleave(self.anchors, 0)

    def totals(self, filled: Tensor) -> Tensor:
        """Returns ``[A]``, the sum of the weights of samples that are there ``[S]``."""
        return (self.mask @ filled).repeat_interleave(self.anchors)


def see_batch(
    anchors: Tensor,
    batch: Keys,
    views: int,
    positives: Classes | Weights,
    temperature: float,
) -> Seen:
    """Returns what rows of a batch see of its other rows.

    Args:
        anchors: ``[A, D]``.
        batch: all rows, of ``views`` views of each sample.
        views: V.
        positives: which of the rows, or of their samples, are positives.
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
    """Returns dots and number of :class:`Seen`, without each anchor's own row."""
    rows = (anchors if batch.rows is None else batch.rows).to(positives.mask.dtype)
    own = batch.own
    if own is None:
        own = torch.arange(len(rows), device=rows.device)
    anchors = anchors.to(rows.dtype)
    samples = rows.unflatten(0, (-1, views)).sum(dim=1)
    dots = (anchors * positives.sums(samples)).sum(dim=1)
    # A sample's weight with itself is that of its other views: the row goes out again.
    weight = positives.of(own // views)
    dots = dots - weight * anchors.square().sum(dim=1)
    return dots, positives.totals(rows.new_full((len(samples),), views)) - weight


@outside_autocast
def see_own_views(rows: Tensor, views: int, anchors: int, temperature: float) -> Seen:
    """Returns what the first ``anchors`` views of each sample see of its other views.

    Args:
        rows: ``[B·V, D]``, sample-major.
        views: V.
        anchors: of each sample.
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
    """Returns what anchors see of keys that are not rows of the batch.

    Args:
        anchors: ``[A, D]``.
        keys: ``[M, D]``.
        empty: ``[M]``, which of them are empty places; None: none is.
        self_index: ``[A]``, which of them an anchor does not see; others: none.
        positives: which of them are positives; None: none is.
        temperature: τ.
    """
    bias: Tensor | None = None
    if empty is not None:
        # By selection: 0 times what an empty place holds may be NaN.
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
