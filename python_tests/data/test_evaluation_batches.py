"""Batches of an evaluation."""

import numpy as np
import pytest
import torch

from python_tests.data.test_source import resident
from s3h_ext.data.source.evaluation import EvaluationBatches

from .sources import MEAN, STD


@pytest.mark.parametrize("batch_size", [1, 50, 120, 500])
def test_evaluation_goes_in_order(image_set, batch_size):
    evaluation = EvaluationBatches(resident(image_set), batch_size=batch_size)
    for _ in range(2):
        steps = list(evaluation)
        assert len(steps) == len(evaluation)
        assert all(len(step.labels) == batch_size for step in steps[:-1])
        indices = torch.cat([step.indices for step in steps])
        assert torch.equal(indices, torch.arange(120))
        labels = torch.cat([step.labels for step in steps])
        assert np.array_equal(labels, image_set.labels)
        images = torch.cat([step.images[0] for step in steps])
        pixels = torch.from_numpy(image_set.images).permute(0, 3, 1, 2) / 255
        mean, std = (torch.tensor(x).view(3, 1, 1) for x in (MEAN, STD))
        assert torch.allclose(images, (pixels - mean) / std, atol=1e-5)
        assert steps[0].images[0].is_contiguous(memory_format=torch.channels_last)


def test_evaluation_takes_a_recipe(image_set):
    evaluation = EvaluationBatches(
        resident(image_set), batch_size=50, recipe="evaluation"
    )
    shapes = [step.images.shape for step in evaluation]
    assert shapes == [(1, count, 3, 224, 224) for count in (50, 50, 20)]
    with pytest.raises(ValueError, match="recipe"):
        EvaluationBatches(resident(image_set), batch_size=50, recipe="evalution")


def test_wrong_evaluation_batch_size(image_set):
    with pytest.raises(ValueError, match="batch_size"):
        EvaluationBatches(resident(image_set), batch_size=0)
