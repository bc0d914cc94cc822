"""The source of the batches of a training run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from s3h_ext.checks import COUNT, SEED, check
from s3h_ext.data.samplers import EpochOrder
from s3h_ext.data.source.batches import Batch, Draws, make_batch
from s3h_ext.data.source.decode import UnreadableImageError
from s3h_ext.data.source.pixels import FilePixels, ResidentPixels, StepPixels
from s3h_ext.data.streams import Stream
from s3h_ext.data.views.mixing import Mix
from s3h_ext.data.views.recipes import MAX_STREAMS, ViewSpec, get_recipe

__all__ = ["Source"]

# Crops drawn at a time. Drawing consists of many small operations, so drawing many
# steps at once spreads their overhead.
_DRAWN_AT_ONCE = 16384


class Source:
    """Draws the batches of a training run.

    Every draw is a function of (seed, epoch, stream, image, number of earlier draws of
    the image in the epoch, view). It does not depend on the batch size, the step at
    which the epoch was entered, or where the pixels come from. Streams are numbered in
    the order of ``streams``. A montage depends on its batch: it shows crops of several
    of the batch's images. With ``Mixing(unit="batch")``, the draws that a batch shares
    are a function of its step.

    With several processes, each renders its part of the batch that a single process
    would render: the parts of a step follow each other in the order of the ranks, and
    their sizes differ by at most one. Montages of images in memory are those of the
    whole batch; montages of photographs show images of their own process.

    Unreadable photographs are left out of their batch, if the decoder's policy is to
    skip them, and are not mixed into others. If nothing is left of a batch, it shows
    the epoch's next readable image, because losses need an image, in every process.

    Args:
        pixels: The training images, in memory or decoded on demand.
        streams: Name -> how to draw that batch of a step.
        num_classes: C.
        batch_size: The largest batch of a stream, summed over all processes.
        epochs: Length of the run, which ``"progressive"`` streams need.
        seed: Seed, in [0, 2**32).
        rank: Number of this process.
        world_size: Number of processes.

    Attributes:
        steps_per_epoch: Number of steps in an epoch.
        resident: Whether the images are in the device's memory.

    Raises:
        ValueError: an argument is out of range, or a recipe does not fit the images.

    Example:
        >>> from s3h_ext.data import ResidentPixels, load_dataset
        >>> data = load_dataset("digits-lt")
        >>> source = Source(
        ...     ResidentPixels(data.train, mean=data.mean, std=data.std),
        ...     {"one": Stream("class-balanced", "crop"), "pair": Stream(views=2)},
        ...     num_classes=data.num_classes,
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
        pixels: ResidentPixels | FilePixels,
        streams: Mapping[str, Stream],
        *,
        num_classes: int,
        batch_size: int,
        epochs: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        check(COUNT, batch_size=batch_size, epochs=epochs)
        check(SEED, seed=seed)
        if not 0 <= rank < world_size:
            raise ValueError(f"rank: expected 0 <= rank < {world_size}, got {rank}")
        _check_streams(streams)
        images = len(pixels.labels)
        self.steps_per_epoch = -(-images // batch_size)
        smallest = images // max(self.steps_per_epoch, 1)
        if smallest < world_size:
            raise ValueError(
                f"batch_size: expected an image for each of {world_size} processes in "
                f"every step; {images} images in batches of {batch_size} give "
                f"{smallest}"
            )
        self.pixels, self.resident = pixels, pixels.resident
        self.streams = dict(streams)
        self.epochs, self.seed = epochs, seed
        self.rank, self.world_size = rank, world_size
        self._order = EpochOrder(pixels.labels, num_classes, pixels.draws_on)
        self._labels = torch.tensor(pixels.labels, device=pixels.draws_on)
        self._recipes = {
            name: pixels.fit(get_recipe(stream.recipe))
            for name, stream in self.streams.items()
        }
        none = self._labels.new_zeros(2)
        self._fallbacks = dict.fromkeys(self.streams, none)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[dict[str, Batch]]:
        """Iterate over the steps of an epoch.

        Args:
            epoch: Epoch, in [0, epochs).
            start_step: First step, to resume a run inside an epoch.

        Returns:
            One dictionary of batches per step, by stream name. The batches of a step
            have the same size, and sizes differ by at most one over the epoch, except
            for photographs that are left out.

        Raises:
            ValueError: an argument is out of range.
            UnreadableImageError: an image could not be read and the policy is
                ``"error"``, or no image at all can be read.
        """
        self._check_position(epoch, start_step)
        return self._steps(epoch, range(start_step, self.steps_per_epoch))

    def crops(self, epoch: int, step: int) -> dict[str, ViewSpec]:
        """Draw the crops of a step's views.

        Args:
            epoch: Epoch, in [0, epochs).
            step: Step, in [0, steps_per_epoch].

        Returns:
            By stream, the crops ``[V, B]``, or ``[4 V, B]`` for montages: crop v of
            each image of the batch; none at the end of the epoch.

        Raises:
            ValueError: an argument is out of range.
            UnreadableImageError: as for :meth:`epoch`.
        """
        self._check_position(epoch, step, "step")
        streams = self._open(epoch)
        images = next(self._prefetch(streams, range(step, step + 1)))
        return {name: s.draws(step, images).crops for name, s in streams.items()}

    def fallbacks(self) -> dict[str, tuple[int, int]]:
        """Count the crops whose box is the fallback of its constraint.

        Returns:
            For each stream, the number of fallbacks and of draws in all epochs so far,
            including those drawn ahead.
        """
        return {name: (int(c[0]), int(c[1])) for name, c in self._fallbacks.items()}

    def _check_position(
        self, epoch: int, step: int, argument: str = "start_step"
    ) -> None:
        if not 0 <= epoch < self.epochs:
            raise ValueError(f"epoch: expected 0 <= epoch < {self.epochs}, got {epoch}")
        if not 0 <= step <= self.steps_per_epoch:
            raise ValueError(
                f"{argument}: expected 0 .. {self.steps_per_epoch}, got {step}"
            )

    def _steps(self, epoch: int, steps: range) -> Iterator[dict[str, Batch]]:
        streams = self._open(epoch)
        prefetched = self._prefetch(streams, steps)
        for step in steps:
            images = next(prefetched)
            batches = {name: s.batch(step, images) for name, s in streams.items()}
            # Free photographs at their own size before the next ones are decoded.
            del images
            yield batches

    def _open(self, epoch: int) -> dict[str, _StreamOfEpoch]:
        orders = {
            name: self._order.draw(
                stream.sampler,
                seed=self.seed,
                epoch=epoch,
                stream=position,
                progress=epoch / self.epochs,
                steps=self.steps_per_epoch,
            )
            for position, (name, stream) in enumerate(self.streams.items())
            if stream.follows is None
        }
        return {
            name: _StreamOfEpoch(self, name, epoch, *orders[stream.follows or name])
            for name, stream in self.streams.items()
        }

    def _prefetch(
        self, streams: Mapping[str, _StreamOfEpoch], steps: range
    ) -> Iterator[StepPixels]:
        wanted = (
            torch.cat([s.wanted(step) for s in streams.values()]).unique().numpy()
            for step in steps
        )
        # For each image of a step: itself and the images mixed into its views.
        of_one = sum(
            (stream.follows is None) + stream.views * (stream.mixing is not None)
            for stream in self.streams.values()
        )
        sizes = (stop - start for start, stop in map(self._span, steps))
        return self.pixels.prefetch(wanted, of_one * max(sizes, default=0))

    def _span(self, step: int, *, whole: bool = False) -> tuple[int, int]:
        """Return the range of a step in the order, or of this process's part of it."""
        total, steps = len(self._labels), self.steps_per_epoch
        start, stop = (min(s, steps) * total // steps for s in (step, step + 1))
        if whole:
            return start, stop
        first, last = (
            start + (stop - start) * rank // self.world_size
            for rank in (self.rank, self.rank + 1)
        )
        return first, last


def _check_streams(streams: Mapping[str, Stream]) -> None:
    if not 1 <= len(streams) <= MAX_STREAMS:
        raise ValueError(f"streams: expected 1 to {MAX_STREAMS}, got {len(streams)}")
    leaders = [name for name, stream in streams.items() if stream.follows is None]
    for name, stream in streams.items():
        if stream.follows not in (None, *leaders):
            raise ValueError(
                "follows: expected a stream with its own images "
                f"({', '.join(leaders)}), got {stream.follows!r} in stream {name!r}"
            )


class _StreamOfEpoch:
    """One epoch of a stream; for images in memory, it draws many steps ahead."""

    def __init__(
        self, source: Source, name: str, epoch: int, indices: Tensor, repeats: Tensor
    ) -> None:
        self._source, self._name, self._epoch = source, name, epoch
        self._indices, self._repeats = indices, repeats
        self._stream, self._recipe = source.streams[name], source._recipes[name]
        self._number = list(source.streams).index(name)
        # A montage of images in memory may show images of all processes.
        self._whole = self._recipe.montage and source.resident
        self._steps = range(0)  # steps of the draws below
        self._spans: list[tuple[int, int]] = []
        self._draws: Draws

    def wanted(self, step: int) -> Tensor:
        """Return the images that this process needs for a step, int64 ``[M]``."""
        places = torch.arange(*self._source._span(step))
        shown = self._indices[places]
        mix = self._mix(places, torch.full_like(places, step))
        return shown if mix is None else torch.cat((shown, mix.partners.flatten()))

    def batch(self, step: int, images: StepPixels) -> Batch:
        """Render this process's part of a step."""
        source = self._source
        part = slice(None)
        if self._whole:
            start, _ = source._span(step, whole=True)
            first, last = source._span(step)
            part = slice(first - start, last - start)
        batch = make_batch(
            self.draws(step, images),
            source._labels,
            self._stream.views,
            images,
            self._recipe,
            part,
        )
        return batch.to(source.pixels.device)

    def draws(self, step: int, images: StepPixels) -> Draws:
        """Return the draws for this process's part of a step."""
        if step not in self._steps:
            self._draw_from(step, images)
        return self._draws.narrow(*self._spans[step - self._steps.start])

    def _draw_from(self, step: int, images: StepPixels) -> None:
        """Draw a step, and some later ones if all images are in memory."""
        source, device = self._source, self._indices.device
        start, stop = source._span(step, whole=self._whole)
        ahead = 1
        if source.resident:
            crops = self._stream.views * self._recipe.crops * (stop - start)
            most = source.steps_per_epoch - step
            ahead = max(1, min(_DRAWN_AT_ONCE // max(crops, 1), most))
        self._steps = range(step, step + ahead)
        spans = [source._span(s, whole=self._whole) for s in self._steps]
        sizes = [stop - start for start, stop in spans]
        self._spans = list(pairwise(accumulate(sizes, initial=0)))
        places = torch.cat([torch.arange(*span) for span in spans])
        steps = torch.tensor(self._steps).repeat_interleave(torch.tensor(sizes))
        places = places.to(device, non_blocking=True)
        steps = steps.to(device, non_blocking=True)
        readable = images.readable(self._indices[places])
        if readable is not None and len(places):
            places = self._readable(places[readable], stop, images)
            steps = torch.full_like(places, step)
            self._spans = [(0, len(places))]
        self._draws = self._draw(places, steps, images)

    def _readable(self, places: Tensor, stop: int, images: StepPixels) -> Tensor:
        """Return ``places``, or if it is empty, the next one that can be read."""
        if len(places):
            return places
        total = len(self._indices)
        for place in range(stop, stop + total):
            if bool(images.readable(self._indices[place % total])):
                return torch.tensor([place % total])
        raise UnreadableImageError(f"none of the {total} training images can be read")

    def _draw(self, places: Tensor, steps: Tensor, images: StepPixels) -> Draws:
        indices, mix = self._indices[places], self._mix(places, steps)
        crops = self._crops(indices, indices, self._views(places), images)
        self._count(crops.fallback, torch.ones_like(crops.fallback))
        if mix is None:
            return Draws(indices, crops)
        readable = images.readable(mix.partners)
        if readable is not None:
            mix = mix.keep(readable, indices)
        partners = self._crops(mix.partners, indices, mix.view, images)
        self._count(partners.fallback, mix.mixed)
        return Draws(indices, crops, mix, partners)

    def _views(self, places: Tensor) -> Tensor:
        """Return the numbers of the images' crops, int64 ``[crops, B]``."""
        crops = self._stream.views * self._recipe.crops
        numbers = torch.arange(crops, device=places.device)[:, None]
        return self._repeats[places] * crops + numbers

    def _crops(
        self, shown: Tensor, indices: Tensor, views: Tensor, images: StepPixels
    ) -> ViewSpec:
        """Draw crops of the images ``shown`` at the address of ``indices``."""
        return self._recipe.describe(
            *images.sizes(shown),
            seed=self._source.seed,
            epoch=self._epoch,
            index=indices,
            view=views,
            stream=self._number,
        )

    def _mix(self, places: Tensor, steps: Tensor) -> Mix | None:
        source = self._source
        if self._stream.mixing is None:
            return None
        return self._stream.mixing.draw(
            source._order,
            self._recipe.view_size(*source.pixels.view_size),
            seed=source.seed,
            epoch=self._epoch,
            index=self._indices[places],
            view=self._views(places),
            step=steps,
            stream=self._number,
            progress=self._epoch / source.epochs,
        )

    def _count(self, fallback: Tensor, shown: Tensor) -> None:
        counts, name = self._source._fallbacks, self._name
        both = torch.stack(((fallback & shown).sum(), shown.sum()))
        counts[name] = counts[name] + both
