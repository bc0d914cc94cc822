"""Suggests a first training for a folder's class counts, with reasons."""

from __future__ import annotations

import math
import shlex

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from s3h_ext.data.dataset import ImageFiles

__all__ = ["fitting", "suggest", "usual_side"]

#: Settings of the folder presets.
BATCH_SIZE, RATE = 128, 0.05
#: 200 epochs of CIFAR-100-LT with batches of 128, rounded.
STEPS = 17_000
#: Batches shrink if an epoch would have fewer steps, down to the second number.
STEPS_AN_EPOCH, SMALLEST_BATCH = 20, 16
SHORTEST, LONGEST = 30, 200
#: Ratios of largest to smallest class: slightly imbalanced, long-tailed.
UNEQUAL, LONG_TAILED = 5, 20
#: Classes with so few images say little in a held-out part.
TOO_FEW = 5
#: Views of photographs have 224 pixels. Images below the first number gain nothing from
#: that; up to the second, they suit a network for small images.
SMALL, TINY = 112, 64
#: Number of images whose size is read.
LOOKED_AT = 100


def fitting(images: int) -> tuple[int, int]:
    """Return a batch size and a number of epochs for a number of training images.

    Example:
        >>> fitting(60), fitting(100_000)
        ((16, 200), (128, 30))
    """
    batch = BATCH_SIZE
    while batch > SMALLEST_BATCH and images < STEPS_AN_EPOCH * batch:
        batch //= 2
    return batch, min(LONGEST, max(SHORTEST, math.ceil(STEPS * batch / images)))


def suggest(
    counts: NDArray[np.int64], root: str, side: int | None = None, **data: str
) -> list[str]:
    """Return the command of a first training, and a line for each of its choices.

    Args:
        counts: training images of each class, int64 ``[C]``, none of them 0.
        root: the folder of the images.
        side: typical shorter side of the images in pixels, if known.
        data: further options of the data, such as ``lists``.

    Example:
        >>> command, *reasons = suggest(np.array([900, 90, 9]), "photos")
        >>> print(command)
        python -m s3h_ext.train --preset folder/s3h --data.root photos --batch_size 32 \
--optim.lr 0.0125 --epochs 200 --data.val_fraction 0.1
        >>> print(reasons[0])
        folder/s3h: the largest class has 100 times as many images as the smallest
    """
    images = int(counts.sum())
    factor = counts.max() / counts.min()
    options: dict[str, object] = {"preset": "folder/ce"}
    options |= {f"data.{k}": shlex.quote(v) for k, v in {"root": root, **data}.items()}
    reason = f"the largest class has {factor:.3g} times as many images as the smallest"
    if factor == 1:
        reason = "all classes have the same number of images"
    if factor >= LONG_TAILED:
        options["preset"] = "folder/s3h"
    elif factor >= UNEQUAL:
        options["method.loss"] = "logit-adjusted"
    reasons = [f"{options['preset']}: {reason}"]

    if side is not None and side < SMALL:
        options["data.size"] = size = max(32, 32 * round(side / 32))
        if size <= TINY:
            options["model.backbone"] = "resnet32"
        reasons.append(f"size {size}: the shorter side of most images is about {side}")
    batch, epochs = fitting(images)
    if batch != BATCH_SIZE:
        options |= {"batch_size": batch, "optim.lr": RATE * batch / BATCH_SIZE}
        reasons.append(
            f"batch {batch}: an epoch of {images} images has "
            f"{math.ceil(images / batch)} steps; learning rate scaled with the batch"
        )
    options["epochs"] = epochs
    steps = epochs * math.ceil(images / batch)
    reasons.append(f"{epochs} epochs: {steps} steps; {STEPS} make CIFAR-100-LT's runs")
    options["data.val_fraction"] = 0.1
    reasons.append(
        "a tenth held out to compare choices; train the final model without this option"
    )
    if few := int((counts < TOO_FEW).sum()):
        reasons.append(
            f"{few} of {len(counts)} classes have fewer than {TOO_FEW} images: their "
            "accuracy will say little; collect more, or merge classes"
        )
    words = " ".join(f"--{name} {value}" for name, value in options.items())
    return [f"python -m s3h_ext.train {words}", *reasons]


def usual_side(files: ImageFiles) -> int | None:
    """Return the median of the images' shorter sides in pixels, from their headers.

    It reads 100 of them at most, and returns None if none can be read.
    """
    step = max(1, len(files) // LOOKED_AT)
    sides = []
    for index in range(0, len(files), step):
        try:
            with Image.open(files.path(index)) as image:
                sides.append(min(image.size))
        except Exception:  # the check of the files reports it
            continue
    return int(np.median(sides)) if sides else None
