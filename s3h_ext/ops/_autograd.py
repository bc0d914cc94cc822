"""Gradients of operators whose backward is an operator too.

A backward operator takes what its forward took as its last arguments, as they are, so
nothing here lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from s3h_ext.ops._library import LIBRARY, registry

_functions: Any = torch._C  # no annotations


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
) -> Callable[..., Any]:
    """Registers the gradient of ``name``; ``name_backward`` refuses to have one.

    Args:
        name: of the operator.
        backward: takes the operator ``name_backward`` to call, the context and the
            gradients.
        setup_context: what it needs, by :func:`save_arguments`.
        shown_as: the public function's name, if it is another one.

    Returns:
        What calls the operator. Where nothing traces the call, an
        ``autograd.Function`` does: a gradient that is registered goes from Python
        through the dispatcher into Python twice, which takes as long as the kernel of
        a small batch, and ``torch.func`` does not see through it (pytorch #168393).
    """
    operator = getattr(torch.ops.s3h, name).default
    backward_operator = getattr(torch.ops.s3h, f"{name}_backward").default

    def refuse(ctx: Any, *grads: Tensor) -> None:
        raise NotImplementedError(
            f"{shown_as or name} has no second derivative: call backward without "
            "create_graph=True"
        )

    registry.register_autograd(
        f"s3h::{name}",
        partial(backward, backward_operator),
        setup_context=setup_context,
        lib=LIBRARY,
    )
    registry.register_autograd(f"s3h::{name}_backward", refuse, lib=LIBRARY)

    below = _below_autograd(backward_operator)
    refusing = _function(backward_operator, refuse, lambda ctx, inputs, output: None)

    def call_backward(*arguments: Any) -> Any:
        return (refusing if torch.is_grad_enabled() else below)(*arguments)

    function = _function(operator, partial(backward, call_backward), setup_context)

    def call(*arguments: Any) -> Any:
        traced = torch.compiler.is_compiling() or _functions._is_tracing()
        return (operator if traced else function)(*arguments)

    return call


def _below_autograd(operator: Any) -> Callable[..., Any]:
    """Returns what calls an operator and records nothing."""

    def call(*arguments: Any) -> Any:
        with _functions._AutoDispatchBelowAutograd():
            return operator(*arguments)

    return call


def _function(
    operator: Any, backward: Callable[..., Any], setup_context: Callable[..., None]
) -> Callable[..., Any]:
    """Returns an operator as an ``autograd.Function``, which ``torch.func`` takes."""
    forward = _below_autograd(operator)

    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        """Calls it for one after another, as torch does with an operator."""
        results = [
            transformed.apply(
                *(
                    value if dim is None else value.select(dim, i)
                    for value, dim in zip(arguments, in_dims, strict=True)
                )
            )
            for i in range(info.batch_size)
        ]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        stacked = tuple(map(torch.stack, zip(*results, strict=True)))
        return stacked, (0,) * len(stacked)

    parts = {"backward": staticmethod(backward)}
    transformed: Any = type(
        operator.name(),
        (torch.autograd.Function,),
        parts
        | {
            "forward": staticmethod(forward),
            "setup_context": staticmethod(setup_context),
            "vmap": staticmethod(vmap),
        },
    )

    def forward_at_once(ctx: Any, *arguments: Any) -> Any:
        output = forward(*arguments)
        setup_context(ctx, arguments, output)
        return output

    # A Function with setup_context looks up its signature at every call.
    plain: Any = type(
        operator.name(),
        (torch.autograd.Function,),
        parts | {"forward": staticmethod(forward_at_once)},
    )

    def call(*arguments: Any) -> Any:
        active = _functions._are_functorch_transforms_active()
        return (transformed if active else plain).apply(*arguments)

    return call
