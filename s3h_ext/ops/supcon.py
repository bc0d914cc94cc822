"""The supervised contrastive loss of a batch as one operation.

It combines :func:`s3h_ext.ops.similarity_logsumexp` (denominators) and
:func:`s3h_ext.ops.class_sum_dots` (attraction) into one autograd node. That writes one
gradient matrix instead of three and needs no numbering of classes: for a few hundred
rows this saves most of the time. On a GPU, forward and backward together take at most
eight launches instead of some forty.
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
    compute_dtype,
    refuse_forward_mode,
)
from s3h_ext.ops._autograd import differentiate
from s3h_ext.ops._library import CUDA, LIBRARY
from s3h_ext.ops._scores import keeps_scores, kept_size
from s3h_ext.ops.similarity import allow_tf32

_ARGUMENTS = (
    "Tensor features, Tensor labels, float temperature, int num_classes, "
    "int reduction, bool deterministic, bool allow_tf32, bool keep_scores"
)
# The third and fourth result are what the backward takes: on the CPU the log-sum-exps
# in float64, in units of log 2, and the scores, where they are kept; on CUDA the
# log-sum-exps, and their corrections and the classes (csrc/cuda/supcon.cu, Kept).
LIBRARY.define(f"supcon({_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor)")
LIBRARY.define(
    f"supcon_backward(Tensor grad, Tensor lse, Tensor kept, {_ARGUMENTS}) -> Tensor"
)


def supervised_contrastive(
    features: Tensor,
    labels: Tensor,
    *,
    temperature: float,
    num_classes: int | None = None,
    reduction: Reduction = "mean",
) -> tuple[Tensor, Tensor]:
    r"""Return the loss ``L_out`` of Khosla et al. (2020, eq. 2) and its anchor count.

    ``L_i = log Σ_{a≠i} exp(z_i·z_a/τ) − z_i·(S_{y_i} − z_i) / (τ (n_{y_i} − 1))``

    S_c and n_c are the sum and the number of the rows of class c. A row that is alone
    in its class, or has no class, is not counted: its loss is 0, but it stays in the
    others' denominators. Runs on the CPU, and on a GPU if the CUDA kernels were built;
    :func:`s3h_ext.losses.supcon_loss` supports every device. Features have a first
    derivative only. For 16-bit types, TF32 and determinism, see
    :func:`s3h_ext.ops.similarity_logsumexp`.

    Args:
        features: ``[N, D]`` float32, float64, bfloat16 or float16. Rows should have
            unit length, as in the paper; others give correct results but are slower.
        labels: ``[N]`` integers; negative: no class.
        temperature: τ, > 0.
        num_classes: labels from this number on have no class either.
        reduction: ``"mean"`` over counted rows (0 if there are none), ``"sum"`` or
            ``"none"``.

    Returns:
        The loss, ``[]`` or ``[N]``, float64 for float64 features, otherwise float32;
        and the number of counted rows, ``[]`` int64.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a shape, device or number is invalid.

    Example:
        >>> z = torch.nn.functional.normalize(torch.randn(8, 16), dim=1)
        >>> loss, counted = supervised_contrastive(
        ...     z, torch.tensor([0, 0, 1, 1, 1, 2, 3, -1]), temperature=0.1)
        >>> counted
        tensor(5)
    """
    check_matrices(features, None, "features")
    if not is_fused_on(features.device):
        raise ValueError(
            "features must be on the CPU, or on a GPU with the package's CUDA kernels; "
            f"got {features.device}"
        )
    check_integers("labels", labels, features.shape[0], features.device)
    if num_classes is not None and num_classes < 0:
        raise ValueError(f"num_classes must not be negative, got {num_classes}")
    refuse_forward_mode("supervised_contrastive", features)
    return contrast_rows(
        features, labels, check_temperature(temperature), num_classes, reduction
    )


def is_fused_on(device: torch.device) -> bool:
    """Whether there is a kernel, or the reason why it does not load."""
    return device.type == "cpu" or (device.type == "cuda" and CUDA is not None)


def contrast_rows(
    features: Tensor,
    labels: Tensor,
    temperature: float,
    num_classes: int | None,
    reduction: Reduction,
) -> tuple[Tensor, Tensor]:
    """:func:`supervised_contrastive` for arguments that have been checked."""
    check_reduction(reduction)
    deterministic = torch.are_deterministic_algorithms_enabled()
    loss, counted, _, _ = _call(
        features,
        labels,
        temperature,
        -1 if num_classes is None else num_classes,
        REDUCTIONS.index(reduction),
        deterministic,
        features.is_cuda and features.dtype == torch.float32 and allow_tf32(),
        keeps_scores(features, None, deterministic),
    )
    return cast(Tensor, loss), cast(Tensor, counted)


def _fake_forward(
    features: Tensor,
    labels: Tensor,
    temperature: float,
    num_classes: int,
    reduction: int,
    deterministic: bool,
    allow_tf32: bool,
    keep_scores: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, depth = features.shape
    dtype = compute_dtype(features.dtype)
    if features.device.type == "cpu":
        kept = kept_size(rows, rows, True) if keep_scores else 0
    else:
        kept = _kept_on_cuda(rows, depth, num_classes, dtype)
    return (
        features.new_empty((rows,) if reduction == 0 else (), dtype=dtype),
        features.new_empty((), dtype=torch.int64),
        features.new_empty(
            rows, dtype=torch.float64 if features.device.type == "cpu" else dtype
        ),
        features.new_empty(kept, dtype=torch.float32),
    )


def _kept_on_cuda(rows: int, depth: int, num_classes: int, dtype: torch.dtype) -> int:
    """Returns how many float32 csrc/cuda/supcon.cu keeps."""
    keys = rows if num_classes < 0 else torch.sym_min(num_classes, rows)
    sums = keys * depth * (dtype.itemsize // 4)
    return cast(int, -(-sums // 4) * 4 + 3 * rows + keys + 1)


def _fake_backward(
    grad: Tensor, lse: Tensor, kept: Tensor, features: Tensor, *arguments: Any
) -> Tensor:
    return features.new_empty(features.shape)


_call = differentiate(
    "supcon",
    _fake_forward,
    _fake_backward,
    kept=slice(2, None),
    shown_as="supervised_contrastive",
)
