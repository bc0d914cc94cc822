"""What the tests of methods share."""

import numpy as np
import pytest

from s3h_ext.data import ImageSet, LongTailDataset


@pytest.fixture(scope="module")
def dataset():
    """Three classes of noise: 40, 20 and 5 images."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), [40, 20, 5])
    images = rng.integers(0, 256, (len(labels), 16, 16, 3), dtype=np.uint8)
    split = ImageSet(images, labels)
    return LongTailDataset(
        "toy", split, None, split, ("a", "b", "c"), (0.5,) * 3, (0.25,) * 3
    )
