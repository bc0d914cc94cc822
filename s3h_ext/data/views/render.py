"""Rendering of described views into normalised batches.

Uses :func:`s3h_ext.ops.render_views`. If a recipe works on bytes,
:func:`s3h_ext.ops.augment.augment_images` runs first: the crop is rounded to uint8, as
in the papers' pipelines, operations and hole are applied, and the result is placed and
normalised. With the CUDA kernels, nothing here synchronises with the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from s3h_ext.data.tensors import Tensors
from s3h_ext.data.views.recipes import Recipe, ViewSpec
from s3h_ext.ops.augment import augment_images
from s3h_ext.ops.patches import Patches
from s3h_ext.ops.views import render_views

__all__ = ["Pasted", "Renderer", "render_crops", "whole_box"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Pasted(Tensors):
    """Crops pasted onto the view of another crop, covering a part of it.

    If a crop was resized, the part is cut from its image at the nearest whole pixels;
    otherwise its pixels are exactly those that its own view would show there.

    Attributes:
        view: int64 ``[M]``, views to paste into.
        rect: int64 ``[M, 4]``: top, left, height, width, inside the view.
    """

    view: Tensor
    rect: Tensor


class Renderer:
    """Images resident on a device, rendered view by view.

    Args:
        images: uint8 ``[N, H, W, C]``, C = 1 or 3.
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel, positive.
        device: Device that keeps and renders the images.
        dtype: Type of the rendered views: float32, bfloat16 or float16.

    Raises:
        ValueError: an argument does not have the stated form.

    Example:
        >>> from s3h_ext.data.views.recipes import get_recipe
        >>> images = torch.full((2, 32, 32, 3), 255, dtype=torch.uint8)
        >>> renderer = Renderer(images, mean=(0, 0, 0), std=(1, 1, 1))
        >>> recipe, index = get_recipe("none"), torch.arange(2)
        >>> spec = recipe.describe(32, 32, seed=0, epoch=0, index=index, view=0)
        >>> renderer(index, spec, recipe).unique().tolist()
        [1.0]
    """

    def __init__(
        self,
        images: Tensor,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if images.dtype != torch.uint8 or images.dim() != 4:
            raise ValueError(
                "images: expected uint8 [N, H, W, C], got "
                f"{images.dtype} {list(images.shape)}"
            )
        _, self.height, self.width, channels = images.shape
        if channels not in (1, 3):
            raise ValueError(f"images: expected 1 or 3 channels, got {channels}")
        if len(mean) != channels or len(std) != channels:
            raise ValueError(
                f"mean, std: expected {channels} values each, "
                f"got {len(mean)} and {len(std)}"
            )
        if not min(std) > 0:
            raise ValueError(f"std: expected positive values, got {tuple(std)}")
        if dtype not in _DTYPES:
            raise ValueError(f"dtype: expected one of {_DTYPES}, got {dtype}")
        self.channels = channels
        self._mean = [float(value) for value in mean]
        self._std = [float(value) for value in std]
        self._dtype = dtype
        self._images = images.to(device).contiguous()

    def __call__(
        self,
        source: Tensor,
        crops: ViewSpec,
        recipe: Recipe,
        pasted: Pasted | None = None,
    ) -> Tensor:
        """Render the crops of a recipe.

        Args:
            source: int64 ``[P]``, index of the image of each crop.
            crops: P crops with one leading dimension. The four crops of a montage
                follow each other: top left, top right, bottom left, bottom right.
            recipe: Recipe that the crops were drawn by.
            pasted: Destinations of the last M crops, if they do not have views of their
                own.

        Returns:
            ``[V, C, h, w]`` of the renderer's type, channels-last in memory; V is P, or
            P / 4 for montages, or ``P - M``.

        Raises:
            ValueError: colour matrices are used for images with one channel.
        """
        if crops.colour is not None and self.channels != 3:
            raise ValueError("views: a colour matrix needs images of 3 channels, got 1")
        size = recipe.view_size(self.height, self.width)
        return render_crops(
            self._images,
            source,
            crops,
            recipe,
            size=size,
            mean=self._mean,
            std=self._std,
            dtype=self._dtype,
            pasted=pasted,
        )


def render_crops(
    images: Tensor | Sequence[Tensor],
    source: Tensor,
    crops: ViewSpec,
    recipe: Recipe,
    *,
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
    pasted: Pasted | None = None,
) -> Tensor:
    """Render the crops of a recipe from images of equal or different sizes.

    ``images`` are uint8 ``[N, H, W, C]``, or N of ``[H_i, W_i, C]`` for a recipe that
    resizes its crops. ``source``, ``crops``, ``recipe`` and ``pasted`` are those of
    :class:`Renderer`; ``size`` is that of the views.

    Returns:
        ``[V, C, h, w]``, channels-last in memory.
    """
    view = rect = views = None
    if recipe.montage:
        view, rect = _montage(len(source), size, source)
        views = len(source) // 4
    box, colour = crops.box, crops.colour
    flip: Tensor | None = crops.flip
    if crops.operations is not None or crops.hole is not None:
        crop_size = recipe.crop_size(*size)
        images = _augmented(images, source, crops, crop_size, len(mean))
        source = torch.arange(len(source), device=source.device)
        box = whole_box(crop_size, box).expand(len(source), 4)
        flip = colour = None
    if pasted is not None:
        views = len(source) - len(pasted.view)
        whole = torch.arange(views, device=source.device)
        view = torch.cat((whole, pasted.view))
        rect = torch.cat((whole_box(size, box).expand(views, 4), pasted.rect))
        box = _part(box, flip, rect, size)
    return render_views(
        images,
        Patches(
            image=source,
            box=box,
            flip=flip,
            colour=colour,
            view=view,
            rect=rect,
            views=views,
        ),
        out_size=size,
        mean=mean,
        std=std,
        dtype=dtype,
    )


def _augmented(
    images: Tensor | Sequence[Tensor],
    source: Tensor,
    crops: ViewSpec,
    size: tuple[int, int],
    channels: int,
) -> Tensor:
    """Return uint8 ``[P, h, w, C]``: the crops after operations and holes."""
    corners: Tensor | None = crops.box[:, :2]
    flips: Tensor | None = crops.flip
    if crops.resized or crops.colour is not None or not isinstance(images, Tensor):
        levels = render_views(
            images,
            Patches(source, crops.box, flip=flips, colour=crops.colour),
            out_size=size,
            mean=[0.0] * channels,
            std=[1 / 255] * channels,
        )
        images = levels.round().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
        corners = flips = None
        source = torch.arange(len(source), device=source.device)
    operations, magnitudes = crops.operations, crops.magnitudes
    if operations is None or magnitudes is None:
        operations = source.new_empty(len(source), 0)
        magnitudes = operations.to(torch.float64)
    return augment_images(
        images,
        operations,
        magnitudes,
        source=source,
        corners=corners,
        flips=flips,
        holes=crops.hole,
    )


def _part(
    box: Tensor, flip: Tensor | None, rect: Tensor, size: tuple[int, int]
) -> Tensor:
    """Return the parts of boxes that are visible in a rectangle of their views."""
    parts = []
    for axis, side in enumerate(size):
        start, length = rect[:, axis], rect[:, axis + 2]
        if axis == 1 and flip is not None:
            start = torch.where(flip, side - start - length, start)
        # Round edges to the nearest pixel, halves up: (x * pixels) / side.
        pixels = box[:, axis + 2]
        first, last = (
            torch.div(2 * edge * pixels + side, 2 * side, rounding_mode="floor")
            for edge in (start, start + length)
        )
        first = torch.minimum(first, pixels - 1)
        parts.append((box[:, axis] + first, (last - first).clamp(min=1)))
    (top, height), (left, width) = parts
    return torch.stack((top, left, height, width), dim=1)


def whole_box(size: tuple[int, int], like: Tensor) -> Tensor:
    """Return the box ``[1, 4]`` of a whole image."""
    # Fill instead of copying from the host, which would synchronise with the device.
    box = like.new_zeros(1, 4)
    for column, side in enumerate(size, start=2):
        box[:, column].fill_(side)
    return box


def _montage(count: int, size: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the view ``[P]`` and the rectangle ``[P, 4]`` of each crop."""
    place = torch.arange(count, device=like.device)
    height, width = size[0] // 2, size[1] // 2
    rect = like.new_empty(count, 4)
    rect[:, 0] = (place % 4) // 2 * height
    rect[:, 1] = place % 2 * width
    rect[:, 2].fill_(height)
    rect[:, 3].fill_(width)
    return place // 4, rect
