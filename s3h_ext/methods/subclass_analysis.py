"""Analyses sub-classes for the report: sizes, examples, and maps of a few classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from s3h_ext.ops.prototypes import Metric

#: Number of classes shown with a map and examples: those with the most sub-classes.
SHOWN_CLASSES = 4
EXAMPLES = 10
POINTS = 1000


def shown_classes(offsets: Tensor) -> Tensor:
    """Return the classes to show, int64, those with the most sub-classes first.

    Args:
        offsets: int64 ``[C + 1]``, first prototype of each class, then S.
    """
    # Stable: of classes with equally many sub-classes, the first ones are shown.
    order = offsets.diff().argsort(descending=True, stable=True)[:SHOWN_CLASSES]
    return order[offsets.diff()[order] > 1]


def analyse_subclasses(
    features: Tensor,
    positions: Tensor,
    assignments: Tensor,
    prototypes: Tensor,
    offsets: Tensor,
    size_history: Tensor,
    *,
    metric: Metric,
) -> dict[str, np.ndarray[Any, Any]]:
    """Compute the arrays behind the report's figures of sub-classes.

    Args:
        features: ``[M, D]`` of the training images of the classes shown.
        positions: int64 ``[M]``, index of each of these among the N training images.
        assignments: int64 ``[N]``, sub-class of each training image; -1: none.
        prototypes: ``[S, D]``.
        offsets: int64 ``[C + 1]``, first prototype of each class, then S.
        size_history: ``[M, S]``, images of each sub-class at M moments of the training,
            NaN if not recorded.
        metric: distance to the prototypes.

    Returns:
        ``offsets``; ``moments`` (fraction of the training) and ``sizes`` ``[m, S]``,
        the last of them counted at the end; ``classes`` shown; ``examples``
        ``[R, 10]``: positions of images of each of the R sub-classes shown, from
        nearest to farthest, padded with -1; ``points`` ``[P, 2]``, ``point_rows``
        ``[P]``, ``centres`` ``[R, 2]``: first two principal components, computed for
        each class separately, and ``explained`` ``[classes, 2]``, their fractions of
        the variance.
    """
    if metric == "cosine":
        features = F.normalize(features, dim=1)
    total = len(prototypes)
    kept = assignments >= 0
    final = torch.bincount(assignments[kept], minlength=total).float()
    recorded = ~size_history.isnan().any(dim=1)
    moments = recorded.nonzero()[:, 0] / len(size_history)
    classes, own = shown_classes(offsets), assignments[positions]
    examples, points, point_rows, centres, explained = [], [], [], [], []
    for c in classes.tolist():
        first, last = int(offsets[c]), int(offsets[c + 1])
        for row in range(first, last):
            nearest = _spread(features, own, row, prototypes[row])
            examples.append(torch.where(nearest < 0, -1, positions[nearest]))
        members = ((own >= first) & (own < last)).nonzero()[:, 0]
        mean = features[members].mean(dim=0)
        _, spread, axes = torch.linalg.svd(
            features[members] - mean, full_matrices=False
        )
        axes = F.pad(axes[:2], (0, 0, 0, max(0, 2 - len(axes))))
        # Fix the sign, which is arbitrary: the same map on every machine.
        axes = axes * torch.where(axes.sum(dim=1, keepdim=True) < 0, -1, 1)
        shown = members[:: max(1, -(-len(members) // POINTS))]
        points.append((features[shown] - mean) @ axes.T)
        point_rows.append(own[shown])
        centres.append((prototypes[first:last] - mean) @ axes.T)
        part = spread.square() / spread.square().sum().clamp(min=1e-30)
        explained.append(F.pad(part, (0, 2))[:2])
    arrays = {
        "offsets": offsets,
        "moments": torch.cat((moments, torch.ones(1))),
        "sizes": torch.cat((size_history[recorded], final[None])),
        "classes": classes,
        "examples": torch.stack(examples),
        "points": torch.cat(points),
        "point_rows": torch.cat(point_rows),
        "centres": torch.cat(centres),
        "explained": torch.stack(explained),
    }
    return {name: array.numpy() for name, array in arrays.items()}


def _spread(
    features: Tensor, assignments: Tensor, row: int, prototype: Tensor
) -> Tensor:
    """Return members of a sub-class, evenly spaced by rank of distance, -1 for none."""
    members = (assignments == row).nonzero()[:, 0]
    distances = (features[members] - prototype).square().sum(dim=1)
    members = members[distances.argsort(stable=True)]
    count = min(EXAMPLES, len(members))
    ranks = torch.linspace(0, max(0, len(members) - 1), count).round().long()
    return F.pad(members[ranks], (0, EXAMPLES - count), value=-1)
