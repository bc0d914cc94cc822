"""Batch norm with batch statistics, a residual and ReLU, in one pass on the CPU.

PyTorch makes one pass over the feature map for each, and more in the backward.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from s3h_ext.ops._arguments import check_tensor, check_vector, refuse_forward_mode
from s3h_ext.ops._autograd import differentiate
from s3h_ext.ops._library import LIBRARY

_ARGUMENTS = "Tensor x, Tensor weight, Tensor bias, Tensor? residual, float eps"
LIBRARY.define(f"batch_norm_relu({_ARGUMENTS}) -> (Tensor, Tensor, Tensor)")
LIBRARY.define(
    "batch_norm_relu_backward(Tensor grad, Tensor out, Tensor mean, Tensor variance, "
    f"{_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor)"
)


def batch_norm_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    *,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return ``relu((x − mean) / sqrt(var + eps) · weight + bias + residual)``.

    Mean and variance are those of the batch for each channel (Ioffe & Szegedy, ICML
    2015, algorithm 1). CPU only. Sums are in float32 over a few rows at a time and in
    float64 over these, in an order that does not depend on the number of threads.
    Gradients flow to all four tensors; second derivatives use PyTorch's operations.

    Args:
        x: ``[N, C, H, W]`` float32 or bfloat16, not empty. It is copied if it is not
            channels-last.
        weight: ``[C]`` float32.
        bias: ``[C]`` float32.
        residual: added before ReLU, like x; or None.
        eps: added to the variance, >= 0.

    Returns:
        The result, like x and channels-last; the mean and the biased variance, ``[C]``
        float32, without gradients.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a shape, device or number is invalid.

    Example:
        >>> x = torch.randn(8, 3, 4, 4).contiguous(memory_format=torch.channels_last)
        >>> out, mean, variance = batch_norm_relu(x, torch.ones(3), torch.zeros(3))
        >>> expected = F.batch_norm(x, None, None, training=True).relu()
        >>> torch.allclose(out, expected, atol=1e-6)
        True
    """
    check_tensor("x", x)
    if x.dtype not in (torch.float32, torch.bfloat16):
        raise TypeError(f"x must be float32 or bfloat16, got {x.dtype}")
    if x.ndim != 4 or not x.numel():
        raise ValueError(
            f"x must be [N, C, H, W] and not empty, got shape {tuple(x.shape)}"
        )
    if x.device.type != "cpu":
        raise ValueError(f"x must be on the CPU, got {x.device}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        check_vector(name, tensor, x.shape[1], x.device)
        if tensor.dtype != torch.float32:
            raise TypeError(f"{name} must be float32, got {tensor.dtype}")
    if residual is not None:
        check_tensor("residual", residual)
        if residual.dtype != x.dtype:
            raise TypeError(f"residual must be {x.dtype} as x is, got {residual.dtype}")
        if residual.shape != x.shape or residual.device != x.device:
            raise ValueError(
                f"residual must have x's shape {tuple(x.shape)} and device, got shape "
                f"{tuple(residual.shape)} on {residual.device}"
            )
    if not eps >= 0:
        raise ValueError(f"eps must not be negative, got {eps!r}")
    refuse_forward_mode("batch_norm_relu", x, weight, bias, residual)
    return normalise(x, weight, bias, residual, eps)


def normalise(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`batch_norm_relu` for arguments that have been checked."""
    out, mean, variance = _call(x, weight, bias, residual, eps)
    return out, mean, variance


def _in_steps(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, eps: float
) -> Tensor:
    out = F.batch_norm(x, None, None, weight, bias, training=True, eps=eps)
    return F.relu(out if residual is None else out + residual)


def _fake_forward(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    vector = x.new_empty(x.shape[1], dtype=torch.float32)
    return _fake_map(x), vector, torch.empty_like(vector)


def _fake_backward(
    grad: Tensor,
    out: Tensor,
    mean: Tensor,
    variance: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        _fake_map(x),
        torch.empty_like(mean),
        torch.empty_like(mean),
        x.new_empty(0) if residual is None else _fake_map(x),
    )


def _fake_map(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


_call = differentiate(
    "batch_norm_relu",
    _fake_forward,
    _fake_backward,
    sources=4,
    kept=slice(None),
    in_steps=_in_steps,
)
