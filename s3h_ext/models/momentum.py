"""Momentum copies of a module, and forward passes without running statistics."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Module = TypeVar("Module", bound=nn.Module)


def momentum_copy(module: Module) -> Module:
    """Return a frozen deep copy, to be moved by :func:`update_momentum_copy_`.

    Its batch norms have no running statistics: they normalise by the current batch, in
    evaluation mode too. The module's running statistics would not match the copy's
    weights.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        >>> sorted(momentum_copy(net).state_dict())
        ['0.bias', '0.weight', '1.bias', '1.weight']
    """
    copied = copy.deepcopy(module).requires_grad_(False)
    for part in copied.modules():
        if isinstance(part, _BatchNorm):
            part.track_running_stats = False
            part.running_mean = part.running_var = part.num_batches_tracked = None
    return copied


@torch.no_grad()
def update_momentum_copy_(
    copied: nn.Module, module: nn.Module, share: float | Tensor
) -> None:
    """Move a copy towards its module: ``copy = (1 - s) * copy + s * module``.

    Args:
        copied: copy made by :func:`momentum_copy`.
        module: the module that it was copied from.
        share: s = 1 - momentum, in [0, 1]: a number, or a one-element tensor that a
            recorded step reads.
    """
    copies: list[Tensor] = list(copied.parameters())
    targets: list[Tensor] = list(module.parameters())
    if isinstance(share, Tensor):
        torch._foreach_lerp_(copies, targets, [share] * len(copies))
    else:
        torch._foreach_lerp_(copies, targets, share)


@contextmanager
def apart_from_running_statistics(module: nn.Module) -> Iterator[None]:
    """Keep ``module``'s running statistics unchanged in training mode, as a context."""
    norms = [
        part
        for part in module.modules()
        if isinstance(part, _BatchNorm) and part.track_running_stats
    ]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
