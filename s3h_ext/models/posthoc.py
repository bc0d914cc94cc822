"""Classifiers on the features of a trained network that need no training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3h_ext.checks import check, number_in

__all__ = [
    "TAU_RANGE",
    "TEMPERATURE",
    "NearestMean",
    "NearestNeighbours",
    "normalize_weights",
]

#: Divides cosines: Wu et al., "Unsupervised feature learning via non-parametric
#: instance discrimination", CVPR 2018.
TEMPERATURE = 0.07
#: Valid exponents of tau-normalisation.
TAU_RANGE = number_in("[0, 2]")
# Rows compared at a time with all others.
_ROWS = 256


def normalize_weights(weight: Tensor, tau: float) -> Tensor:
    r"""Return ``w_c / ||w_c||^tau`` of each row (Kang et al., ICLR 2020, equation 4).

    Args:
        weight: ``[C, D]`` of a linear classifier.
        tau: exponent of the row norm, in [0, 2]; 0 leaves the rows unchanged, 1 makes
            them unit vectors, above 1 long rows become the short ones.

    Example:
        >>> normalize_weights(torch.tensor([[3.0, 4.0]]), 1.0)
        tensor([[0.6000, 0.8000]])
    """
    check(TAU_RANGE, tau=tau)
    lengths: Tensor = weight.norm(dim=1, keepdim=True)
    return weight / lengths**tau


class NearestMean(nn.Module):
    """Nearest class mean, by the cosine of features.

    This is the nearest class mean classifier of Kang et al., "Decoupling", ICLR 2020,
    section 4.1, with cosines. Its logits are the cosines divided by 0.07.

    Args:
        features: ``[N, D]`` of the training images.
        labels: int64 ``[N]``; classes without an image are never predicted.
        num_classes: C.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 1.0]])
        >>> classify = NearestMean(features, torch.tensor([0, 0, 1]), 2)
        >>> classify(torch.tensor([[2.0, 3.0]])).argmax(1)
        tensor([1])
    """

    means: Tensor  # [C, D]
    absent: Tensor  # [C]

    def __init__(self, features: Tensor, labels: Tensor, num_classes: int) -> None:
        super().__init__()
        sums = features.new_zeros((num_classes, features.shape[1]), dtype=torch.float64)
        sums.index_add_(0, labels, features.double())
        # A mean and a sum have the same direction.
        self.register_buffer("means", F.normalize(sums, dim=1).float())
        present = torch.bincount(labels, minlength=num_classes)
        self.register_buffer("absent", present == 0)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``[B, C]`` of ``features [B, D]``."""
        cosines = F.normalize(features.float(), dim=1) @ self.means.T
        return cosines.masked_fill(self.absent, -1.0) / TEMPERATURE


class NearestNeighbours(nn.Module):
    """A vote of the nearest training images, by the cosine of their features.

    Each neighbour votes with weight ``exp(cosine / 0.07)`` (Wu et al., CVPR 2018,
    section 3.4). The logits are the logarithms of the classes' shares of the votes.

    Args:
        features: ``[N, D]`` of the training images.
        labels: int64 ``[N]``.
        num_classes: C.
        neighbours: number of images that vote, at most N.

    Raises:
        ValueError: ``neighbours`` is larger than N.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> vote = NearestNeighbours(features, torch.tensor([0, 0, 1]), 2, 3)
        >>> vote(torch.tensor([[1.0, 0.1]])).softmax(1)[0, 0] > 0.99
        tensor(True)
    """

    features: Tensor  # [N, D]
    labels: Tensor  # [N]

    def __init__(
        self, features: Tensor, labels: Tensor, num_classes: int, neighbours: int = 20
    ) -> None:
        super().__init__()
        rule = (
            f"a whole number in [1, {len(labels)}], the training images",
            lambda value: 1 <= value <= len(labels),
        )
        check(rule, neighbours=neighbours)
        self.num_classes, self.neighbours = num_classes, neighbours
        self.register_buffer("features", F.normalize(features.float(), dim=1))
        self.register_buffer("labels", labels)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``[B, C]`` of ``features [B, D]``."""
        rows = F.normalize(features.float(), dim=1)
        return torch.cat([self._vote(part) for part in rows.split(_ROWS)])

    def _vote(self, rows: Tensor) -> Tensor:
        cosines, nearest = (rows @ self.features.T).topk(self.neighbours, dim=1)
        votes = (cosines / TEMPERATURE).softmax(1)
        shares = rows.new_zeros((len(rows), self.num_classes))
        shares.scatter_add_(1, self.labels[nearest], votes)
        # Keep the logit of a class without votes finite.
        return shares.clamp(min=torch.finfo(shares.dtype).tiny).log()
