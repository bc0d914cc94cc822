"""View boxes as NumPy arrays, for the callbacks of data pipelines.

The native module ``s3h_ext._s3h_host`` does not depend on PyTorch and releases the GIL.
Its boxes equal those of :func:`s3h_ext.ops.sample_view_boxes` bit for bit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from s3h_ext.ops.view_constraints import Constraint, Crop, as_constraint

__all__ = ["HostViewBoxes", "sample_view_boxes_host"]


class HostViewBoxes(NamedTuple):
    """Boxes of views, and which of them failed to meet their constraint.

    Attributes:
        box: int64 ``[N, 4]``: top, left, height, width in pixels of the source.
        fallback: bool ``[N]``: whether the box is its constraint's fallback.
    """

    box: NDArray[np.int64]
    fallback: NDArray[np.bool_]


def sample_view_boxes_host(
    sizes: NDArray[np.integer] | tuple[int, int],
    constraint: Constraint | Crop,
    *,
    seed: int,
    epoch: int,
    sample_index: NDArray[np.integer],
    view: NDArray[np.integer] | int,
    stream: int = 0,
) -> HostViewBoxes:
    """Draw the source boxes of views; see :func:`s3h_ext.ops.sample_view_boxes`.

    Args:
        sizes: Integers ``[N, 2]``, height and width; or one pair for all.
        constraint: How to draw boxes; a crop without a region covers the whole image.
        seed: Seed, in [0, 2**32).
        epoch: Epoch, in [0, 2**32).
        sample_index: Integers ``[N]``, index of each image.
        view: Integers ``[N]``, number of each view, or one for all.
        stream: Number of an independent stream of draws, in [0, 256).

    Raises:
        TypeError: an array does not hold integers, or ``constraint`` is not a
            constraint.
        ValueError: a wrong shape, or a number out of range.
        RuntimeError: the native module was not built.

    Example:
        >>> from s3h_ext.ops.view_constraints import PadCrop
        >>> where = {"seed": 0, "epoch": 0, "sample_index": np.arange(2), "view": 0}
        >>> sample_view_boxes_host((32, 32), PadCrop(0), **where).box.tolist()
        [[0, 0, 32, 32], [0, 0, 32, 32]]
    """
    numbers = as_constraint(constraint).numbers()
    try:
        from s3h_ext import _s3h_host
    except ImportError as error:
        raise RuntimeError(
            f"the native module s3h_ext._s3h_host is not available: {error}. "
            "Run: pip install --no-build-isolation -e ."
        ) from error
    box, fallback = _s3h_host.sample_view_boxes(
        np.atleast_2d(_whole("sizes", sizes)),
        _whole("sample_index", sample_index),
        np.atleast_1d(_whole("view", view)),
        numbers,
        seed=seed,
        epoch=epoch,
        stream=stream,
    )
    return HostViewBoxes(box, fallback)


def _whole(name: str, values: object) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, got {array.dtype}")
    return np.ascontiguousarray(array, dtype=np.int64)
