"""Supervised contrastive loss (Khosla et al. 2020), without the N×M matrix."""

from __future__ import annotations

import functools
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from s3h_ext.losses._common import (
    ContrastiveModule,
    Keys,
    check_amounts,
    check_columns,
    check_labels,
    check_num_classes,
    check_views,
    class_index,
    flatten_views,
    gather_keys,
)
from s3h_ext.losses._reduction import (
    ContrastiveStats,
    Reduced,
    reduce,
    with_stats,
)
from s3h_ext.losses._seen import (
    Classes,
    Seen,
    Weights,
    see_batch,
    see_keys,
    see_own_views,
)
from s3h_ext.ops._arguments import Reduction, check_temperature, refuse_forward_mode
from s3h_ext.ops.all_gather import process_count
from s3h_ext.ops.supcon import contrast_rows, is_fused_on

ContrastMode = Literal["all", "one"]


@with_stats
def supcon_loss(
    features: Tensor,
    labels: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    keys: Tensor | None = None,
    key_labels: Tensor | None = None,
    self_index: Tensor | None = None,
    in_batch: bool = True,
    contrast_mode: ContrastMode = "all",
    weights: Tensor | None = None,
    temperature: float = 0.1,
    reduction: Reduction = "mean",
    num_classes: int | None = None,
    gather: bool = False,
) -> Reduced:
    r"""Supervised contrastive loss, ``L_out`` (Khosla et al. 2020, eq. 2).

    ``L_i = −1/|P(i)| Σ_{p in P(i)} log( exp(z_i·z_p/τ) / Σ_{a∈A(i)} exp(z_i·z_a/τ) )``

    A(i) are the keys that anchor i sees: the other rows of the batch and any ``keys``,
    such as those of a :class:`FeatureQueue`. P(i), its positives, are the keys in A(i)
    with the anchor's label. The denominator includes all of A(i). There is no τ/τ_base
    factor. An anchor without a positive is skipped.

    Without labels, the positives are the other views of the same sample. This is the
    loss of SimCLR (Chen et al., ICML 2020, eq. 1); with ``in_batch=False`` and
    ``contrast_mode="one"``, that of MoCo (He et al., CVPR 2020, eq. 1) with its queue.
    A mask gives a weight for each pair of samples, 0 if they are not positives:
    ``L_i = −Σ_p m_ip log(…) / Σ_p m_ip``.

    Args:
        features: ``[B, V, D]`` (V views of each sample) or ``[N, D]`` (one view), rows
            of unit length (``F.normalize``); see :mod:`s3h_ext.losses` for others.
        labels: ``[B]`` or ``[N]`` integers below ``num_classes``; negative: no class;
            the row is not an anchor but stays in the others' denominators. None:
            positives are the views of a sample, or given by ``mask``.
        mask: ``[B, K]`` bool or floating point >= 0, instead of labels: the weights as
            positives of the batch's samples (with ``gather``, of all processes), then
            of ``keys``. An anchor never sees itself, whatever the mask. Multi-label:
            ``(y @ y.T) > 0`` of labels ``[B, C]``.
        keys: ``[M, D]`` further keys, the same in every process. They get a gradient if
            they require one.
        key_labels: ``[M]`` integers below ``num_classes``; negative: an empty slot,
            whose content is ignored. Required with ``labels``; without, they only mark
            empty slots.
        self_index: one integer per anchor: the index in ``keys`` that it must not see,
            such as its own copy in the queue; a value out of range: none.
        in_batch: whether the batch's samples see each other. If False, an anchor sees
            ``keys`` and, as positives, the other views of its own sample.
        contrast_mode: ``"all"``: every row is an anchor; ``"one"``: only the first view
            of each sample. The keys stay the same.
        weights: ``[B]`` or ``[N]`` sample weights >= 0; the mean becomes the weighted
            one, ``Σ w_i L_i / Σ w_i``.
        temperature: τ, > 0.
        reduction: ``"mean"`` over counted anchors, ``"sum"``, or ``"none"``, which
            returns one loss per anchor (sample-major), 0 for skipped ones.
        num_classes: number of classes if known; otherwise classes are found by sorting.
            Neither synchronises with the device.
        gather: contrast with the rows of all processes, see :mod:`s3h_ext.losses`.
        return_stats: also return :class:`ContrastiveStats`.

    Returns:
        The loss, and the stats if asked for.

    Raises:
        ValueError: a shape, label, temperature, reduction or combination is invalid.
        TypeError: an argument has the wrong type.

    Example:
        >>> import torch
        >>> z = torch.nn.functional.normalize(torch.randn(4, 2, 16), dim=-1)
        >>> supcon_loss(z, torch.tensor([0, 1, 0, 2])).shape
        torch.Size([])
        >>> supcon_loss(z, reduction="none").shape  # SimCLR
        torch.Size([8])
    """
    temperature = check_temperature(temperature)
    num_classes = check_num_classes(num_classes)
    views = check_views(features)
    _check_combination(
        features, labels, mask, keys, key_labels, self_index, in_batch, contrast_mode
    )
    anchored = views if _check_mode(contrast_mode) == "all" else 1
    labelled = labels is not None
    if labels is None:
        labels, num_classes = _samples(features, gather), None
    rows, labels = flatten_views(features, labels, num_classes)
    empty: Tensor | None = None
    if keys is not None:
        keys = check_columns("keys", keys, rows)
        if key_labels is not None:
            key_labels = check_labels(
                "key_labels", key_labels, keys, "keys", num_classes
            )
            empty = key_labels < 0
    if weights is not None:
        weights = check_amounts("weights", weights, rows, (len(features),))
        weights = weights.repeat_interleave(anchored)
    batch = gather_keys(rows, labels, gather and in_batch)
    every_row = mask is None and keys is None and weights is None and anchored == views
    if every_row and batch.rows is None and is_fused_on(rows.device):
        refuse_forward_mode("supcon_loss", rows)
        loss, number = contrast_rows(rows, labels, temperature, num_classes, reduction)
        return Reduced(loss, number, len(rows))
    anchors = rows
    if anchored < views:
        anchors, batch = _first_views(rows, batch, views)
    if self_index is not None:
        self_index = check_labels("self_index", self_index, anchors, "the anchors")
    of_batch: Classes | Weights
    of_keys: Classes | Weights | None = None
    if mask is not None:
        samples = len(batch.labels) // views if in_batch else 0
        columns = samples + (0 if keys is None else len(keys))
        mask = check_amounts("mask", mask, rows, (len(features), columns))
        of_batch = Weights(mask[:, :samples], anchored)
        of_keys = Weights(mask[:, samples:], anchored)
        known = None
    else:
        of_batch, of_keys = _by_class(
            batch, key_labels if labelled else None, num_classes
        )
        known = of_batch.anchors < of_batch.size
    parts = []
    if in_batch:
        parts.append(see_batch(anchors, batch, views, of_batch, temperature))
    elif views > 1:
        parts.append(see_own_views(rows, views, anchored, temperature))
    if keys is not None:
        parts.append(see_keys(anchors, keys, empty, self_index, of_keys, temperature))
    seen = functools.reduce(Seen.join, parts)
    counted = seen.number > 0
    if known is not None:
        counted = counted & known
    attraction = seen.dots / (temperature * torch.where(counted, seen.number, 1))
    return reduce(seen.lse - attraction, counted, reduction, gather, weights)


