import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier

from s3h_ext.models import NearestMean, NearestNeighbours, normalize_weights


@pytest.fixture
def features():
    """Features of 3 unequal classes, with labels, and others."""
    labels = torch.tensor([0] * 30 + [1] * 9 + [2] * 4)
    centres = torch.randn(3, 8)
    return centres[labels] + torch.randn(43, 8), labels, torch.randn(50, 8)


def test_normalised_weights_have_lengths_to_the_power_of_what_is_left():
    weight = torch.randn(5, 8)
    for tau in (0.0, 0.7, 1.0, 2.0):
        found = normalize_weights(weight, tau)
        torch.testing.assert_close(found.norm(dim=1), weight.norm(dim=1) ** (1 - tau))
        torch.testing.assert_close(F.normalize(found), F.normalize(weight))
    with pytest.raises(ValueError, match=r"tau: expected a number in \[0, 2\], got 3"):
        normalize_weights(weight, 3)


def test_nearest_mean_agrees_with_scikit_learn(features):
    rows, labels, others = features
    means = torch.stack([rows[labels == c].mean(0) for c in range(3)])
    # Among unit vectors the nearest has the greatest cosine.
    judge = KNeighborsClassifier(1).fit(F.normalize(means), [0, 1, 2])
    logits = NearestMean(rows, labels, 4)(others)
    assert logits.shape == (50, 4)
    assert logits.argmax(1).tolist() == judge.predict(F.normalize(others)).tolist()


def test_neighbours_agree_with_scikit_learn(features):
    rows, labels, others = features
    judge = KNeighborsClassifier(
        7, metric="cosine", weights=lambda far: np.exp(-far / 0.07)
    ).fit(rows.numpy(), labels.numpy())
    shares = NearestNeighbours(rows, labels, 3, 7)(others).softmax(1)
    expected = torch.from_numpy(judge.predict_proba(others.numpy())).float()
    torch.testing.assert_close(shares, expected, atol=1e-4, rtol=1e-3)
    assert len(NearestNeighbours(rows, labels, 3, 43)(rows.repeat(10, 1))) == 430


def test_more_neighbours_than_images(features):
    rows, labels, _ = features
    with pytest.raises(ValueError, match=r"neighbours: .* in \[1, 43\].*, got 44"):
        NearestNeighbours(rows, labels, 3, 44)
