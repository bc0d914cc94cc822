"""Networks: a backbone that gives features, and the classifiers on top of it."""

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
from s3h_ext.models.projection import (
    CascadedHeads,
    class_directions,
    pool_quadrants,
    pool_whole,
)
from s3h_ext.models.resnet import CifarResNet

BackboneName = Literal["resnet20", "resnet32", "resnet44", "resnet56"]
ClassifierName = Literal["linear", "cosine"]

__all__ = [
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
    "apart_from_running_statistics",
    "build_classifier",
    "build_model",
    "class_directions",
    "momentum_copy",
    "pool_quadrants",
    "pool_whole",
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
        self, backbone: CifarResNet, classifier: LinearClassifier | CosineClassifier
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[B, num_classes]`` of ``images [B, C, H, W]``."""
        logits: Tensor = self.classifier(self.backbone(images))
        return logits


def build_classifier(
    name: ClassifierName, feature_dim: int, num_classes: int, scale: float = 30.0
) -> LinearClassifier | CosineClassifier:
    """Return a classifier ``[B, feature_dim] -> [B, num_classes]`` by its name."""
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
        backbone: ``"resnet32"`` and its siblings.
        num_classes: number of classes of the data set.
        classifier: ``"linear"`` or ``"cosine"``.
        scale: logit scale of the cosine classifier; unused by the linear one.
        in_channels: channels of the images.

    Raises:
        ValueError: a name that does not exist.

    Example:
        >>> model = build_model("resnet32", 10)
        >>> sum(p.numel() for p in model.parameters())
        464154
    """
    if backbone not in get_args(BackboneName):
        raise ValueError(
            f"backbone: expected one of {get_args(BackboneName)}, got {backbone!r}"
        )
    network = CifarResNet(int(backbone.removeprefix("resnet")), in_channels)
    return ImageClassifier(
        network, build_classifier(classifier, network.feature_dim, num_classes, scale)
    )
