"""Contrastive losses: a row-wise log-sum-exp (the denominator) minus an attraction.

The attraction of every loss here is a sum over same-label keys and is taken from class
sums, ``Σ_{p in P(i)} z_i·z_p = z_i·(S_{y_i} − z_i)``, so no N×M matrix is formed; the
denominators are calls of :func:`s3h_ext.ops.similarity_logsumexp`.

Common to all: rows are used as they are given (normalise them first), a negative
label belongs to no class, and an anchor for which the loss is undefined (no positive,
or nothing in its denominator) adds nothing and is not counted by ``reduction="mean"``.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor, nn

from s3h_ext.ops import similarity_logsumexp

Reduction = Literal["mean", "sum", "none"]


class ContrastiveStats(NamedTuple):
    """What a loss counted; tensors on the loss's device, so reading them may wait.

    Attributes:
        counted: ``[]`` int64, anchors that entered the loss.
        skipped: ``[]`` int64, anchors that had no positive or no denominator.
    """

    counted: Tensor
    skipped: Tensor


@overload
def supcon_loss(
    features: Tensor,
    labels: Tensor,
    *,
    temperature: float = ...,
    reduction: Reduction = ...,
    num_classes: int | None = ...,
    return_stats: Literal[False] = ...,
) -> Tensor: ...
@overload
def supcon_loss(
    features: Tensor,
    labels: Tensor,
    *,
    temperature: float = ...,
    reduction: Reduction = ...,
    num_classes: int | None = ...,
    return_stats: Literal[True],
) -> tuple[Tensor, ContrastiveStats]: ...
@overload
def supcon_loss(
    features: Tensor,
    labels: Tensor,
    *,
    temperature: float = ...,
    reduction: Reduction = ...,
    num_classes: int | None = ...,
    return_stats: bool,
) -> Tensor | tuple[Tensor, ContrastiveStats]: ...
def supcon_loss(
    features: Tensor,
    labels: Tensor,
    *,
    temperature: float = 0.1,
    reduction: Reduction = "mean",
    num_classes: int | None = None,
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, ContrastiveStats]:
    r"""Supervised contrastive loss, ``L_out`` (Khosla et al. 2020, eq. 2).

    ``L_i = −1/|P(i)| Σ_{p in P(i)} log( exp(z_i·z_p/τ) / Σ_{a≠i} exp(z_i·z_a/τ) )``

    P(i): the other rows with the anchor's label. The denominator holds every other
    row, positives included. There is no τ/τ_base factor. An anchor without a positive
    is skipped.

    Args:
        features: ``[B, V, D]`` (V views of each sample) or ``[N, D]``.
        labels: ``[B]`` or ``[N]`` integers; negative: no class.
        temperature: τ.
        reduction: ``"mean"`` over counted anchors, ``"sum"``, or ``"none"``, which
            gives ``[B·V]`` (sample-major) with 0 at skipped anchors.
        num_classes: upper bound of the labels, where known; without it classes are
            found by sorting. Neither waits for the device.
        return_stats: also return :class:`ContrastiveStats`.

    Returns:
        The loss, and the stats if asked for.

    Raises:
        ValueError: a shape, label count, temperature or reduction is not as above.
        TypeError: a type is not as above.

    Example:
        >>> z = nn.functional.normalize(torch.randn(4, 2, 16), dim=-1)
        >>> supcon_loss(z, torch.tensor([0, 1, 0, 2])).shape
        torch.Size([])
    """
    features, labels = _flatten_views(features, labels)
    lse = similarity_logsumexp(
        features, temperature=temperature, assume_normalized=True
    )
    z = features.to(lse.dtype)
    classes, known, size = _class_index(labels, num_classes)
    sums = z.new_zeros(size, z.shape[1]).index_add(0, classes, z * known[:, None])
    counts = known.new_zeros(size).index_add(0, classes, known)
    positives = counts[classes] - 1
    attraction = (z * (sums[classes] - z)).sum(dim=1)
    attraction = attraction / (temperature * positives.clamp(min=1))
    counted = (known > 0) & (positives > 0)
    return _reduce(lse - attraction, counted, reduction, return_stats)


@overload
def prototypical_supcon_loss(
    features: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    *,
    temperature: float = ...,
    reduction: Reduction = ...,
    return_stats: Literal[False] = ...,
) -> Tensor: ...
@overload
def prototypical_supcon_loss(
    features: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    *,
    temperature: float = ...,
    reduction: Reduction = ...,
    return_stats: Literal[True],
) -> tuple[Tensor, ContrastiveStats]: ...
@overload
def prototypical_supcon_loss(
    features: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    *,
    temperature: float = ...,
    reduction: Reduction = ...,
    return_stats: bool,
) -> Tensor | tuple[Tensor, ContrastiveStats]: ...
def prototypical_supcon_loss(
    features: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    *,
    temperature: float = 0.1,
    reduction: Reduction = "mean",
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, ContrastiveStats]:
    r"""Prototypical supervised contrastive loss (Wang et al. 2021, Hybrid-PSC).

    ``L_i = −log( exp(z_i·p_{y_i}/τ) / Σ_{j≠y_i} exp(z_i·p_j/τ) )``

    The own class is *not* in the denominator, so the loss is no softmax and can be
    negative. With K prototypes a class, ``exp(z_i·p_j/τ)`` becomes the mean over the
    class's prototypes, in numerator and denominator alike; K = 1 is the paper's loss.
    With a single class, or a label outside [0, C), the anchor is skipped.

    Args:
        features: ``[N, D]``.
        labels: ``[N]`` integers.
        prototypes: ``[C, D]`` or ``[C, K, D]``; learnable where they require grad.
        temperature: τ.
        reduction: ``"mean"`` over counted anchors, ``"sum"``, or ``"none"`` ``[N]``.
        return_stats: also return :class:`ContrastiveStats`.

    Returns:
        The loss, and the stats if asked for.

    Raises:
        ValueError: a shape, temperature or reduction is not as above.
        TypeError: a type is not as above.

    Example:
        >>> z = nn.functional.normalize(torch.randn(8, 16), dim=1)
        >>> centres = nn.functional.normalize(torch.randn(3, 16), dim=1)
        >>> prototypical_supcon_loss(z, torch.arange(8) % 3, centres).shape
        torch.Size([])
    """
    _check_labels(features, labels, 2)
    if prototypes.ndim == 2:
        prototypes = prototypes[:, None, :]
    if prototypes.ndim != 3 or prototypes.shape[-1] != features.shape[-1]:
        raise ValueError(
            f"prototypes must be [C, {features.shape[-1]}] or "
            f"[C, K, {features.shape[-1]}], got shape {tuple(prototypes.shape)}"
        )
    num_classes, per_class, depth = prototypes.shape
    owners = torch.arange(num_classes, device=labels.device)
    lse = similarity_logsumexp(
        features,
        prototypes.reshape(-1, depth),
        temperature=temperature,
        query_labels=labels,
        key_labels=owners.repeat_interleave(per_class),
        same_label_bias=-math.inf,
        assume_normalized=True,
    )
    inside = (labels >= 0) & (labels < num_classes)
    if num_classes == 0:
        return _reduce(lse, inside, reduction, return_stats)
    own = prototypes[torch.where(inside, labels, 0).long()]
    scores = (own.to(lse.dtype) * features.to(lse.dtype)[:, None, :]).sum(dim=-1)
    attraction = (scores / temperature).logsumexp(dim=1)
    counted = inside & (lse > -math.inf)
    return _reduce(lse - attraction, counted, reduction, return_stats)


class SupConLoss(nn.Module):
    """Module form of :func:`supcon_loss`."""

    def __init__(
        self,
        temperature: float = 0.1,
        reduction: Reduction = "mean",
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.reduction = _check_reduction(reduction)
        self.num_classes = num_classes

    @overload
    def forward(
        self, features: Tensor, labels: Tensor, return_stats: Literal[False] = ...
    ) -> Tensor: ...
    @overload
    def forward(
        self, features: Tensor, labels: Tensor, return_stats: Literal[True]
    ) -> tuple[Tensor, ContrastiveStats]: ...
    def forward(
        self, features: Tensor, labels: Tensor, return_stats: bool = False
    ) -> Tensor | tuple[Tensor, ContrastiveStats]:
        """See :func:`supcon_loss`: features ``[B, V, D]`` or ``[N, D]``."""
        return supcon_loss(
            features,
            labels,
            temperature=self.temperature,
            reduction=self.reduction,
            num_classes=self.num_classes,
            return_stats=return_stats,
        )

    def extra_repr(self) -> str:
        """Returns the settings that ``repr`` shows."""
        return f"temperature={self.temperature}, reduction={self.reduction!r}"


class PrototypicalSupConLoss(nn.Module):
    """Module form of :func:`prototypical_supcon_loss`."""

    def __init__(self, temperature: float = 0.1, reduction: Reduction = "mean") -> None:
        super().__init__()
        self.temperature = temperature
        self.reduction = _check_reduction(reduction)

    @overload
    def forward(
        self,
        features: Tensor,
        labels: Tensor,
        prototypes: Tensor,
        return_stats: Literal[False] = ...,
    ) -> Tensor: ...
    @overload
    def forward(
        self,
        features: Tensor,
        labels: Tensor,
        prototypes: Tensor,
        return_stats: Literal[True],
    ) -> tuple[Tensor, ContrastiveStats]: ...
    def forward(
        self,
        features: Tensor,
        labels: Tensor,
        prototypes: Tensor,
        return_stats: bool = False,
    ) -> Tensor | tuple[Tensor, ContrastiveStats]:
        """See :func:`prototypical_supcon_loss`: ``[N, D]``, ``[N]``, ``[C, D]``."""
        return prototypical_supcon_loss(
            features,
            labels,
            prototypes,
            temperature=self.temperature,
            reduction=self.reduction,
            return_stats=return_stats,
        )

    def extra_repr(self) -> str:
        """Returns the settings that ``repr`` shows."""
        return f"temperature={self.temperature}, reduction={self.reduction!r}"


def _check_reduction(reduction: Reduction) -> Reduction:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(
            f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}"
        )
    return reduction


def _check_labels(features: Tensor, labels: Tensor, ndim: int) -> None:
    if features.ndim != ndim:
        raise ValueError(
            f"features must have {ndim} dimensions, got shape {tuple(features.shape)}"
        )
    if labels.shape != features.shape[:1]:
        raise ValueError(
            f"labels must have shape ({features.shape[0]},), got {tuple(labels.shape)}"
        )
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise TypeError(f"labels must be integers, got {labels.dtype}")


def _flatten_views(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns features ``[B·V, D]``, sample-major, and their labels ``[B·V]``."""
    if features.ndim == 2:
        _check_labels(features, labels, 2)
        return features, labels
    if features.ndim != 3:
        raise ValueError(
            f"features must be [B, V, D] or [N, D], got {tuple(features.shape)}"
        )
    _check_labels(features, labels, 3)
    views = features.shape[1]
    return features.flatten(0, 1), labels.repeat_interleave(views)


