"""Row-wise log-sum-exp over a similarity matrix that is never stored.

Contrastive, prototypical and logit-adjusted losses differ in the biases added to the
scores and the pairs that are excluded, not in the reduction; :mod:`s3h_ext.losses`
shows how to express each of them.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor

from s3h_ext.ops._arguments import (
    check_bias,
    check_integers,
    check_matrices,
    check_temperature,
    compute_dtype,
    meet_under_autocast,
    refuse_forward_mode,
)
from s3h_ext.ops._autograd import differentiate
from s3h_ext.ops._library import CUDA, LIBRARY
from s3h_ext.ops._scores import keeps_scores, kept_size
from s3h_ext.ops.plain import similarity as plain

_ARGUMENTS = (
    "Tensor queries, Tensor? keys, float temperature, Tensor? key_bias, "
    "Tensor? query_labels, Tensor? key_labels, Tensor? same_label_bias, "
    "float same_label_value, Tensor? self_index, bool assume_normalized, "
    "bool deterministic, bool allow_tf32, bool keep_scores"
)
# The second result makes up for the precision that a float32 lse lacks in the backward:
# on the CPU float64, the same in units of log 2; on CUDA float32, the correction of
# csrc/cuda/similarity_log.cuh; [0] if lse suffices. The third result holds the scores
# if they are kept for the backward, otherwise [0].
LIBRARY.define(f"similarity_logsumexp({_ARGUMENTS}) -> (Tensor, Tensor, Tensor)")
LIBRARY.define(
    "similarity_logsumexp_backward(Tensor grad, Tensor lse, Tensor kept, "
    f"Tensor scores, bool need_queries, bool need_keys, {_ARGUMENTS}) -> "
    "(Tensor, Tensor)"
)


def similarity_logsumexp(
    queries: Tensor,
    keys: Tensor | None = None,
    *,
    temperature: float,
    key_bias: Tensor | None = None,
    query_labels: Tensor | None = None,
    key_labels: Tensor | None = None,
    same_label_bias: float | Tensor = 0.0,
    self_index: Tensor | None = None,
    assume_normalized: bool = False,
) -> Tensor:
    r"""Return ``lse_i = log Σ_j exp(q_i·k_j / τ + b_j + [y_i = y_j] c_i)``.

    The N×M scores are computed in tiles and recomputed in the backward. Only the CPU
    stores them, if a gradient is needed and they take less than 8 MiB. With
    ``keys=None`` the queries are the keys and no row sees itself; passing the same
    tensor twice does not imply this. A row without any key is -inf and has zero
    gradient.

    16-bit inputs are multiplied as they are; sums and results are float32. CUDA kernels
    multiply float32 to float32 accuracy, and use TF32 only if torch may
    (``torch.backends.cuda.matmul.allow_tf32``). Under autocast, queries and keys of
    different types are converted to the wider one. Gradients flow to queries and keys;
    a second derivative is an error.

    Args:
        queries: ``[N, D]`` float32, float64, bfloat16 or float16.
        keys: ``[M, D]`` of the same type, or None for the symmetric case.
        temperature: τ, > 0.
        key_bias: b, ``[M]`` floating point (``[N]`` in the symmetric case); -inf
            excludes a key. Must not require a gradient.
        query_labels: y, ``[N]`` integers; a negative label matches nothing. In the
            symmetric case they are the keys' labels too.
        key_labels: ``[M]`` integers; only with ``query_labels`` and ``keys``.
        same_label_bias: c, a number or ``[N]``, added if labels agree; -inf excludes
            those pairs. Must not require a gradient.
        self_index: ``[N]`` integers: index of the key that row i must not see; outside
            [0, M): none. Not with ``keys=None``.
        assume_normalized: hint that rows have unit length: a CUDA kernel then sums
            exponentials without first finding the maximum, and redoes rows whose sum is
            too large or too small. The accuracy is the same. The CPU kernel finds the
            lengths by itself.

    Returns:
        ``[N]``, float64 for float64 queries, otherwise float32.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a shape, device, temperature or combination is invalid.

    Example:
        >>> z = torch.nn.functional.normalize(torch.randn(8, 16), dim=1)
        >>> similarity_logsumexp(z, temperature=0.1).shape
        torch.Size([8])
    """
    queries, keys = meet_under_autocast(queries, keys)
    check_matrices(queries, keys)
    refuse_forward_mode("similarity_logsumexp", queries, keys)
    temperature = check_temperature(temperature)
    rows = queries.shape[0]
    columns = rows if keys is None else keys.shape[0]
    device = queries.device
    check_bias("key_bias", key_bias, columns, device)
    check_integers("query_labels", query_labels, rows, device)
    check_integers("key_labels", key_labels, columns, device)
    check_integers("self_index", self_index, rows, device)
    if keys is None and (key_labels is not None or self_index is not None):
        raise ValueError(
            "key_labels and self_index must be None in the symmetric case "
            "(keys=None): query_labels serve as both and row i excludes key i"
        )
    if keys is not None and (query_labels is None) != (key_labels is None):
        raise ValueError("query_labels and key_labels must be given together")
    bias: Tensor | None = None
    value = 0.0
    if isinstance(same_label_bias, Tensor):
        bias = same_label_bias
        check_bias("same_label_bias", bias, rows, device)
    else:
        value = float(same_label_bias)
        if not value < math.inf:
            raise ValueError(
                f"same_label_bias must be a number below infinity, got {value}"
            )
    if query_labels is None and (bias is not None or value != 0):
        raise ValueError("same_label_bias needs query_labels, which are None")
    deterministic = torch.are_deterministic_algorithms_enabled()
    lse, _, _ = _call(
        queries,
        keys,
        temperature,
        key_bias,
        query_labels,
        key_labels,
        bias,
        value,
        self_index,
        assume_normalized,
        deterministic,
        queries.dtype == torch.float32 and allow_tf32(),
        keeps_scores(queries, keys, deterministic),
    )
    return cast(Tensor, lse)


def allow_tf32() -> bool:
    """Return whether torch may multiply float32 matrices by TF32 on a GPU.

    Reading ``allow_tf32`` raises if the newer setting was used, which covers both.
    """
    return str(torch.backends.cuda.matmul.fp32_precision) == "tf32"


# torch.compile reads the setting once and recompiles when it changes. This flag is all
# that torch.compiler.assume_constant_result sets, but that would import the compiler,
# which takes 1.4 s even if nothing is compiled.
allow_tf32._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _fake_forward(
    queries: Tensor, keys: Tensor | None, *args: Any
) -> tuple[Tensor, Tensor, Tensor]:
    rows = queries.shape[0]
    columns = rows if keys is None else keys.shape[0]
    dtype = compute_dtype(queries.dtype)
    device = queries.device.type
    native = device == "cpu" or (device == "cuda" and CUDA is not None and CUDA.loaded)
    return (
        queries.new_empty(rows, dtype=dtype),
        queries.new_empty(
            rows if native and dtype == torch.float32 else 0,
            dtype=torch.float64 if device == "cpu" else torch.float32,
        ),
        queries.new_empty(
            kept_size(rows, columns, keys is None) if args[-1] else 0,
            dtype=torch.float32,
        ),
    )


def _fake_backward(
    grad: Tensor,
    lse: Tensor,
    kept: Tensor,
    scores: Tensor,
    need_queries: bool,
    need_keys: bool,
    queries: Tensor,
    keys: Tensor | None,
    *arguments: Any,
) -> tuple[Tensor, Tensor]:
    rows, depth = queries.shape
    columns = keys.shape[0] if keys is not None and need_keys else 0
    return (
        queries.new_empty(rows if need_queries else 0, depth),
        queries.new_empty(columns, depth),
    )


_call = differentiate(
    "similarity_logsumexp",
    _fake_forward,
    _fake_backward,
    sources=2,
    kept=slice(None),
    asked=True,
    plain=(plain.similarity_logsumexp, plain.similarity_logsumexp_backward),
)
