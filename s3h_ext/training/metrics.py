"""Accuracy as the long-tail literature reports it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MANY_ABOVE = 100
FEW_BELOW = 20


@dataclass(frozen=True)
class Metrics:
    """Results of one evaluation, in percent; a group without a class is ``None``.

    Attributes:
        top1: share of the images whose class is predicted.
        many: mean of the per-class accuracies over classes with more than 100 training
            images.
        medium: the same over classes with 20 to 100.
        few: the same over classes with fewer than 20.
        macro_f1: mean over classes of the harmonic mean of precision and recall.
        worst_class: the lowest per-class accuracy.
        per_class: accuracy of each class ``[C]``, NaN where it has no image.
    """

    top1: float
    many: float | None
    medium: float | None
    few: float | None
    macro_f1: float
    worst_class: float
    per_class: np.ndarray


def classification_metrics(confusion: np.ndarray, class_counts: np.ndarray) -> Metrics:
    """Compute the metrics of a confusion matrix.

    Args:
        confusion: ``[C, C]`` counts, true class by predicted class.
        class_counts: *training* images of each class ``[C]``, which define the groups.

    Raises:
        ValueError: shapes that do not match, or a matrix without a single image.

    Example:
        >>> m = classification_metrics(np.array([[9, 1], [5, 5]]), np.array([500, 5]))
        >>> m.top1, m.many, m.medium, m.few, m.worst_class
        (70.0, 90.0, None, 50.0, 50.0)
    """
    confusion = np.asarray(confusion, dtype=np.float64)
    class_counts = np.asarray(class_counts)
    if confusion.shape != (len(class_counts),) * 2:
        raise ValueError(
            f"confusion: expected shape {(len(class_counts),) * 2} for "
            f"{len(class_counts)} class counts, got {confusion.shape}"
        )
    if confusion.sum() == 0:
        raise ValueError("confusion: expected at least one image, got none")
    hits = np.diag(confusion)
    images, predicted = confusion.sum(1), confusion.sum(0)
    seen = images > 0
    per_class = np.full(len(hits), np.nan)
    per_class[seen] = 100.0 * hits[seen] / images[seen]
    f1 = 200.0 * hits[seen] / (images + predicted)[seen]

    def group(chosen: np.ndarray) -> float | None:
        chosen = chosen & seen
        return float(per_class[chosen].mean()) if chosen.any() else None

    many, few = class_counts > MANY_ABOVE, class_counts < FEW_BELOW
    return Metrics(
        top1=float(100.0 * hits.sum() / confusion.sum()),
        many=group(many),
        medium=group(~many & ~few),
        few=group(few),
        macro_f1=float(f1.mean()),
        worst_class=float(np.nanmin(per_class)),
        per_class=per_class,
    )
