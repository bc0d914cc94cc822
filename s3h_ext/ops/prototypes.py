"""Clustering within classes by moving averages, on a ragged state.

Class c owns the rows ``offsets[c] .. offsets[c + 1] - 1`` of the prototypes ``[S, D]``,
their sums ``[S, D]`` and their masses ``[S]``: frequent classes may have many rows,
rare ones a single one. A step consists of :func:`accumulate_prototypes`, which assigns
a batch and sums it up, :func:`all_reduce_update` if several processes hold parts of the
batch, and :func:`apply_prototypes_`, which needs no samples. If one process holds the
whole batch, :func:`update_prototypes_` does it all faster.

The state starts from zeros: a row of mass 0 is unused. Rows come into use by splitting,
one per class and step: the row with the greatest distortion is split in two.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from s3h_ext.ops._arguments import check_integers
from s3h_ext.ops._library import LIBRARY, count_changes, implement, registry
from s3h_ext.ops.plain import prototypes as plain

Metric = Literal["euclidean", "cosine"]

LIBRARY.define(
    "accumulate_prototypes(Tensor features, Tensor labels, Tensor prototypes, "
    "Tensor masses, Tensor offsets, Tensor(a!) sums, Tensor(b!) counts, "
    "Tensor(c!) distortions, Tensor(d!) far_distances, Tensor(e!) far_features, "
    "bool cosine) -> Tensor"
)
LIBRARY.define(
    "apply_prototypes_(Tensor(a!) prototypes, Tensor(b!) sums, Tensor(c!) masses, "
    "Tensor offsets, Tensor batch_sums, Tensor batch_counts, Tensor distortions, "
    "Tensor far_features, float momentum, float expire_below, bool cosine) -> ()"
)
LIBRARY.define(
    "update_prototypes_(Tensor features, Tensor labels, Tensor(a!) prototypes, "
    "Tensor(b!) sums, Tensor(c!) masses, Tensor offsets, float momentum, "
    "float expire_below, bool cosine) -> Tensor"
)


class PrototypeUpdate(NamedTuple):
    """The contribution of a batch to the state.

    Attributes:
        assignments: int64 ``[N]``, row of each sample; -1 if it was ignored.
        sums: ``[S, D]``, sum of the samples of each row (cosine: of unit features).
        counts: ``[S]``, number of samples of each row.
        distortions: ``[S]``, sum of the distances between each row's samples and its
            prototype, squared if Euclidean.
        far_distances: ``[C]``, distance of each class's farthest sample to its
            prototype, squared if Euclidean; -1 for a class without samples.
        far_features: ``[C, D]``, that sample; 0 for a class without samples.
    """

    assignments: Tensor
    sums: Tensor
    counts: Tensor
    distortions: Tensor
    far_distances: Tensor
    far_features: Tensor


def _is_cosine(metric: Metric) -> bool:
    if metric not in get_args(Metric):
        raise ValueError(f"metric: expected one of {get_args(Metric)}, got {metric!r}")
    return metric == "cosine"


def _check_average(momentum: float, expire_below: float) -> None:
    for name, value in (("momentum", momentum), ("expire_below", expire_below)):
        if not 0.0 <= value < 1.0:
            raise ValueError(f"{name}: expected a number in [0, 1), got {value}")


def _check_samples(features: Tensor, labels: Tensor) -> None:
    check_integers("labels", labels, features.shape[0], features.device)


def _check_offsets(offsets: Tensor, device: torch.device) -> None:
    if offsets.ndim != 1 or len(offsets) == 0:
        raise ValueError(f"offsets must be [C + 1], got shape {tuple(offsets.shape)}")
    check_integers("offsets", offsets, len(offsets), device)


def accumulate_prototypes(
    features: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    masses: Tensor,
    offsets: Tensor,
    *,
    metric: Metric = "euclidean",
    out: PrototypeUpdate | None = None,
) -> PrototypeUpdate:
    r"""Assign each sample to the nearest prototype of its class, and sum per row.

    Euclidean: ``argmin_k |f - p_k|²``; cosine: ``argmin_k 1 - f·p_k / |f|``, for unit
        prototypes. Ties go to the first. Unused rows (mass 0) get no samples, except
        for the first row of a class. There are no gradients. The result depends neither
        on the number of threads nor, on CUDA, on the run. Nothing synchronises with the
        host on CUDA: an out-of-range label triggers a device-side assert, and offsets
        are not validated.

    Args:
        features: ``[N, D]`` floating point. Samples with a non-finite distance are
            ignored.
        labels: int64 ``[N]``; negative ones are ignored.
        prototypes: ``[S, D]``, float64 for float64 features, otherwise float32.
        masses: ``[S]``, same type as the prototypes.
        offsets: int64 ``[C + 1]``, rising from 0 to S.
        metric: ``"euclidean"`` or ``"cosine"``.
        out: a previous update of the same state, whose memory is reused except for the
            assignments. In a training loop this saves an allocation of the size of the
            state in each step.

    Returns:
        The batch's contribution, in the type of the prototypes.

    Raises:
        ValueError: an unknown metric; labels or offsets have the wrong shape or device.
        TypeError: labels or offsets are not integers.
        RuntimeError: another shape or type does not match; on the CPU, a label is not
            below C or offsets do not rise from 0 to S.

    Example:
        >>> state = torch.tensor([[0.0], [10.0], [5.0]])
        >>> update = accumulate_prototypes(
        ...     torch.tensor([[1.0], [7.0], [7.0]]), torch.tensor([0, 0, 1]),
        ...     state, torch.ones(3), torch.tensor([0, 2, 3]))
        >>> update.assignments
        tensor([0, 1, 2])
    """
    _check_samples(features, labels)
    _check_offsets(offsets, features.device)
    operators: Any = torch.ops.s3h
    if out is None:
        classes, depth = offsets.shape[0] - 1, prototypes.shape[-1]
        out = PrototypeUpdate(
            labels,
            prototypes.new_empty(prototypes.shape),
            masses.new_empty(masses.shape),
            masses.new_empty(masses.shape),
            prototypes.new_empty(classes),
            prototypes.new_empty(classes, depth),
        )
    assignments = operators.accumulate_prototypes(
        features.detach(),
        labels,
        prototypes,
        masses,
        offsets,
        *out[1:],
        _is_cosine(metric),
    )
    return out._replace(assignments=assignments)


def all_reduce_update(
    update: PrototypeUpdate, group: dist.ProcessGroup | None = None
) -> PrototypeUpdate:
    """Combine the updates of all processes; each process gets the result.

    Sums, counts and distortions are added. The farthest sample of a class is the
    farthest of all; ties go to the lowest rank. If consecutive ranks hold consecutive
    parts of a batch, the result is the same as for one process with the whole batch.

    Args:
        update: this process's update; shapes may differ between processes only in N.
        group: the process group; None for all processes.

    Returns:
        The update of the whole batch, with this process's own assignments.

    Raises:
        RuntimeError: ``torch.distributed`` is not initialised.
    """
    rows, depth = update.sums.shape
    parts = [
        torch.empty_like(update.far_distances)
        for _ in range(dist.get_world_size(group))
    ]
    dist.all_gather(parts, update.far_distances.contiguous(), group=group)
    far_distances, owner = torch.stack(parts).max(dim=0)
    mine = owner == dist.get_rank(group)
    far_features = torch.where(mine[:, None], update.far_features, 0)
    parts = [update.sums, update.counts, update.distortions, far_features]
    packed = torch.cat([part.flatten() for part in parts])
    dist.all_reduce(packed, group=group)
    sums, counts, distortions, far = packed.split([part.numel() for part in parts])
    return PrototypeUpdate(
        update.assignments,
        sums.view(rows, depth),
        counts,
        distortions,
        far_distances,
        far.view(-1, depth),
    )


def apply_prototypes_(
    prototypes: Tensor,
    sums: Tensor,
    masses: Tensor,
    offsets: Tensor,
    update: PrototypeUpdate,
    *,
    metric: Metric = "euclidean",
    momentum: float = 0.99,
    expire_below: float = 0.1,
) -> None:
    r"""Apply an update to the state, in place.

    For every class in the batch and each of its rows k:

    .. math:: s_k \leftarrow g s_k + \sum f, \quad m_k \leftarrow g m_k + n_k, \quad
              p_k = s_k / m_k \;\text{(cosine: } s_k / |s_k|\text{)}

    with momentum g. A row without samples in the batch keeps its prototype, and classes
    absent from the batch keep their whole state. Then the lightest row of the class is
    *dead* if its mass is at most ``expire_below`` times the class's mass per row. It
    becomes one half of the other row whose samples in the batch have the greatest
    distortion,

    .. math:: m \to \tfrac{m}{2}, \tfrac{m}{2}, \quad
              s \to \tfrac{1}{2} (s \pm 0.03\, m (f - p)),

    for that row's new prototype p and the class's farthest sample f: the splitting of
    Linde, Buzo and Gray (IEEE Trans. Communications 28(1), 1980). The two halves share
    the row's samples for any D, and the moving averages drive them apart. Each step
    splits at most one row per class, and none in the first batch of a class, or if no
    other row's distortion exceeds rounding error: ε|p|² for each sample of the row,
    cosine: 8 ε, with the type's machine epsilon.

    Args:
        prototypes: ``[S, D]`` float32 or float64, contiguous like the whole state.
        sums: ``[S, D]``.
        masses: ``[S]``.
        offsets: int64 ``[C + 1]``, rising from 0 to S.
        update: update of the whole batch.
        metric: as in :func:`accumulate_prototypes`.
        momentum: g in [0, 1); closer to 1 averages over more steps.
        expire_below: relative mass of dead rows, in [0, 1); 0: only unused rows are
            dead.

    Raises:
        ValueError: an argument is out of range; offsets have the wrong shape or device.
        TypeError: offsets are not integers.
        RuntimeError: another shape or type does not match.

    Example:
        >>> prototypes, sums = torch.zeros(1, 1), torch.zeros(1, 1)
        >>> masses = torch.zeros(1)
        >>> offsets = torch.tensor([0, 1])
        >>> update = accumulate_prototypes(
        ...     torch.tensor([[1.0], [3.0]]), torch.tensor([0, 0]), prototypes, masses,
        ...     offsets)
        >>> apply_prototypes_(prototypes, sums, masses, offsets, update)
        >>> prototypes, masses
        (tensor([[2.]]), tensor([2.]))
    """
    _check_average(momentum, expire_below)
    _check_offsets(offsets, prototypes.device)
    operators: Any = torch.ops.s3h
    operators.apply_prototypes_(
        prototypes,
        sums,
        masses,
        offsets,
        update.sums,
        update.counts,
        update.distortions,
        update.far_features,
        momentum,
        expire_below,
        _is_cosine(metric),
    )


def update_prototypes_(
    features: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    sums: Tensor,
    masses: Tensor,
    offsets: Tensor,
    *,
    metric: Metric = "euclidean",
    momentum: float = 0.99,
    expire_below: float = 0.1,
) -> Tensor:
    """Assign a batch and apply its update to the state, in place.

    Gives the same bits as :func:`accumulate_prototypes` followed by
    :func:`apply_prototypes_`, but works class by class in the cache and stores no batch
    sums.

    Args:
        features: ``[N, D]``, as in :func:`accumulate_prototypes`.
        labels: int64 ``[N]``; negative ones are ignored.
        prototypes: ``[S, D]``, float64 for float64 features, otherwise float32;
            contiguous, like ``sums`` and ``masses``.
        sums: ``[S, D]``.
        masses: ``[S]``.
        offsets: int64 ``[C + 1]``, rising from 0 to S.
        metric: ``"euclidean"`` or ``"cosine"``.
        momentum: in [0, 1), see :func:`apply_prototypes_`.
        expire_below: in [0, 1), see :func:`apply_prototypes_`.

    Returns:
        int64 ``[N]``: row of each sample among the prototypes before the step; -1 if it
        was ignored.

    Raises:
        ValueError: an unknown metric, or a number out of range; labels or offsets have
            the wrong shape or device.
        TypeError: labels or offsets are not integers.
        RuntimeError: a label is not below C, offsets do not rise from 0 to S, or
            another shape or type does not match. The state is then unchanged.

    Example:
        >>> prototypes, sums = torch.zeros(1, 1), torch.zeros(1, 1)
        >>> masses, offsets = torch.zeros(1), torch.tensor([0, 1])
        >>> features, labels = torch.tensor([[1.0], [3.0]]), torch.tensor([0, 0])
        >>> update_prototypes_(features, labels, prototypes, sums, masses, offsets)
        tensor([0, 0])
        >>> prototypes
        tensor([[2.]])
    """
    _check_average(momentum, expire_below)
    _check_samples(features, labels)
    _check_offsets(offsets, prototypes.device)
    operators: Any = torch.ops.s3h
    assignments: Tensor = operators.update_prototypes_(
        features.detach(),
        labels,
        prototypes,
        sums,
        masses,
        offsets,
        momentum,
        expire_below,
        _is_cosine(metric),
    )
    return assignments


def _fake_accumulate(features: Tensor, labels: Tensor, *rest: Any) -> Tensor:
    return labels.new_empty(features.shape[0], dtype=torch.int64)


def _fake_apply(*arguments: Any) -> None:
    return None


implement(
    accumulate_prototypes=plain.accumulate_prototypes,
    apply_prototypes_=plain.apply_prototypes_,
    update_prototypes_=plain.update_prototypes_,
)
registry.register_fake("s3h::accumulate_prototypes", _fake_accumulate, lib=LIBRARY)
registry.register_fake("s3h::apply_prototypes_", _fake_apply, lib=LIBRARY)
registry.register_fake("s3h::update_prototypes_", _fake_accumulate, lib=LIBRARY)
count_changes("accumulate_prototypes", "apply_prototypes_", "update_prototypes_")
