"""Gradients of operators whose backward is an operator too.

A backward operator takes all arguments of its forward, unchanged, as its last
arguments, so they need not be listed here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from s3h_ext.ops._library import LIBRARY, implement, registry

_functions: Any = torch._C  # no annotations


def differentiate(
    name: str,
    fake: Callable[..., Any],
    fake_backward: Callable[..., Any],
    *,
    sources: int = 1,
    kept: slice = slice(0),
    asked: bool = False,
    plain: tuple[Callable[..., Any] | None, Callable[..., Any] | None] = (None, None),
    in_steps: Callable[..., Tensor] | None = None,
    shown_as: str | None = None,
) -> Callable[..., Any]:
    """Register the gradient of an operator's first result; it is not differentiable.

    ``name_backward`` takes the gradient, the results that were kept, whether each
    source needs a gradient (if ``asked``), and all arguments. It returns the gradients
    of the sources and has no gradient itself.

    Args:
        name: name of the operator.
        fake: returns empty tensors like the operator's results.
        fake_backward: the same for ``name_backward``.
        sources: number of leading arguments that may need a gradient.
        kept: which results the backward operator takes.
        asked: whether the backward operator is told which gradients are needed.
        plain: portable implementations of both operators.
        in_steps: computes the first result with PyTorch's own operations; its gradient
            is used if a second derivative is requested. None: that is an error.
        shown_as: name of the public function, if it differs.

    Returns:
        A function that calls the operator. Unless the call is traced, it uses an
        ``autograd.Function``: a registered gradient passes from Python through the
        dispatcher into Python twice, which takes as long as the kernel of a small
        batch, and ``torch.func`` does not support it (pytorch #168393).
    """
    implement(**{name: plain[0], f"{name}_backward": plain[1]})
    operator = getattr(torch.ops.s3h, name).default
    backward_operator = getattr(torch.ops.s3h, f"{name}_backward").default

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        results = (output,) if isinstance(output, Tensor) else output
        ctx.mark_non_differentiable(*results[1:])
        ctx.set_materialize_grads(False)
        ctx.places = [i for i, each in enumerate(inputs) if isinstance(each, Tensor)]
        ctx.others = [None if isinstance(each, Tensor) else each for each in inputs]
        ctx.save_for_backward(*(inputs[i] for i in ctx.places), *results[kept])

    def backward(call: Any, ctx: Any, grad: Tensor | None, *others: None) -> Any:
        arguments, count = list(ctx.others), len(ctx.places)
        if grad is None:
            return (None,) * len(arguments)
        for place, tensor in zip(ctx.places, ctx.saved_tensors[:count], strict=True):
            arguments[place] = tensor
        needs = ctx.needs_input_grad[:sources]
        if in_steps is not None and torch.is_grad_enabled():  # create_graph=True
            needed = [a for a, need in zip(arguments, needs, strict=False) if need]
            result = in_steps(*arguments)
            found = iter(torch.autograd.grad(result, needed, grad, create_graph=True))
            grads = [next(found) if need else None for need in needs]
        else:
            saved = ctx.saved_tensors[count:]
            results = call(grad, *saved, *(needs if asked else ()), *arguments)
            every = (results,) if isinstance(results, Tensor) else results
            grads = [g if need else None for g, need in zip(every, needs, strict=True)]
        return (*grads, *(None,) * (len(arguments) - sources))

    def refuse(ctx: Any, *grads: Tensor) -> None:
        raise NotImplementedError(
            f"{shown_as or name} has no second derivative: call backward without "
            "create_graph=True"
        )

    registry.register_fake(f"s3h::{name}", fake, lib=LIBRARY)
    registry.register_fake(f"s3h::{name}_backward", fake_backward, lib=LIBRARY)
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
    """Return a function that calls an operator without recording it."""

    def call(*arguments: Any) -> Any:
        with _functions._AutoDispatchBelowAutograd():
            return operator(*arguments)

    return call


def _function(
    operator: Any, backward: Callable[..., Any], setup_context: Callable[..., None]
) -> Callable[..., Any]:
    """Wrap an operator as an ``autograd.Function``, which ``torch.func`` supports."""
    forward = _below_autograd(operator)

    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        """Loop over the batch, as torch does for an operator."""
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

    # A Function with setup_context looks up its signature in every call.
    plain: Any = type(
        operator.name(),
        (torch.autograd.Function,),
        parts | {"forward": staticmethod(forward_at_once)},
    )

    def call(*arguments: Any) -> Any:
        active = _functions._are_functorch_transforms_active()
        return (transformed if active else plain).apply(*arguments)

    return call
