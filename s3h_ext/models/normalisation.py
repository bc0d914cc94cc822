"""Batch norm with the residual and ReLU that follow it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from s3h_ext.ops._library import CPU
from s3h_ext.ops.batch_norm import normalise

_functions: Any = torch._C  # no annotations


def norm_relu(norm: Any, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """Return ``relu(norm(x) + residual)``, fused if :func:`fuses` allows it.

    Args:
        norm: a batch norm of any kind.
        x: ``[N, C, H, W]``.
        residual: like x, or None.
    """
    if not fuses(norm, x, residual):
        out = norm(x)
        return F.relu(out if residual is None else out + residual)
    out, mean, variance = normalise(x, norm.weight, norm.bias, residual, norm.eps)
    if norm.training and norm.track_running_stats:
        count = x.numel() // x.shape[1]
        with torch.no_grad():
            norm.num_batches_tracked.add_(1)
            norm.running_mean.lerp_(mean, norm.momentum)
            norm.running_var.lerp_(variance * (count / (count - 1)), norm.momentum)
    return out


def fuses(norm: Any, x: Tensor, residual: Tensor | None) -> bool:
    """Return whether one fused operation may replace the modules.

    It needs batch statistics, a CPU and channels-last memory. Under tracing, function
    transforms or module hooks, the modules must run themselves.
    """
    if not (norm.training or norm.running_mean is None) or not isinstance(x, Tensor):
        return False
    return (
        CPU.loaded
        and type(norm) is nn.BatchNorm2d
        and norm.weight is not None
        and norm.momentum is not None
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and norm.weight.dtype == norm.bias.dtype == torch.float32
        and x.ndim == 4
        and x.numel() > x.shape[1]  # a single value has no variance
        and x.is_contiguous(memory_format=torch.channels_last)
        and (residual is None or (residual.dtype, residual.shape) == (x.dtype, x.shape))
        and not (norm._forward_hooks or norm._forward_pre_hooks)
        and not (norm._backward_hooks or norm._backward_pre_hooks)
        and not torch.compiler.is_compiling()
        and not _functions._is_tracing()
        and not _functions._are_functorch_transforms_active()
        and forward_ad._current_level < 0
    )
