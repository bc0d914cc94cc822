"""The prototypical supervised contrastive loss as one CPU operation.

One pass over the similarities sums the anchor's own class separately, so the attraction
costs nothing extra, in forward or backward.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from s3h_ext.ops._arguments import (
    REDUCTIONS,
    Reduction,
    check_integers,
    check_matrices,
    check_reduction,
    check_temperature,
    check_tensor,
    meet_under_autocast,
    refuse_forward_mode,
)
from s3h_ext.ops._autograd import differentiate
from s3h_ext.ops._library import LIBRARY
from s3h_ext.ops._scores import keeps_scores, kept_size

_ARGUMENTS = (
    "Tensor features, Tensor prototypes, Tensor labels, float temperature, "
    "int reduction, bool deterministic, bool keep_scores"
)
LIBRARY.define(f"prototypical({_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor)")
LIBRARY.define(
    "prototypical_backward(Tensor grad, Tensor lse, Tensor scores, "
    f"bool need_features, bool need_prototypes, {_ARGUMENTS}) -> (Tensor, Tensor)"
)


def prototypical_contrastive(
    features: Tensor,
    prototypes: Tensor,
    labels: Tensor,
    *,
    temperature: float,
    reduction: Reduction = "mean",
) -> tuple[Tensor, Tensor]:
    r"""Return the loss of Wang et al. (CVPR 2021, Hybrid-PSC) and its anchor count.

    ``L_i = log Σ_{j: c_j ≠ y_i} exp(z_i·p_j/τ) − log Σ_{j: c_j = y_i} exp(z_i·p_j/τ)``

    c_j is the class of prototype j. A row is not counted, and its loss is 0, if it has
    no class or there is no other class. CPU only;
    :func:`s3h_ext.losses.prototypical_supcon_loss` supports every device and float64.
    Features and prototypes have first derivatives only. For 16-bit types, autocast and
    determinism, see :func:`s3h_ext.ops.similarity_logsumexp`.

    Args:
        features: ``[N, D]`` float32, bfloat16 or float16.
        prototypes: ``[C, D]`` or ``[C, K, D]`` of the same type.
        labels: ``[N]`` integers; outside [0, C): no class.
        temperature: τ, > 0.
        reduction: ``"mean"`` over counted rows (0 if there are none), ``"sum"`` or
            ``"none"``.

    Returns:
        The loss, ``[]`` or ``[N]`` float32; and the number of counted rows, ``[]``
        int64.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a shape, device or number is invalid.

    Example:
        >>> z = torch.nn.functional.normalize(torch.randn(8, 16), dim=1)
        >>> loss, counted = prototypical_contrastive(
        ...     z, torch.eye(3, 16), torch.tensor([0, 0, 1, 1, 1, 2, 3, -1]),
        ...     temperature=0.1)
        >>> counted
        tensor(6)
    """
    check_matrices(features, None, "features")
    check_tensor("prototypes", prototypes)
    if prototypes.ndim not in (2, 3) or prototypes.shape[-1] != features.shape[1]:
        raise ValueError(
            f"prototypes must be [C, {features.shape[1]}] or "
            f"[C, K, {features.shape[1]}], got shape {tuple(prototypes.shape)}"
        )
    for name, tensor in (("features", features), ("prototypes", prototypes)):
        if tensor.device.type != "cpu":
            raise ValueError(f"{name} must be on the CPU, got {tensor.device}")
    check_integers("labels", labels, features.shape[0], features.device)
    refuse_forward_mode("prototypical_contrastive", features, prototypes)
    return contrast_prototypes(
        features, prototypes, labels, check_temperature(temperature), reduction
    )


def contrast_prototypes(
    features: Tensor,
    prototypes: Tensor,
    labels: Tensor,
    temperature: float,
    reduction: Reduction,
) -> tuple[Tensor, Tensor]:
    """:func:`prototypical_contrastive` for arguments whose shapes have been checked."""
    check_reduction(reduction)
    features, other = meet_under_autocast(features, prototypes)
    prototypes = cast(Tensor, other)
    if features.dtype == torch.float64 or prototypes.dtype != features.dtype:
        raise TypeError(
            "features and prototypes must be float32, bfloat16 or float16, both the "
            f"same, got {features.dtype} and {prototypes.dtype}"
        )
    deterministic = torch.are_deterministic_algorithms_enabled()
    loss, counted, _, _ = _call(
        features,
        prototypes,
        labels,
        temperature,
        REDUCTIONS.index(reduction),
        deterministic,
        keeps_scores(features, prototypes, deterministic),
    )
    return cast(Tensor, loss), cast(Tensor, counted)


def _fake_forward(
    features: Tensor,
    prototypes: Tensor,
    labels: Tensor,
    temperature: float,
    reduction: int,
    deterministic: bool,
    keep_scores: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = features.shape[0]
    columns = prototypes.shape[:-1].numel()
    return (
        features.new_empty((rows,) if reduction == 0 else (), dtype=torch.float32),
        features.new_empty((), dtype=torch.int64),
        features.new_empty((2, rows), dtype=torch.float64),
        features.new_empty(
            kept_size(rows, columns, False) if keep_scores else 0, dtype=torch.float32
        ),
    )


def _fake_backward(
    grad: Tensor,
    lse: Tensor,
    scores: Tensor,
    need_features: bool,
    need_prototypes: bool,
    features: Tensor,
    prototypes: Tensor,
    *arguments: Any,
) -> tuple[Tensor, Tensor]:
    def gradient(of: Tensor, wanted: bool) -> Tensor:
        return of.new_empty(of.shape[0] if wanted else 0, *of.shape[1:])

    return gradient(features, need_features), gradient(prototypes, need_prototypes)


_call = differentiate(
    "prototypical",
    _fake_forward,
    _fake_backward,
    sources=2,
    kept=slice(2, None),
    asked=True,
    shown_as="prototypical_contrastive",
)
