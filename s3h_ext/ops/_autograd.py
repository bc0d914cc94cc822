"""Gradients of operators whose backward is an operator too.

A backward operator takes what its forward took as its last arguments, as they are, so
nothing here lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from s3h_ext.ops._library import LIBRARY, registry


def save_arguments(
    ctx: Any, inputs: tuple[Any, ...], outputs: Iterable[Tensor]
) -> None:
    """Keeps the arguments of a forward, and some of its results, for the backward."""
    ctx.places = [i for i, value in enumerate(inputs) if isinstance(value, Tensor)]
    ctx.others = [None if isinstance(value, Tensor) else value for value in inputs]
    ctx.save_for_backward(*(inputs[place] for place in ctx.places), *outputs)


def saved_arguments(ctx: Any) -> tuple[list[Any], tuple[Tensor, ...]]:
    """Returns the arguments of the forward and the results that were kept."""
    arguments, tensors = list(ctx.others), ctx.saved_tensors
    count = len(ctx.places)
    for place, tensor in zip(ctx.places, tensors[:count], strict=True):
        arguments[place] = tensor
    return arguments, tensors[count:]


def differentiate_once(
    name: str,
    backward: Callable[..., Any],
    setup_context: Callable[..., None],
    shown_as: str | None = None,
) -> None:
    """Registers the gradient of ``name``; ``name_backward`` refuses to have one.

    Args:
        name: of the operator.
        backward: calls the operator ``name_backward``.
        setup_context: what it needs, by :func:`save_arguments`.
        shown_as: the public function's name, if it is another one.
    """

    def refuse(ctx: Any, *grads: Tensor) -> None:
        raise NotImplementedError(
            f"{shown_as or name} has no second derivative: call backward without "
            "create_graph=True"
        )

    registry.register_autograd(
        f"s3h::{name}", backward, setup_context=setup_context, lib=LIBRARY
    )
    registry.register_autograd(f"s3h::{name}_backward", refuse, lib=LIBRARY)
