"""Classifiers and projection heads that sit on pooled features."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LinearClassifier(nn.Linear):
    """A linear layer with the Kaiming-normal weight of the CIFAR-LT codebases."""

    def reset_parameters(self) -> None:
        """Draw weight and bias anew."""
        nn.init.kaiming_normal_(self.weight)
        if self.bias is not None:
            bound = 1.0 / math.sqrt(self.in_features)
            nn.init.uniform_(self.bias, -bound, bound)


class CosineClassifier(nn.Module):
    """``logits = scale * cos(features, weight)``: unit features on unit weights.

    Args:
        in_features: feature dimension ``D``.
        out_features: number of classes ``C``.
        scale: multiplier of the cosine; LDAM-DRW trains with 30.

    Example:
        >>> import torch
        >>> CosineClassifier(64, 10)(torch.randn(4, 64)).shape
        torch.Size([4, 10])
    """

    def __init__(
        self, in_features: int, out_features: int, scale: float = 30.0
    ) -> None:
        super().__init__()
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"scale: expected a finite number > 0, got {scale}")
        self.in_features, self.out_features, self.scale = (
            in_features,
            out_features,
            scale,
        )
        self.weight = nn.Parameter(torch.empty(out_features, in_features))  # [C, D]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew: uniform, then of unit length."""
        with torch.no_grad():
            self.weight.copy_(F.normalize(self.weight.uniform_(-1, 1), dim=1))

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``[B, C]`` of ``features [B, D]``."""
        return self.scale * F.linear(
            F.normalize(features, dim=1), F.normalize(self.weight, dim=1)
        )


class MLPHead(nn.Sequential):
    """Projection head with one hidden layer: ``D -> hidden -> out``, ReLU between.

    Hybrid (Wang et al., CVPR 2021) uses one; the output is not normalised here.

    Example:
        >>> import torch
        >>> MLPHead(64, 64, 128)(torch.randn(4, 64)).shape
        torch.Size([4, 128])
    """

    def __init__(self, in_features: int, hidden: int, out_features: int) -> None:
        super().__init__(
            nn.Linear(in_features, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, out_features),
        )
