"""Batches, and the plain ones that evaluation goes through."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from s3h_ext.data.dataset import ImageSet
from s3h_ext.data.views.mixing import Mix
from s3h_ext.data.views.recipes import ViewSpec, get_recipe
from s3h_ext.data.views.render import Pasted, Renderer, whole_box

__all__ = ["Batch", "EvaluationBatches", "MixedViews", "Quadrants", "make_batch"]

#: Positions ``[P]``, as many crops, and where the last of them are pasted -> views
#: ``[V, C, H, W]``.
Render = Callable[[Tensor, ViewSpec, Pasted | None], Tensor]


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
class MixedViews:
    """What is mixed into the views of a batch, and the weights of the labels.

    Attributes:
        labels: int64 ``[V, B]``, of the images mixed in; a view's own where none is.
        indices: int64 ``[V, B]``, positions of these images in the image set.
        weights: float32 ``[V, B]``, of the view's own label; the other one has the
            rest. 1 where nothing is mixed.
        boxes: int64 ``[V, B, 4]``: top, left, height, width of what is pasted, empty
            where nothing is; the whole view where the images are blended.
    """

    labels: Tensor
    indices: Tensor
    weights: Tensor
    boxes: Tensor


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
        mixed: What is mixed into the views; ``None`` in a stream without mixing.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    quadrants: Quadrants | None = None
    mixed: MixedViews | None = None

    def each(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Returns the batch with a function of each of its tensors, in a fixed order.

        The order is that of the fields, and of the fields of those.
        """
        batch: Batch = _each(self, function)
        return batch


def _each(thing: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(thing, Tensor):
        return function(thing)
    if thing is None:
        return None
    changed = {
        item.name: _each(getattr(thing, item.name), function) for item in fields(thing)
    }
    return replace(thing, **changed)


def make_batch(
    indices: Tensor,
    crops: ViewSpec,
    labels: Tensor,
    views: int,
    render: Render,
    part: slice = slice(None),
    mix: Mix | None = None,
    partners: ViewSpec | None = None,
) -> Batch:
    """Puts the crops of a batch into their order and has them rendered.

    Args:
        indices: int64 ``[B]``, positions in the image set.
        crops: ``[V, B]``, or ``[4 V, B]`` of montages: crop v of each image.
        labels: int64 ``[N]``, of the whole image set.
        views: V.
        render: Of the views ``[V * B, C, H, W]``.
        part: Of montages, which of the B are wanted; their crops come from all images.
        mix: What is mixed into the views, if anything.
        partners: ``[V, B]``, the crops of the images mixed in.
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
    mixed = None
    if mix is None or partners is None:
        images = render(sources, crops, None)
    else:
        images = _mixed(sources, crops, mix, partners.flatten(), render)
        mixed = MixedViews(labels[mix.partners], mix.partners, mix.weights, mix.boxes)
    images = images.view(*shape, *images.shape[1:])
    return Batch(images, labels[indices], indices, quadrants, mixed)


def _mixed(
    sources: Tensor, crops: ViewSpec, mix: Mix, partners: ViewSpec, render: Render
) -> Tensor:
    """Renders views together with what is mixed into them, ``[P, C, H, W]``."""
    mixed = mix.mixed.flatten()
    own = torch.arange(len(sources), device=sources.device)
    rows = _rows(mixed)
    # A view that is not mixed has its own crop for a partner.
    order = torch.cat((own, torch.where(mixed, own + len(own), own)[rows]))
    sources = torch.cat((sources, mix.partners.flatten()))[order]
    crops = crops.followed_by(partners).select(order)
    if mix.pasted:
        boxes = mix.boxes.flatten(0, 1)
        boxes = torch.where(mixed[:, None], boxes, whole_box(mix.size, boxes))
        return render(sources, crops, Pasted(rows, boxes[rows]))
    images = render(sources, crops, None)
    images, others = images[: len(own)], images[len(own) :]
    # Photographs are drawn on the host and rendered on the device.
    weights, rows = mix.weights.flatten()[rows].to(images), rows.to(images.device)
    images[rows] = torch.lerp(others, images[rows], weights[:, None, None, None])
    return images


def _rows(mixed: Tensor) -> Tensor:
    """Returns the views to mix: on the CPU those that are, elsewhere all of them.

    The host would have to wait for the number of those that are.
    """
    if mixed.device.type == "cpu":
        return mixed.nonzero()[:, 0]
    return torch.arange(len(mixed), device=mixed.device)


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
