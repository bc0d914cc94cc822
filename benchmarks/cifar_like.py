"""CIFAR's long-tailed sets where the real ones lie, else generated ones of their size.

What a training step costs depends on how many images of which size and class there are,
not on what they show.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

from s3h_ext.data import ImageSet, LongTailDataset
from s3h_ext.data.longtail import class_profile
from s3h_ext.data.sets.cifar import LAYOUTS
from s3h_ext.runs.config import DataConfig
from s3h_ext.runs.loading import open_dataset

#: Training images of the largest class and test images of each class.
SIZES = {"cifar10-lt": (5000, 1000), "cifar100-lt": (500, 100)}


def generated(name: str, imbalance: float, part: float = 1.0) -> LongTailDataset:
    """Returns images of one colour per class under noise, the classes' sizes CIFAR's.

    Args:
        name: ``"cifar10-lt"`` or ``"cifar100-lt"``.
        imbalance: largest class over the smallest one.
        part: share of each class to make, at least one image.
    """
    classes = LAYOUTS[name.removesuffix("-lt")].num_classes
    largest, tested = SIZES[name]
    sizes = class_profile(classes, largest=largest, imbalance=imbalance)
    random = np.random.default_rng(0)
    colours = random.integers(32, 224, (classes, 1, 1, 3))

    def images(counts: np.ndarray) -> ImageSet:
        counts = np.maximum(1, (part * counts).astype(np.int64))
        labels = np.repeat(np.arange(classes), counts)
        noise = random.integers(-32, 33, (len(labels), 32, 32, 3), dtype=np.int16)
        return ImageSet((colours[labels] + noise).clip(0, 255).astype(np.uint8), labels)

    return LongTailDataset(
        name=name,
        train=images(sizes),
        val=None,
        test=images(np.full(classes, tested)),
        class_names=tuple(map(str, range(classes))),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )


def dataset_of(data: DataConfig, part: float = 1.0) -> tuple[LongTailDataset, str]:
    """Returns the data set that a configuration asks for, or one like it.

    Args:
        data: of a preset of CIFAR, or of a data set that needs no files.
        part: share of each class of a generated set.

    Returns:
        The data set and ``"real"`` or ``"generated"``.
    """
    root = data.root or os.environ.get("S3H_DATA_ROOT")
    if data.name not in SIZES:
        return open_dataset(data), "real"
    if root is not None and part == 1.0:
        layout = LAYOUTS[data.name.removesuffix("-lt")]
        if any((Path(root) / at / layout.meta).is_file() for at in (layout.folder, "")):
            return open_dataset(data), "real"
        print(f"{root} holds no {layout.folder}: images are generated", file=sys.stderr)
    return generated(data.name, data.imbalance or 100.0, part), "generated"
