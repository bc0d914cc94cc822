"""Crops, flips and resizes by gathers: views on a GPU where no kernel is built.

Unlike the portable form of :func:`s3h_ext.ops.render_views` it never waits for the
device, and does only what resident images of one size need: one crop to a view, views
of the images' size, boxes not larger than that.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from s3h_ext.data.views.recipes import ViewSpec

__all__ = ["GatherRenderer"]


class GatherRenderer:
    """Images resident on a device, rendered view by view.

    Three-channel images are kept as one 32-bit word per pixel, red in the low byte: a
    crop with a flip is then a single gather of words, with one more word at the end of
    the storage for the black outside.

    Args:
        images: uint8 ``[N, H, W, C]``, C = 1 or 3.
        mean: Per channel, of pixels in [0, 1].
        std: Per channel, positive.
        dtype: Of the rendered views.

    """

    def __init__(
        self,
        images: Tensor,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        _, height, width, channels = images.shape
        self.height, self.width, self.channels = height, width, channels
        self.dtype = dtype
        self._scale = [1 / value for value in std]
        self._shift = [-m / s for m, s in zip(mean, std, strict=True)]
        self._pixels = _pack(images)
        self._rows = torch.arange(height, device=images.device)
        self._columns = torch.arange(width, device=images.device)

    def __call__(self, source: Tensor, views: ViewSpec) -> Tensor:
        """Renders views.

        Args:
            source: int64 ``[M]``, which image each view is of.
            views: M views with one leading dimension.

        Returns:
            ``[M, C, H, W]`` of the renderer's type, channels last in memory.
        """
        planes = (
            self._resize(source, views) if views.resized else self._crop(source, views)
        )
        planes = _finish(planes, views.colour, self._scale, self._shift)
        out = torch.stack([plane.to(self.dtype) for plane in planes], dim=-1)
        return out.permute(0, 3, 1, 2)

    def _crop(self, source: Tensor, views: ViewSpec) -> list[Tensor]:
        top, left, _, _ = views.box.unsqueeze(-1).unbind(-2)
        mirrored = torch.where(
            views.flip[:, None], self._columns.flip(0), self._columns
        )
        rows, columns = self._rows + top, mirrored + left
        outside = ((rows < 0) | (rows >= self.height))[:, :, None] | (
            (columns < 0) | (columns >= self.width)
        )[:, None, :]
        index = self._index(source, rows, columns)
        index.masked_fill_(outside, len(self._pixels) - 1)
        return self._planes(index)

    def _resize(self, source: Tensor, views: ViewSpec) -> list[Tensor]:
        # A box never exceeds the output, so antialiased bilinear is plain bilinear,
        # and clamping the taps to the box samples nothing outside it.
        top, left, height, width = views.box.unsqueeze(-1).unbind(-2)
        row0, row1, row_weight = _taps(self._rows, top, height, self.height)
        columns = torch.where(views.flip[:, None], self._columns.flip(0), self._columns)
        column0, column1, column_weight = _taps(columns, left, width, self.width)
        across, down = column_weight[:, None, :], row_weight[:, :, None]
        corners = [
            self._planes(self._index(source, rows, columns))
            for rows in (row0, row1)
            for columns in (column0, column1)
        ]
        return [
            torch.lerp(torch.lerp(a, b, across), torch.lerp(c, d, across), down)
            for a, b, c, d in zip(*corners, strict=True)
        ]

    def _index(self, source: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        starts = (source * (self.height * self.width))[:, None] + rows * self.width
        return starts[:, :, None] + columns[:, None, :]

    def _planes(self, index: Tensor) -> list[Tensor]:
        words = torch.take(self._pixels, index)
        return [
            (words >> (8 * channel)).bitwise_and_(255).to(torch.float32)
            for channel in range(self.channels)
        ]


def _pack(images: Tensor) -> Tensor:
    if images.shape[-1] == 1:
        words = images.reshape(-1)
    else:
        padded = images.new_zeros(*images.shape[:-1], 4)
        padded[..., :3] = images
        words = padded.view(torch.int32).reshape(-1)
    return torch.cat([words, words.new_zeros(1)])


def _taps(
    positions: Tensor, start: Tensor, size: Tensor, output: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Bilinear taps of output positions in a box, pixel centres at half integers.

    Returns:
        Lower and upper source coordinate, int64 ``[B, positions]``, and the weight of
        the upper one, float32.
    """
    # In units of 1 / (2 * output) of a source pixel everything is an integer.
    position = ((2 * positions + 1) * size - output).clamp_(min=0)
    lower = position // (2 * output)
    weight = (position - lower * (2 * output)).to(torch.float32) / (2 * output)
    upper = torch.minimum(lower + 1, size - 1)
    return lower + start, upper + start, weight


def _finish(
    planes: list[Tensor],
    colour: Tensor | None,
    scale: list[float],
    shift: list[float],
) -> list[Tensor]:
    """Colour matrix, clamp and normalisation of planes with values 0 .. 255."""
    if colour is None:
        return [
            plane.mul_(a / 255).add_(b)
            for plane, a, b in zip(planes, scale, shift, strict=True)
        ]
    red, green, blue = planes
    # Clamped at 255 and not at 1: the division joins the normalisation.
    coefficients = colour[:, :, :, None, None].unbind(1)
    result = []
    for row, a, b in zip(coefficients, scale, shift, strict=True):
        plane = red * row[:, 0]
        plane.addcmul_(green, row[:, 1]).addcmul_(blue, row[:, 2])
        plane.add_(row[:, 3] * 255).clamp_(0, 255)
        result.append(plane.mul_(a / 255).add_(b))
    return result
