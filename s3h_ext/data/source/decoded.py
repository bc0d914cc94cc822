"""The decoded photographs of a step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from s3h_ext.data.views.recipes import Recipe, ViewSpec
from s3h_ext.data.views.render import Pasted, render_crops

__all__ = ["DecodedImages"]


class DecodedImages:
    """The decoded images of a step, found by their position in the image set."""

    def __init__(
        self, indices: NDArray[np.int64], images: Sequence[Tensor | None]
    ) -> None:
        there = [image is not None for image in images]
        self._images = [image for image in images if image is not None]
        self._indices = torch.from_numpy(indices)[torch.tensor(there, dtype=torch.bool)]
        sides = [image.shape[:2] for image in self._images]
        self._sizes = torch.tensor(sides, dtype=torch.int64).reshape(-1, 2)

    def with_one(self, index: int, image: Tensor | None) -> DecodedImages:
        """Returns the images with one more, if it could be read."""
        if image is None:
            return self
        found = dict(zip(self._indices.tolist(), self._images, strict=True))
        found[index] = image
        indices = sorted(found)
        return DecodedImages(np.array(indices), [found[i] for i in indices])

    def readable(self, indices: Tensor) -> Tensor:
        """Returns which of the images are there, bool of the shape of ``indices``."""
        return torch.isin(indices, self._indices)

    def sizes(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Returns heights and widths, int64, each of the shape of ``indices``."""
        height, width = self._sizes[self._places(indices)].unbind(-1)
        return height, width

    def render(
        self,
        sources: Tensor,
        crops: ViewSpec,
        recipe: Recipe,
        *,
        mean: list[float],
        std: list[float],
        device: torch.device,
        dtype: torch.dtype,
        pasted: Pasted | None = None,
    ) -> Tensor:
        """Renders crops of the images at ``sources`` (int64 ``[P]``)."""
        size = recipe.out_size
        assert size is not None
        images = [image.to(device, non_blocking=True) for image in self._images]
        return render_crops(
            images,
            self._places(sources).to(device),
            crops.to(device),
            recipe,
            size=size,
            mean=mean,
            std=std,
            dtype=dtype,
            pasted=None if pasted is None else pasted.to(device),
        )

    def _places(self, indices: Tensor) -> Tensor:
        return torch.searchsorted(self._indices, indices)
