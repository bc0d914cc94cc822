"""Montages: what their quadrants show, and when."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from python_tests.data.test_source import make
from s3h_ext.data.dataset import ImageSet
from s3h_ext.data.streams import Stream
from s3h_ext.data.views.recipes import RECIPES, get_recipe

from .sources import COUNTS


@pytest.fixture(scope="module")
def planted():
    """Images of one colour each: red says which image, green which class."""
    labels = np.random.RandomState(4).permutation(np.repeat(np.arange(5), COUNTS))
    images = np.zeros((120, 16, 16, 3), np.uint8)
    images[..., 0] = np.arange(120)[:, None, None] + 100
    images[..., 1] = labels[:, None, None] * 50
    return ImageSet(images, labels)


def quadrants_of(images):
    """[V, B, C, H, W] to [V, B, 4, C, H / 2, W / 2]."""
    v, b, c, h, w = images.shape
    parts = images.reshape(v, b, c, 2, h // 2, 2, w // 2)
    return parts.permute(0, 1, 3, 5, 2, 4, 6).flatten(2, 3)


def test_montage_labels_follow_their_quadrants(planted, monkeypatch):
    # The colours of the recipe would hide the plants.
    plain = replace(get_recipe("montage-2x2"), jitter=None, grey=0.0)
    monkeypatch.setitem(RECIPES, "montage-2x2", plain)
    streams = {"a": Stream(recipe="montage-2x2", views=2)}
    source = make(planted, streams, mean=(0.0,) * 3, std=(1 / 255,) * 3)
    for step in source.epoch(1):
        batch = step["a"]
        shape = (2, len(batch.labels), 4)
        assert batch.images.shape == (*shape[:2], 3, 16, 16)
        assert batch.images[0].is_contiguous(memory_format=torch.channels_last)
        shown, labels = batch.quadrants.indices, batch.quadrants.labels
        assert shown.shape == labels.shape == shape
        pixels = quadrants_of(batch.images).round().to(torch.int64)
        assert (pixels[..., 0, :, :] == shown[..., None, None] + 100).all()
        assert (pixels[..., 1, :, :] == labels[..., None, None] * 50).all()
        # Each crop of each image is there once.
        numbers = batch.quadrants.crops
        assert numbers.shape == shape
        assert len((shown * 8 + numbers).unique()) == numbers.numel()
        assert (numbers.min(), numbers.max()) == (0, 7)
        # Every image of the batch is there with its eight crops, and spread.
        images, counts = shown.unique(return_counts=True)
        assert torch.equal(images, batch.indices.sort().values)
        assert (counts == 8).all()
        alike = (shown == shown[..., :1]).all(dim=-1)
        assert alike.float().mean() < 0.2


def test_montages_are_drawn_anew_and_again(image_set):
    streams = {"a": Stream(recipe="montage-2x2")}
    first, again = (list(make(image_set, streams).epoch(0)) for _ in range(2))
    other = list(make(image_set, streams).epoch(1))
    for step, same, changed in zip(first, again, other, strict=True):
        assert torch.equal(step["a"].images, same["a"].images)
        shown = step["a"].quadrants.indices
        assert torch.equal(shown, same["a"].quadrants.indices)
        assert not torch.equal(shown, changed["a"].quadrants.indices)
    tail = make(image_set, streams).epoch(0, start_step=2)
    for step, same in zip(first[2:], tail, strict=True):
        assert torch.equal(step["a"].images, same["a"].images)


def test_places_in_a_montage_are_fair(image_set):
    source = make(image_set, {"a": Stream(recipe="montage-2x2")}, batch_size=120)
    # How often an image lands in the upper left, out of 4 crops and 100 epochs.
    source.epochs = 100
    counts = torch.zeros(120)
    for epoch in range(100):
        (step,) = source.epoch(epoch)
        places = step["a"].quadrants.indices[0, :, 0]
        counts += torch.bincount(places, minlength=120)
    chi_square = ((counts - 100) ** 2 / 75).sum()
    # Near to 119 degrees of freedom: deviation 15.4.
    assert abs(chi_square - 119) < 6 * 15.4
