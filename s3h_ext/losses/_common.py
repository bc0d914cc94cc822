"""Argument checks, class numbering and key gathering shared by the losses."""

from __future__ import annotations

import math
import numbers
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from s3h_ext.ops import class_sum_dots, gather_rows
from s3h_ext.ops._arguments import (
    Reduction,
    check_matrices,
    check_reduction,
    check_temperature,
    check_tensor,
    compute_dtype,
)
from s3h_ext.ops.all_gather import process_count

_LABELS = (
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.uint32,
)


class ContrastiveModule(nn.Module):
    """Base of the loss modules: stores the settings that ``forward`` passes on.

    Args:
        temperature: τ, divides the dot products; > 0.
        reduction: ``"mean"`` over counted anchors, ``"sum"`` or ``"none"``.
        num_classes: number of classes if known; every label is below it.
        gather: contrast with the rows of all processes, see :mod:`s3h_ext.losses`.

    Raises:
        TypeError: the temperature or the number of classes is not a number.
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        reduction: Reduction = "mean",
        num_classes: int | None = None,
        gather: bool = False,
    ) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)
        self.reduction = check_reduction(reduction)
        self.num_classes = check_num_classes(num_classes)
        self.gather = gather

    def settings(self) -> dict[str, Any]:
        """Return the keyword arguments that the module passes to its loss function."""
        return {
            "temperature": self.temperature,
            "reduction": self.reduction,
            "num_classes": self.num_classes,
            "gather": self.gather,
        }

    def extra_repr(self) -> str:
        """Return the settings shown by ``repr``."""
        settings = f"temperature={self.temperature}, reduction={self.reduction!r}"
        return f"{settings}, gather=True" if self.gather else settings


def check_num_classes(num_classes: int | None) -> int | None:
    if num_classes is None:
        return None
    if not isinstance(num_classes, numbers.Integral):
        raise TypeError(
            f"num_classes must be an int or None, got {type(num_classes).__name__}"
        )
    if num_classes < 0:
        raise ValueError(f"num_classes must not be negative, got {num_classes}")
    return int(num_classes)


def check_number(name: str, value: Any, *, positive: bool = False) -> float:
    """Return a finite number >= 0 (> 0 if ``positive``) as a float."""
    expected = f"{name}: expected a finite number {'>' if positive else '>='} 0"
    if not isinstance(value, numbers.Real):
        raise TypeError(f"{expected}, got {type(value).__name__}")
    number = float(value)
    if not 0.0 <= number < math.inf or (positive and number == 0):
        raise ValueError(f"{expected}, got {value}")
    return number


def check_labels(
    name: str,
    labels: Tensor,
    rows: Tensor,
    of: str,
    num_classes: int | None = None,
) -> Tensor:
    """Return labels as int64, after checking that there is one integer per row.

    Args:
        name: name of the labels in error messages.
        labels: integers ``[N]``.
        rows: ``[N, ...]``.
        of: name of the rows in error messages.
        num_classes: number of classes if known. Labels are checked against it only if
            that does not synchronise with a device and their values can be read.
    """
    check_tensor(name, labels)
    if labels.dtype not in _LABELS:
        raise TypeError(f"{name} must be integers, got {labels.dtype}")
    _check_one_a_row(name, labels, rows, of)
    labels = labels.long()
    if num_classes is not None:
        _check_below(name, labels, num_classes)
    return labels


def _check_one_a_row(name: str, values: Tensor, rows: Tensor, of: str) -> None:
    if values.shape != rows.shape[:1]:
        raise ValueError(
            f"{name} must have shape ({rows.shape[0]},), one for each row of {of}, "
            f"got {tuple(values.shape)}"
        )
    if values.device != rows.device:
        raise ValueError(f"{name} must be on {rows.device}, got {values.device}")


def _readable(values: Tensor) -> bool:
    """Return whether there are values that can be read without synchronising."""
    on_cpu = values.is_cpu and values.numel() > 0
    return on_cpu and not torch.compiler.is_compiling()


def _check_below(name: str, labels: Tensor, num_classes: int) -> None:
    if not _readable(labels):
        return
    try:
        highest = int(labels.max())
    except RuntimeError:  # fake tensors, vmap
        return
    if highest >= num_classes:
        raise ValueError(
            f"{name} must be below {num_classes}, the number of classes, got {highest}"
        )


def check_logits(logits: Tensor, per_class: Tensor | None = None) -> Tensor:
    """Return logits ``[N, C]`` in float64 if they are float64, otherwise in float32.

    Args:
        logits: ``[N, C]`` floating point.
        per_class: ``[C]`` tensor that the loss derived from ``class_counts``, if any.
    """
    check_tensor("logits", logits)
    if not logits.is_floating_point():
        raise TypeError(f"logits must be floating point, got {logits.dtype}")
    got = f"got shape {tuple(logits.shape)}"
    if logits.ndim != 2:
        raise ValueError(f"logits must be [N, C], {got}")
    if per_class is not None and logits.shape[1] != len(per_class):
        raise ValueError(
            f"logits must be [N, {len(per_class)}], one column for each of the loss's "
            f"class_counts, {got}"
        )
    if per_class is not None and logits.device != per_class.device:
        raise ValueError(
            f"logits must be on {per_class.device} like the loss, got {logits.device}"
        )
    return logits.to(compute_dtype(logits.dtype))


def check_weight(weight: Tensor | None, logits: Tensor) -> Tensor | None:
    """Return the class weights ``[C]`` in the dtype of the logits."""
    if weight is None:
        return None
    check_tensor("weight", weight)
    if not weight.is_floating_point():
        raise TypeError(f"weight must be floating point, got {weight.dtype}")
    if weight.shape != logits.shape[1:]:
        raise ValueError(
            f"weight must have shape ({logits.shape[1]},), one for each column of "
            f"logits, got {tuple(weight.shape)}"
        )
    if weight.device != logits.device:
        raise ValueError(f"weight must be on {logits.device}, got {weight.device}")
    return weight.to(logits.dtype)


def check_shares(name: str, shares: Tensor, logits: Tensor) -> Tensor:
    """Return one number per row of logits ``[N, C]``, in their dtype."""
    check_tensor(name, shares)
    if not shares.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {shares.dtype}")
    _check_one_a_row(name, shares, logits, "logits")
    return shares.to(logits.dtype)


def check_amounts(
    name: str, values: Tensor, features: Tensor, shape: tuple[int, ...]
) -> Tensor:
    """Return numbers >= 0 of the given shape in the dtype of the computation.

    The sign is checked only if that does not synchronise with a device.
    """
    check_tensor(name, values)
    if values.dtype != torch.bool and not values.is_floating_point():
        raise TypeError(f"{name} must be bool or floating point, got {values.dtype}")
    if values.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(values.shape)}")
    if values.device != features.device:
        raise ValueError(f"{name} must be on {features.device}, got {values.device}")
    if values.requires_grad:
        raise ValueError(
            f"{name} must not require a gradient, because none is computed; "
            f"pass {name}.detach()"
        )
    if _readable(values) and values.dtype != torch.bool:
        lowest = float(values.min())
        if not lowest >= 0:
            raise ValueError(f"{name} must be 0 or more, got {lowest:g}")
    return values.to(compute_dtype(features.dtype))


def check_views(features: Tensor) -> int:
    """Return V of features ``[B, V, D]``; 1 for ``[N, D]``."""
    check_tensor("features", features)
    if features.ndim not in (2, 3):
        raise ValueError(
            f"features must be [B, V, D] or [N, D], got shape {tuple(features.shape)}"
        )
    return features.shape[1] if features.ndim == 3 else 1


def flatten_views(
    features: Tensor, labels: Tensor, num_classes: int | None
) -> tuple[Tensor, Tensor]:
    """Return features ``[B·V, D]``, sample-major, and their labels ``[B·V]``."""
    check_views(features)
    labels = check_labels("labels", labels, features, "features", num_classes)
    if features.ndim == 3:
        labels = labels.repeat_interleave(features.shape[1])
        features = features.flatten(0, 1)
    check_matrices(features, None, "features")
    return features, labels


class Keys(NamedTuple):
    """The keys of a batch whose anchors are keys too.

    Attributes:
        rows: ``[M, D]`` of all processes, or None if the anchors are the only keys.
        labels: ``[M]``; without ``rows``, the anchors' labels ``[N]``.
        own: ``[N]``, index of each anchor among the keys; None without ``rows``.
    """

    rows: Tensor | None
    labels: Tensor
    own: Tensor | None

    def of_anchors(self, values: Tensor) -> Tensor:
        """Select from per-key values ``[M]`` those of the anchors ``[N]``."""
        return values if self.own is None else values.index_select(0, self.own)


def gather_keys(features: Tensor, labels: Tensor, gather: bool) -> Keys:
    """Return the keys of anchors ``[N, D]``, from all processes if ``gather``."""
    if not gather or process_count() == 1:
        return Keys(None, labels, None)
    (rows, every_label), start = gather_rows(features, labels)
    own = torch.arange(start, start + len(labels), device=labels.device)
    return Keys(rows, every_label, own)


def key_sum_dots(features: Tensor, keys: Keys, classes: Tensor, size: int) -> Tensor:
    """Return ``[N]``: each anchor's dot product with the sum of its class's other keys.

    Args:
        features: anchors ``[N, D]``.
        keys: the anchors' keys.
        classes: class of each key, ``[M]`` in [0, size]; size means no class.
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
    """Number the classes from 0, without synchronising with the device.

    Args:
        labels: ``[N]`` int64.
        num_classes: upper bound of the labels, or None to number them by sorting.

    Returns:
        Class indices ``[N]`` int64 in [0, size], where size means no class, and size.
    """
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
    """Return class sizes ``[size + 1]``; the last entry, for no class, is 1."""
    ones = torch.ones_like(classes, dtype=dtype)
    counts = ones.new_zeros(size + 1).index_add_(0, classes, ones)
    # fill_: assigning a Python scalar copies from the host and syncs the GPU.
    counts[size:].fill_(1)
    return counts


