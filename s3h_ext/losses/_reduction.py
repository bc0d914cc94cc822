"""Reduction of per-anchor losses, and counts of the anchors used."""

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
    """Anchor counts, as tensors on the loss's device: reading them may synchronise.

    Attributes:
        counted: ``[]`` int64, anchors that entered the loss.
        skipped: ``[]`` int64, anchors that had no positive or no denominator.
    """

    counted: Tensor
    skipped: Tensor


class Reduced(NamedTuple):
    """A loss and the number of anchors counted in it."""

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
    """Reduce ``[N]`` losses over the counted anchors; 0 if there are none.

    Weights ``[N]`` multiply the losses, and the mean becomes a weighted mean. With
    ``gather``, results are scaled so that their mean over the processes is the sum or
    the mean over the anchors of all processes.
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
    """Return the (weighted) mean of ``[N]`` losses over the counted rows.

    Other rows contribute nothing, whatever their loss; without counted rows it is 0.
    """
    return reduce(losses, counted, "mean", weights=weights).loss


class ContrastiveLoss(Protocol[P]):
    """A loss function that returns its :class:`ContrastiveStats` on request."""

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Tensor: ...
    # This overload leaves the parameters to the one above.
    @overload
    def __call__(
        self, *args: Any, return_stats: bool, **kwargs: Any
    ) -> Tensor | tuple[Tensor, ContrastiveStats]: ...


def with_stats(function: Callable[P, Reduced]) -> ContrastiveLoss[P]:
    """Add the argument ``return_stats`` to a loss function."""

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
