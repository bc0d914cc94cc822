"""Batch normalisation over the joint batch of several processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["JointBatchNorm", "synchronise_batch_norm"]


class JointBatchNorm(_BatchNorm):
    """Batch norm over the batches of all processes, on any device.

    PyTorch's ``SyncBatchNorm`` needs GPUs. Mean and variance are summed over the
    processes one after the other, so they are as accurate as in one process.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim not in (2, 4):
            raise ValueError(
                f"input: expected 2 or 4 dimensions, got {list(input.shape)}"
            )

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised input ``[B, C, ...]``."""
        self._check_input_dim(input)
        if not self.training:
            return super().forward(input)
        add: Any = _SumOverProcesses.apply  # no annotations
        x = input.float() if input.dtype in (torch.bfloat16, torch.float16) else input
        axes = [axis for axis in range(x.ndim) if axis != 1]
        shape = [-1 if axis == 1 else 1 for axis in range(x.ndim)]
        sums = add(torch.cat((x.sum(axes), x.new_tensor([x.numel() / x.shape[1]]))))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = x - mean.view(shape)
        variance = add(centred.square().sum(axes)) / count
        if self.track_running_stats and self.running_mean is not None:
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            assert self.momentum is not None
            unbiased = variance * (count / (count - 1))
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                for running, new in (
                    (self.running_mean, mean),
                    (self.running_var, unbiased),
                ):
                    running.lerp_(new.to(running.dtype), self.momentum)
        result: Tensor = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            result = result * self.weight.view(shape) + self.bias.view(shape)
        return result.to(input.dtype)


class _SumOverProcesses(torch.autograd.Function):
    """Replaces ``torch.distributed.nn.functional.all_reduce``, which is deprecated."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _SumOverProcesses.forward(ctx, grads[0])


def synchronise_batch_norm(module: nn.Module, device: torch.device) -> None:
    """Make the batch norms in ``module`` use the statistics of the joint batch.

    On GPUs they become PyTorch's ``SyncBatchNorm``, elsewhere :class:`JointBatchNorm`;
    weights, statistics and names stay the same.
    """
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(module)
        return
    for norm in module.modules():
        if type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d):
            # In place: an optimiser or a copy may refer to the module and its
            # parameters.
            norm.__class__ = JointBatchNorm
