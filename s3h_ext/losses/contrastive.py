"""Contrastive losses: a row-wise log-sum-exp (the denominator) minus an attraction.

The attraction of every loss here is a sum over same-label keys and is taken from class
sums, ``Σ_{p in P(i)} z_i·z_p = z_i·(S_{y_i} − z_i)``
(:func:`s3h_ext.ops.class_sum_dots`); the denominators are calls of
:func:`s3h_ext.ops.similarity_logsumexp`. No N×M matrix is ever formed.

Common to all: rows are used as they are given (normalise them first), a negative
label belongs to no class, and an anchor for which the loss is undefined (no positive,
or nothing in its denominator) adds nothing and is not counted by ``reduction="mean"``.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor, nn

from s3h_ext.ops import class_sum_dots, similarity_logsumexp

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
    classes, size = _class_index(labels, num_classes)
    dots = class_sum_dots(features, query_classes=classes, num_classes=size)
    positives = _class_counts(classes, size).index_select(0, classes) - 1
    attraction = dots / (temperature * positives.clamp(min=1))
    counted = (classes < size) & (positives > 0)
    return _reduce(lse - attraction, counted, reduction, return_stats)


@overload
def balanced_contrastive_loss(
    features: Tensor,
    labels: Tensor,
    centres: Tensor | None = ...,
    *,
    temperature: float = ...,
    reduction: Reduction = ...,
    num_classes: int | None = ...,
    return_stats: Literal[False] = ...,
) -> Tensor: ...
@overload
def balanced_contrastive_loss(
    features: Tensor,
    labels: Tensor,
    centres: Tensor | None = ...,
    *,
    temperature: float = ...,
    reduction: Reduction = ...,
    num_classes: int | None = ...,
    return_stats: bool,
) -> Tensor | tuple[Tensor, ContrastiveStats]: ...
def balanced_contrastive_loss(
    features: Tensor,
    labels: Tensor,
    centres: Tensor | None = None,
    *,
    temperature: float = 0.1,
    reduction: Reduction = "mean",
    num_classes: int | None = None,
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, ContrastiveStats]:
    r"""Balanced contrastive loss (Zhu et al., CVPR 2022, eq. 10).

    ``L_i = −1/|P(i)| Σ_{p in P(i)} log( exp(s_ip) / Σ_{a≠i} exp(s_ia)/w_ia )``,
    ``w_ia = n_{y_a} − [a in P(i)]``

    The keys are the rows and, where given, one centre for each class; P(i) are the
    keys with the anchor's label except i, its centre among them, and n_c is the number
    of keys of class c, anchor and centre included. A class thus weighs the same in the
    denominator however many keys it has. A key without a class weighs 1. An anchor
    without a positive is skipped; with centres there is none but those without a class.

    Args:
        features: ``[B, V, D]`` or ``[N, D]``.
        labels: ``[B]`` or ``[N]`` integers; outside [0, C): no class.
        centres: ``[C, D]`` or None.
        temperature: τ.
        reduction: ``"mean"`` over counted anchors, ``"sum"``, or ``"none"`` ``[N]``.
        num_classes: upper bound of the labels where there are no centres; optional.
        return_stats: also return :class:`ContrastiveStats`.

    Returns:
        The loss, and the stats if asked for.

    Raises:
        ValueError: a shape, temperature or reduction is not as above.
        TypeError: a type is not as above.

    Example:
        >>> z = nn.functional.normalize(torch.randn(8, 16), dim=1)
        >>> centres = nn.functional.normalize(torch.randn(3, 16), dim=1)
        >>> balanced_contrastive_loss(z, torch.arange(8) % 3, centres).shape
        torch.Size([])
    """
    features, labels = _flatten_views(features, labels)
    if centres is not None:
        _check_columns("centres", centres, features)
        num_classes = centres.shape[0]
    classes, size = _class_index(labels, num_classes)
    counts = _class_counts(classes, size)
    dots = class_sum_dots(features, query_classes=classes, num_classes=size)
    own_class = torch.where(classes < size, classes, -1)
    if centres is not None:
        rows = torch.arange(size, device=labels.device)
        counts = torch.cat([counts[:size] + 1, counts[size:]])
        dots = dots + class_sum_dots(
            features,
            centres,
            query_classes=classes,
            key_classes=rows,
            num_classes=size,
        )
    number = counts.index_select(0, classes)
    bias = _same_class_bias(number, number - 1)
    lse = similarity_logsumexp(
        features,
        temperature=temperature,
        key_bias=-number.log(),
        query_labels=own_class,
        same_label_bias=bias,
        assume_normalized=True,
    )
    if centres is not None:
        to_centres = similarity_logsumexp(
            features,
            centres,
            temperature=temperature,
            key_bias=-counts[:size].log(),
            query_labels=own_class,
            key_labels=rows,
            same_label_bias=bias,
            assume_normalized=True,
        )
        lse = torch.logaddexp(lse, to_centres)
    attraction = dots / (temperature * (number - 1).clamp(min=1))
    counted = (classes < size) & (number > 1)
    return _reduce(lse - attraction, counted, reduction, return_stats)


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
    return_stats: Literal[False] = ...,
) -> Tensor: ...
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
    return_stats: bool,
) -> Tensor | tuple[Tensor, ContrastiveStats]: ...
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
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, ContrastiveStats]:
    r"""Balanced contrast of one model's rows against another model's keys.

    ``L_i = −1/|P(i)| Σ_{p in P(i)} log( exp(s_ip) / Σ_{a≠e_i} exp(s_ia)/w_ia )``

    The equation of :func:`balanced_contrastive_loss` with keys that are not the
    anchors: the other model's rows, then a queue, then one centre for each class. e_i
    is the key that row i must not see, if any; w_ia is the number of keys of a's class
    that row i sees. Keys that require a gradient get one: detach a momentum model's.
    An anchor without a positive is skipped.

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
        return_stats: also return :class:`ContrastiveStats`.

    Returns:
        The loss, and the stats if asked for.

    Raises:
        ValueError: a shape, temperature or reduction is not as above.
        TypeError: a type is not as above.

    Example:
        >>> z = nn.functional.normalize(torch.randn(8, 16), dim=1)
        >>> labels = torch.arange(8) % 3
        >>> cross_model_contrastive_loss(z, labels, z.detach(), labels).shape
        torch.Size([])
    """
    _check_labels(features, labels, 2)
    _check_columns("keys", keys, features)
    _check_labels(keys, key_labels, 2)
    if (queue is None) != (queue_labels is None):
        raise ValueError("queue and queue_labels must be given together")
    seen, seen_labels = [keys], [key_labels]
    if queue is not None and queue_labels is not None:
        _check_columns("queue", queue, features)
        _check_labels(queue, queue_labels, 2)
        seen.append(queue)
        seen_labels.append(queue_labels)
    if centres is not None:
        _check_columns("centres", centres, features)
        num_classes = centres.shape[0]
        seen.append(centres)
        seen_labels.append(torch.arange(num_classes, device=labels.device))
    rows = features.shape[0]
    classes, size = _class_index(torch.cat([labels, *seen_labels]), num_classes)
    classes, key_classes = classes[:rows], classes[rows:]
    every_key = torch.cat(seen)
    counts = _class_counts(key_classes, size)
    number = counts.index_select(0, classes)
    dots = class_sum_dots(
        features,
        every_key,
        query_classes=classes,
        key_classes=key_classes,
        num_classes=size,
    )
    positives = number
    if self_index is not None and keys.shape[0] > 0:
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
        same_label_bias=_same_class_bias(number, positives),
        self_index=self_index,
        assume_normalized=True,
    )
    attraction = dots / (temperature * positives.clamp(min=1))
    counted = (classes < size) & (positives > 0)
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


class BalancedContrastiveLoss(nn.Module):
    """Module form of :func:`balanced_contrastive_loss`."""

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
        self,
        features: Tensor,
        labels: Tensor,
        centres: Tensor | None = ...,
        return_stats: Literal[False] = ...,
    ) -> Tensor: ...
    @overload
    def forward(
        self,
        features: Tensor,
        labels: Tensor,
        centres: Tensor | None = ...,
        *,
        return_stats: Literal[True],
    ) -> tuple[Tensor, ContrastiveStats]: ...
    def forward(
        self,
        features: Tensor,
        labels: Tensor,
        centres: Tensor | None = None,
        return_stats: bool = False,
    ) -> Tensor | tuple[Tensor, ContrastiveStats]:
        """See :func:`balanced_contrastive_loss`: ``[N, D]``, ``[N]``, ``[C, D]``."""
        return balanced_contrastive_loss(
            features,
            labels,
            centres,
            temperature=self.temperature,
            reduction=self.reduction,
            num_classes=self.num_classes,
            return_stats=return_stats,
        )

    def extra_repr(self) -> str:
        """Returns the settings that ``repr`` shows."""
        return f"temperature={self.temperature}, reduction={self.reduction!r}"


class CrossModelContrastiveLoss(nn.Module):
    """Module form of :func:`cross_model_contrastive_loss`."""

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
    ) -> Tensor:
        """See :func:`cross_model_contrastive_loss`; its function gives the stats."""
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


def _class_index(labels: Tensor, num_classes: int | None) -> tuple[Tensor, int]:
    """Numbers classes, without waiting for the device.

    Args:
        labels: ``[N]``.
        num_classes: upper bound of the labels, or None to number them by sorting.

    Returns:
        ``[N]`` int64 in [0, size], where size means no class; and size.
    """
    if num_classes is not None:
        known = (labels >= 0) & (labels < num_classes)
        return torch.where(known, labels, num_classes).long(), num_classes
    size = labels.shape[0]
    ordered, order = labels.sort()
    starts = torch.zeros_like(ordered, dtype=torch.int64)
    starts[1:] = (ordered[1:] != ordered[:-1]).long()
    classes = torch.empty_like(starts).scatter_(0, order, starts.cumsum(0))
    return torch.where(labels >= 0, classes, size), size


def _class_counts(classes: Tensor, size: int) -> Tensor:
    """Returns float32 ``[size + 1]``; the last is 1, whoever has no class."""
    ones = torch.ones_like(classes, dtype=torch.float32)
    counts = ones.new_zeros(size + 1).index_add_(0, classes, ones)
    counts[size] = 1
    return counts


def _same_class_bias(number: Tensor, seen: Tensor) -> Tensor:
    """Returns ``log(n / seen)`` ``[N]``: from one weight 1/n to 1/seen."""
    return (number / seen.clamp(min=1)).log()


def _check_columns(name: str, tensor: Tensor, features: Tensor) -> None:
    if tensor.ndim != 2 or tensor.shape[1] != features.shape[1]:
        raise ValueError(
            f"{name} must be [*, {features.shape[1]}] like the features, "
            f"got shape {tuple(tensor.shape)}"
        )


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
