"""One-pass rendering of views.

Resizing multiplies by two interpolation matrices per patch, so many patches are
rendered at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["render_views"]

# The same limits as in the native kernel.
_LARGEST_SIDE, _FAR = 65536, 1 << 48
# Elements of a chunk's interpolation matrices.
_CHUNK_ELEMENTS = 1 << 24


def render_views(
    images: Sequence[Tensor],
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
    mean: Sequence[float],
    std: Sequence[float],
    fill: float,
    nearest: bool,
    dtype: torch.dtype,
) -> Tensor:
    """The operator ``s3h::render_views`` in float32.

    Images of one size are rendered many patches at a time, a list of images patch by
    patch.

    Args:
        images: One uint8 ``[N, H, W, C]``, or uint8 ``[H_i, W_i, C]`` for each image.
        image: ``[P]``; arguments up to ``rect`` are those of
            :class:`s3h_ext.ops.Patches`.
        box: ``[P, 4]``.
        flip: ``[P]`` or None.
        colour: ``[P, C, C + 1]`` or None.
        affine: ``[P, 2, 3]`` or None.
        view: ``[P]`` or None.
        rect: ``[P, 4]`` or None.
        erase: ``[V, 4]`` or None.
        views: Number of views, V.
        height: Height of the views.
        width: Width of the views.
        mean: Mean of each channel.
        std: Standard deviation of each channel.
        fill: Value that affine maps show outside the box.
        nearest: Whether affine maps take the nearest pixel.
        dtype: Type of the result.

    Returns:
        ``[V, height, width, C]``.

    Raises:
        ValueError: an index or a rectangle is out of range.
    """
    stacked = len(images) > 0 and images[0].dim() == 4
    count = images[0].shape[0] if stacked else len(images)
    if rect is None:
        rect = torch.tensor([0, 0, height, width], device=image.device)
        rect = rect.expand(len(image), 4)
    if view is None:
        view = torch.arange(len(image), device=image.device)
    _require("image", (image >= 0) & (image < count), image, f"0 .. {count - 1}")
    _require("view", (view >= 0) & (view < views), view, f"0 .. {views - 1}")
    sides = box[:, 2:]
    fits = (sides >= 1) & (sides <= _LARGEST_SIDE) & (box[:, :2].abs() < _FAR)
    _require(
        "box", fits.all(dim=1), box, f"sides of 1 .. {_LARGEST_SIDE} near the image"
    )
    corner, sides = rect[:, :2], rect[:, 2:]
    size = torch.tensor([height, width], device=rect.device)
    fits = ((corner >= 0) & (sides >= 1) & (corner + sides <= size)).all(dim=1)
    _require("rect", fits, rect, f"a rectangle inside {height} x {width}")

    # Render patches of one view in separate turns, so that no turn writes it twice.
    turn = _turn(view)
    canvas = torch.zeros(views, height, width, len(mean), device=image.device)
    step = 1
    if stacked:
        longest = max(*images[0].shape[1:3], height, width)
        step = max(1, _CHUNK_ELEMENTS // (4 * longest * longest))
    # Half-precision products under autocast would round grey levels.
    with torch.autocast(image.device.type, enabled=False):
        for start in range(0, len(image), step):
            chunk = slice(start, start + step)
            if stacked:
                source = images[0][image[chunk]]
            else:
                source = images[int(image[start])][None]
            source = source.to(torch.float32) / 255
            mirrored = flip[chunk] if flip is not None else image[chunk] < 0
            if affine is None:
                rows, columns = (
                    _interpolation(box[chunk], rect[chunk], axis, source, canvas)
                    for axis in (0, 1)
                )
                columns = torch.where(
                    mirrored[:, None, None],
                    _mirrored_rows(columns, rect[chunk]),
                    columns,
                )
                pixels = torch.einsum("pyh,phwc->pywc", rows, source)
                pixels = torch.einsum("pxw,pywc->pyxc", columns, pixels)
            else:
                pixels = _mapped(
                    source,
                    box[chunk],
                    rect[chunk],
                    mirrored,
                    affine[chunk],
                    (height, width),
                    fill,
                    nearest,
                )
            if colour is not None:
                matrix = colour[chunk, None]
                pixels = pixels @ matrix[..., :-1].mT + matrix[..., -1][:, :, None]
                pixels = pixels.clamp(0, 1)
            inside = _inside(rect[chunk], height, width)[..., None]
            for now in turn[chunk].unique().tolist():
                chosen = (turn[chunk] == now).nonzero()[:, 0]
                target = view[chunk][chosen]
                canvas[target] = torch.where(
                    inside[chosen], pixels[chosen], canvas[target]
                )
    scale = canvas.new_tensor([1 / value for value in std])
    shift = canvas.new_tensor([-m / s for m, s in zip(mean, std, strict=True)])
    canvas = canvas * scale + shift
    if erase is not None:
        erased = _inside(erase, height, width)
        canvas = canvas.masked_fill(erased[..., None], 0)
    return canvas.to(dtype)


def _require(name: str, good: Tensor, values: Tensor, expected: str) -> None:
    if not bool(good.all()):
        row = int((~good).nonzero()[0])
        raise ValueError(
            f"patches.{name}[{row}]: expected {expected}, got {values[row].tolist()}"
        )


def _inside(rect: Tensor, height: int, width: int) -> Tensor:
    """Return bool ``[R, height, width]``: which pixels lie inside each rectangle."""
    y = torch.arange(height, device=rect.device)
    x = torch.arange(width, device=rect.device)
    top, left, rows, columns = rect[:, :, None].unbind(1)
    in_rows = (y >= top) & (y < top + rows)
    in_columns = (x >= left) & (x < left + columns)
    return in_rows[:, :, None] & in_columns[:, None, :]


def _turn(view: Tensor) -> Tensor:
    """Return int64 ``[P]``: number of earlier patches of the same view."""
    order = torch.argsort(view, stable=True)
    ordered = view[order]
    first = torch.searchsorted(ordered, ordered)
    turn = torch.empty_like(order)
    turn[order] = torch.arange(len(view), device=view.device) - first
    return turn


def _interpolation(
    box: Tensor, rect: Tensor, axis: int, source: Tensor, canvas: Tensor
) -> Tensor:
    """Return the antialiased bilinear weights of one axis, ``[P, canvas, source]``.

    A triangle of half-width max(scale, 1) source pixels around each output pixel's
    centre, cut off at the box and normalised there. Pixels outside the source are
    black: they have no column but count in the normalisation.
    """
    start, size = box[:, axis, None].double(), box[:, axis + 2, None].double()
    first, length = rect[:, axis, None], rect[:, axis + 2, None]
    position = torch.arange(canvas.shape[1 + axis], device=box.device) - first
    scale = size / length
    centre = (position + 0.5) * scale - 0.5
    reach = scale.clamp(min=1)
    # Arithmetic series left and right of the centre give the sum over the whole box.
    low = (centre - reach).floor().add_(1).clamp_(min=0)
    middle = centre.floor()
    high = torch.minimum((centre + reach).ceil() - 1, size - 1)
    left = (middle - low + 1).clamp_(min=0)
    right = (high - middle).clamp_(min=0)
    total = left * (1 - (centre - (low + middle) / 2) / reach)
    total += right * (1 - ((middle + 1 + high) / 2 - centre) / reach)
    pixel = torch.arange(source.shape[1 + axis], device=box.device) - start
    distance = (pixel[:, None, :] - centre[:, :, None]).abs()
    weights = (1 - distance / reach[:, :, None]).clamp_(min=0) / total[:, :, None]
    weights *= ((pixel >= 0) & (pixel < size))[:, None, :]
    weights *= ((position >= 0) & (position < length))[:, :, None]
    return weights.to(torch.float32)


def _mirrored_rows(weights: Tensor, rect: Tensor) -> Tensor:
    """Mirror the rows of each matrix within the columns of its rectangle."""
    rows = torch.arange(weights.shape[1], device=rect.device)
    mirrored = 2 * rect[:, 1, None] + rect[:, 3, None] - 1 - rows
    mirrored = mirrored.clamp_(0, weights.shape[1] - 1)
    return weights.gather(1, mirrored[:, :, None].expand_as(weights))


def _mapped(
    source: Tensor,
    box: Tensor,
    rect: Tensor,
    flip: Tensor,
    affine: Tensor,
    out_size: tuple[int, int],
    fill: float,
    nearest: bool,
) -> Tensor:
    """Return ``[P, height, width, C]``: the boxes seen through the affine maps."""
    top, left, rows, columns = box[:, :, None, None].unbind(1)
    y = torch.arange(out_size[0], device=box.device)[:, None] + 0.5
    x = torch.arange(out_size[1], device=box.device) + 0.5
    y, x = y - rect[:, 0, None, None], x - rect[:, 1, None, None]
    u, v = (
        row[:, 0, None, None] * x + row[:, 1, None, None] * y + row[:, 2, None, None]
        for row in affine.unbind(1)
    )
    inside = (u >= 0) & (u < columns) & (v >= 0) & (v < rows)
    patch = torch.arange(len(box), device=box.device)[:, None, None]

    def pixel(row: Tensor, column: Tensor) -> Tensor:
        row = torch.minimum(row.long().clamp(min=0), rows - 1)
        column = torch.minimum(column.long().clamp(min=0), columns - 1)
        column = torch.where(flip[:, None, None], columns - 1 - column, column) + left
        row = row + top
        height, width = source.shape[1:3]
        known = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        row, column = row.clamp(0, height - 1), column.clamp(0, width - 1)
        return torch.where(known[..., None], source[patch, row, column], 0)

    if nearest:
        pixels = pixel(v.floor(), u.floor())
    else:
        column, row = (u - 0.5).floor(), (v - 0.5).floor()
        across, down = (u - 0.5 - column)[..., None], (v - 0.5 - row)[..., None]
        upper = torch.lerp(pixel(row, column), pixel(row, column + 1), across)
        lower = torch.lerp(pixel(row + 1, column), pixel(row + 1, column + 1), across)
        pixels = torch.lerp(upper, lower, down)
    return torch.where(inside[..., None], pixels, fill)
