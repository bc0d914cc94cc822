import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import balanced_accuracy_score, f1_score, recall_score

from s3h_ext.report.metrics import (
    calibrate,
    class_groups,
    evaluate_predictions,
    macro_auc,
    metrics_of_cells,
)


def confusion_of(truth, predicted, classes):
    matrix = np.zeros((classes, classes), dtype=int)
    np.add.at(matrix, (truth, predicted), 1)
    return matrix


def metrics_of(matrix, counts):
    cells = np.argwhere(matrix)
    return metrics_of_cells(np.column_stack((cells, matrix[tuple(cells.T)])), counts)


def test_metrics_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 6, 500), rng.integers(0, 6, 500)
    metrics = metrics_of(confusion_of(truth, predicted, 6), np.full(6, 50))
    recalls = recall_score(truth, predicted, average=None)
    assert metrics.top1 == pytest.approx(100 * np.mean(truth == predicted))
    assert metrics.per_class == pytest.approx(100 * recalls)
    f1 = f1_score(truth, predicted, average="macro")
    assert metrics.macro_f1 == pytest.approx(100 * f1)
    assert metrics.worst_class == pytest.approx(100 * recalls.min())


def test_groups_are_above_100_20_to_100_and_below_20():
    matrix = np.diag([1, 2, 3, 4, 5, 6]) + np.eye(6, k=1, dtype=int)
    counts = np.array([5000, 101, 100, 20, 19, 1])
    metrics = metrics_of(matrix, counts)
    accuracy = 100 * np.diag(matrix) / matrix.sum(1)
    assert metrics.many == pytest.approx(accuracy[:2].mean())
    assert metrics.medium == pytest.approx(accuracy[2:4].mean())
    assert metrics.few == pytest.approx(accuracy[4:].mean())


def test_groups_weigh_classes_not_images():
    matrix = np.array([[10, 0], [90, 10]])
    metrics = metrics_of(matrix, np.array([200, 150]))
    assert metrics.many == pytest.approx((100 + 10) / 2)
    assert metrics.top1 == pytest.approx(100 * 20 / 110)
    assert metrics.medium is None
    assert metrics.few is None


def test_a_class_without_images_is_left_out():
    metrics = metrics_of(np.array([[3, 1], [0, 0]]), np.array([200, 150]))
    assert metrics.many == 75.0
    assert np.isnan(metrics.per_class[1])


def test_groups_of_classes():
    counts = [5000, 101, 100, 20, 19, 0]
    assert class_groups(counts).tolist() == [0, 0, 1, 1, 2, 2]


def test_calibration_by_hand():
    # Bins of 1/15: 0.05 is in the first; 0.30 and 0.32 in the fifth; 0.99 in the last.
    confidence = np.array([0.05, 0.30, 0.32, 0.99, 0.99])
    correct = np.array([False, True, False, True, True])
    calibration = calibrate(confidence, correct)
    assert calibration.images.tolist() == [1, 0, 0, 0, 2, *[0] * 9, 2]
    assert calibration.accuracy[[0, 4, 14]].tolist() == [0, 50, 100]
    assert calibration.confidence[[0, 4, 14]] == pytest.approx([5, 31, 99])
    assert np.isnan(calibration.accuracy[1])
    assert np.isnan(calibration.confidence[1])
    assert calibration.error == pytest.approx((1 * 5 + 2 * 19 + 2 * 1) / 5)


def test_a_bin_is_closed_on_the_right():
    correct = np.zeros(4, dtype=bool)
    calibration = calibrate(np.array([0.0, 0.5, 0.5 + 1e-12, 1.0]), correct, bins=2)
    assert calibration.images.tolist() == [2, 2]


