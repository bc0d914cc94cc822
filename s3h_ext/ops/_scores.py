"""Which scores a forward keeps for its backward.

Large score matrices are recomputed. Those that fit into the cache are kept, which saves
a quarter of the work of a small batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: What fits into a cache: 8 MiB of float32.
MOST_SCORES = 1 << 21
# csrc/cpu/similarity.h has the same numbers.
_PANEL, _HEAD = 48, 16


def kept_size(rows: int, columns: int, symmetric: bool) -> int:
    """Return how many float32 numbers the CPU kernels keep."""
    down, across = -(-rows // _PANEL), -(-columns // _PANEL)
    squares = down * (down + 1) // 2 if symmetric else down * across
    return _HEAD + squares * _PANEL * _PANEL


def keeps_scores(queries: Tensor, keys: Tensor | None, deterministic: bool) -> bool:
    """Return whether there will be a backward, and room for its scores."""
    needed = queries.requires_grad or (keys is not None and keys.requires_grad)
    if not needed or not torch.is_grad_enabled():
        return False
    if not queries.is_cpu or queries.dtype == torch.float64 or deterministic:
        return False
    # A limit on the size would restrict the shapes of an exported program.
    if torch.compiler.is_exporting():
        return False
    rows = queries.shape[0]
    columns = rows if keys is None else keys.shape[:-1].numel()
    return kept_size(rows, columns, keys is None) <= MOST_SCORES
