"""The images and labels of an archive, and their statistics."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from s3h_ext.data.dataset import ImageSet

__all__ = ["Archive", "ArchiveError", "histograms", "statistics"]


class ArchiveError(ValueError):
    """A data file is truncated, foreign, unsafe or inconsistent."""


@dataclass(frozen=True, eq=False)
class Archive:
    """All images of an archive, in the order of its files, and the class names.

    ``val`` is the archive's own validation split, if it has one.
    """

    train: ImageSet
    test: ImageSet
    class_names: tuple[str, ...]
    val: ImageSet | None = None


def histograms(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Count the values 0 .. 255 of each channel of ``[N, H, W, C]``: ``[C, 256]``."""
    counts = np.zeros((images.shape[-1], 256), np.int64)
    # bincount converts its input to eight bytes per pixel, so process parts.
    for start in range(0, len(images), 1024):
        pixels = images[start : start + 1024].reshape(-1, len(counts))
        for channel, values in enumerate(pixels.T):
            counts[channel] += np.bincount(values, minlength=256)
    return counts


def statistics(counts: NDArray[np.int64]) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation per channel, for pixels in [0, 1].

    ``counts`` come from :func:`histograms`, int64 ``[C, 256]``.
    """
    values = np.arange(256) / 255.0
    means, stds = [], []
    for count in counts:
        mean = float(count @ values / count.sum())
        variance = float(count @ (values - mean) ** 2 / count.sum())
        means.append(mean)
        stds.append(variance**0.5)
    return means, stds
