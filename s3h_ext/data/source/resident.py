"""The training source for data sets that fit on the device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from s3h_ext.data.dataset import ImageSet
from s3h_ext.data.samplers import EpochOrder
from s3h_ext.data.source.batches import Batch, make_batch
from s3h_ext.data.streams import Stream, check_plan
from s3h_ext.data.views.mixing import Mix
from s3h_ext.data.views.recipes import ViewSpec, get_recipe
from s3h_ext.data.views.render import Renderer

__all__ = ["Batch", "ResidentSource"]

# Views described at a time. Drawing is many small operations on few numbers, so doing
# it for many steps together takes their cost off the single step.
_DESCRIBED_AT_ONCE = 16384


class ResidentSource:
    """Draws the batches of a training run from images kept on the device as bytes.

    Every draw is a function of (seed, epoch, stream, image, how often that image was
    drawn before in the epoch, view): neither the batch size nor the step the epoch was
    entered at matters. Streams are numbered in the order of ``streams``. A montage
    depends on its batch: it shows crops of several of the batch's images. With
    ``Mixing(unit="batch")``, what a batch shares is a function of its step.

    With several processes, each renders its part of the batch that one would: the parts
    of a step follow each other in the order of the ranks, and their sizes differ by at
    most one. Montages are those of the whole batch.

    Args:
        image_set: The training images.
        streams: Name -> how to draw that batch of a step.
        num_classes: C.
        mean: Per channel, of pixels in [0, 1].
        std: Per channel.
        batch_size: The largest batch of a stream, of all processes together.
        epochs: Length of the run, which ``"progressive"`` streams follow.
        seed: In [0, 2**32).
        device: Where the batches are.
        dtype: Of the images: float32, bfloat16 or float16.
        rank: Which of the processes this is.
        world_size: How many there are.

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
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.steps_per_epoch = check_plan(
            streams,
            images=len(image_set),
            batch_size=batch_size,
            epochs=epochs,
            seed=seed,
            rank=rank,
            world_size=world_size,
        )
        self.rank, self.world_size = rank, world_size
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
        height, width = self._renderer.height, self._renderer.width
        for stream in self.streams.values():
            recipe = get_recipe(stream.recipe)
            recipe.view_size(height, width)
            recipe.check_channels(self._renderer.channels)
        none = self._labels.new_zeros(())
        self._fallbacks = dict.fromkeys(self.streams, none)
        self._drawn = dict.fromkeys(self.streams, none)

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
        """Describes the crops that a step's views, of all processes, are made of.

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
            name: _DrawnStream(self, name, epoch, whole=True).take(start, stop)
            for name in self.streams
        }

    def fallbacks(self) -> dict[str, tuple[int, int]]:
        """Counts the crops whose box is the fallback of its constraint.

        Returns:
            For each stream, how many were so and how many were drawn, in all epochs so
            far, those drawn ahead included. Of montages all processes draw all crops.
        """
        return {
            name: (int(self._fallbacks[name]), int(self._drawn[name]))
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
        return step * total // steps, min(step + 1, steps) * total // steps

    def _steps(self, epoch: int, start_step: int) -> Iterator[dict[str, Batch]]:
        drawn = {name: _DrawnStream(self, name, epoch) for name in self.streams}
        for step in range(start_step, self.steps_per_epoch):
            yield {name: stream.batch(step) for name, stream in drawn.items()}

    def _part(self, step: int) -> tuple[int, int]:
        """Returns where this process's part of a step begins and ends in the step."""
        start, stop = self._span(step)
        size, rank = stop - start, self.rank
        return size * rank // self.world_size, size * (rank + 1) // self.world_size


class _DrawnStream:
    """One stream's epoch, described ahead in stretches of many steps.

    Its draws are this process's own, one step after the other. Of montages, and if
    ``whole``, they are those of all processes.
    """

    def __init__(
        self, source: ResidentSource, name: str, epoch: int, *, whole: bool = False
    ) -> None:
        names = list(source.streams)
        stream = source.streams[name]
        leader = name if stream.follows is None else stream.follows
        self._source, self._name, self._epoch = source, name, epoch
        self._number = names.index(name)
        self._views, self._mixing = stream.views, stream.mixing
        self._recipe = get_recipe(stream.recipe)
        self._indices, self._repeats = source._order.draw(
            source.streams[leader].sampler,
            seed=source.seed,
            epoch=epoch,
            stream=names.index(leader),
            progress=epoch / source.epochs,
        )
        steps = range(source.steps_per_epoch)
        self._spans = [source._span(step) for step in steps]
        if source.world_size > 1 and not (whole or self._recipe.montage):
            own = []
            for (start, _), step in zip(self._spans, steps, strict=True):
                first, last = source._part(step)
                own.append((start + first, start + last))
            places = torch.cat([torch.arange(*span) for span in own])
            places = places.to(self._indices.device)
            self._indices = self._indices[places]
            self._repeats = self._repeats[places]
            ends = accumulate(last - first for first, last in own)
            self._spans = list(pairwise((0, *ends)))
        self._begin = self._end = 0
        self._spec: ViewSpec | None = None
        self._mix: Mix | None = None
        self._partners: ViewSpec | None = None

    def batch(self, step: int) -> Batch:
        """Renders this process's part of a step."""
        source = self._source
        start, stop = self._spans[step]
        whole = self._recipe.montage and source.world_size > 1
        crops = self.take(start, stop)
        mix, partners = self._mix, self._partners
        first, last = start - self._begin, stop - self._begin
        return make_batch(
            self._indices[start:stop],
            crops,
            source._labels,
            self._views,
            lambda images, crops, pasted: source._renderer(
                images, crops, self._recipe, pasted
            ),
            part=slice(*source._part(step)) if whole else slice(None),
            mix=None if mix is None else mix.select(slice(first, last)),
            partners=None if partners is None else partners.narrow(1, first, last),
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
        view = repeats * crops + numbers
        spec = self._crops(indices, view)
        self._count(spec.fallback, torch.ones_like(spec.fallback))
        if self._mixing is not None:
            size = source._renderer.height, source._renderer.width
            steps = torch.arange(len(self._spans))
            sizes = torch.tensor([stop - start for start, stop in self._spans])
            self._mix = self._mixing.draw(
                source._order,
                self._recipe.view_size(*size),
                seed=source.seed,
                epoch=self._epoch,
                index=indices,
                view=view,
                step=steps.repeat_interleave(sizes)[part].to(
                    indices.device, non_blocking=True
                ),
                stream=self._number,
                progress=self._epoch / source.epochs,
            )
            self._partners = self._crops(indices, self._mix.view)
            self._count(self._partners.fallback, self._mix.mixed)
        return spec

    def _crops(self, indices: Tensor, view: Tensor) -> ViewSpec:
        source = self._source
        return self._recipe.describe(
            source._renderer.height,
            source._renderer.width,
            seed=source.seed,
            epoch=self._epoch,
            index=indices,
            view=view,
            stream=self._number,
        )

    def _count(self, fallback: Tensor, shown: Tensor) -> None:
        source, name = self._source, self._name
        source._fallbacks[name] = source._fallbacks[name] + (fallback & shown).sum()
        source._drawn[name] = source._drawn[name] + shown.sum()
