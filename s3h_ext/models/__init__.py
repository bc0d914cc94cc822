"""Networks: a backbone that computes features, and the classifiers on top of it."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor, nn

from s3h_ext.models.heads import (
    CosineClassifier,
    GroupedClassifier,
    LinearClassifier,
    MappingName,
    MLPHead,
)
from s3h_ext.models.momentum import (
    apart_from_running_statistics,
    momentum_copy,
    update_momentum_copy_,
)
from s3h_ext.models.posthoc import (
    TAU_RANGE,
    NearestMean,
    NearestNeighbours,
    normalize_weights,
)
from s3h_ext.models.projection import (
    CascadedHeads,
    class_directions,
    pool_quadrants,
    pool_whole,
    unit_rows,
)
from s3h_ext.models.resnet import Backbone, CifarResNet, ResNet

BackboneName = Literal[
    "resnet20", "resnet32", "resnet44", "resnet56", "resnet50", "resnext50-32x4d"
]
ClassifierName = Literal["linear", "cosine"]

__all__ = [
    "TAU_RANGE",
    "Backbone",
    "BackboneName",
    "CascadedHeads",
    "CifarResNet",
    "ClassifierName",
    "CosineClassifier",
    "GroupedClassifier",
    "ImageClassifier",
    "LinearClassifier",
    "MLPHead",
    "MappingName",
    "NearestMean",
    "NearestNeighbours",
    "ResNet",
    "apart_from_running_statistics",
    "build_backbone",
    "build_classifier",
    "build_model",
    "class_directions",
    "momentum_copy",
    "normalize_weights",
    "pool_quadrants",
    "pool_whole",
    "unit_rows",
    "update_momentum_copy_",
]


class ImageClassifier(nn.Module):
    """A backbone and the classifier on its pooled features.

    Attributes:
        backbone: maps images ``[B, C, H, W]`` to features ``[B,
            backbone.feature_dim]``.
        classifier: maps those features to logits ``[B, num_classes]``.
    """

    classifier: LinearClassifier | CosineClassifier | GroupedClassifier

    def __init__(
        self, backbone: Backbone, classifier: LinearClassifier | CosineClassifier
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[B, num_classes]`` of ``images [B, C, H, W]``."""
        logits: Tensor = self.classifier(self.backbone(images))
        return logits


def build_backbone(name: BackboneName, in_channels: int = 3) -> Backbone:
    """Build a backbone by name, freshly initialised.

    Raises:
        ValueError: there is no backbone of that name.
    """
    if name not in get_args(BackboneName):
        raise ValueError(
            f"backbone: expected one of {get_args(BackboneName)}, got {name!r}"
        )
    if name == "resnet50":
        return ResNet(in_channels=in_channels)
    if name == "resnext50-32x4d":
        return ResNet(groups=32, group_width=4, in_channels=in_channels)
    return CifarResNet(int(name.removeprefix("resnet")), in_channels)


def build_classifier(
    name: ClassifierName, feature_dim: int, num_classes: int, scale: float = 30.0
) -> LinearClassifier | CosineClassifier:
    """Build a classifier ``[B, feature_dim] -> [B, num_classes]`` by name."""
    if name == "linear":
        return LinearClassifier(feature_dim, num_classes)
    if name == "cosine":
        return CosineClassifier(feature_dim, num_classes, scale)
    raise ValueError(
        f"classifier: expected one of {get_args(ClassifierName)}, got {name!r}"
    )


def build_model(
    backbone: BackboneName,
    num_classes: int,
    *,
    classifier: ClassifierName = "linear",
    scale: float = 30.0,
    in_channels: int = 3,
) -> ImageClassifier:
    """Build a network by name, freshly initialised from torch's global generator.

    Args:
        backbone: ``"resnet32"`` and its siblings for small images, ``"resnet50"`` or
            ``"resnext50-32x4d"`` for photographs.
        num_classes: number of classes of the data set.
        classifier: ``"linear"`` or ``"cosine"``.
        scale: logit scale of the cosine classifier; the linear one ignores it.
        in_channels: channels of the images.

    Raises:
        ValueError: a name does not exist.

    Example:
        >>> model = build_model("resnet32", 10)
        >>> sum(p.numel() for p in model.parameters())
        464154
    """
    network = build_backbone(backbone, in_channels)
    return ImageClassifier(
        network, build_classifier(classifier, network.feature_dim, num_classes, scale)
    )
