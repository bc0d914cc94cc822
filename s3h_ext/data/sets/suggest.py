"""A first training that suits a folder's counts, with the reasons for it."""

from __future__ import annotations

import math
import shlex

import numpy as np
from numpy.typing import NDArray

__all__ = ["suggest"]

#: What the presets of folders are made for.
BATCH_SIZE, RATE = 128, 0.05
#: 200 epochs of CIFAR-100-LT at a batch of 128, rounded.
STEPS = 17_000
#: A smaller batch where an epoch would have fewer steps, down to the second number.
STEPS_AN_EPOCH, SMALLEST_BATCH = 20, 16
SHORTEST, LONGEST = 30, 200
#: Factors between the largest and the smallest class: hardly unequal, long-tailed.
UNEQUAL, LONG_TAILED = 5, 20
#: Images of a class of which a held-out part says nothing.
TOO_FEW = 5


def suggest(counts: NDArray[np.int64], root: str) -> list[str]:
    """Return the command of a first training, and a line for each of its choices.

    Args:
        counts: training images of each class, int64 ``[C]``, none of them 0.
        root: the folder of the images.

    Example:
        >>> command, *reasons = suggest(np.array([900, 90, 9]), "photos")
        >>> print(command)
        python -m s3h_ext.train --preset folder/s3h --data.root photos --batch_size 32 \
--optim.lr 0.0125 --epochs 200 --data.val_fraction 0.1
        >>> print(reasons[0])
        folder/s3h: the largest class has 100 times the images of the smallest
    """
    images = int(counts.sum())
    factor = counts.max() / counts.min()
    options: dict[str, object] = {"preset": "folder/ce"}
    options["data.root"] = shlex.quote(root)
    reason = f"the largest class has {factor:.3g} times as many images as the smallest"
    if factor >= LONG_TAILED:
        options["preset"] = "folder/s3h"
    elif factor >= UNEQUAL:
        options["method.loss"] = "logit-adjusted"
    reasons = [f"{options['preset']}: {reason}"]

    batch = BATCH_SIZE
    while batch > SMALLEST_BATCH and images < STEPS_AN_EPOCH * batch:
        batch //= 2
    if batch != BATCH_SIZE:
        options |= {"batch_size": batch, "optim.lr": RATE * batch / BATCH_SIZE}
        reasons.append(
            f"batch {batch}: an epoch of {images} images has "
            f"{math.ceil(images / batch)} steps; learning rate scaled with the batch"
        )
    epochs = min(LONGEST, max(SHORTEST, math.ceil(STEPS * batch / images)))
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
