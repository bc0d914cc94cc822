"""One-pass rendering of views: crop, resize, flip, colour, place, normalise, erase."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from s3h_ext.ops._library import LIBRARY, implement, registry
from s3h_ext.ops.patches import Patches
from s3h_ext.ops.plain import views as plain

__all__ = ["Patches", "render_views"]

LIBRARY.define(
    "render_views(Tensor[] images, Tensor image, Tensor box, Tensor? flip, "
    "Tensor? colour, Tensor? affine, Tensor? view, Tensor? rect, Tensor? erase, "
    "int views, int height, int width, float[] mean, float[] std, float fill, "
    "bool nearest, ScalarType dtype) -> Tensor"
)

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def render_views(
    images: Tensor | Sequence[Tensor],
    patches: Patches,
    *,
    out_size: int | tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
    erase: Tensor | None = None,
) -> Tensor:
    r"""Render patches of images into normalised views, in one pass over the bytes.

    A box is resized as ``F.interpolate(mode="bilinear",
    antialias=True)`` resizes the crop (and PIL's ``BILINEAR``): nothing outside the box
    is sampled, and at its border the window is renormalised. A box of the size of its
    rectangle is copied exactly. A view does not depend on other views, their order or
    the number of threads. No gradient flows.

    Args:
        images: uint8 ``[N, H, W, C]``, C = 1 or 3; or a list of N uint8
            ``[H_i, W_i, C]``.
        patches: Source boxes, destinations and transforms.
        out_size: Height and width of the views in pixels, or one number for both.
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel, positive.
        dtype: Type of the views: float32, bfloat16 or float16.
        erase: int64 ``[V, 4]`` (Cutout): top, left, height, width of a rectangle in
            each view that becomes 0, the mean colour, after normalisation. It may
            extend beyond the view; it is empty if a side is 0 or less.

    Returns:
        ``[V, C, H, W]``, channels-last in memory.

    Raises:
        TypeError: a tensor has the wrong type.
        ValueError: a wrong shape or device, an index or a rectangle out of range. The
            CUDA kernel does not synchronise to report values: there, they trigger a
            device-side assert.

    Example:
        >>> images = torch.full((2, 4, 4, 3), 255, dtype=torch.uint8)
        >>> patches = Patches(
        ...     image=torch.tensor([0, 1]),
        ...     box=torch.tensor([[0, 0, 4, 4], [-2, 0, 4, 4]]))
        >>> views = render_views(
        ...     images, patches, out_size=2, mean=(0, 0, 0), std=(1, 1, 1))
        >>> views.shape, views[0].mul(255).round().unique().item()
        (torch.Size([2, 3, 2, 2]), 255.0)
    """
    stack = [images] if isinstance(images, Tensor) else list(images)
    channels = len(mean)
    _check_images(stack, isinstance(images, Tensor), channels)
    device = stack[0].device if stack else patches.image.device
    height, width = (out_size, out_size) if isinstance(out_size, int) else out_size
    if min(height, width) < 1:
        raise ValueError(f"out_size: expected positive sides, got {out_size}")
    if len(std) != channels or not min(std) > 0:
        raise ValueError(
            f"std: expected {channels} positive values as for mean, got {tuple(std)}"
        )
    if dtype not in _DTYPES:
        raise TypeError(f"dtype: expected one of {_DTYPES}, got {dtype}")
    if not -math.inf < patches.fill < math.inf:
        raise ValueError(f"patches.fill: expected a finite number, got {patches.fill}")
    _check_patches(patches, channels, device)
    views = patches.count()
    if erase is not None:
        _check("erase", erase, (views, 4), torch.int64, device)
    operators: Any = torch.ops.s3h
    try:
        pixels = operators.render_views(
            stack,
            patches.image,
            patches.box,
            patches.flip,
            patches.colour,
            patches.affine,
            patches.view,
            patches.rect,
            erase,
            views,
            height,
            width,
            [float(value) for value in mean],
            [float(value) for value in std],
            patches.fill,
            patches.nearest,
            dtype,
        )
    except RuntimeError as error:
        # The native library checks values as it reads them. It has one type of error,
        # and puts its source line in front of the message.
        _, found, text = str(error).partition("patches.")
        if found:
            raise ValueError(found + text) from None
        raise
    return cast(Tensor, pixels.permute(0, 3, 1, 2))


def _check_images(images: list[Tensor], resident: bool, channels: int) -> None:
    if channels not in (1, 3):
        raise ValueError(f"mean: expected 1 or 3 values, got {channels}")
    form = "[N, H, W, C]" if resident else "[H, W, C]"
    for number, image in enumerate(images):
        name = "images" if resident else f"images[{number}]"
        if image.dtype != torch.uint8:
            raise TypeError(f"{name}: expected uint8, got {image.dtype}")
        if image.dim() != 3 + resident or image.shape[-1] != channels:
            raise ValueError(
                f"{name}: expected {form} with the {channels} channels of mean, got "
                f"{list(image.shape)}"
            )
        if image.device != images[0].device:
            raise ValueError(
                f"{name}: expected it on {images[0].device}, got {image.device}"
            )


def _check_patches(patches: Patches, channels: int, device: torch.device) -> None:
    if patches.image.dim() != 1:
        raise ValueError(
            f"patches.image: expected [P], got {list(patches.image.shape)}"
        )
    count = len(patches)
    _check("patches.image", patches.image, (count,), torch.int64, device)
    _check("patches.box", patches.box, (count, 4), torch.int64, device)
    _check("patches.flip", patches.flip, (count,), torch.bool, device)
    matrix = (count, channels, channels + 1)
    _check("patches.colour", patches.colour, matrix, torch.float32, device)
    _check("patches.affine", patches.affine, (count, 2, 3), torch.float32, device)
    _check("patches.view", patches.view, (count,), torch.int64, device)
    _check("patches.rect", patches.rect, (count, 4), torch.int64, device)


def _check(
    name: str,
    tensor: Tensor | None,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    if tensor is None:
        return
    if tensor.dtype != dtype:
        raise TypeError(f"{name}: expected {dtype}, got {tensor.dtype}")
    if tensor.shape != shape:
        raise ValueError(
            f"{name}: expected shape {list(shape)}, got {list(tensor.shape)}"
        )
    if tensor.device != device:
        raise ValueError(f"{name}: expected it on {device}, got {tensor.device}")


def _fake(
    images: list[Tensor],
    image: Tensor,
    box: Tensor,
    flip: Tensor | None,
    colour: Tensor | None,
    affine: Tensor | None,
    view: Tensor | None,
    rect: Tensor | None,
    erase: Tensor | None,
    views: int,
    height: int,
    width: int,
    mean: list[float],
    std: list[float],
    fill: float,
    nearest: bool,
    dtype: torch.dtype,
) -> Tensor:
    return image.new_empty((views, height, width, len(mean)), dtype=dtype)


implement(render_views=plain.render_views)
registry.register_fake("s3h::render_views", _fake, lib=LIBRARY)
