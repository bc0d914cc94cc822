"""Clustering within classes by moving averages.

Nothing is copied to the host, and memory is O(N + S D) plus a chunk of fixed size. It
computes the distances to all S prototypes, C times the work of the kernels.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from s3h_ext.ops._arguments import compute_dtype, outside_autocast

__all__ = [
    "accumulate",
    "accumulate_prototypes",
    "apply_prototypes_",
    "update_prototypes_",
]

_CHUNK_ELEMENTS = 1 << 22
# As in csrc/cpu/prototypes.cpp.
_SPLIT = 0.03
_COSINE_NOISE = 8


def _inverse_norms(rows: Tensor) -> Tensor:
    """Return ``1 / |row|`` [N]; 0 for a zero row, NaN if a norm is not finite."""
    # float64 holds the squares of all float32 numbers.
    squares = rows.double().square().sum(dim=1)
    scale = torch.where(squares > 0, squares.rsqrt(), 0)
    return torch.where(squares < math.inf, scale, math.nan).to(rows.dtype)


def _nearest(
    features: Tensor,
    first: Tensor,
    last: Tensor,
    prototypes: Tensor,
    masses: Tensor,
    cosine: bool,
) -> tuple[Tensor, Tensor]:
    """Return the nearest row [n] with ``first <= row < last`` and its distance [n]."""
    products = features @ prototypes.T
    if cosine:
        distances = 1 - products
    else:
        distances = prototypes.square().sum(dim=1) - 2 * products
    columns = torch.arange(len(prototypes), device=features.device)
    own = (columns >= first[:, None]) & (columns < last[:, None])
    born = (masses > 0) | (columns == first[:, None])
    row = torch.where(own & born, distances, math.inf).argmin(dim=1)
    # Recompute directly: the expanded square has lost precision.
    chosen = prototypes.index_select(0, row)
    if cosine:
        return row, 1 - (features * chosen).sum(dim=1)
    return row, (features - chosen).square().sum(dim=1)


@outside_autocast
def accumulate(
    features: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    masses: Tensor,
    offsets: Tensor,
    cosine: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Assign and sum up; return what the operator writes into its arguments."""
    count, depth = features.shape
    rows, classes = len(prototypes), len(offsets) - 1
    features = features.to(compute_dtype(features.dtype))
    sums = features.new_zeros(rows + 1, depth)
    counts = features.new_zeros(rows + 1)
    distortions = torch.zeros_like(counts)
    far = features.new_full((classes + 1,), -1.0)
    if not count or not classes:
        assignments = torch.full_like(labels, -1)
        return (
            assignments,
            sums[:rows],
            counts[:rows],
            distortions[:rows],
            far[:classes],
            features.new_zeros(classes, depth),
        )
    torch._assert_async(
        (labels < classes).all(), "labels must be below the number of classes"
    )
    if cosine:
        features = features * _inverse_norms(features)[:, None]
    safe = labels.clamp(0, classes - 1)
    first, last = offsets[safe], offsets[safe + 1]
    row, distance = torch.empty_like(labels), features.new_empty(count)
    step = max(1, _CHUNK_ELEMENTS // rows)
    for start in range(0, count, step):
        part = slice(start, start + step)
        row[part], distance[part] = _nearest(
            features[part], first[part], last[part], prototypes, masses, cosine
        )
    kept = (labels >= 0) & (distance < math.inf)
    row = torch.where(kept, row, rows)
    sums.index_add_(0, row, features)
    counts.index_add_(0, row, torch.ones_like(distance))
    distortions.index_add_(0, row, distance)
    label = torch.where(kept, labels, classes)
    distance = torch.where(kept, distance, -1)
    far.scatter_reduce_(0, label, distance, "amax")
    # The first of equally distant samples.
    numbers = torch.arange(count, device=labels.device)
    numbers = torch.where(distance == far[label], numbers, count)
    farthest = torch.full_like(far, count, dtype=torch.int64)
    farthest = farthest.scatter_reduce_(0, label, numbers, "amin")[:classes]
    chosen = features.index_select(0, farthest.clamp(max=count - 1))
    return (
        torch.where(kept, row, -1),
        sums[:rows],
        counts[:rows],
        distortions[:rows],
        torch.where(farthest < count, far[:classes], -1),
        torch.where((farthest < count)[:, None], chosen, 0),
    )


def accumulate_prototypes(
    features: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    masses: Tensor,
    offsets: Tensor,
    sums: Tensor,
    counts: Tensor,
    distortions: Tensor,
    far_distances: Tensor,
    far_features: Tensor,
    cosine: bool,
) -> Tensor:
    """The operator ``s3h::accumulate_prototypes``."""
    assignments, *results = accumulate(
        features, labels, prototypes, masses, offsets, cosine
    )
    outputs = (sums, counts, distortions, far_distances, far_features)
    for output, result in zip(outputs, results, strict=True):
        output.copy_(result)
    return assignments


def apply_prototypes_(
    prototypes: Tensor,
    sums: Tensor,
    masses: Tensor,
    offsets: Tensor,
    batch_sums: Tensor,
    batch_counts: Tensor,
    distortions: Tensor,
    far_features: Tensor,
    momentum: float,
    expire_below: float,
    cosine: bool,
) -> None:
    """The operator ``s3h::apply_prototypes_``."""
    rows, classes = len(prototypes), len(offsets) - 1
    if not classes:
        return
    numbers = torch.arange(rows, device=offsets.device)
    owner = torch.searchsorted(offsets, numbers, right=True) - 1

    def per_class(values: Tensor) -> Tensor:
        return values.new_zeros(classes).index_add_(0, owner, values)

    def first_where(held: Tensor) -> Tensor:
        first = torch.full_like(offsets[1:], rows)
        numbers_held = torch.where(held, numbers, rows)
        return first.scatter_reduce_(0, owner, numbers_held, "amin")

    present = (per_class(batch_counts) > 0)[owner]
    new_masses = momentum * masses + batch_counts
    least = expire_below * per_class(new_masses) / offsets.diff()
    lightest = new_masses.new_full((classes,), math.inf)
    lightest.scatter_reduce_(0, owner, new_masses, "amin")
    dead = first_where(new_masses == lightest[owner])
    # In the first batch of a class, distances refer to no prototype.
    dead = torch.where((per_class(masses) > 0) & (lightest <= least), dead, rows)
    # Rounding errors are not a distortion.
    squares = _COSINE_NOISE if cosine else prototypes.square().sum(dim=1)
    noise = torch.finfo(masses.dtype).eps * batch_counts * squares
    kept = (numbers != dead[owner]) & (distortions > noise)
    errors = torch.where(kept, distortions, 0)
    greatest = errors.new_zeros(classes).scatter_reduce_(0, owner, errors, "amax")
    parent = first_where((errors == greatest[owner]) & (errors > 0))
    split = present & (torch.maximum(dead, parent) < rows)[owner]
    children = split & (numbers == dead[owner])
    halves = children | (split & (numbers == parent[owner]))

    new_masses = torch.where(present, new_masses, masses)
    new_sums = torch.where(present[:, None], momentum * sums + batch_sums, sums)

    def moved(which: Tensor, old: Tensor) -> Tensor:
        scale = _inverse_norms(new_sums) if cosine else 1 / new_masses
        which = which & (scale > 0)
        return torch.where(which[:, None], new_sums * scale[:, None], old)

    updated = moved(present & (batch_counts > 0), prototypes)
    origin = torch.where(split, parent[owner], numbers)
    half = new_masses[origin] / 2
    away = far_features.index_select(0, owner) - updated[origin]
    shift = _SPLIT * half[:, None] * away
    shift = torch.where(children[:, None], shift, -shift)
    new_sums = torch.where(halves[:, None], new_sums[origin] / 2 + shift, new_sums)
    new_masses = torch.where(halves, half, new_masses)
    prototypes.copy_(moved(halves, updated))
    sums.copy_(new_sums)
    masses.copy_(new_masses)


def update_prototypes_(
    features: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    sums: Tensor,
    masses: Tensor,
    offsets: Tensor,
    momentum: float,
    expire_below: float,
    cosine: bool,
) -> Tensor:
    """The operator ``s3h::update_prototypes_``, composed of the other two."""
    classes, depth = offsets.shape[0] - 1, prototypes.shape[1]
    batch_sums, counts, distortions = map(torch.empty_like, (sums, masses, masses))
    far_distances = prototypes.new_empty(classes)
    far_features = prototypes.new_empty(classes, depth)
    batch = (batch_sums, counts, distortions, far_distances, far_features)
    operators: Any = torch.ops.s3h
    assignments: Tensor = operators.accumulate_prototypes(
        features, labels, prototypes, masses, offsets, *batch, cosine
    )
    operators.apply_prototypes_(
        prototypes,
        sums,
        masses,
        offsets,
        batch_sums,
        counts,
        distortions,
        far_features,
        momentum,
        expire_below,
        cosine,
    )
    return assignments
