"""Checks that a training's numbers are finite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from s3h_ext.command_line import CommandError

__all__ = ["DivergedError", "check_finite", "spoiled"]


class DivergedError(CommandError):
    """Numbers of the training are no longer finite; the message names which ones."""


def spoiled(state: object, prefix: str = "") -> Iterator[str]:
    """Yield the names of the tensors in nested state that are not finite.

    Example:
        >>> import torch
        >>> list(spoiled({"a": torch.ones(2), "b": [torch.tensor(torch.nan)]}))
        ['b.0']
    """
    if isinstance(state, Tensor):
        if not bool(state.isfinite().all()):
            yield prefix
    elif isinstance(state, (Mapping, list, tuple)):
        items = state.items() if isinstance(state, Mapping) else enumerate(state)
        for name, part in items:
            yield from spoiled(part, f"{prefix}.{name}" if prefix else str(name))


def check_finite(
    state: Mapping[str, object], where: str, unset: frozenset[str] = frozenset()
) -> None:
    """Check that training can continue from a state.

    ``unset`` names tensors that may be NaN until the training fills them.

    Raises:
        DivergedError: another tensor of the state is not finite.
    """
    name = next((name for name in spoiled(state) if name not in unset), None)
    if name is not None:
        raise DivergedError(f"{name} is not finite {where}")
