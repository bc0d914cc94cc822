"""Batch normalisation in several processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["JointBatchNorm", "average_statistics", "synchronise_batch_norm"]


class JointBatchNorm(_BatchNorm):
    """Batch norm over the batches of all processes, on any device.

    PyTorch's own ``SyncBatchNorm`` runs on GPUs alone. Mean and variance are taken one
    after the other, each summed over the processes, so they have the digits that those
    of one process with the joint batch have.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim not in (2, 4):
            raise ValueError(
                f"input: expected 2 or 4 dimensions, got {list(input.shape)}"
            )

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised ``[B, C, ...]``."""
        self._check_input_dim(input)
        if not (self.training and dist.is_available() and dist.is_initialized()):
            return super().forward(input)
        x = input.float() if input.dtype in (torch.bfloat16, torch.float16) else input
        axes = [axis for axis in range(x.ndim) if axis != 1]
        shape = [-1 if axis == 1 else 1 for axis in range(x.ndim)]
        sums = torch.cat((x.sum(axes), x.new_tensor([x.numel() / x.shape[1]])))
        sums = _sum_over_processes(sums)
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = x - mean.view(shape)
        variance = _sum_over_processes(centred.square().sum(axes)) / count
        if self.track_running_stats and self.running_mean is not None:
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            assert self.momentum is not None
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
                unbiased = variance * (count / (count - 1))
                self.running_var.lerp_(
                    unbiased.to(self.running_var.dtype), self.momentum
                )
        result: Tensor = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            result = result * self.weight.view(shape) + self.bias.view(shape)
        return result.to(input.dtype)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone()
        dist.all_reduce(total)
        return total


def _sum_over_processes(values: Tensor) -> Tensor:
    apply: Any = _Sum.apply  # no annotations
    total: Tensor = apply(values)
    return total


def synchronise_batch_norm(module: nn.Module, device: torch.device) -> None:
    """Make the batch norms in ``module`` take the statistics of the joint batch.

    On GPUs they become PyTorch's ``SyncBatchNorm``, elsewhere
    :class:`JointBatchNorm`; weights, statistics and names stay.
    """
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(module)
        return
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) in (nn.BatchNorm1d, nn.BatchNorm2d):
                assert isinstance(child, _BatchNorm)
                joint = JointBatchNorm(
                    child.num_features,
                    eps=child.eps,
                    momentum=child.momentum,
                    affine=child.affine,
                    track_running_stats=child.track_running_stats,
                )
                # The parameters themselves: an optimizer may hold them.
                joint._parameters = child._parameters
                joint._buffers = child._buffers
                setattr(parent, name, joint.train(child.training))


def average_statistics(module: nn.Module) -> None:
    """Average the running statistics of batch norms over the processes.

    Each process tracks those of its own parts of the batches; this is what evaluation
    and checkpoints use. It changes nothing where they are equal.
    """
    tracked = [
        statistic
        for norm in module.modules()
        if isinstance(norm, _BatchNorm)
        for statistic in (norm.running_mean, norm.running_var)
        if statistic is not None
    ]
    if not tracked:
        return
    joined = torch.cat([statistic.flatten() for statistic in tracked])
    dist.all_reduce(joined)
    joined /= dist.get_world_size()
    parts = joined.split([statistic.numel() for statistic in tracked])
    for statistic, part in zip(tracked, parts, strict=True):
        statistic.copy_(part.view_as(statistic))
