"""Preparation of single images of any size, as network input or thumbnails."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from s3h_ext.data.dataset import ImageFiles, ImageSet
from s3h_ext.data.sets.folders import image_names
from s3h_ext.data.source.decode import decode_image
from s3h_ext.data.views.recipes import Recipe, get_recipe
from s3h_ext.data.views.render import Renderer
from s3h_ext.ops.view_constraints import Centre, Whole

__all__ = ["Preprocessing", "find_pictures", "read_picture", "thumbnails"]


def read_picture(path: Path, channels: int) -> NDArray[np.uint8]:
    """Decode an image file as in training, to uint8 ``[H, W, channels]``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or not an image.
    """
    try:
        pixels = decode_image(path.read_bytes()).numpy()
    except FileNotFoundError:
        raise FileNotFoundError("no such file") from None
    except IsADirectoryError:
        raise ValueError("a folder, not an image") from None
    except Exception as error:  # a damaged file can fail anywhere in a decoder
        raise ValueError(f"cannot be read as an image: {error}") from None
    if channels == 1:
        from PIL import Image

        pixels = np.asarray(Image.fromarray(pixels).convert("L"))[..., None].copy()
    return pixels


def find_pictures(places: Iterable[Path]) -> Iterator[Path]:
    """Yield files as given, and the images below folders, sorted.

    A file in a folder counts as an image if training would use it.
    """
    for place in places:
        try:
            is_folder = place.is_dir()
        except OSError:  # the name is too long or its folder not accessible:
            is_folder = False  # reading it reports that
        if is_folder:
            paths = (place / name for name in image_names(place))
            yield from sorted(path for path in paths if path.is_file())
        else:
            yield place


@dataclass(frozen=True)
class Preprocessing:
    """Crop, resize and normalise images for the network.

    With ``"evaluation"``, the centre 224/256 of the shorter side is resized to the
    network's input. With ``"none"``, evaluation uses images at their own size, so an
    image of another size is resized: its central square, or the whole image if the
    input is not square. Resizing is antialiased and bilinear.

    Example:
        >>> prepare = Preprocessing((32, 32, 3), (0.5,) * 3, (0.5,) * 3)
        >>> prepare([np.zeros((40, 60, 3), np.uint8)]).shape
        torch.Size([1, 3, 32, 32])
    """

    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    recipe: str = "none"

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the network's input."""
        return self.image_shape[:2]

    def view(self, height: int, width: int) -> Recipe:
        """Return the recipe that shows an image of this size to the network."""
        if self.recipe != "none":
            return replace(get_recipe(self.recipe), out_size=self.size)
        if (height, width) == self.size:
            return get_recipe("none")
        square = self.size[0] == self.size[1]
        return Recipe(crop=Centre(1.0) if square else Whole(), out_size=self.size)

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Return float32 ``[B, C, H, W]`` of images ``[h, w, C]`` of any sizes."""
        views = []
        for image in images:
            recipe, size = self.view(*image.shape[:2]), image.shape[:2]
            renderer = Renderer(
                torch.from_numpy(image)[None], mean=self.mean, std=self.std
            )
            index = torch.zeros(1, dtype=torch.int64)
            crops = recipe.describe(*size, seed=0, epoch=0, index=index, view=0)
            views.append(renderer(index, crops, recipe))
        return torch.cat(views)

    def describe(self) -> dict[str, Any]:
        """Return the preprocessing in words and numbers, for a file's metadata."""
        height, width = self.size
        share = 1.0
        crop = self.view(0, 0).crop
        if isinstance(crop, Centre):
            share = crop.share
        return {
            "orientation": "upright by EXIF",
            "channels": "RGB" if self.image_shape[2] == 3 else "grey",
            "crop": "whole image" if isinstance(crop, Whole) else "centred square",
            "crop_share_of_shorter_side": share,
            "resize": "bilinear, antialiased",
            "height": height,
            "width": width,
            "scale": "pixel / 255, then (x - mean) / std for each channel",
            "mean": list(self.mean),
            "std": list(self.std),
            "layout": "float32 [batch, channel, height, width]",
        }


def thumbnails(
    images: ImageSet | ImageFiles, indices: NDArray[np.int64], side: int = 64
) -> NDArray[np.uint8]:
    """Return small versions of images.

    Args:
        images: The image set.
        indices: int64 ``[...]``.
        side: Side of the thumbnails of photographs, in pixels.

    Returns:
        uint8 ``[..., H, W, C]``: the images themselves, or the central squares of
        photographs.
    """
    if isinstance(images, ImageSet):
        return images.images[indices]
    prepare = Preprocessing((side, side, 3), (0.0,) * 3, (1 / 255,) * 3)
    pixels = np.zeros((indices.size, side, side, 3), np.uint8)
    for picture, index in zip(pixels, indices.ravel().tolist(), strict=True):
        image = decode_image(images.path(index).read_bytes()).numpy()
        levels = prepare([image])[0].permute(1, 2, 0)
        picture[:] = levels.round().clamp_(0, 255).to(torch.uint8).numpy()
    return pixels.reshape(*indices.shape, side, side, 3)
