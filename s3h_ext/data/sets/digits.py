"""A real data set that needs no download: scikit-learn's handwritten digits."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from s3h_ext.data.dataset import ImageSet
from s3h_ext.data.sets.archive import Archive

__all__ = ["TEST_PER_CLASS", "read_digits"]

TEST_PER_CLASS = 30
_SIDE = 32


def read_digits() -> Archive:
    """Return the digits in the shape of CIFAR, 30 test images per class held out.

    The 8 x 8 images with 17 grey levels are scaled to 0 .. 255 and resized to 32 x 32
    (bilinear, rounded). The grey channel is repeated three times, so that networks and
    recipes for CIFAR work unchanged. The held-out images are the first 30 of each class
    after a shuffle by ``RandomState(0)``, always the same. Every class has at least 144
    training images.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "digits-lt comes with scikit-learn, which is not installed: "
            "pip install scikit-learn"
        ) from error
    bunch = load_digits()
    labels = np.asarray(bunch.target, np.int64)
    images = _enlarge(np.asarray(bunch.images))
    is_test = np.zeros(len(labels), np.bool_)
    random = np.random.RandomState(0)
    for label in range(10):
        members = np.flatnonzero(labels == label)
        random.shuffle(members)
        is_test[members[:TEST_PER_CLASS]] = True
    return Archive(
        ImageSet(images[~is_test], labels[~is_test]),
        ImageSet(images[is_test], labels[is_test]),
        tuple("0123456789"),
    )


def _enlarge(grey: NDArray[np.float64]) -> NDArray[np.uint8]:
    planes = torch.from_numpy(grey * (255 / 16)).unsqueeze(1)
    planes = F.interpolate(planes, size=(_SIDE, _SIDE), mode="bilinear")
    pixels = planes.round().clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(pixels.squeeze(1).unsqueeze(-1).expand(-1, -1, -1, 3))
