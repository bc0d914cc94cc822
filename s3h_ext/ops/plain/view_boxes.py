"""Source boxes of views.

The same draws and the same float64 operations in the same order as csrc/common/boxes.h,
so the same bits on every device. This relies on eager PyTorch rounding after every
operation. Divisors are tensors, because CUDA multiplies by the reciprocal if the
divisor is a Python number.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from s3h_ext.ops.philox import philox4x32

__all__ = ["sample_view_boxes"]

_TOP, _LEFT, _CELL, _FIRST_TRY = 1, 2, 9, 12
_BLOCKS_PER_ATTEMPT = 1 << 16
_MASK32, _MASK24 = 0xFFFFFFFF, 0xFFFFFF
# Views drawn at a time on a CPU, so that intermediate results stay in its cache.
_CPU_CHUNK = 4096


@dataclass(frozen=True)
class _Numbers:
    """``BoxConstraint`` of csrc/common/boxes.h."""

    kind: float
    rows: float
    columns: float
    height_share: float
    width_share: float
    cell_drawn: float
    scale_low: float
    scale_high: float
    ratio_low: float
    ratio_high: float
    log_low: float
    log_high: float
    tries: float
    padding: float
    centre_share: float
    least_overlap: float
    most_overlap: float
    attempts: float


@dataclass(frozen=True)
class _Views:
    """The address of each draw; all of one shape ``[N]``."""

    key: tuple[int, int]
    height: Tensor
    width: Tensor
    index: Tensor
    view: Tensor
    stream: int

    def uniforms(self, first: int, count: int, attempt: int) -> Tensor:
        """Return the draws of ``count`` blocks, float64 ``[N, 4 * count]``."""
        index, word = self.index[:, None], self.view[:, None] | self.stream << 24
        blocks = torch.arange(count, device=index.device)
        blocks = blocks + (first + attempt * _BLOCKS_PER_ATTEMPT)
        words = philox4x32(
            (index & _MASK32, (index >> 32) & _MASK32, word, blocks), self.key
        )
        stacked = torch.stack(words, dim=-1).flatten(-2)
        return (stacked >> 8).to(torch.float64).mul_(2.0**-24)


def sample_view_boxes(
    sizes: Tensor,
    sample_index: Tensor,
    view: Tensor,
    constraint: list[float],
    seed: int,
    epoch: int,
    stream: int,
) -> tuple[Tensor, Tensor]:
    """The operator ``s3h::sample_view_boxes``.

    Args:
        sizes: int64 ``[N, 2]`` or ``[1, 2]``, height and width.
        sample_index: int64 ``[N]``.
        view: int64 ``[N]`` or ``[1]``.
        constraint: :meth:`s3h_ext.ops.view_constraints.Constraint.numbers`.
        seed: Seed, in [0, 2**32).
        epoch: Epoch, in [0, 2**32).
        stream: Stream of draws, in [0, 256).

    Returns:
        Boxes, int64 ``[N, 4]``, and whether they are fallbacks, bool ``[N]``.
    """
    numbers = _Numbers(*constraint)
    total = sample_index.shape[0]
    box = sample_index.new_empty(total, 4)
    fallback = sample_index.new_empty(total, dtype=torch.bool)
    sizes, view = sizes.expand(total, 2), view.expand(total) & _MASK24
    chunk = _CPU_CHUNK if sample_index.device.type == "cpu" else max(total, 1)
    for start in range(0, total, chunk):
        part = slice(start, start + chunk)
        views = _Views(
            key=(seed, epoch),
            height=sizes[part, 0],
            width=sizes[part, 1],
            index=sample_index[part],
            view=view[part],
            stream=stream,
        )
        box[part], fallback[part] = _draw(numbers, views)
    return box, fallback


def _draw(numbers: _Numbers, views: _Views) -> tuple[Tensor, Tensor]:
    first, failed = _attempt(numbers, views, 0)
    if numbers.attempts == 0:
        return first, failed
    odd = (views.view & 1).bool()
    even = _Views(
        key=views.key,
        height=views.height,
        width=views.width,
        index=views.index,
        view=views.view & ~1,
        stream=views.stream,
    )
    sibling, _ = _attempt(numbers, even, 0)
    best, fallback = first, torch.where(odd, True, failed)
    best_miss = torch.full_like(views.index, 2, dtype=torch.float64)
    for number in range(int(numbers.attempts)):
        if number:
            drawn, failed = _attempt(numbers, views, number)
        else:
            drawn = first
        overlap = _overlap(drawn, sibling)
        miss = (numbers.least_overlap - overlap).clamp_(min=0)
        miss = torch.maximum(miss, overlap - numbers.most_overlap)
        accepted = odd & fallback & (miss == 0) & ~failed
        nearer = odd & fallback & (miss < best_miss)
        best = torch.where((accepted | nearer)[:, None], drawn, best)
        best_miss = torch.where(nearer, miss, best_miss)
        fallback = fallback & ~accepted
    return best, fallback


def _attempt(numbers: _Numbers, views: _Views, attempt: int) -> tuple[Tensor, Tensor]:
    place = views.uniforms(0, 1, attempt)
    region = _region(numbers, views, attempt)
    kind = int(numbers.kind)
    failed = torch.zeros_like(views.index, dtype=torch.bool)
    top, left, height, width = region
    if kind == 1:
        shifts = 2 * int(numbers.padding) + 1
        top = top + (place[:, _TOP] * shifts).to(torch.int64) - int(numbers.padding)
        left = left + (place[:, _LEFT] * shifts).to(torch.int64) - int(numbers.padding)
    elif kind == 2:
        top, left, height, width, failed = _resized(
            numbers, views, attempt, place, region
        )
    elif kind == 3:
        side = _share(numbers.centre_share, torch.minimum(height, width))
        top, left = top + (height - side) // 2, left + (width - side) // 2
        height = width = side
    return torch.stack([top, left, height, width], dim=-1), failed


def _share(share: float, side: Tensor) -> Tensor:
    return (side.double() * share + 0.5).to(torch.int64).clamp_(min=1)


def _region(
    numbers: _Numbers, views: _Views, attempt: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, columns = int(numbers.rows), int(numbers.columns)
    if numbers.cell_drawn:
        uniform = views.uniforms(_CELL // 4, 1, attempt)[:, _CELL % 4]
        cell = (uniform * (rows * columns)).to(torch.int64)
    else:
        cell = views.view % (rows * columns)
    height = _share(numbers.height_share, views.height)
    width = _share(numbers.width_share, views.width)
    return (
        _cell_start(views.height - height, cell // columns, rows),
        _cell_start(views.width - width, cell % columns, columns),
        height,
        width,
    )


def _cell_start(free: Tensor, number: Tensor, count: int) -> Tensor:
    return free // 2 if count == 1 else free * number // (count - 1)


def _resized(
    numbers: _Numbers,
    views: _Views,
    attempt: int,
    place: Tensor,
    region: tuple[Tensor, Tensor, Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    region_top, region_left, height, width = region
    tries = int(numbers.tries)
    draws = views.uniforms(_FIRST_TRY // 4, -(-tries // 2), attempt)
    area, aspect = draws[:, : 2 * tries : 2], draws[:, 1 : 2 * tries : 2]
    low, high = numbers.scale_low, numbers.scale_high
    pixels = (height * width).double()[:, None]
    side = ((area * (high - low) + low) * pixels).sqrt()
    low, high = numbers.log_low, numbers.log_high
    stretch = _exp(aspect * (high - low) + low)
    widths = (side * stretch).round().to(torch.int64)
    heights = (side / stretch).round().to(torch.int64)
    fits = (widths >= 1) & (widths <= width[:, None])
    fits &= (heights >= 1) & (heights <= height[:, None])
    # argmax returns the first maximum: the first try that fits.
    first = fits.to(torch.int8).argmax(dim=-1, keepdim=True)
    found = fits.any(dim=-1)
    fallback_height, fallback_width = _nearest_ratio(numbers, height, width)
    h = torch.where(found, heights.gather(-1, first).squeeze(-1), fallback_height)
    w = torch.where(found, widths.gather(-1, first).squeeze(-1), fallback_width)
    top = (place[:, _TOP] * (height - h + 1)).to(torch.int64)
    left = (place[:, _LEFT] * (width - w + 1)).to(torch.int64)
    top = region_top + torch.where(found, top, (height - h) // 2)
    left = region_left + torch.where(found, left, (width - w) // 2)
    return top, left, h, w, ~found


def _nearest_ratio(
    numbers: _Numbers, height: Tensor, width: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the largest sides whose ratio is in range."""
    low, high = numbers.ratio_low, numbers.ratio_high
    tall, wide = height.double(), width.double()
    shorter = (wide / torch.full_like(wide, low)).round().to(torch.int64)
    narrower = (tall * high).round().to(torch.int64)
    too_tall, too_wide = wide < tall * low, wide > tall * high
    return (
        torch.where(too_tall, shorter.clamp_(min=1), height),
        torch.where(too_wide, narrower.clamp_(min=1), width),
    )


def _exp(x: Tensor) -> Tensor:
    # Taylor series by Horner, one rounding per operation; |x| <= log(10) / 2 keeps the
    # error below 1e-12, far less than the rounding of a side to whole pixels.
    result = torch.ones_like(x)
    for n in range(18, 0, -1):
        result = result * x / torch.full_like(x[:1, :1], n) + 1
    return result


def _overlap(a: Tensor, b: Tensor) -> Tensor:
    """Return the intersection over union of boxes ``[N, 4]``, float64 ``[N]``."""
    start = torch.maximum(a[:, :2], b[:, :2])
    end = torch.minimum(a[:, :2] + a[:, 2:], b[:, :2] + b[:, 2:])
    common = (end - start).clamp_(min=0).prod(dim=-1)
    union = a[:, 2:].prod(dim=-1) + b[:, 2:].prod(dim=-1) - common
    return common.double() / union.double()