def same_class_bias(number: Tensor, seen: Tensor) -> Tensor:
    """Return ``log(n / seen)`` ``[N]``, which turns a weight of 1/n into 1/seen."""
    return (number / seen.clamp(min=1)).log()


def classes_of(name: str, rows: Tensor, num_classes: int | None) -> int:
    """Return the number of classes, given one row of ``rows`` per class."""
    count = rows.shape[0]
    if num_classes is not None and num_classes != count:
        raise ValueError(
            f"num_classes must be {count}, the number of {name}, got {num_classes}"
        )
    return count


def check_columns(name: str, tensor: Tensor, features: Tensor) -> Tensor:
    """Return rows ``[*, D]`` in the dtype of the features, see :func:`check_type`."""
    check_tensor(name, tensor)
    if tensor.ndim != 2 or tensor.shape[1] != features.shape[1]:
        raise ValueError(
            f"{name} must be [*, {features.shape[1]}] like the features, "
            f"got shape {tuple(tensor.shape)}"
        )
    return check_type(name, tensor, features)


def check_type(name: str, tensor: Tensor, features: Tensor) -> Tensor:
    """Convert a tensor to the dtype of the features, which must not be narrower."""
    if tensor.device != features.device:
        raise ValueError(f"{name} must be on {features.device}, got {tensor.device}")
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {tensor.dtype}")
    # Autocast mixes dtypes: use the wider one.
    if torch.is_autocast_enabled(features.device.type):
        return tensor
    if torch.promote_types(tensor.dtype, features.dtype) != features.dtype:
        raise TypeError(
            f"{name} must have the features' type {features.dtype}, got {tensor.dtype}"
        )
    return tensor.to(features.dtype)
