"""Differentiable gathering of the rows of all processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["gather_rows", "process_count"]


def process_count(group: dist.ProcessGroup | None = None) -> int:
    """Return the number of processes; 1 without ``torch.distributed``."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size(group)
    return 1


def gather_rows(
    *tensors: Tensor, group: dist.ProcessGroup | None = None
) -> tuple[tuple[Tensor, ...], int]:
    r"""Concatenate the rows of all processes in the order of their ranks.

    Processes may hold different numbers of rows. The gradient of a row sums over the
    losses of all processes, so every process must use the result, and ``backward``
    communicates. For R processes, ``DistributedDataParallel`` averages gradients, so it
    differentiates :math:`L = \frac{1}{R} \sum_r L_r`; with the sum the gradient of L is
    exact. Reading the sizes synchronises once with the device.

    Args:
        *tensors: ``[N, ...]`` each, with the same N.
        group: the process group; None for all processes.

    Returns:
        ``[ΣN, ...]`` for each tensor, and the index at which this process's rows begin.
        With one process: the tensors themselves and 0.

    Raises:
        ValueError: the tensors differ in N.

    Example:
        >>> rows = torch.eye(2)
        >>> (every,), start = gather_rows(rows)
        >>> every.shape, start
        (torch.Size([2, 2]), 0)
    """
    lengths = {len(tensor) for tensor in tensors}
    if len(lengths) > 1:
        raise ValueError(f"tensors: expected as many rows of each, got {lengths}")
    if process_count(group) == 1:
        return tensors, 0
    size = torch.tensor([len(tensors[0])], device=tensors[0].device)
    gathered_sizes = [torch.empty_like(size) for _ in range(process_count(group))]
    dist.all_gather(gathered_sizes, size, group=group)
    sizes: list[int] = torch.cat(gathered_sizes).tolist()
    gather: Any = _Gather.apply  # no annotations
    gathered = tuple(gather(tensor, sizes, group) for tensor in tensors)
    return gathered, sum(sizes[: dist.get_rank(group)])


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, sizes: list[int], group: dist.ProcessGroup | None
    ) -> Tensor:
        rank = dist.get_rank(group)
        start = sum(sizes[:rank])
        ctx.rows, ctx.group = slice(start, start + sizes[rank]), group
        # Collectives need equal shapes.
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=group)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total[ctx.rows], None, None
