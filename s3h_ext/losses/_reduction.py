"""How the losses reduce their rows, and how they say what they counted."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, Protocol, cast, overload

import torch
import torch.distributed as dist
from torch import Tensor

from s3h_ext.ops._arguments import Reduction, check_reduction
from s3h_ext.ops.all_gather import process_count

P = ParamSpec("P")


class ContrastiveStats(NamedTuple):
    """Counts of anchors, as tensors on the loss's device: reading them may synchronise.

    Attributes:
        counted: ``[]`` int64, anchors that entered the loss.
        skipped: ``[]`` int64, anchors that had no positive or no denominator.
    """

    counted: Tensor
    skipped: Tensor


class Reduced(NamedTuple):
    """A loss and how many of its anchors count."""

    loss: Tensor
    counted: Tensor
    anchors: int


def reduce(
    losses: Tensor,
    counted: Tensor,
    reduction: Reduction,
    gather: bool = False,
    weights: Tensor | None = None,
) -> Reduced:
    """Reduces ``[N]`` losses over the counted anchors; none counted gives 0.

    Weights ``[N]`` multiply the losses, and the mean is the weighted one. With
    ``gather`` the mean over processes of what they return is the sum over all their
    anchors, or its mean.
    """
    check_reduction(reduction)
    loss = torch.where(counted, losses, 0.0)
    count = counted.sum()
    total = count
    if weights is not None:
        weights = torch.where(counted, weights, 0)
        loss = weights * loss
        total = weights.sum()
    processes = process_count() if gather else 1
    if reduction != "none":
        loss = loss.sum()
        if processes > 1:
            loss = loss * processes
    if reduction == "mean":
        if processes > 1:
            total = total.detach().clone()
            dist.all_reduce(total)
        loss = loss / torch.where(total > 0, total, 1)
    return Reduced(loss, count, counted.numel())


def mean_of_counted(
    losses: Tensor, counted: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Returns the mean, weighted or not, of ``[N]`` losses over the rows that count.

    A row that does not count adds nothing, whatever its loss; none counted gives 0.
    """
    return reduce(losses, counted, "mean", weights=weights).loss


class ContrastiveLoss(Protocol[P]):
    """A loss function that returns its :class:`ContrastiveStats` where asked to."""

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Tensor: ...
    # This one leaves the arguments to the one before it.
    @overload
    def __call__(
        self, *args: Any, return_stats: bool, **kwargs: Any
    ) -> Tensor | tuple[Tensor, ContrastiveStats]: ...


def with_stats(function: Callable[P, Reduced]) -> ContrastiveLoss[P]:
    """Adds the argument ``return_stats`` to a loss function."""

    @wraps(function)
    def loss(
        *args: Any, return_stats: bool = False, **kwargs: Any
    ) -> Tensor | tuple[Tensor, ContrastiveStats]:
        value, counted, anchors = function(*args, **kwargs)
        if not return_stats:
            return value
        return value, ContrastiveStats(counted, anchors - counted)

    signature = inspect.signature(function)
    asked = inspect.Parameter(
        "return_stats",
        inspect.Parameter.KEYWORD_ONLY,
        default=False,
        annotation="bool",
    )
    loss.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), asked],
        return_annotation="Tensor | tuple[Tensor, ContrastiveStats]",
    )
    return cast("ContrastiveLoss[P]", loss)
