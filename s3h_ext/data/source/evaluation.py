"""Batches of a split in order, for evaluation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from s3h_ext.checks import COUNT, check
from s3h_ext.data.source.batches import Batch
from s3h_ext.data.source.pixels import FilePixels, ResidentPixels, StepPixels
from s3h_ext.data.views.recipes import get_recipe

__all__ = ["EvaluationBatches"]


class EvaluationBatches:
    """Batches of a split in order, normalised and not augmented.

    Unreadable photographs are left out if the decoder's policy is to skip them.

    Args:
        pixels: The images.
        batch_size: Images per batch; the last one holds the rest.
        recipe: ``"none"``, or ``"evaluation"`` for a centre crop resized to 224.
            ``None``: images as they are, or that crop of photographs, resized to their
            ``side``.

    Raises:
        ValueError: ``batch_size`` is below 1, or there is no such recipe.

    Example:
        >>> from s3h_ext.data import ResidentPixels, load_dataset
        >>> data = load_dataset("digits-lt")
        >>> pixels = ResidentPixels(data.test, mean=data.mean, std=data.std)
        >>> batches = EvaluationBatches(pixels, batch_size=128)
        >>> [tuple(batch.images.shape) for batch in batches][-1]
        (1, 44, 3, 32, 32)
    """

    def __init__(
        self,
        pixels: ResidentPixels | FilePixels,
        *,
        batch_size: int,
        recipe: str | None = None,
    ) -> None:
        check(COUNT, batch_size=batch_size)
        self.batch_size = batch_size
        self._pixels = pixels
        evaluation = pixels.evaluation if recipe is None else get_recipe(recipe)
        self._recipe = pixels.fit(evaluation)
        self._labels = torch.tensor(pixels.labels, device=pixels.draws_on)

    def __len__(self) -> int:
        return -(-len(self._labels) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        pixels, total = self._pixels, len(self._labels)
        parts = [
            np.arange(start, min(start + self.batch_size, total))
            for start in range(0, total, self.batch_size)
        ]
        prefetched: Iterator[StepPixels] = pixels.prefetch(parts, self.batch_size)
        for part in parts:
            images = next(prefetched)
            indices = torch.from_numpy(part).to(pixels.draws_on)
            readable = images.readable(indices)
            if readable is not None:
                indices = indices[readable]
            if not len(indices):
                del images
                continue
            crops = self._recipe.describe(
                *images.sizes(indices), seed=0, epoch=0, index=indices, view=0
            )
            views = images.render(indices, crops, self._recipe)
            del images
            batch = Batch(views.unsqueeze(0), self._labels[indices], indices)
            yield batch.to(pixels.device)
