"""Accuracy as the long-tail literature reports it, and calibration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MANY_ABOVE = 100
FEW_BELOW = 20
GROUPS = ("many", "medium", "few")
#: Range of training images per class in each group.
GROUP_SIZES = (
    f"over {MANY_ABOVE}",
    f"{FEW_BELOW} to {MANY_ABOVE}",
    f"under {FEW_BELOW}",
)
CALIBRATION_BINS = 15


def class_groups(class_counts: np.ndarray) -> np.ndarray:
    """Return the index in ``GROUPS`` of each class, int64 ``[C]``.

    Args:
        class_counts: training images of each class ``[C]``.

    Example:
        >>> class_groups(np.array([101, 100, 20, 19])).tolist()
        [0, 1, 1, 2]
    """
    class_counts = np.asarray(class_counts)
    return np.where(
        class_counts > MANY_ABOVE, 0, np.where(class_counts < FEW_BELOW, 2, 1)
    )


@dataclass(frozen=True)
class Metrics:
    """Results of one evaluation, in percent; a group without a class is ``None``.

    Attributes:
        top1: fraction of images classified correctly.
        many: mean per-class accuracy over classes with more than 100 training images.
        medium: the same over classes with 20 to 100.
        few: the same over classes with fewer than 20.
        macro_f1: mean over classes of the harmonic mean of precision and recall.
        worst_class: the lowest per-class accuracy.
        per_class: accuracy of each class ``[C]``, NaN if it has no image.
    """

    top1: float
    many: float | None
    medium: float | None
    few: float | None
    macro_f1: float
    worst_class: float
    per_class: np.ndarray

    @property
    def balanced_accuracy(self) -> float:
        """Mean per-class accuracy, over the classes that have images."""
        return float(np.nanmean(self.per_class))


@dataclass(frozen=True)
class Calibration:
    """Confidence against accuracy, in percent, in bins of equal width.

    The confidence of a prediction is the softmax probability of the predicted class.
    Bin ``m`` of ``M`` holds confidences in ``((m - 1) / M, m / M]`` (Guo et al., "On
    Calibration of Modern Neural Networks", ICML 2017, section 2).

    Attributes:
        images: int64 ``[M]``, number of predictions in each bin.
        accuracy: ``[M]``, fraction of them that is correct, NaN in an empty bin.
        confidence: ``[M]``, their mean confidence, NaN in an empty bin.
    """

    images: np.ndarray
    accuracy: np.ndarray
    confidence: np.ndarray

    @property
    def error(self) -> float:
        """Expected calibration error in percentage points (Guo et al. 2017, eq. 3).

        NaN if a confidence is not finite.
        """
        filled = self.images > 0
        gaps = np.abs(self.accuracy - self.confidence)[filled]
        return float(np.average(gaps, weights=self.images[filled]))


@dataclass(frozen=True)
class Evaluation(Metrics):
    """The metrics of one evaluation and the data behind them.

    Attributes:
        confusion: int64 ``[K, 3]``, the non-zero cells of the confusion matrix, sorted:
            true class, predicted class, images.
        calibration: confidence against accuracy.
        auc: :func:`macro_auc`, if requested.
    """

    confusion: np.ndarray
    calibration: Calibration
    auc: float | None = None


def calibrate(
    confidence: np.ndarray, correct: np.ndarray, bins: int = CALIBRATION_BINS
) -> Calibration:
    """Sort predictions into bins of confidence.

    Args:
        confidence: ``[N]`` in [0, 1], probability of the predicted class.
        correct: bool ``[N]``, whether the prediction is correct.
        bins: number of bins over [0, 1].

    Raises:
        ValueError: shapes do not match, or there are no predictions.

    Example:
        >>> c = calibrate(np.array([0.9, 0.9, 0.6]), np.array([True, False, True]), 2)
        >>> c.images.tolist(), round(c.error, 3)
        ([0, 3], 13.333)
    """
    confidence = np.asarray(confidence, dtype=np.float64)
    correct = np.asarray(correct, dtype=bool)
    if confidence.ndim != 1 or confidence.shape != correct.shape:
        raise ValueError(
            "confidence: expected one for each prediction, got shapes "
            f"{confidence.shape} and {correct.shape}"
        )
    if not len(confidence):
        raise ValueError("confidence: expected at least one prediction, got none")
    inner = np.arange(1, bins) / bins
    # side="left" closes a bin on the right, as in the paper. NaN goes last.
    which = np.searchsorted(inner, confidence, side="left")
    images = np.bincount(which, minlength=bins)
    with np.errstate(invalid="ignore"):  # 0 / 0 in an empty bin is NaN, as documented
        return Calibration(
            images=images,
            accuracy=100.0 * np.bincount(which, correct, bins) / images,
            confidence=100.0 * np.bincount(which, confidence, bins) / images,
        )


def evaluate_predictions(
    truth: np.ndarray,
    predicted: np.ndarray,
    confidence: np.ndarray,
    class_counts: np.ndarray,
) -> Evaluation:
    """Compute all reported results from the predictions on a split.

    No ``[C, C]`` matrix is formed, so thousands of classes are no problem.

    Args:
        truth: int ``[N]``, true classes.
        predicted: int ``[N]``, predicted classes.
        confidence: ``[N]`` in [0, 1], probability of the predicted class.
        class_counts: *training* images of each class ``[C]``, which define the groups.

    Raises:
        ValueError: shapes do not match, a class is outside ``[0, C)``, or no images.

    Example:
        >>> e = evaluate_predictions(
        ...     np.array([0, 1, 1]), np.array([0, 0, 1]), np.ones(3), np.array([30, 3])
        ... )
        >>> e.medium, e.few, e.confusion.tolist()
        (100.0, 50.0, [[0, 0, 1], [1, 0, 1], [1, 1, 1]])
    """
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    classes = len(class_counts)
    if truth.ndim != 1 or truth.shape != predicted.shape:
        raise ValueError(
            "predicted: expected one for each image, got shapes "
            f"{truth.shape} and {predicted.shape}"
        )
    for name, values in (("truth", truth), ("predicted", predicted)):
        if len(values) and not 0 <= values.min() <= values.max() < classes:
            raise ValueError(
                f"{name}: expected classes in [0, {classes}), got "
                f"{values.min()} to {values.max()}"
            )
    calibration = calibrate(confidence, truth == predicted)
    pairs, images = np.unique(
        truth.astype(np.int64) * classes + predicted, return_counts=True
    )
    confusion = np.column_stack((pairs // classes, pairs % classes, images))
    metrics = metrics_of_cells(confusion, class_counts)
    return Evaluation(**vars(metrics), confusion=confusion, calibration=calibration)


def macro_auc(truth: np.ndarray, probabilities: np.ndarray) -> float | None:
    """Return the mean over classes of the area under the ROC curve, in percent.

    Each class is compared with all others, as in MedMNIST. Classes with no images, or
    with all of them, do not count. ``None`` if no class counts.

    Args:
        truth: int ``[N]``, true classes.
        probabilities: ``[N, C]``.

    Example:
        >>> p = np.array([[0.9, 0.1], [0.4, 0.6], [0.6, 0.4]])
        >>> macro_auc(np.array([0, 1, 0]), p)
        100.0
    """
    from sklearn.metrics import roc_auc_score  # slow to import

    counts = np.bincount(truth, minlength=probabilities.shape[1])
    areas = [
        roc_auc_score(truth == label, probabilities[:, label])
        for label in np.flatnonzero((counts > 0) & (counts < len(truth))).tolist()
    ]
    return 100.0 * float(np.mean(areas)) if areas else None


def metrics_of_cells(cells: np.ndarray, class_counts: np.ndarray) -> Metrics:
    """Compute the metrics from the cells of a confusion matrix.

    Args:
        cells: int ``[K, 3]``: true class, predicted class, images.
        class_counts: *training* images of each class ``[C]``, which define the groups.

    Example:
        >>> metrics_of_cells(np.array([[0, 0, 3], [1, 0, 1]]), np.array([30, 3])).top1
        75.0
    """
    truth, predicted, cell = np.asarray(cells).T
    right, classes = truth == predicted, len(class_counts)
    hits = np.bincount(truth[right], cell[right], classes)
    images = np.bincount(truth, cell, classes)
    seen = images > 0
    per_class = np.full(classes, np.nan)
    per_class[seen] = 100.0 * hits[seen] / images[seen]
    f1 = 200.0 * hits[seen] / (images + np.bincount(predicted, cell, classes))[seen]
    groups = class_groups(class_counts)

    def group(number: int) -> float | None:
        chosen = (groups == number) & seen
        return float(per_class[chosen].mean()) if chosen.any() else None

    return Metrics(
        top1=float(100.0 * hits.sum() / images.sum()),
        many=group(0),
        medium=group(1),
        few=group(2),
        macro_f1=float(f1.mean()),
        worst_class=float(np.nanmin(per_class)),
        per_class=per_class,
    )
