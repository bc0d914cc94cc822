"""Pixels for a source: arrays in memory, or decoded photographs."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import repeat

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from s3h_ext.data.dataset import ImageFiles, ImageSet
from s3h_ext.data.source.decode import Decoder
from s3h_ext.data.views.recipes import Recipe, ViewSpec, get_recipe
from s3h_ext.data.views.render import Pasted, Renderer, render_crops

__all__ = ["DecodedPixels", "FilePixels", "ResidentPixels", "StepPixels"]


class ResidentPixels:
    """Images kept on the device as bytes.

    Args:
        image_set: The images; they are copied.
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel.
        device: Device that keeps and renders the images.
        dtype: Type of the views: float32, bfloat16 or float16.

    Raises:
        ValueError: an argument does not have the form stated for
            :class:`~s3h_ext.data.views.render.Renderer`.
    """

    #: All images are in the device's memory, in one size.
    resident = True

    def __init__(
        self,
        image_set: ImageSet,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.labels = image_set.labels.copy()
        self.device = self.draws_on = torch.device(device)
        self.evaluation = get_recipe("none")
        images = torch.tensor(image_set.images)
        self.render = Renderer(images, mean=mean, std=std, device=device, dtype=dtype)
        self.view_size = self.render.height, self.render.width

    def fit(self, recipe: Recipe) -> Recipe:
        """Return the recipe for these images.

        Raises:
            ValueError: it needs even sides, or colours that the images do not have.
        """
        recipe.view_size(*self.view_size)
        recipe.check_channels(self.render.channels)
        return recipe

    def prefetch(
        self, wanted: Iterable[NDArray[np.int64]], largest: int
    ) -> Iterator[ResidentPixels]:
        """Return these pixels for every step."""
        return repeat(self)

    def readable(self, indices: Tensor) -> None:
        """Return ``None``: all images are readable."""

    def sizes(self, indices: Tensor) -> tuple[int, int]:
        """Return the height and width of all images."""
        return self.view_size


class FilePixels:
    """Photographs, decoded on demand and rendered on the device.

    An image is decoded once for all its views and streams of a step, including the
    views it is mixed into.

    Args:
        files: The images.
        decoder: Decoder of ``files``.
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel.
        device: Device that renders the views.
        dtype: Type of the views.
    """

    resident = False

    def __init__(
        self,
        files: ImageFiles,
        decoder: Decoder,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.labels = files.labels
        self.device, self.draws_on = torch.device(device), torch.device("cpu")
        self.view_size = files.side, files.side
        self.evaluation = replace(get_recipe("evaluation"), out_size=self.view_size)
        self.decoder = decoder
        self.mean, self.std, self.dtype = list(mean), list(std), dtype

    def fit(self, recipe: Recipe) -> Recipe:
        """Return the recipe for views of the files' ``side``, or of its own size.

        Raises:
            ValueError: it needs even sides.
        """
        if recipe.out_size is None:
            recipe = replace(recipe, out_size=self.view_size)
        recipe.view_size(*self.view_size)
        return recipe

    def prefetch(
        self, wanted: Iterable[NDArray[np.int64]], largest: int
    ) -> Iterator[DecodedPixels]:
        """Decode the images of a step while the previous step is in use.

        ``wanted`` yields, for each step, the sorted unique positions of its images,
        int64 ``[M]``; ``largest`` is the largest M.
        """
        asked: deque[NDArray[np.int64]] = deque()

        def asking() -> Iterator[NDArray[np.int64]]:
            for indices in wanted:
                asked.append(indices)
                yield indices

        def decoded(images: list[Tensor | None]) -> DecodedPixels:
            return DecodedPixels(self, asked.popleft(), images)

        # Not a generator, whose frame would keep the images of the previous step.
        return map(decoded, self.decoder.images(asking(), largest))


class DecodedPixels:
    """The decoded photographs of a step."""

    def __init__(
        self,
        pixels: FilePixels,
        indices: NDArray[np.int64],
        images: Sequence[Tensor | None],
    ) -> None:
        self._pixels = pixels
        self._tried = dict(zip(indices.tolist(), images, strict=True))
        self._arrange()

    def _arrange(self) -> None:
        device = self._pixels.device
        decoded = {
            index: image.to(device, non_blocking=True)
            for index, image in sorted(self._tried.items(), key=lambda item: item[0])
            if image is not None
        }
        self._tried |= decoded
        self._images = list(decoded.values())
        self._indices = torch.tensor(list(decoded), dtype=torch.int64)
        sides = [image.shape[:2] for image in self._images]
        self._sizes = torch.tensor(sides, dtype=torch.int64).reshape(-1, 2)

    def readable(self, indices: Tensor) -> Tensor:
        """Return which images can be read, bool like ``indices``.

        Images not requested before are decoded now.
        """
        missing = sorted(set(indices.flatten().tolist()) - self._tried.keys())
        for index in missing:
            ((image,),) = self._pixels.decoder.images([np.array([index])], 1)
            self._tried[index] = image
        if missing:
            self._arrange()
        return torch.isin(indices, self._indices)

    def sizes(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return heights and widths, int64 like ``indices``."""
        places = torch.searchsorted(self._indices, indices)
        height, width = self._sizes[places].unbind(-1)
        return height, width

    def render(
        self,
        sources: Tensor,
        crops: ViewSpec,
        recipe: Recipe,
        pasted: Pasted | None = None,
    ) -> Tensor:
        """Render crops, see :class:`~s3h_ext.data.views.render.Renderer`."""
        pixels, size = self._pixels, recipe.out_size
        assert size is not None
        return render_crops(
            self._images,
            torch.searchsorted(self._indices, sources).to(pixels.device),
            crops.to(pixels.device),
            recipe,
            size=size,
            mean=pixels.mean,
            std=pixels.std,
            dtype=pixels.dtype,
            pasted=pasted and pasted.to(pixels.device),
        )


#: The images of a step, found by their positions in the image set.
StepPixels = ResidentPixels | DecodedPixels
