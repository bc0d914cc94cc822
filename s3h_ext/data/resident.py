"""The training source for data sets that fit on the device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from s3h_ext.data.batches import Batch, make_batch
from s3h_ext.data.dataset import ImageSet
from s3h_ext.data.recipes import MAX_STREAMS, ViewSpec, get_recipe
from s3h_ext.data.render import Renderer
from s3h_ext.data.samplers import EpochOrder
from s3h_ext.data.streams import Stream, check_follows

__all__ = ["Batch", "ResidentSource"]

# Views described at a time. Drawing is many small operations on few numbers, so doing
# it for many steps together takes their cost off the single step.
_DESCRIBED_AT_ONCE = 16384


class ResidentSource:
    """Draws the batches of a training run from images kept on the device as bytes.

    Every draw is a function of (seed, epoch, stream, image, how often that image was
    drawn before in the epoch, view): neither the batch size nor the step the epoch was
    entered at matters. Streams are numbered in the order of ``streams``. A montage
    alone depends on its batch: it shows crops of several of the batch's images.

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
        dtype: Of the images: float32, bfloat16 or float16.

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
        if len(streams) > MAX_STREAMS:
            raise ValueError(
                f"streams: expected at most {MAX_STREAMS}, got {len(streams)}"
            )
        self.streams = dict(streams)
        for name, stream in self.streams.items():
            check_follows(name, stream, self.streams)
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
        height, width = self._renderer.height, self._renderer.width
        for stream in self.streams.values():
            get_recipe(stream.recipe).view_size(height, width)
        self._fallbacks = dict.fromkeys(self.streams, self._labels.new_zeros(()))
        self._drawn = dict.fromkeys(self.streams, 0)
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
        self._check_position(epoch, start_step)
        return self._steps(epoch, start_step)

    def crops(self, epoch: int, step: int) -> dict[str, ViewSpec]:
        """Describes the crops that the views of a step are made of.

        Args:
            epoch: In [0, epochs).
            step: In [0, steps_per_epoch].

        Returns:
            By stream, the crops ``[V, B]``, or ``[4 V, B]`` of montages: crop v of each
            image of the batch; none at the end of the epoch.

        Raises:
            ValueError: an argument is out of range.
        """
        self._check_position(epoch, step)
        start, stop = self._span(step)
        return {
            name: _DrawnStream(self, name, epoch).take(start, stop)
            for name in self.streams
        }

    def fallbacks(self) -> dict[str, tuple[int, int]]:
        """Counts the crops whose box is the fallback of its constraint.

        Returns:
            For each stream, how many were so and how many were drawn, in all epochs so
            far, those drawn ahead included.
        """
        return {
            name: (int(self._fallbacks[name]), self._drawn[name])
            for name in self.streams
        }

    def _check_position(self, epoch: int, step: int) -> None:
        if not 0 <= epoch < self.epochs:
            raise ValueError(f"epoch: expected 0 <= epoch < {self.epochs}, got {epoch}")
        if not 0 <= step <= self.steps_per_epoch:
            raise ValueError(
                f"start_step: expected 0 .. {self.steps_per_epoch}, got {step}"
            )

    def _span(self, step: int) -> tuple[int, int]:
        total, steps = len(self._labels), self.steps_per_epoch
        return step * total // steps, (step + 1) * total // steps

    def _steps(self, epoch: int, start_step: int) -> Iterator[dict[str, Batch]]:
        drawn = {name: _DrawnStream(self, name, epoch) for name in self.streams}
        for step in range(start_step, self.steps_per_epoch):
            start, stop = self._span(step)
            yield {name: stream.batch(start, stop) for name, stream in drawn.items()}


class _DrawnStream:
    """One stream's epoch, described ahead in stretches of many steps."""

    def __init__(self, source: ResidentSource, name: str, epoch: int) -> None:
        names = list(source.streams)
        stream = source.streams[name]
        leader = name if stream.follows is None else stream.follows
        self._source, self._name, self._epoch = source, name, epoch
        self._number = names.index(name)
        self._views = stream.views
        self._recipe = get_recipe(stream.recipe)
        self._indices, self._repeats = source._order.draw(
            source.streams[leader].sampler,
            seed=source.seed,
            epoch=epoch,
            stream=names.index(leader),
            progress=epoch / source.epochs,
        )
        self._begin = self._end = 0
        self._spec: ViewSpec | None = None

    def batch(self, start: int, stop: int) -> Batch:
        """Renders the draws ``start .. stop - 1`` of the epoch."""
        source = self._source
        return make_batch(
            self._indices[start:stop],
            self.take(start, stop),
            source._labels,
            self._views,
            lambda images, crops: source._renderer(images, crops, self._recipe),
        )

    def take(self, start: int, stop: int) -> ViewSpec:
        """Returns the crops ``[V * crops of a view, B]`` of these draws."""
        if self._spec is None or not self._begin <= start < stop <= self._end:
            crops = self._views * self._recipe.crops
            ahead = max(stop - start, _DESCRIBED_AT_ONCE // crops)
            self._begin, self._end = start, min(start + ahead, len(self._indices))
            self._spec = self._describe(slice(self._begin, self._end), crops)
        return self._spec.narrow(1, start - self._begin, stop - self._begin)

    def _describe(self, part: slice, crops: int) -> ViewSpec:
        source = self._source
        indices, repeats = self._indices[part], self._repeats[part]
        numbers = torch.arange(crops, device=indices.device)[:, None]
        spec = self._recipe.describe(
            source._renderer.height,
            source._renderer.width,
            seed=source.seed,
            epoch=self._epoch,
            index=indices,
            view=repeats * crops + numbers,
            stream=self._number,
        )
        source._fallbacks[self._name] = (
            source._fallbacks[self._name] + spec.fallback.sum()
        )
        source._drawn[self._name] += spec.fallback.numel()
        return spec
