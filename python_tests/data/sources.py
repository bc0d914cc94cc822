"""Sources of made images, and what their batches have in common."""

import numpy as np
import torch

from s3h_ext.data import FilePixels, ImageSet, ResidentPixels, Source
from s3h_ext.data.source.decode import PillowDecoder, Unreadable
from s3h_ext.data.views.recipes import get_recipe
from s3h_ext.ops.philox import philox_uniform

COUNTS = [70, 30, 12, 5, 3]
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def noisy_images(height, width):
    """120 images of five classes."""
    random = np.random.RandomState(0)
    labels = random.permutation(np.repeat(np.arange(5), COUNTS))
    images = random.randint(0, 256, (len(labels), height, width, 3))
    return ImageSet(images.astype(np.uint8), labels)


def describe(recipe, count=4000, size=(32, 32), **changes):
    """Describes ``count`` crops, of images 0, 1, ... if nothing else is said."""
    recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe
    address = {"seed": 0, "epoch": 0, "index": torch.arange(count), "view": 0} | changes
    return recipe.describe(*size, **address)


def uniforms(draws, count=20000):
    index = torch.arange(count)
    return philox_uniform(seed=1, epoch=0, index=index, view=0, draws=draws).double()


def source_of_arrays(image_set, streams, num_classes=5, **changes):
    channels = image_set.images.shape[-1]
    pixels = {"mean": MEAN[:channels], "std": STD[:channels]}
    for name in ("mean", "std", "device", "dtype"):
        if name in changes:
            pixels[name] = changes.pop(name)
    arguments = {"batch_size": 32, "epochs": 4, "seed": 0} | changes
    pixels = ResidentPixels(image_set, **pixels)
    return Source(pixels, streams, num_classes=num_classes, **arguments)


def source_of_files(data, streams, decoder=None, **changes):
    arguments = {"batch_size": 6, "epochs": 3, "seed": 0} | changes
    decoder = decoder or PillowDecoder(data.train, Unreadable(), workers=2)
    pixels = FilePixels(data.train, decoder, mean=data.mean, std=data.std)
    return Source(pixels, streams, num_classes=data.num_classes, **arguments)


def assert_same_batch(batch, other):
    for found, expected in zip(batch.tensors(), other.tensors(), strict=True):
        assert torch.equal(found, expected)


def assert_same_steps(first, second):
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for name, batch in one.items():
            assert_same_batch(batch, other[name])


def joined(batches):
    """The tensors of batches that follow each other, joined along their images."""
    rows = zip(*(batch.tensors() for batch in batches), strict=True)
    # images, labels, indices, then views of everything else
    return [
        torch.cat(row, dim=0 if place in (1, 2) else 1)
        for place, row in enumerate(rows)
    ]
