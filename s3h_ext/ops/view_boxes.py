"""Source boxes of views, drawn under a constraint as a function of their address."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import torch
from torch import Tensor

from s3h_ext.ops._library import LIBRARY, implement, registry
from s3h_ext.ops.plain import view_boxes as plain
from s3h_ext.ops.view_constraints import Constraint, Crop, as_constraint

__all__ = ["ViewBoxes", "sample_view_boxes"]

LIBRARY.define(
    "sample_view_boxes(Tensor sizes, Tensor sample_index, Tensor view, "
    "float[] constraint, int seed, int epoch, int stream) -> (Tensor, Tensor)"
)

# The native library's message for a value out of range, without its source location.
_FAULT = re.compile(r"\b(sizes|sample_index|view): expected .*")


class ViewBoxes(NamedTuple):
    """Boxes of views, and which of them failed to meet their constraint.

    Attributes:
        box: int64 ``[N, 4]``: top, left, height, width in pixels of the source.
        fallback: bool ``[N]``: True if no draw met the constraint and the box is its
            documented fallback.
    """

    box: Tensor
    fallback: Tensor


def sample_view_boxes(
    sizes: Tensor | tuple[int, int],
    constraint: Constraint | Crop,
    *,
    seed: int,
    epoch: int,
    sample_index: Tensor,
    view: Tensor | int,
    stream: int = 0,
) -> ViewBoxes:
    r"""Draw the source boxes of views.

    A box is a pure function of (seed, epoch, sample index, view, stream), its image's
    size and the constraint. It does not depend on batch, order, device or number of
    threads, and equals that of
    :func:`s3h_ext.data.views.host_boxes.sample_view_boxes_host` bit for bit.

    Args:
        sizes: int64 ``[N, 2]``, height and width of each image in [1, 2**24); or one
            pair for all.
        constraint: How to draw boxes; a crop without a region covers the whole image.
            Under ``torch.compile`` a :class:`Constraint` created outside.
        seed: Seed of the draws, in [0, 2**32).
        epoch: Epoch, in [0, 2**32); each gives other draws.
        sample_index: int64 ``[N]``, index of each image in the data set, >= 0.
        view: int64 ``[N]``, number of each view in [0, 2**24), or one number for all.
        stream: Number of an independent stream of draws, in [0, 256).

    Returns:
        Boxes and fallback flags, on the device of ``sample_index``. If many flags are
        set, the constraint does not suit the images.

    Raises:
        TypeError: a tensor is not int64, or ``constraint`` is not a constraint.
        ValueError: a wrong shape, or a number out of range. Values of CUDA tensors are
            not checked, because that would synchronise.

    Example:
        >>> from s3h_ext.ops.view_constraints import FOUR_CORNERS, RandomResizedCrop
        >>> corners = Constraint(RandomResizedCrop((0.2, 1.0)), FOUR_CORNERS)
        >>> drawn = sample_view_boxes(
        ...     (40, 60), corners, seed=0, epoch=0,
        ...     sample_index=torch.tensor([7, 7, 7, 7]), view=torch.arange(4))
        >>> drawn.box.shape, drawn.fallback.any().item()
        (torch.Size([4, 4]), False)
    """
    numbers = as_constraint(constraint).numbers()
    for name, value, bits in (("seed", seed, 32), ("epoch", epoch, 32)):
        _check_range(name, value, bits)
    _check_range("stream", stream, 8)
    _check_type("sample_index", sample_index)
    if sample_index.dim() != 1:
        raise ValueError(f"sample_index: expected [N], got {list(sample_index.shape)}")
    count = len(sample_index)
    if not isinstance(view, Tensor):
        _check_range("view", view, 24)
        view = sample_index.new_full((1,), view)
    elif view.shape != sample_index.shape:
        raise ValueError(f"view: expected [{count}], got {list(view.shape)}")
    _check_type("view", view)
    if not isinstance(sizes, Tensor):
        sizes = _pair(sizes, sample_index)
    elif sizes.shape != (count, 2):
        raise ValueError(f"sizes: expected [{count}, 2], got {list(sizes.shape)}")
    _check_type("sizes", sizes)
    for name, tensor in (("sizes", sizes), ("view", view)):
        if tensor.device != sample_index.device:
            raise ValueError(
                f"{name}: expected it on {sample_index.device}, got {tensor.device}"
            )
    operators: Any = torch.ops.s3h
    try:
        box, fallback = operators.sample_view_boxes(
            sizes, sample_index, view, numbers, seed, epoch, stream
        )
    except RuntimeError as error:
        # The native library checks values as it reads them, and raises only one type
        # of error.
        fault = _FAULT.search(str(error))
        if fault is None:
            raise
        raise ValueError(fault.group()) from None
    return ViewBoxes(box, fallback)


def _check_range(name: str, value: int, bits: int) -> None:
    if not isinstance(value, int):
        raise TypeError(f"{name}: expected an int, got {value!r}")
    if not 0 <= value < 1 << bits:
        raise ValueError(f"{name}: expected 0 <= {name} < 2**{bits}, got {value}")


def _check_type(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected an int64 tensor, got {tensor!r}")
    if tensor.dtype != torch.int64:
        raise TypeError(f"{name}: expected an int64 tensor, got {tensor.dtype}")


def _pair(sizes: tuple[int, int], like: Tensor) -> Tensor:
    # full() instead of a copy, which would synchronise with the device.
    height, width = sizes
    for side in (height, width):
        if not 1 <= side < 1 << 24:
            raise ValueError(f"sizes: expected 1 <= side < 2**24, got {side}")
    pair = like.new_empty(1, 2)
    pair[:, 0].fill_(height)
    pair[:, 1].fill_(width)
    return pair


def _fake(sizes: Tensor, sample_index: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    count = sample_index.shape[0]
    return (
        sample_index.new_empty(count, 4),
        sample_index.new_empty(count, dtype=torch.bool),
    )


implement(sample_view_boxes=plain.sample_view_boxes)
registry.register_fake("s3h::sample_view_boxes", _fake, lib=LIBRARY)