def test_calibration_agrees_with_scikit_learn():
    rng = np.random.default_rng(1)
    confidence = rng.uniform(0.1, 1, 2000)
    correct = rng.random(2000) < confidence**2
    ours = calibrate(confidence, correct)
    bins = {"n_bins": 15, "strategy": "uniform"}
    accuracy, mean = calibration_curve(correct, confidence, **bins)
    filled = ours.images > 0
    assert ours.accuracy[filled] == pytest.approx(100 * accuracy)
    assert ours.confidence[filled] == pytest.approx(100 * mean)
    # confidence - confidence² is 1/6 in the mean over [0, 1], and always positive.
    assert 10 < ours.error < 20
    assert ours.error == pytest.approx(100 * (confidence.mean() - correct.mean()))


def test_predictions_that_are_as_often_right_as_they_say_have_no_error():
    confidence = np.repeat([0.5, 0.75], [4, 8])
    correct = np.array([True, False] * 2 + [True, True, True, False] * 2)
    assert calibrate(confidence, correct).error == pytest.approx(0, abs=1e-12)


def test_confidences_that_are_not_numbers_leave_the_error_undefined():
    calibration = calibrate(np.array([0.5, np.nan]), np.array([True, False]))
    assert np.isnan(calibration.error)


def test_evaluation_of_predictions_agrees_with_the_dense_matrix():
    rng = np.random.default_rng(2)
    truth, predicted = rng.integers(0, 5, 300), rng.integers(0, 5, 300)
    counts = np.array([200, 150, 50, 10, 3])
    dense = confusion_of(truth, predicted, 5)
    evaluation = evaluate_predictions(truth, predicted, rng.random(300), counts)
    expected = metrics_of(dense, counts)
    for name in ("top1", "many", "medium", "few", "macro_f1", "worst_class"):
        assert getattr(evaluation, name) == getattr(expected, name)
    assert evaluation.per_class.tolist() == expected.per_class.tolist()
    cells = np.zeros_like(dense)
    true, said, images = evaluation.confusion.T
    cells[true, said] = images
    assert cells.tolist() == dense.tolist()
    assert evaluation.calibration.images.sum() == 300


@pytest.mark.parametrize(
    ("truth", "predicted", "confidence", "message"),
    [
        ([0, 1], [0], [1.0], "predicted: expected one for each image"),
        ([0, 2], [0, 1], [1.0, 1.0], r"truth: expected classes in \[0, 2\), got 0 to"),
        ([0, 1], [-1, 1], [1.0, 1.0], r"predicted: expected classes in .* got -1 to 1"),
        ([0, 1], [0, 1], [1.0], "confidence: expected one for each prediction"),
        ([], [], [], "confidence: expected at least one prediction"),
    ],
)
def test_bad_predictions_are_refused(truth, predicted, confidence, message):
    classes = np.array(truth, int), np.array(predicted, int)
    with pytest.raises(ValueError, match=message):
        evaluate_predictions(*classes, confidence, np.ones(2))


@pytest.mark.filterwarnings("ignore:y_pred contains classes")
def test_balanced_accuracy_is_scikit_learns():
    rng = np.random.default_rng(5)
    truth = np.r_[np.zeros(40, int), rng.integers(0, 3, 20)]
    predicted = rng.integers(0, 5, 60)  # classes 3 and 4 have no image
    found = evaluate_predictions(truth, predicted, np.ones(60), np.ones(5, int))
    expected = balanced_accuracy_score(truth, np.minimum(predicted, 3))
    assert found.balanced_accuracy == pytest.approx(100 * expected)


def test_area_under_the_curve_counts_pairs_in_the_right_order():
    rng = np.random.default_rng(6)
    truth = rng.integers(0, 3, 50)
    scores = rng.integers(0, 4, (50, 4)) / 4  # with equals; class 3 has no image
    areas = []
    for label in range(3):
        own, other = scores[truth == label, label], scores[truth != label, label]
        order = np.sign(own[:, None] - other)
        areas.append((order.mean() + 1) / 2)
    assert macro_auc(truth, scores) == pytest.approx(100 * np.mean(areas))
    assert macro_auc(np.zeros(5, int), scores[:5]) is None
