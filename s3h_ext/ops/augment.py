"""Augmentation of uint8 images, each operation as in Pillow.

The operations of AutoAugment and RandAugment round to bytes after each step, and some
need statistics of the whole image (its histogram, its mean), so they cannot be part of
the linear pipeline of views. They run before it: uint8 in, uint8 out.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, cast

import torch
from torch import Tensor

from s3h_ext.ops._library import LIBRARY, implement, registry

__all__ = ["Operation", "augment_images"]

LIBRARY.define(
    "augment_images(Tensor images, Tensor operations, Tensor magnitudes, "
    "Tensor source, Tensor? corners, Tensor? flips, Tensor? holes, int fill) -> Tensor"
)


class Operation(IntEnum):
    """The operations of :func:`augment_images` and the meaning of their magnitudes.

    Geometric operations take the nearest pixel, the ``CUBIC`` ones Pillow's bicubic;
    areas from outside the image get the fill. ``AUTO_CONTRAST``, ``INVERT`` and
    ``EQUALIZE`` have no magnitude.
    """

    NONE = 0
    SHEAR_X = 1  #: coefficient, ``Image.transform(AFFINE, (1, m, 0, 0, 1, 0))``
    SHEAR_Y = 2  #: coefficient, ``(1, 0, 0, m, 1, 0)``
    SHEAR_X_CUBIC = 3
    SHEAR_Y_CUBIC = 4
    TRANSLATE_X = 5  #: pixels, ``(1, 0, m, 0, 1, 0)``: positive moves to the left
    TRANSLATE_Y = 6  #: pixels, ``(1, 0, 0, 0, 1, m)``: positive moves up
    ROTATE = 7  #: degrees, ``Image.rotate``: positive is counter-clockwise
    AUTO_CONTRAST = 8
    INVERT = 9
    EQUALIZE = 10
    POSTERIZE = 11  #: bits kept
    SOLARIZE = 12  #: values from this one on are inverted
    COLOUR = 13  #: factor of ``ImageEnhance.Color``, 1 for none
    CONTRAST = 14  #: factor of ``ImageEnhance.Contrast``
    BRIGHTNESS = 15  #: factor of ``ImageEnhance.Brightness``
    SHARPNESS = 16  #: factor of ``ImageEnhance.Sharpness``
    SOLARIZE_ADD = 17  #: added to values below 128, truncated to an integer
    BLUR = 18  #: ``radius`` of ``ImageFilter.GaussianBlur``, 0 to 64


def augment_images(
    images: Tensor,
    operations: Tensor,
    magnitudes: Tensor,
    *,
    source: Tensor | None = None,
    corners: Tensor | None = None,
    flips: Tensor | None = None,
    holes: Tensor | None = None,
    fill: int = 128,
) -> Tensor:
    """Crop, flip, apply a list of operations and cut out a hole, view by view.

    Bit-equal to Pillow on x86-64, where the tests compare every operation; within one
    grey level if a compiler contracts Pillow's own arithmetic. The result does not
    depend on the number of threads, other views or the device.

    On a GPU it is one kernel, which does not synchronise and can be captured in a CUDA
    graph. If the CUDA kernels were not built, the images of CUDA tensors are copied to
    the host, processed there and copied back, which synchronises.

    Args:
        images: uint8 ``[N, H, W, C]``, C = 1 or 3.
        operations: int64 ``[M, K]``, numbers of :class:`Operation`, applied in order.
        magnitudes: float64 ``[M, K]`` within ±2**20, one for each operation.
        source: int64 ``[M]``, index of each view's image; None if M = N, in order.
        corners: int64 ``[M, 2]``, pixel (top, left) of the image at which the view
            begins; black outside the image. None for (0, 0).
        flips: bool ``[M]``, mirror left to right after the crop; None mirrors none.
        holes: int64 ``[M, 4]``: top, left, height, width of a black rectangle, clipped
            at the border (Cutout, DeVries and Taylor, arXiv 1708.04552); None for none.
        fill: grey level of areas that geometric operations bring in, 0 .. 255.

    Returns:
        uint8 ``[M, H, W, C]``.

    Raises:
        RuntimeError: a tensor does not have the stated type, shape or range. The CUDA
            kernel does not synchronise to check values: one out of range triggers a
            device-side assert before anything outside the tensors is read or written.
            Its images have at most 2**30 bytes each.

    Example:
        >>> image = torch.tensor([[[[10], [200]]]], dtype=torch.uint8)
        >>> augment_images(
        ...     image, torch.tensor([[Operation.INVERT, Operation.SOLARIZE]]),
        ...     torch.tensor([[0.0, 240.0]], dtype=torch.float64)).flatten().tolist()
        [10, 55]
    """
    if source is None:
        source = torch.arange(images.shape[0], device=images.device)
    operators: Any = torch.ops.s3h
    return cast(
        Tensor,
        operators.augment_images(
            images, operations, magnitudes, source, corners, flips, holes, fill
        ),
    )


def _on_the_host(
    images: Tensor, operations: Tensor, magnitudes: Tensor, source: Tensor, *rest: Any
) -> Tensor:
    # If the data set is on the device, copy only the images in use to the host.
    shown = images.index_select(0, source)
    rows = torch.arange(len(source), device=source.device)
    arguments = (shown, operations, magnitudes, rows, *rest)
    here = [item.cpu() if isinstance(item, Tensor) else item for item in arguments]
    operators: Any = torch.ops.s3h
    return cast(Tensor, operators.augment_images(*here).to(images.device))


def _fake(images: Tensor, operations: Tensor, *arguments: Any) -> Tensor:
    return images.new_empty(operations.shape[0], *images.shape[1:])


implement(augment_images=_on_the_host)
registry.register_fake("s3h::augment_images", _fake, lib=LIBRARY)
