"""Reference of view rendering: patch by patch with ``F.interpolate``, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from s3h_ext.ops.patches import Patches

__all__ = ["render_views_reference"]


def render_views_reference(
    images: Tensor | Sequence[Tensor],
    patches: Patches,
    *,
    out_size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    erase: Tensor | None = None,
) -> Tensor:
    """Render views patch by patch in float64.

    Args:
        images: uint8 ``[N, H, W, C]`` or a list of uint8 ``[H_i, W_i, C]``.
        patches: As for :func:`s3h_ext.ops.views.render_views`.
        out_size: Height and width of the views.
        mean: Mean of each channel.
        std: Standard deviation of each channel.
        erase: int64 ``[V, 4]`` or None.

    Returns:
        float64 ``[V, C, height, width]``.
    """
    views = patches.count()
    canvas = torch.zeros(views, *out_size, len(mean), dtype=torch.float64)
    for number, index in enumerate(patches.image.tolist()):
        crop = _padded_crop(images[index], patches.box[number].tolist()).double() / 255
        if patches.flip is not None and patches.flip[number]:
            crop = crop.flip(1)
        where = [0, 0, *out_size]
        if patches.rect is not None:
            where = patches.rect[number].tolist()
        top, left, *size = where
        if patches.affine is not None:
            pixels = _warp(crop, patches.affine[number].double(), size, patches)
        else:
            pixels = _interpolate(crop, size)
        if patches.colour is not None:
            matrix = patches.colour[number].double()
            pixels = (pixels @ matrix[:, :-1].T + matrix[:, -1]).clamp(0, 1)
        target = number if patches.view is None else int(patches.view[number])
        canvas[target, top : top + size[0], left : left + size[1]] = pixels
    canvas = (canvas - canvas.new_tensor(mean)) / canvas.new_tensor(std)
    if erase is not None:
        for number, (top, left, rows, columns) in enumerate(erase.tolist()):
            bottom, right = max(top + rows, 0), max(left + columns, 0)
            canvas[number, max(top, 0) : bottom, max(left, 0) : right] = 0
    return canvas.permute(0, 3, 1, 2)


def _padded_crop(image: Tensor, box: list[int]) -> Tensor:
    top, left, rows, columns = box
    crop = image.new_zeros(rows, columns, image.shape[-1])
    row, column = max(top, 0), max(left, 0)
    part = image[row : max(top + rows, 0), column : max(left + columns, 0)]
    if part.numel() > 0:
        row, column = row - top, column - left
        crop[row : row + part.shape[0], column : column + part.shape[1]] = part
    return crop


def _interpolate(crop: Tensor, size: list[int]) -> Tensor:
    # For a width of 1, torch 2.13 repeats the first row, so swap the two sides.
    turned = size[1] == 1
    planes = crop.permute(2, 1, 0) if turned else crop.permute(2, 0, 1)
    planes = F.interpolate(
        planes[None].contiguous(),
        size=size[::-1] if turned else size,
        mode="bilinear",
        antialias=True,
    )[0]
    return planes.permute(2, 1, 0) if turned else planes.permute(1, 2, 0)


def _warp(crop: Tensor, affine: Tensor, size: list[int], patches: Patches) -> Tensor:
    y, x = torch.meshgrid(
        torch.arange(size[0], dtype=torch.float64) + 0.5,
        torch.arange(size[1], dtype=torch.float64) + 0.5,
        indexing="ij",
    )
    u, v = (row[0] * x + row[1] * y + row[2] for row in affine)
    height, width = crop.shape[:2]
    inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)

    def pixel(row: Tensor, column: Tensor) -> Tensor:
        return crop[row.long().clamp(0, height - 1), column.long().clamp(0, width - 1)]

    if patches.nearest:
        pixels = pixel(v.floor(), u.floor())
    else:
        column, row = (u - 0.5).floor(), (v - 0.5).floor()
        across, down = (u - 0.5 - column)[..., None], (v - 0.5 - row)[..., None]
        upper = torch.lerp(pixel(row, column), pixel(row, column + 1), across)
        lower = torch.lerp(pixel(row + 1, column), pixel(row + 1, column + 1), across)
        pixels = torch.lerp(upper, lower, down)
    return torch.where(inside[..., None], pixels, patches.fill)