def _check_mode(contrast_mode: ContrastMode) -> ContrastMode:
    if contrast_mode not in ("all", "one"):
        raise ValueError(f"contrast_mode must be 'all' or 'one', got {contrast_mode!r}")
    return contrast_mode


def _check_combination(
    features: Tensor,
    labels: Tensor | None,
    mask: Tensor | None,
    keys: Tensor | None,
    key_labels: Tensor | None,
    self_index: Tensor | None,
    in_batch: bool,
    contrast_mode: ContrastMode,
) -> None:
    """Reject missing or contradictory combinations of arguments."""
    if labels is not None and mask is not None:
        raise ValueError("labels and mask must not be given together")
    for name, value in (("key_labels", key_labels), ("self_index", self_index)):
        if keys is None and value is not None:
            raise ValueError(f"{name} must be None without keys")
    if keys is None and not in_batch:
        raise ValueError("keys must be given with in_batch=False, got None")
    if labels is not None and keys is not None and key_labels is None:
        raise ValueError("key_labels must be given with labels and keys, got None")
    if contrast_mode == "one" and features.ndim == 2:
        raise ValueError(
            "features must be [B, V, D] with contrast_mode='one', which takes "
            f"the first views as anchors; got shape {tuple(features.shape)}"
        )
    if labels is None and mask is None and check_views(features) < 2:
        raise ValueError(
            "features must be [B, V, D] with at least two views if labels and mask "
            f"are None; got shape {tuple(features.shape)}"
        )


