"""Batches, and the plain ones that evaluation goes through."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from s3h_ext.data.dataset import ImageSet
from s3h_ext.data.recipes import ViewSpec, get_recipe
from s3h_ext.data.render import Renderer

__all__ = ["Batch", "EvaluationBatches", "Quadrants", "make_batch"]


@dataclass(frozen=True, eq=False)
class Quadrants:
    """What the quadrants of montages show: top left and right, bottom left and right.

    Attributes:
        labels: int64 ``[V, B, 4]``.
        indices: int64 ``[V, B, 4]``, positions in the image set.
        crops: int64 ``[V, B, 4]``, which of its image's 4 V crops it is; with the
            regions of ``"montage-2x2"``, ``crops % 4`` is the corner it was taken from.
    """

    labels: Tensor
    indices: Tensor
    crops: Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """What a stream gives to one step.

    Attributes:
        images: ``[V, B, C, H, W]``, memory in the order ``[V, B, H, W, C]``, so that
            ``images[v]`` and ``images.flatten(0, 1)`` are channels-last without a copy.
        labels: int64 ``[B]``.
        indices: int64 ``[B]``, positions in the image set.
        quadrants: What montages show; ``None`` for other views. The crops of all B
            images are spread over all montages, so ``labels`` says nothing about a
            single one.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    quadrants: Quadrants | None = None


def make_batch(
    indices: Tensor,
    crops: ViewSpec,
    labels: Tensor,
    views: int,
    render: Callable[[Tensor, ViewSpec], Tensor],
    part: slice = slice(None),
) -> Batch:
    """Puts the crops of a batch into their order and has them rendered.

    Args:
        indices: int64 ``[B]``, positions in the image set.
        crops: ``[V, B]``, or ``[4 V, B]`` of montages: crop v of each image.
        labels: int64 ``[N]``, of the whole image set.
        views: V.
        render: Positions ``[P]`` and as many crops -> views ``[V * B, C, H, W]``.
        part: Of montages, which of the B are wanted; their crops come from all images.
    """
    sources = indices.repeat(len(crops.flip))
    crops = crops.flatten()
    count = len(indices)
    if crops.key is not None:
        indices = indices[part]
    shape = (views, len(indices))
    quadrants = None
    if crops.key is not None:
        order = crops.key.argsort(stable=True)
        order = order.view(views, count, 4)[:, part].flatten()
        sources, crops = sources[order], crops.select(order)
        places = sources.view(*shape, 4)
        numbers = (order // count).view(*shape, 4)
        quadrants = Quadrants(labels[places], places, numbers)
    images = render(sources, crops)
    images = images.view(*shape, *images.shape[1:])
    return Batch(images, labels[indices], indices, quadrants)


class EvaluationBatches:
    """Iterates over an image set in its order, normalised and not augmented.

    Args:
        image_set: The images, kept on the device as bytes.
        mean: Per channel, of pixels in [0, 1].
        std: Per channel.
        batch_size: Images per batch; the last one holds the rest.
        device: Where the batches are.
        dtype: Of the images: float32, bfloat16 or float16.
        recipe: ``"none"``, or ``"evaluation"`` for a centre crop resized to 224.

    Raises:
        ValueError: ``batch_size`` is below 1, there is no such recipe, or an argument
            of the renderer is wrong.

    Example:
        >>> from s3h_ext.data.dataset import load_dataset
        >>> data = load_dataset("digits-lt")
        >>> batches = EvaluationBatches(
        ...     data.test, mean=data.mean, std=data.std, batch_size=128
        ... )
        >>> [tuple(batch.images.shape) for batch in batches][-1]
        (1, 44, 3, 32, 32)
    """

    def __init__(
        self,
        image_set: ImageSet,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        recipe: str = "none",
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        self.batch_size = batch_size
        self._recipe = get_recipe(recipe)
        self._renderer = Renderer(
            torch.tensor(image_set.images),
            mean=mean,
            std=std,
            device=device,
            dtype=dtype,
        )
        self._labels = torch.tensor(image_set.labels, device=device)

    def __len__(self) -> int:
        return -(-len(self._labels) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        size = self._renderer.height, self._renderer.width
        for start in range(0, len(self._labels), self.batch_size):
            labels = self._labels[start : start + self.batch_size]
            indices = torch.arange(start, start + len(labels), device=labels.device)
            crops = self._recipe.describe(*size, seed=0, epoch=0, index=indices, view=0)
            images = self._renderer(indices, crops, self._recipe)
            yield Batch(images.unsqueeze(0), labels, indices)
