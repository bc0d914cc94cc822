"""Small pictures of images, for reports."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from s3h_ext.data.dataset import ImageSet
from s3h_ext.data.image_files import ImageFiles
from s3h_ext.data.source.decode import decode_image
from s3h_ext.ops.patches import Patches
from s3h_ext.ops.view_boxes import sample_view_boxes
from s3h_ext.ops.view_constraints import Centre
from s3h_ext.ops.views import render_views

__all__ = ["thumbnails"]

_SIDE = 64


def thumbnails(
    images: ImageSet | ImageFiles, indices: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """Returns small pictures of images.

    Args:
        images: The image set.
        indices: int64 ``[...]``.

    Returns:
        uint8 ``[..., H, W, C]``: the images themselves, or the central squares of
        photographs in 64 x 64 pixels.
    """
    if isinstance(images, ImageSet):
        return images.images[indices]
    flat = [_square(images, index) for index in indices.ravel().tolist()]
    pixels = np.zeros((0, _SIDE, _SIDE, 3), np.uint8) if not flat else np.stack(flat)
    return pixels.reshape(*indices.shape, _SIDE, _SIDE, 3)


def _square(files: ImageFiles, index: int) -> NDArray[np.uint8]:
    image = decode_image(files.path(index).read_bytes())
    zero = torch.zeros(1, dtype=torch.int64)
    box = sample_view_boxes(
        (image.shape[0], image.shape[1]),
        Centre(1.0),
        seed=0,
        epoch=0,
        sample_index=zero,
        view=0,
    ).box
    levels = render_views(
        [image], Patches(zero, box), out_size=_SIDE, mean=[0.0] * 3, std=[1 / 255] * 3
    )
    pixels = levels[0].permute(1, 2, 0).round().clamp_(0, 255).to(torch.uint8)
    return pixels.numpy()