def _samples(features: Tensor, gather: bool) -> Tensor:
    """Return one number per sample ``[B]``, unique across processes."""
    number = torch.arange(len(features), device=features.device)
    if not gather or process_count() == 1:
        return number
    return number * process_count() + dist.get_rank()


def _first_views(rows: Tensor, batch: Keys, views: int) -> tuple[Tensor, Keys]:
    """Return the first view of each sample, and its index among the rows."""
    first = torch.arange(0, len(rows), views, device=rows.device)
    anchors = rows.index_select(0, first)
    if batch.rows is None or batch.own is None:
        return anchors, Keys(rows, batch.labels, first)
    return anchors, batch._replace(own=batch.own.index_select(0, first))


def _by_class(
    batch: Keys, key_labels: Tensor | None, num_classes: int | None
) -> tuple[Classes, Classes | None]:
    """Number the classes of the batch, and of the keys if they have labels."""
    labels = batch.labels
    if key_labels is not None:
        labels = torch.cat([labels, key_labels])
    every, size = class_index(labels, num_classes)
    classes = every[: len(batch.labels)]
    anchors = batch.of_anchors(classes)
    of_batch = Classes(anchors, classes, size)
    if key_labels is None:
        return of_batch, None
    return of_batch, Classes(anchors, every[len(classes) :], size)


class SupConLoss(ContrastiveModule):
    """Module form of :func:`supcon_loss`.

    Args:
        temperature: τ, > 0.
        reduction: ``"mean"`` over counted anchors, ``"sum"`` or ``"none"``.
        num_classes: number of classes if known; every label is below it.
        gather: contrast with the rows of all processes, see :mod:`s3h_ext.losses`.
        in_batch: whether the batch's samples see each other.
        contrast_mode: ``"all"`` rows are anchors, or ``"one"``: only first views.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        reduction: Reduction = "mean",
        num_classes: int | None = None,
        gather: bool = False,
        *,
        in_batch: bool = True,
        contrast_mode: ContrastMode = "all",
    ) -> None:
        super().__init__(temperature, reduction, num_classes, gather)
        self.in_batch = in_batch
        self.contrast_mode = _check_mode(contrast_mode)

    def settings(self) -> dict[str, Any]:
        """Return the keyword arguments that the module passes to its loss function."""
        own = {"in_batch": self.in_batch, "contrast_mode": self.contrast_mode}
        return super().settings() | own

    def forward(
        self,
        features: Tensor,
        labels: Tensor | None = None,
        return_stats: bool = False,
        *,
        mask: Tensor | None = None,
        keys: Tensor | None = None,
        key_labels: Tensor | None = None,
        self_index: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, ContrastiveStats]:
        """See :func:`supcon_loss`: features ``[B, V, D]`` or ``[N, D]``."""
        return supcon_loss(
            features,
            labels,
            mask=mask,
            keys=keys,
            key_labels=key_labels,
            self_index=self_index,
            weights=weights,
            return_stats=return_stats,
            **self.settings(),
        )
