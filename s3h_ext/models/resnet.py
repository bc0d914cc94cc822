"""Residual networks for 32x32 images (He et al., CVPR 2016, section 4.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CIFAR_RESNET_DEPTHS = (20, 32, 44, 56)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a parameter-free shortcut (option A)."""

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.stride = stride
        # Option A fills the new channels with zeros, half on each side, so a block
        # that changes the width adds no parameter.
        self.padding = (planes - in_planes) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.stride != 1 or self.padding:
            x = F.pad(
                x[:, :, :: self.stride, :: self.stride],
                (0, 0, 0, 0, self.padding, self.padding),
            )
        return F.relu(out + x)


class CifarResNet(nn.Module):
    """The ResNet-32 of the long-tail literature, without its classifier.

    Widths 16-32-64, strides 1/2/2, ``(depth - 2) / 6`` blocks a stage, option-A
    shortcuts, Kaiming-normal convolutions: the network of LDAM-DRW (Cao et al.,
    NeurIPS 2019) that most CIFAR-LT tables are trained with. With a linear
    classifier, depth 32 has 464,154 parameters for 10 classes and 470,004 for 100.

    Args:
        depth: 20, 32, 44 or 56.
        in_channels: channels of the input images.

    Example:
        >>> import torch
        >>> CifarResNet(32)(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 64])
    """

    feature_dim = 64

    def __init__(self, depth: int = 32, in_channels: int = 3) -> None:
        super().__init__()
        if depth not in CIFAR_RESNET_DEPTHS:
            raise ValueError(
                f"depth: expected one of {CIFAR_RESNET_DEPTHS}, got {depth}"
            )
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, stride=1)
        self.layer2 = self._stage(16, 32, blocks, stride=2)
        self.layer3 = self._stage(32, 64, blocks, stride=2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(in_planes: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
        layers = [BasicBlock(in_planes, planes, stride)]
        layers += [BasicBlock(planes, planes, 1) for _ in range(blocks - 1)]
        return nn.Sequential(*layers)

    def feature_map(self, images: Tensor) -> Tensor:
        """Return the un-pooled map ``[B, 64, H/4, W/4]`` of ``images [B, C, H, W]``."""
        x = F.relu(self.bn1(self.conv1(images)))
        feature_map: Tensor = self.layer3(self.layer2(self.layer1(x)))
        return feature_map

    def forward(self, images: Tensor) -> Tensor:
        """Return pooled features ``[B, 64]`` of ``images [B, C, H, W]``."""
        return torch.flatten(F.adaptive_avg_pool2d(self.feature_map(images), 1), 1)
