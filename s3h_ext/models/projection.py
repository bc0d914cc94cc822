"""From feature maps to embeddings: pooling, cascaded heads, class directions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from s3h_ext.models.heads import (
    CosineClassifier,
    GroupedClassifier,
    LinearClassifier,
)


def pool_whole(feature_map: Tensor) -> Tensor:
    """Return the means ``[N, D]`` of feature maps ``[N, D, H, W]``."""
    return F.adaptive_avg_pool2d(feature_map, 1).flatten(1)


def pool_quadrants(feature_map: Tensor) -> Tensor:
    """Return the means of the four quadrants of each feature map.

    An odd side is first stretched by one, bilinearly, so that no cell belongs to two
    quadrants: 7 x 7 becomes 8 x 8, as in the released code of CBTS (Zhao et al., IEEE
    TMM 2025).

    Args:
        feature_map: ``[N, D, H, W]`` with sides of at least 2.

    Returns:
        ``[4 N, D]``: top left, top right, bottom left, bottom right of each map.

    Raises:
        ValueError: a side is below 2.

    Example:
        >>> import torch
        >>> maps = torch.arange(4.0).view(1, 1, 2, 2)
        >>> pool_quadrants(maps).flatten().tolist()
        [0.0, 1.0, 2.0, 3.0]
    """
    height, width = feature_map.shape[2:]
    if min(height, width) < 2:
        raise ValueError(
            f"feature_map: expected sides of at least 2, got {height} x {width}"
        )
    if height % 2 or width % 2:
        feature_map = F.interpolate(
            feature_map,
            size=(height + height % 2, width + width % 2),
            mode="bilinear",
            align_corners=False,
        )
    pooled = F.adaptive_avg_pool2d(feature_map, 2)  # [N, D, 2, 2]
    return pooled.permute(0, 2, 3, 1).flatten(0, 2)


def unit_rows(rows: Tensor) -> Tensor:
    """Return rows ``[..., D]`` divided by their norms, in float32.

    On a GPU, rows of 16 bits are rounded back to their type: the kernels of the
    contrastive losses multiply it several times as fast. On a CPU, the loss is a small
    part of a step and stays in float32.

    Example:
        >>> import torch
        >>> unit_rows(torch.tensor([[3.0, 4.0]], dtype=torch.bfloat16))
        tensor([[0.6000, 0.8000]])
    """
    unit = F.normalize(rows.float(), dim=-1)
    return unit.to(rows.dtype) if rows.device.type == "cuda" else unit


class CascadedHeads(nn.Module):
    """Projection heads in sequence, each on the output of the previous one.

    The first is Linear, batch norm, ReLU, Linear; the others begin with a batch norm
    without parameters. Two are the heads of CBTS (Zhao et al., IEEE TMM 2025, released
    code), one is the head of BCL (Zhu et al., CVPR 2022).

    Args:
        in_features: dimension of the features.
        hidden: hidden units of each head.
        out_features: dimension of the embeddings.
        heads: number of heads.

    Raises:
        ValueError: a number is below 1.

    Example:
        >>> import torch
        >>> heads = CascadedHeads(64, 512, 128, heads=2)
        >>> [tuple(z.shape) for z in heads(torch.randn(8, 64))]
        [(8, 128), (8, 128)]
    """

    def __init__(
        self, in_features: int, hidden: int, out_features: int, heads: int = 2
    ) -> None:
        super().__init__()
        for name, value in (
            ("in_features", in_features),
            ("hidden", hidden),
            ("out_features", out_features),
            ("heads", heads),
        ):
            if value < 1:
                raise ValueError(f"{name}: expected a whole number >= 1, got {value}")
        self.stages = nn.ModuleList()
        for number in range(heads):
            first = [nn.BatchNorm1d(out_features, affine=False)] if number else []
            self.stages.append(
                nn.Sequential(
                    *first,
                    nn.Linear(out_features if number else in_features, hidden),
                    nn.BatchNorm1d(hidden),
                    nn.ReLU(inplace=True),
                    nn.Linear(hidden, out_features),
                )
            )

    def forward(self, features: Tensor) -> list[Tensor]:
        """Return each head's embeddings ``[N, out_features]``, as :func:`unit_rows`."""
        embeddings = []
        for stage in self.stages:
            features = stage(features)
            embeddings.append(unit_rows(features))
        return embeddings


def class_directions(
    classifier: LinearClassifier | CosineClassifier | GroupedClassifier,
) -> Tensor:
    """Return one direction per class, ``[C, D]``, from a classifier's weights.

    Rows of a cosine classifier are normalised, since their norm has no meaning. With
    sub-classes, a class's direction is the mean of its rows in use.

    Example:
        >>> class_directions(CosineClassifier(64, 10)).shape
        torch.Size([10, 64])
    """
    weight: Tensor = classifier.weight
    if isinstance(classifier, CosineClassifier) or (
        isinstance(classifier, GroupedClassifier) and classifier.scale
    ):
        weight = F.normalize(weight, dim=1)
    if not isinstance(classifier, GroupedClassifier):
        return weight
    if not classifier.active:
        return weight.index_select(0, classifier.offsets[:-1])
    rows = classifier.offsets.diff()
    sums = weight.new_zeros(len(rows), weight.shape[1])
    return sums.index_add(0, classifier.owner, weight) / rows[:, None]
