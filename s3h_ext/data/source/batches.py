"""Batches, and how the crops of a batch are arranged and mixed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from s3h_ext.data.source.pixels import StepPixels
from s3h_ext.data.tensors import Tensors
from s3h_ext.data.views.mixing import Mix
from s3h_ext.data.views.recipes import Recipe, ViewSpec
from s3h_ext.data.views.render import Pasted, whole_box

__all__ = ["Batch", "Draws", "MixedViews", "Quadrants", "make_batch"]


@dataclass(frozen=True, eq=False)
class Quadrants(Tensors):
    """Crops in the quadrants of montages: top left and right, bottom left and right.

    Attributes:
        labels: int64 ``[V, B, 4]``.
        indices: int64 ``[V, B, 4]``, positions in the image set.
        crops: int64 ``[V, B, 4]``, number of the crop among the 4 V of its image; with
            the regions of ``"montage-2x2"``, ``crops % 4`` is the corner it comes from.
    """

    labels: Tensor
    indices: Tensor
    crops: Tensor


@dataclass(frozen=True, eq=False)
class MixedViews(Tensors):
    """Images mixed into the views of a batch, and the weights of their labels.

    Attributes:
        labels: int64 ``[V, B]``, labels of the images mixed in; the own label if none.
        indices: int64 ``[V, B]``, positions of these images in the image set.
        weights: float32 ``[V, B]``, weight of the view's own label; the other one has
            the rest. 1 if not mixed.
        boxes: int64 ``[V, B, 4]``: top, left, height, width of the pasted part: empty
            if not mixed, the whole view if the images are blended.
    """

    labels: Tensor
    indices: Tensor
    weights: Tensor
    boxes: Tensor


@dataclass(frozen=True, eq=False)
class Batch(Tensors):
    """One stream's images and labels for a step.

    Attributes:
        images: ``[V, B, C, H, W]``, memory in the order ``[V, B, H, W, C]``, so that
            ``images[v]`` and ``images.flatten(0, 1)`` are channels-last without a copy.
        labels: int64 ``[B]``.
        indices: int64 ``[B]``, positions in the image set.
        quadrants: Crops of montages; ``None`` for other views. The crops of all B
            images are spread over all montages, so ``labels`` does not describe single
            montages.
        mixed: The images mixed into the views; ``None`` without mixing.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    quadrants: Quadrants | None = None
    mixed: MixedViews | None = None


@dataclass(frozen=True)
class Draws:
    """The draws of a batch, before anything is rendered.

    Attributes:
        indices: int64 ``[B]``, positions in the image set.
        crops: ``[V, B]``, or ``[4 V, B]`` for montages: crop v of each image.
        mix: How the views are mixed, if they are.
        partners: ``[V, B]``, the crops of the images mixed in.
    """

    indices: Tensor
    crops: ViewSpec
    mix: Mix | None = None
    partners: ViewSpec | None = None

    def narrow(self, start: int, stop: int) -> Draws:
        """Return the draws of the images ``start .. stop - 1``."""
        return Draws(
            self.indices[start:stop],
            self.crops.narrow(1, start, stop),
            self.mix and self.mix.each(lambda tensor: tensor[:, start:stop]),
            self.partners and self.partners.narrow(1, start, stop),
        )


def make_batch(
    draws: Draws,
    labels: Tensor,
    views: int,
    images: StepPixels,
    recipe: Recipe,
    part: slice = slice(None),
) -> Batch:
    """Render the views of a batch, and mix them.

    ``labels`` are those of the whole image set, ``images`` those of the step. For
    montages, ``part`` selects which of the batch to render; their crops come from all
    of its images.
    """
    indices, mix, partners = draws.indices, draws.mix, draws.partners
    sources = indices.repeat(len(draws.crops.flip))
    crops = draws.crops.flatten()
    count = len(indices)
    if crops.key is not None:
        indices = indices[part]
    shape = (views, len(indices))
    quadrants = None
    if crops.key is not None:
        order = crops.key.argsort(stable=True)
        order = order.view(views, count, 4)[:, part].flatten()
        sources, crops = sources[order], crops.select(order)
        shown = sources.view(*shape, 4)
        numbers = (order // count).view(*shape, 4)
        quadrants = Quadrants(labels[shown], shown, numbers)
    mixed = None
    if mix is None or partners is None:
        rendered = images.render(sources, crops, recipe)
    else:
        rendered = _mixed(sources, crops, mix, partners.flatten(), images, recipe)
        mixed = MixedViews(labels[mix.partners], mix.partners, mix.weights, mix.boxes)
    rendered = rendered.view(*shape, *rendered.shape[1:])
    return Batch(rendered, labels[indices], indices, quadrants, mixed)


def _mixed(
    sources: Tensor,
    crops: ViewSpec,
    mix: Mix,
    partners: ViewSpec,
    images: StepPixels,
    recipe: Recipe,
) -> Tensor:
    """Render views together with the images mixed into them, ``[P, C, H, W]``."""
    mixed = mix.mixed.flatten()
    count = len(sources)
    views = torch.arange(count, device=sources.device)
    rows = _rows(mixed)
    # The partner of a view that is not mixed is its own crop.
    order = torch.cat((views, torch.where(mixed, views + count, views)[rows]))
    sources = torch.cat((sources, mix.partners.flatten()))[order]
    crops = crops.followed_by(partners).select(order)
    if mix.pasted:
        boxes = mix.boxes.flatten(0, 1)
        boxes = torch.where(mixed[:, None], boxes, whole_box(mix.size, boxes))
        return images.render(sources, crops, recipe, Pasted(rows, boxes[rows]))
    both = images.render(sources, crops, recipe)
    own, others = both[:count], both[count:]
    # Photographs are drawn on the host and rendered on the device.
    weights, rows = mix.weights.flatten()[rows].to(own), rows.to(own.device)
    own[rows] = torch.lerp(others, own[rows], weights[:, None, None, None])
    return own


def _rows(mixed: Tensor) -> Tensor:
    """Return the views to mix: on the CPU the mixed ones, elsewhere all of them.

    Counting the mixed ones would synchronise with the device.
    """
    if mixed.device.type == "cpu":
        return mixed.nonzero()[:, 0]
    return torch.arange(len(mixed), device=mixed.device)
