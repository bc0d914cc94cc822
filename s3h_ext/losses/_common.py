"""What the contrastive losses share: numbering of classes, checks, the reduction."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from s3h_ext.ops import class_sum_dots, gather_rows
from s3h_ext.ops.gather import process_count

Reduction = Literal["mean", "sum", "none"]


class ContrastiveStats(NamedTuple):
    """What a loss counted; tensors on the loss's device, so reading them may wait.

    Attributes:
        counted: ``[]`` int64, anchors that entered the loss.
        skipped: ``[]`` int64, anchors that had no positive or no denominator.
    """

    counted: Tensor
    skipped: Tensor


class ContrastiveModule(nn.Module):
    """Holds the settings of a loss whose ``forward`` calls its function.

    Args:
        temperature: τ.
        reduction: ``"mean"`` over counted anchors, ``"sum"`` or ``"none"``.
        num_classes: upper bound of the labels, where known.
        gather: contrast with the rows of all processes, see :mod:`s3h_ext.losses`.

    Raises:
        ValueError: the reduction is not one of these.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        reduction: Reduction = "mean",
        num_classes: int | None = None,
        gather: bool = False,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.reduction = check_reduction(reduction)
        self.num_classes = num_classes
        self.gather = gather

    def extra_repr(self) -> str:
        """Returns the settings that ``repr`` shows."""
        settings = f"temperature={self.temperature}, reduction={self.reduction!r}"
        return f"{settings}, gather=True" if self.gather else settings


def check_reduction(reduction: Reduction) -> Reduction:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(
            f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}"
        )
    return reduction


def check_labels(features: Tensor, labels: Tensor, ndim: int) -> None:
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
    if labels.device != features.device:
        raise ValueError(f"labels must be on {features.device}, got {labels.device}")


def flatten_views(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns features ``[B·V, D]``, sample-major, and their labels ``[B·V]``."""
    if features.ndim == 2:
        check_labels(features, labels, 2)
        return features, labels
    if features.ndim != 3:
        raise ValueError(
            f"features must be [B, V, D] or [N, D], got {tuple(features.shape)}"
        )
    check_labels(features, labels, 3)
    views = features.shape[1]
    return features.flatten(0, 1), labels.repeat_interleave(views)


class Keys(NamedTuple):
    """The keys of anchors that are keys themselves.

    Attributes:
        rows: ``[M, D]`` of all processes; None: the anchors alone.
        labels: ``[M]``; ``[N]``, the anchors', where ``rows`` is None.
        own: ``[N]``, which key each anchor is; None where ``rows`` is None.
    """

    rows: Tensor | None
    labels: Tensor
    own: Tensor | None

    def of_anchors(self, values: Tensor) -> Tensor:
        """Returns the anchors' ``[N]`` of values of the keys ``[M]``."""
        return values if self.own is None else values.index_select(0, self.own)


def gather_keys(features: Tensor, labels: Tensor, gather: bool) -> Keys:
    """Returns the keys of anchors ``[N, D]``: of all processes if ``gather``."""
    if not gather or process_count() == 1:
        return Keys(None, labels, None)
    (rows, every_label), start = gather_rows(features, labels)
    own = torch.arange(start, start + len(labels), device=labels.device)
    return Keys(rows, every_label, own)


def key_sum_dots(features: Tensor, keys: Keys, classes: Tensor, size: int) -> Tensor:
    """Returns ``[N]``: each anchor's dot product with its class's other keys.

    Args:
        features: anchors ``[N, D]``.
        keys: of the anchors.
        classes: of the keys, ``[M]`` in [0, size], where size means no class.
        size: number of classes.
    """
    if keys.rows is None or keys.own is None:
        return class_sum_dots(features, query_classes=classes, num_classes=size)
    anchor_classes = keys.of_anchors(classes)
    dots = class_sum_dots(
        features,
        keys.rows,
        query_classes=anchor_classes,
        key_classes=classes,
        num_classes=size,
    )
    own = keys.rows.index_select(0, keys.own).to(dots.dtype)
    with_itself = (features.to(dots.dtype) * own).sum(dim=1)
    return dots - torch.where(anchor_classes < size, with_itself, 0)


def class_index(labels: Tensor, num_classes: int | None) -> tuple[Tensor, int]:
    """Numbers classes, without waiting for the device.

    Args:
        labels: ``[N]``.
        num_classes: upper bound of the labels, or None to number them by sorting.

    Returns:
        ``[N]`` int64 in [0, size], where size means no class; and size.
    """
    labels = labels.long()  # the number of classes may be beyond a smaller type's range
    if num_classes is not None:
        known = (labels >= 0) & (labels < num_classes)
        return torch.where(known, labels, num_classes), num_classes
    size = labels.shape[0]
    ordered, order = labels.sort()
    starts = torch.zeros_like(ordered, dtype=torch.int64)
    starts[1:] = (ordered[1:] != ordered[:-1]).long()
    classes = torch.empty_like(starts).scatter_(0, order, starts.cumsum(0))
    return torch.where(labels >= 0, classes, size), size


def class_counts(classes: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Returns ``[size + 1]`` of ``dtype``; the last is 1, whoever has no class."""
    ones = torch.ones_like(classes, dtype=dtype)
    counts = ones.new_zeros(size + 1).index_add_(0, classes, ones)
    # As a fill: a number for one element would be copied to a GPU, which waits.
    counts[size:].fill_(1)
    return counts


def same_class_bias(number: Tensor, seen: Tensor) -> Tensor:
    """Returns ``log(n / seen)`` ``[N]``: from one weight 1/n to 1/seen."""
    return (number / seen.clamp(min=1)).log()


def check_columns(name: str, tensor: Tensor, features: Tensor) -> None:
    if tensor.ndim != 2 or tensor.shape[1] != features.shape[1]:
        raise ValueError(
            f"{name} must be [*, {features.shape[1]}] like the features, "
            f"got shape {tuple(tensor.shape)}"
        )
    check_type(name, tensor, features)


def check_type(name: str, tensor: Tensor, features: Tensor) -> None:
    if tensor.device != features.device:
        raise ValueError(f"{name} must be on {features.device}, got {tensor.device}")
    wider = torch.promote_types(tensor.dtype, features.dtype) != features.dtype
    # Under autocast types meet in the wider one.
    if wider and not torch.is_autocast_enabled(features.device.type):
        raise TypeError(
            f"{name} must have the features' type {features.dtype}, got {tensor.dtype}"
        )


def reduce(
    losses: Tensor,
    counted: Tensor,
    reduction: Reduction,
    return_stats: bool,
    gather: bool = False,
) -> Tensor | tuple[Tensor, ContrastiveStats]:
    """Reduces ``[N]`` losses over the counted anchors; none counted gives 0.

    With ``gather`` the mean over processes of what they return is the sum over all
    their anchors, or its mean.
    """
    check_reduction(reduction)
    loss = torch.where(counted, losses, 0.0)
    number = counted.sum()
    processes = process_count() if gather else 1
    if reduction != "none":
        loss = loss.sum() * processes
    if reduction == "mean":
        every = number
        if processes > 1:
            every = number.clone()
            dist.all_reduce(every)
        loss = loss / every.clamp(min=1)
    if not return_stats:
        return loss
    return loss, ContrastiveStats(number, counted.numel() - number)
