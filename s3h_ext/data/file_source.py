"""The training source for photographs on the disk, and their evaluation."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from s3h_ext.data.batches import Batch, Quadrants, make_batch
from s3h_ext.data.decode import Decoder, UnreadableImageError
from s3h_ext.data.files import ImageFiles
from s3h_ext.data.recipes import Recipe, ViewSpec, get_recipe
from s3h_ext.data.render import render_crops
from s3h_ext.data.samplers import EpochOrder
from s3h_ext.data.streams import Stream, check_plan

__all__ = ["FileBatches", "FileSource"]


class FileSource:
    """Draws the batches of a training run from photographs, decoded as they are wanted.

    Draws are those of :class:`~.resident.ResidentSource`: functions of (seed, epoch,
    stream, image, how often that image was drawn before in the epoch, view), whatever
    decodes. An image is decoded once for all its views and streams of a step. Views
    have the files' ``side``, unless their recipe has a size of its own.

    With several processes a step's images are dealt out among them in stretches whose
    sizes differ by at most one; together they draw what one process draws, but for
    montages, which show images of their own process.

    Args:
        files: The training images.
        streams: Name -> how to draw that batch of a step.
        decoder: Of ``files``.
        num_classes: C.
        mean: Per channel, of pixels in [0, 1].
        std: Per channel.
        batch_size: The largest batch of a stream, of all processes together.
        epochs: Length of the run.
        seed: In [0, 2**32).
        device: Where the batches are.
        dtype: Of the images: float32, bfloat16 or float16.
        rank: Which of the processes this is.
        world_size: How many there are.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        files: ImageFiles,
        streams: Mapping[str, Stream],
        decoder: Decoder,
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
            images=len(files),
            batch_size=batch_size,
            epochs=epochs,
            seed=seed,
            rank=rank,
            world_size=world_size,
        )
        self.streams = dict(streams)
        self.epochs, self.seed = epochs, seed
        self.rank, self.world_size = rank, world_size
        self._order = EpochOrder(files.labels, num_classes)
        self._labels = torch.from_numpy(files.labels)
        self._decoder = decoder
        self._recipes = {
            name: _sized(get_recipe(stream.recipe), files.side)
            for name, stream in self.streams.items()
        }
        self._mean, self._std = list(mean), list(std)
        self._device, self._dtype = torch.device(device), dtype
        self._fallbacks = dict.fromkeys(self.streams, 0)
        self._drawn = dict.fromkeys(self.streams, 0)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[dict[str, Batch]]:
        """Iterates over the steps of an epoch.

        Args:
            epoch: In [0, epochs).
            start_step: Step to begin with, to go on where a run stopped.

        Returns:
            One dictionary of batches per step, by stream name.

        Raises:
            ValueError: an argument is out of range.
            UnreadableImageError: an image could not be read and the policy is
                ``"error"``, or no image at all can be.
        """
        if not 0 <= epoch < self.epochs:
            raise ValueError(f"epoch: expected 0 <= epoch < {self.epochs}, got {epoch}")
        if not 0 <= start_step <= self.steps_per_epoch:
            raise ValueError(
                f"start_step: expected 0 .. {self.steps_per_epoch}, got {start_step}"
            )
        return self._steps(epoch, start_step)

    def fallbacks(self) -> dict[str, tuple[int, int]]:
        """Counts the crops whose box is the fallback of its constraint.

        Returns:
            For each stream, how many were so and how many were drawn, in all epochs so
            far.
        """
        return {n: (self._fallbacks[n], self._drawn[n]) for n in self.streams}

    def _span(self, step: int) -> slice:
        total, steps = len(self._labels), self.steps_per_epoch
        start, stop = step * total // steps, (step + 1) * total // steps
        first, last = (
            start + (stop - start) * rank // self.world_size
            for rank in (self.rank, self.rank + 1)
        )
        return slice(first, last)

    def _steps(self, epoch: int, start_step: int) -> Iterator[dict[str, Batch]]:
        names = list(self.streams)
        orders: dict[str, tuple[Tensor, Tensor]] = {}
        for number, (name, stream) in enumerate(self.streams.items()):
            if stream.follows is None:
                orders[name] = self._order.draw(
                    stream.sampler,
                    seed=self.seed,
                    epoch=epoch,
                    stream=number,
                    progress=epoch / self.epochs,
                )
        spans = [self._span(s) for s in range(start_step, self.steps_per_epoch)]
        # Those that are decoded and not yet shown; a decoder works ahead.
        waiting: deque[NDArray[np.int64]] = deque()

        def wanted() -> Iterator[NDArray[np.int64]]:
            for span in spans:
                drawn = torch.cat([order[0][span] for order in orders.values()])
                waiting.append(drawn.unique().numpy())
                yield waiting[-1]

        largest = max((s.stop - s.start for s in spans), default=0) * len(orders)
        decoded = self._decoder.images(wanted(), largest)
        for span in spans:
            images = next(decoded)
            shown = _Decoded(waiting.popleft(), images)
            drawn = {}
            for name, order in orders.items():
                drawn[name], shown = self._readable(order, span, shown)
            batches = {}
            for number, name in enumerate(names):
                leader = self.streams[name].follows or name
                batches[name] = self._batch(name, number, epoch, *drawn[leader], shown)
            # Photographs at their own size: not to be kept while the next are decoded.
            del images, shown
            yield batches

    def _readable(
        self, order: tuple[Tensor, Tensor], span: slice, shown: _Decoded
    ) -> tuple[tuple[Tensor, Tensor], _Decoded]:
        """Returns what of a step's draws can be read, and the images of the step.

        Where that is nothing, the next draw of the epoch that can be read is shown in
        its place, for losses need an image, and in several processes each of them one.
        """
        indices, repeats = (part[span] for part in order)
        there = shown.readable(indices)
        if bool(there.any()):
            return (indices[there], repeats[there]), shown
        total = len(self._labels)
        for place in range(span.stop, span.stop + total):
            one = slice(place % total, place % total + 1)
            index, repeat = (part[one] for part in order)
            if not bool(shown.readable(index)):
                (images,) = self._decoder.images([index.numpy()], 1)
                shown = shown.with_one(int(index), images[0])
            if bool(shown.readable(index)):
                return (index, repeat), shown
        raise UnreadableImageError(f"none of the {total} training images can be read")

    def _batch(
        self,
        name: str,
        number: int,
        epoch: int,
        indices: Tensor,
        repeats: Tensor,
        shown: _Decoded,
    ) -> Batch:
        recipe, views = self._recipes[name], self.streams[name].views
        count = views * recipe.crops
        height, width = shown.sizes(indices)
        spec = recipe.describe(
            height,
            width,
            seed=self.seed,
            epoch=epoch,
            index=indices,
            view=repeats * count + torch.arange(count)[:, None],
            stream=number,
        )
        self._fallbacks[name] += int(spec.fallback.sum())
        self._drawn[name] += spec.fallback.numel()

        def render(sources: Tensor, crops: ViewSpec) -> Tensor:
            return shown.render(
                sources,
                crops,
                recipe,
                mean=self._mean,
                std=self._std,
                device=self._device,
                dtype=self._dtype,
            )

        batch = make_batch(indices, spec, self._labels, views, render)
        return _moved(batch, self._device)