def _class_index(labels: Tensor, num_classes: int | None) -> tuple[Tensor, Tensor, int]:
    """Returns a row of class sums for each label, without waiting for the device.

    Args:
        labels: ``[N]``.
        num_classes: upper bound of the labels, or None to number them by sorting.

    Returns:
        The row ``[N]`` int64; ``[N]`` float32, 1 where there is a class at all; how
        many rows there are.
    """
    if num_classes is not None:
        known = (labels >= 0) & (labels < num_classes)
        rows = torch.where(known, labels, 0).long()
        return rows, known.float(), max(1, num_classes)
    known = labels >= 0
    ordered, order = labels.sort()
    starts = torch.zeros_like(ordered, dtype=torch.int64)
    starts[1:] = (ordered[1:] != ordered[:-1]).long()
    rows = torch.empty_like(starts).scatter_(0, order, starts.cumsum(0))
    return rows, known.float(), max(1, labels.shape[0])


def _reduce(
    losses: Tensor, counted: Tensor, reduction: Reduction, return_stats: bool
) -> Tensor | tuple[Tensor, ContrastiveStats]:
    """Reduces ``[N]`` losses over the counted anchors; none counted gives 0."""
    _check_reduction(reduction)
    loss = torch.where(counted, losses, 0.0)
    number = counted.sum()
    if reduction != "none":
        loss = loss.sum()
    if reduction == "mean":
        loss = loss / number.clamp(min=1)
    if not return_stats:
        return loss
    return loss, ContrastiveStats(number, counted.numel() - number)
