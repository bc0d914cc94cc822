"""Turns view descriptions into normalised batches with plain tensor operations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from s3h_ext.data.recipes import ViewSpec

__all__ = ["Renderer", "render"]

# Views rendered at a time on a CPU, so that the planes in work stay in its cache.
_CPU_CHUNK = 128


class Renderer:
    """Images resident on a device, rendered view by view.

    Three-channel images are kept as one 32-bit word per pixel, red in the low byte: a
    crop with a flip is then a single gather of words, with one more word at the end of
    the storage for the black outside.

    Args:
        images: uint8 ``[N, H, W, C]``, C = 1 or 3.
        mean: Per channel, of pixels in [0, 1].
        std: Per channel, positive.
        device: Where to keep and render them.
        dtype: Of the rendered views.

    Raises:
        ValueError: an argument does not have the stated form.
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
        count, height, width, channels = images.shape
        if channels not in (1, 3):
            raise ValueError(f"images: expected 1 or 3 channels, got {channels}")
        if len(mean) != channels or len(std) != channels:
            raise ValueError(
                f"mean, std: expected {channels} values each, "
                f"got {len(mean)} and {len(std)}"
            )
        if not min(std) > 0:
            raise ValueError(f"std: expected positive values, got {tuple(std)}")
        if not dtype.is_floating_point:
            raise ValueError(f"dtype: expected a floating-point type, got {dtype}")
        self.height, self.width, self.channels = height, width, channels
        self.device = torch.device(device)
        self.dtype = dtype
        self._count = count
        self._scale = [1 / value for value in std]
        self._shift = [-m / s for m, s in zip(mean, std, strict=True)]
        self._pixels = _pack(images.to(self.device))
        self._rows = torch.arange(height, device=self.device)
        self._columns = torch.arange(width, device=self.device)

    def __len__(self) -> int:
        return self._count

    def __call__(self, source: Tensor, views: ViewSpec) -> Tensor:
        """Renders views.

        Args:
            source: int64 ``[M]``, which image each view is of.
            views: M views with one leading dimension.

        Returns:
            ``[M, C, H, W]`` of the renderer's type, channels last in memory.

        Raises:
            ValueError: a colour matrix for images of one channel.
        """
        if views.colour is not None and self.channels != 3:
            raise ValueError("views: a colour matrix needs images of 3 channels, got 1")
        total = len(source)
        out = torch.empty(
            (total, self.height, self.width, self.channels),
            dtype=self.dtype,
            device=self.device,
        )
        chunk = _CPU_CHUNK if self.device.type == "cpu" else max(total, 1)
        for start in range(0, total, chunk):
            stop = min(start + chunk, total)
            part = views.narrow(0, start, stop)
            if part.resized:
                planes = self._resize(source[start:stop], part)
            else:
                planes = self._crop(source[start:stop], part)
            planes = _finish(planes, part.colour, self._scale, self._shift)
            torch.stack(
                [plane.to(self.dtype) for plane in planes],
                dim=-1,
                out=out[start:stop],
            )
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


def render(
    images: Tensor,
    views: ViewSpec,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Renders one view of each image; for many batches keep a :class:`Renderer`.

    Args:
        images: uint8 ``[B, H, W, C]``.
        views: B views with one leading dimension.
        mean: Per channel, of pixels in [0, 1].
        std: Per channel.
        dtype: Of the result.

    Returns:
        ``[B, C, H, W]``, channels last in memory.

    Example:
        >>> from s3h_ext.data.recipes import get_recipe
        >>> views = get_recipe("none").describe(torch.empty(2, 0), 32, 32)
        >>> images = torch.full((2, 32, 32, 3), 255, dtype=torch.uint8)
        >>> render(images, views, mean=(0, 0, 0), std=(1, 1, 1)).unique().tolist()
        [1.0]
    """
    renderer = Renderer(images, mean=mean, std=std, device=images.device, dtype=dtype)
    return renderer(torch.arange(len(images), device=images.device), views)


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
