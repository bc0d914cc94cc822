"""Residual networks: for 32x32 images, and for photographs.

He et al., "Deep residual learning for image recognition", CVPR 2016, section 4.2 and
table 1; Xie et al., "Aggregated residual transformations for deep neural networks",
CVPR 2017, table 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3h_ext.models.normalisation import norm_relu

CIFAR_RESNET_DEPTHS = (20, 32, 44, 56)


class Backbone(nn.Module, ABC):
    """A network without its classifier.

    Attributes:
        feature_dim: D of the pooled features.
    """

    feature_dim: int

    @abstractmethod
    def feature_map(self, images: Tensor) -> Tensor:
        """Return the feature map ``[B, D, h, w]`` of images ``[B, C, H, W]``."""

    def forward(self, images: Tensor) -> Tensor:
        """Return pooled features ``[B, D]`` of images ``[B, C, H, W]``."""
        return torch.flatten(F.adaptive_avg_pool2d(self.feature_map(images), 1), 1)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a parameter-free shortcut (option A)."""

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.stride = stride
        # Option A pads the new channels with zeros, half on each side, so a block that
        # changes the width adds no parameters.
        self.padding = (planes - in_planes) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(norm_relu(self.bn1, self.conv1(x)))
        if self.stride != 1 or self.padding:
            x = F.pad(
                x[:, :, :: self.stride, :: self.stride],
                (0, 0, 0, 0, self.padding, self.padding),
            )
        return norm_relu(self.bn2, out, x)


class CifarResNet(Backbone):
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
        """Return the feature map ``[B, 64, H/4, W/4]`` of images ``[B, C, H, W]``."""
        x = norm_relu(self.bn1, self.conv1(images))
        feature_map: Tensor = self.layer3(self.layer2(self.layer1(x)))
        return feature_map


class Bottleneck(nn.Module):
    """1x1, grouped 3x3 and 1x1 convolutions; the 3x3 one has the stride."""

    expansion = 4

    def __init__(
        self, in_planes: int, planes: int, stride: int, groups: int, group_width: int
    ) -> None:
        super().__init__()
        width = planes * group_width // 64 * groups
        out_planes = planes * self.expansion
        self.conv1 = nn.Conv2d(in_planes, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_planes)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_planes != out_planes:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_planes, out_planes, 1, stride, bias=False),
                nn.BatchNorm2d(out_planes),
            )

    def forward(self, x: Tensor) -> Tensor:
        out = norm_relu(self.bn1, self.conv1(x))
        out = norm_relu(self.bn2, self.conv2(out))
        shortcut = x if self.downsample is None else self.downsample(x)
        return norm_relu(self.bn3, self.conv3(out), shortcut)


class ResNet(Backbone):
    """ResNet-50 or ResNeXt-50 for photographs, without its classifier.

    Parameters and buffers are named as in torchvision, and as there, the stride is in
    the 3x3 convolution.

    Args:
        groups: groups of the 3x3 convolutions: 1, or 32 for ResNeXt-50 32x4d.
        group_width: their width per group in the first stage: 64, or 4.
        in_channels: channels of the input images.
        blocks: blocks in each stage; (3, 4, 6, 3) for depth 50.

    Example:
        >>> ResNet()(torch.randn(2, 3, 64, 64)).shape
        torch.Size([2, 2048])
    """

    feature_dim = 512 * Bottleneck.expansion

    def __init__(
        self,
        groups: int = 1,
        group_width: int = 64,
        in_channels: int = 3,
        blocks: tuple[int, int, int, int] = (3, 4, 6, 3),
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        planes = 64
        stages = []
        for number, count in enumerate(blocks):
            width, stride = 64 << number, 1 if number == 0 else 2
            layers = [Bottleneck(planes, width, stride, groups, group_width)]
            planes = width * Bottleneck.expansion
            layers += [
                Bottleneck(planes, width, 1, groups, group_width)
                for _ in range(count - 1)
            ]
            stages.append(nn.Sequential(*layers))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def feature_map(self, images: Tensor) -> Tensor:
        """Return the feature map ``[B, 2048, H/32, W/32]`` of ``[B, C, H, W]``."""
        x = self.maxpool(norm_relu(self.bn1, self.conv1(images)))
        feature_map: Tensor = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return feature_map
