"""Analyses sub-classes for the report: sizes, examples, and maps of a few classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from s3h_ext.ops.prototypes import Metric

#: Classes with a map and examples: those with the most sub-classes.
SHOWN_CLASSES = 4
EXAMPLES = 10
POINTS = 1000


def shown_classes(offsets: Tensor) -> Tensor:
    """Return the classes with a map and examples, int64, the most divided first.

    Args:
        offsets: int64 ``[C + 1]``.
    """
    # Stable, so that of classes with equally many rows the first ones are shown.
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
    """Return the arrays behind the pictures.

    Args:
        features: ``[M, D]`` of the training images of the classes that are shown.
        positions: int64 ``[M]``, which of the N training images these are.
        assignments: int64 ``[N]``, sub-classes of all training images; -1: none.
        prototypes: ``[S, D]``.
        offsets: int64 ``[C + 1]``.
        size_history: ``[M, S]``, images of each sub-class at M moments of the training,
            NaN where there is no record.
        metric: of the prototypes.

    Returns:
        ``offsets``; ``moments`` (share of the training) and ``sizes`` ``[m, S]``, the
        last of them counted at the end; ``classes`` shown; ``examples`` ``[R, 10]``:
        positions of images of each of their R sub-classes, from the nearest to the
        farthest of its members, -1 for none; ``points`` ``[P, 2]``, ``point_rows``
        ``[P]``, ``centres`` ``[R, 2]``: the first two principal components of each
        shown class for itself, and ``explained`` ``[classes, 2]``, their part of the
        variance.
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
        # Of either sign; the same map on every machine.
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
    """Return members of a row, evenly by the rank of their distance, -1 for none."""
    members = (assignments == row).nonzero()[:, 0]
    distances = (features[members] - prototype).square().sum(dim=1)
    members = members[distances.argsort(stable=True)]
    count = min(EXAMPLES, len(members))
    ranks = torch.linspace(0, max(0, len(members) - 1), count).round().long()
    return F.pad(members[ranks], (0, EXAMPLES - count), value=-1)
