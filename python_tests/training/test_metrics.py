import numpy as np
import pytest
from sklearn.metrics import f1_score, recall_score

from s3h_ext.training.metrics import classification_metrics


def confusion_of(truth, predicted, classes):
    matrix = np.zeros((classes, classes), dtype=int)
    np.add.at(matrix, (truth, predicted), 1)
    return matrix


def test_metrics_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 6, 500), rng.integers(0, 6, 500)
    metrics = classification_metrics(confusion_of(truth, predicted, 6), np.full(6, 50))
    recalls = recall_score(truth, predicted, average=None)
    assert metrics.top1 == pytest.approx(100 * np.mean(truth == predicted))
    assert metrics.per_class == pytest.approx(100 * recalls)
    assert metrics.macro_f1 == pytest.approx(
        100 * f1_score(truth, predicted, average="macro")
    )
    assert metrics.worst_class == pytest.approx(100 * recalls.min())


def test_groups_are_above_100_20_to_100_and_below_20():
    matrix = np.diag([1, 2, 3, 4, 5, 6]) + np.eye(6, k=1, dtype=int)
    counts = np.array([5000, 101, 100, 20, 19, 1])
    metrics = classification_metrics(matrix, counts)
    accuracy = 100 * np.diag(matrix) / matrix.sum(1)
    assert metrics.many == pytest.approx(accuracy[:2].mean())
    assert metrics.medium == pytest.approx(accuracy[2:4].mean())
    assert metrics.few == pytest.approx(accuracy[4:].mean())


def test_groups_weigh_classes_not_images():
    matrix = np.array([[10, 0], [90, 10]])
    metrics = classification_metrics(matrix, np.array([200, 150]))
    assert metrics.many == pytest.approx((100 + 10) / 2)
    assert metrics.top1 == pytest.approx(100 * 20 / 110)
    assert metrics.medium is None
    assert metrics.few is None


def test_a_class_without_images_is_left_out():
    metrics = classification_metrics(np.array([[3, 1], [0, 0]]), np.array([200, 150]))
    assert metrics.many == 75.0
    assert np.isnan(metrics.per_class[1])


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.ones((2, 3)), r"confusion: expected shape \(2, 2\)"),
        (np.zeros((2, 2)), "confusion: expected at least one image"),
    ],
)
def test_bad_matrices_are_refused(matrix, message):
    with pytest.raises(ValueError, match=message):
        classification_metrics(matrix, np.array([1, 1]))