class FileBatches:
    """Iterates over photographs in their order, for evaluation.

    The recipe is ``"evaluation"``: the centre 224/256 of the shorter side, resized to
    the files' ``side``. Images that cannot be read are left out, if the decoder lets
    them.

    Args:
        files: The images.
        decoder: Of ``files``.
        mean: Per channel, of pixels in [0, 1].
        std: Per channel.
        batch_size: Images per batch; the last one holds the rest.
        device: Where the batches are.
        dtype: Of the images.

    Raises:
        ValueError: ``batch_size`` is below 1.
    """

    def __init__(
        self,
        files: ImageFiles,
        decoder: Decoder,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        self.batch_size = batch_size
        self._labels = torch.from_numpy(files.labels)
        self._decoder = decoder
        self._recipe = replace(
            get_recipe("evaluation"), out_size=(files.side, files.side)
        )
        self._mean, self._std = list(mean), list(std)
        self._device, self._dtype = torch.device(device), dtype

    def __len__(self) -> int:
        return -(-len(self._labels) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        starts = range(0, len(self._labels), self.batch_size)
        stops = [min(start + self.batch_size, len(self._labels)) for start in starts]
        wanted = [np.arange(a, b) for a, b in zip(starts, stops, strict=True)]
        decoded = self._decoder.images(wanted, self.batch_size)
        for indices in wanted:
            shown = _Decoded(indices, next(decoded))
            index = torch.from_numpy(indices)
            index = index[shown.readable(index)]
            if len(index) == 0:
                continue
            height, width = shown.sizes(index)
            crops = self._recipe.describe(
                height, width, seed=0, epoch=0, index=index, view=0
            )
            pixels = shown.render(
                index,
                crops,
                self._recipe,
                mean=self._mean,
                std=self._std,
                device=self._device,
                dtype=self._dtype,
            )
            del shown
            batch = Batch(pixels.unsqueeze(0), self._labels[index], index)
            yield _moved(batch, self._device)


class _Decoded:
    """The decoded images of a step, found by their position in the image set."""

    def __init__(
        self, indices: NDArray[np.int64], images: Sequence[Tensor | None]
    ) -> None:
        there = [image is not None for image in images]
        self._images = [image for image in images if image is not None]
        self._indices = torch.from_numpy(indices)[torch.tensor(there, dtype=torch.bool)]
        sides = [image.shape[:2] for image in self._images]
        self._sizes = torch.tensor(sides, dtype=torch.int64).reshape(-1, 2)

    def with_one(self, index: int, image: Tensor | None) -> _Decoded:
        """Returns the images with one more, if it could be read."""
        if image is None:
            return self
        found = dict(zip(self._indices.tolist(), self._images, strict=True))
        found[index] = image
        indices = sorted(found)
        return _Decoded(np.array(indices), [found[i] for i in indices])

    def readable(self, indices: Tensor) -> Tensor:
        """Returns which of the images are there, bool ``[B]``."""
        return torch.isin(indices, self._indices)

    def sizes(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Returns heights and widths, int64 ``[B]`` each."""
        height, width = self._sizes[self._places(indices)].unbind(1)
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
        )

    def _places(self, indices: Tensor) -> Tensor:
        return torch.searchsorted(self._indices, indices)


def _sized(recipe: Recipe, side: int) -> Recipe:
    if recipe.out_size is None:
        recipe = replace(recipe, out_size=(side, side))
    recipe.view_size(side, side)
    return recipe


def _moved(batch: Batch, device: torch.device) -> Batch:
    if device.type == "cpu":
        return batch
    quadrants = batch.quadrants
    if quadrants is not None:
        quadrants = Quadrants(
            quadrants.labels.to(device),
            quadrants.indices.to(device),
            quadrants.crops.to(device),
        )
    return Batch(
        batch.images, batch.labels.to(device), batch.indices.to(device), quadrants
    )
