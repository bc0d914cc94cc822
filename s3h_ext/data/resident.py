"""The training source for data sets that fit on the device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from s3h_ext.data.batches import Batch
from s3h_ext.data.dataset import ImageSet
from s3h_ext.data.recipes import Recipe, ViewSpec, get_recipe
from s3h_ext.data.render import Renderer
from s3h_ext.data.samplers import EpochOrder
from s3h_ext.data.streams import Stream
from s3h_ext.ops.philox import philox_uniform

__all__ = ["Batch", "ResidentSource"]

# Views described at a time. Drawing is many small operations on few numbers, so doing
# it for many steps together takes their cost off the single step.
_DESCRIBED_AT_ONCE = 16384


class ResidentSource:
    """Draws the batches of a training run from images kept on the device as bytes.

    Every draw is a function of (seed, epoch, stream, image, how often that image was
    drawn before in the epoch, view): neither the batch size nor the step the epoch was
    entered at matters. Streams are numbered in the order of ``streams``.

    Args:
        image_set: The training images.
        streams: Name -> how to draw that batch of a step.
        num_classes: C.
        mean: Per channel, of pixels in [0, 1].
        std: Per channel.
        batch_size: The largest batch of a stream.
        epochs: Length of the run, which ``"progressive"`` streams follow.
        seed: In [0, 2**32).
        device: Where the batches are.
        dtype: Of the images.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> from s3h_ext.data.dataset import load_dataset
        >>> data = load_dataset("digits-lt")
        >>> source = ResidentSource(
        ...     data.train,
        ...     {"one": Stream("class-balanced", "crop"), "pair": Stream(views=2)},
        ...     num_classes=data.num_classes,
        ...     mean=data.mean,
        ...     std=data.std,
        ...     batch_size=64,
        ...     epochs=10,
        ...     seed=0,
        ... )
        >>> step = next(source.epoch(0))
        >>> tuple(step["pair"].images.shape), tuple(step["one"].labels.shape)
        ((2, 61, 3, 32, 32), (61,))
    """

    def __init__(
        self,
        image_set: ImageSet,
        streams: Mapping[str, Stream],
        *,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int,
        epochs: int,
        seed: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if not streams:
            raise ValueError("streams: expected at least one, got none")
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        if epochs < 1:
            raise ValueError(f"epochs: expected at least 1, got {epochs}")
        if not 0 <= seed < 1 << 32:
            raise ValueError(f"seed: expected 0 <= seed < 2**32, got {seed}")
        self.streams = dict(streams)
        self.epochs = epochs
        self.seed = seed
        self._order = EpochOrder(image_set.labels, num_classes, device)
        self._renderer = Renderer(
            torch.tensor(image_set.images),
            mean=mean,
            std=std,
            device=device,
            dtype=dtype,
        )
        self._labels = torch.tensor(image_set.labels, device=device)
        self.steps_per_epoch = -(-len(image_set) // batch_size)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[dict[str, Batch]]:
        """Iterates over the steps of an epoch.

        Args:
            epoch: In [0, epochs).
            start_step: Step to begin with, to go on where a run stopped.

        Returns:
            One dictionary of batches per step, by stream name; the batches of a step
            are of the same size, and sizes differ by at most one over the epoch.

        Raises:
            ValueError: an argument is out of range.
        """
        if not 0 <= epoch < self.epochs:
            raise ValueError(f"epoch: expected 0 <= epoch < {self.epochs}, got {epoch}")
        if not 0 <= start_step <= self.steps_per_epoch:
            raise ValueError(
                f"start_step: expected 0 .. {self.steps_per_epoch}, got {start_step}"
            )
        return self._steps(epoch, start_step)

    def _steps(self, epoch: int, start_step: int) -> Iterator[dict[str, Batch]]:
        drawn = [
            _DrawnStream(self, number, stream, epoch)
            for number, stream in enumerate(self.streams.values())
        ]
        total, steps = len(self._labels), self.steps_per_epoch
        for step in range(start_step, steps):
            start, stop = step * total // steps, (step + 1) * total // steps
            yield {
                name: self._render(*stream.take(start, stop))
                for name, stream in zip(self.streams, drawn, strict=True)
            }

    def _render(self, indices: Tensor, views: ViewSpec) -> Batch:
        count = views.flip.shape[0]
        images = self._renderer(indices.repeat(count), views.flatten())
        images = images.view(count, len(indices), *images.shape[1:])
        return Batch(images, self._labels[indices], indices)

    def _describe(
        self,
        recipe: Recipe,
        views: int,
        *,
        epoch: int,
        stream: int,
        indices: Tensor,
        repeats: Tensor,
    ) -> ViewSpec:
        numbers = torch.arange(views, device=indices.device)[:, None]
        uniforms = philox_uniform(
            seed=self.seed,
            epoch=epoch,
            index=indices,
            view=repeats * views + numbers,
            stream=stream,
            draws=recipe.draws,
        )
        return recipe.describe(uniforms, self._renderer.height, self._renderer.width)


class _DrawnStream:
    """One stream's epoch, described ahead in stretches of many steps."""

    def __init__(
        self, source: ResidentSource, number: int, stream: Stream, epoch: int
    ) -> None:
        self._source = source
        self._number = number
        self._epoch = epoch
        self._views = stream.views
        self._recipe = get_recipe(stream.recipe)
        self._indices, self._repeats = source._order.draw(
            stream.sampler,
            seed=source.seed,
            epoch=epoch,
            stream=number,
            progress=epoch / source.epochs,
        )
        self._begin = self._end = 0
        self._spec: ViewSpec | None = None

    def take(self, start: int, stop: int) -> tuple[Tensor, ViewSpec]:
        """Returns the indices ``[B]`` and the views ``[V, B]`` of these draws."""
        if self._spec is None or not self._begin <= start < stop <= self._end:
            ahead = max(stop - start, _DESCRIBED_AT_ONCE // self._views)
            self._begin, self._end = start, min(start + ahead, len(self._indices))
            self._spec = self._source._describe(
                self._recipe,
                self._views,
                epoch=self._epoch,
                stream=self._number,
                indices=self._indices[self._begin : self._end],
                repeats=self._repeats[self._begin : self._end],
            )
        views = self._spec.narrow(1, start - self._begin, stop - self._begin)
        return self._indices[start:stop], views
