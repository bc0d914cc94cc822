"""The training source for photographs on the disk, and their evaluation."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from s3h_ext.data.image_files import ImageFiles
from s3h_ext.data.samplers import EpochOrder
from s3h_ext.data.source.batches import Batch, make_batch
from s3h_ext.data.source.decode import Decoder, UnreadableImageError
from s3h_ext.data.source.decoded import DecodedImages
from s3h_ext.data.streams import Stream, check_plan
from s3h_ext.data.views.mixing import Mix
from s3h_ext.data.views.recipes import Recipe, ViewSpec, get_recipe
from s3h_ext.data.views.render import Pasted

__all__ = ["FileBatches", "FileSource"]


class FileSource:
    """Draws the batches of a training run from photographs, decoded as they are wanted.

    Draws are those of :class:`~.resident.ResidentSource`: functions of (seed, epoch,
    stream, image, how often that image was drawn before in the epoch, view), whatever
    decodes. An image is decoded once for all its views and streams of a step, including
    the views it is mixed into. Views have the files' ``side``, unless their recipe has
    a size of its own. Where images that cannot be read are left out, a view whose
    partner is one of them is not mixed.

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
        self._check_position(epoch, start_step)
        return self._steps(epoch, start_step)

    def crops(self, epoch: int, step: int) -> dict[str, ViewSpec]:
        """Describes the crops that a step's views, of this process, are made of.

        Their images are decoded for it.

        Args:
            epoch: In [0, epochs).
            step: In [0, steps_per_epoch).

        Returns:
            By stream, the crops ``[V, B]``, or ``[4 V, B]`` of montages.

        Raises:
            ValueError: an argument is out of range.
            UnreadableImageError: one of the images cannot be read.
        """
        self._check_position(epoch, step)
        span, orders, found = self._span(step), self._orders(epoch), {}
        for name, stream in self.streams.items():
            indices, repeats = (part[span] for part in orders[stream.follows or name])
            needed = indices.unique().numpy()
            (images,) = self._decoder.images([needed], len(needed))
            shown = DecodedImages(needed, images)
            if not bool(shown.readable(indices).all()):
                raise UnreadableImageError(f"an image of {name!r} cannot be read")
            view = self._views(name, repeats)
            found[name] = self._describe(name, epoch, indices, indices, view, shown)
        return found

    def _check_position(self, epoch: int, step: int) -> None:
        if not 0 <= epoch < self.epochs:
            raise ValueError(f"epoch: expected 0 <= epoch < {self.epochs}, got {epoch}")
        if not 0 <= step <= self.steps_per_epoch:
            raise ValueError(
                f"start_step: expected 0 .. {self.steps_per_epoch}, got {step}"
            )

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

    def _orders(self, epoch: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Draws the orders of the streams that have images of their own."""
        return {
            name: self._order.draw(
                stream.sampler,
                seed=self.seed,
                epoch=epoch,
                stream=number,
                progress=epoch / self.epochs,
            )
            for number, (name, stream) in enumerate(self.streams.items())
            if stream.follows is None
        }

    def _steps(self, epoch: int, start_step: int) -> Iterator[dict[str, Batch]]:
        orders = self._orders(epoch)
        steps = range(start_step, self.steps_per_epoch)
        spans = [self._span(s) for s in steps]
        # Those that are decoded and not yet shown; a decoder works ahead.
        waiting: deque[tuple[NDArray[np.int64], dict[str, Mix]]] = deque()

        def wanted() -> Iterator[NDArray[np.int64]]:
            for step, span in zip(steps, spans, strict=True):
                drawn = [order[0][span] for order in orders.values()]
                mixes = {
                    name: self._mix(
                        name, epoch, step, orders[stream.follows or name], span
                    )
                    for name, stream in self.streams.items()
                    if stream.mixing is not None
                }
                drawn += [mix.partners.flatten() for mix in mixes.values()]
                needed = torch.cat(drawn).unique().numpy()
                waiting.append((needed, mixes))
                yield needed

        # Of each image of a step, itself and what is mixed into its views.
        shown_of_one = len(orders) + sum(
            stream.views for stream in self.streams.values() if stream.mixing
        )
        largest = max((s.stop - s.start for s in spans), default=0) * shown_of_one
        decoded = self._decoder.images(wanted(), largest)
        for step, span in zip(steps, spans, strict=True):
            images = next(decoded)
            needed, mixes = waiting.popleft()
            shown = DecodedImages(needed, images)
            places = {}
            for name, order in orders.items():
                places[name], shown = self._readable(order[0], span, shown)
            batches = {}
            for name, stream in self.streams.items():
                leader = stream.follows or name
                order, place = orders[leader], places[leader]
                mix = mixes.get(name)
                if mix is not None and span.start <= int(place[0]) < span.stop:
                    mix = mix.select(place - span.start)
                elif mix is not None:
                    mix = self._mix(name, epoch, step, order, place)
                    for index in mix.partners.flatten():
                        shown = self._tried(index, shown)
                indices, repeats = order[0][place], order[1][place]
                batches[name] = self._batch(name, epoch, indices, repeats, shown, mix)
            # Photographs at their own size: not to be kept while the next are decoded.
            del images, shown
            yield batches

    def _readable(
        self, order: Tensor, span: slice, shown: DecodedImages
    ) -> tuple[Tensor, DecodedImages]:
        """Returns which of a step's places in the order can be read, and its images.

        Where that is none, the next place of the epoch that can be read stands in for
        them: losses need an image, and in several processes each of them one.
        """
        places = torch.arange(span.start, span.stop)
        places = places[shown.readable(order[span])]
        if len(places):
            return places, shown
        total = len(self._labels)
        for place in range(span.stop, span.stop + total):
            index = order[place % total]
            shown = self._tried(index, shown)
            if bool(shown.readable(index)):
                return torch.tensor([place % total]), shown
        raise UnreadableImageError(f"none of the {total} training images can be read")

    def _tried(self, index: Tensor, shown: DecodedImages) -> DecodedImages:
        """Decodes one more image, if it is not there yet."""
        if bool(shown.readable(index)):
            return shown
        (images,) = self._decoder.images([index[None].numpy()], 1)
        return shown.with_one(int(index), images[0])

    def _batch(
        self,
        name: str,
        epoch: int,
        indices: Tensor,
        repeats: Tensor,
        shown: DecodedImages,
        mix: Mix | None,
    ) -> Batch:
        recipe, views = self._recipes[name], self.streams[name].views
        view = self._views(name, repeats)
        spec = self._describe(name, epoch, indices, indices, view, shown)
        self._fallbacks[name] += int(spec.fallback.sum())
        self._drawn[name] += spec.fallback.numel()
        partners = None
        if mix is not None:
            mix = mix.keep(shown.readable(mix.partners), indices)
            partners = self._describe(
                name, epoch, mix.partners, indices, mix.view, shown
            )
            self._fallbacks[name] += int((partners.fallback & mix.mixed).sum())
            self._drawn[name] += int(mix.mixed.sum())

        def render(sources: Tensor, crops: ViewSpec, pasted: Pasted | None) -> Tensor:
            return shown.render(
                sources,
                crops,
                recipe,
                mean=self._mean,
                std=self._std,
                device=self._device,
                dtype=self._dtype,
                pasted=pasted,
            )

        batch = make_batch(
            indices, spec, self._labels, views, render, mix=mix, partners=partners
        )
        return batch.each(lambda tensor: tensor.to(self._device))

    def _describe(
        self,
        name: str,
        epoch: int,
        images: Tensor,
        indices: Tensor,
        view: Tensor,
        shown: DecodedImages,
    ) -> ViewSpec:
        """Draws crops of ``images`` by the numbers of ``indices`` and ``view``."""
        height, width = shown.sizes(images)
        return self._recipes[name].describe(
            height,
            width,
            seed=self.seed,
            epoch=epoch,
            index=indices,
            view=view,
            stream=self._number(name),
        )

    def _number(self, name: str) -> int:
        return list(self.streams).index(name)

    def _views(self, name: str, repeats: Tensor) -> Tensor:
        """Returns the numbers of a stream's crops, int64 ``[crops, B]``."""
        count = self.streams[name].views * self._recipes[name].crops
        return repeats * count + torch.arange(count)[:, None]

    def _mix(
        self,
        name: str,
        epoch: int,
        step: int,
        order: tuple[Tensor, Tensor],
        places: slice | Tensor,
    ) -> Mix:
        mixing, size = self.streams[name].mixing, self._recipes[name].out_size
        assert mixing is not None
        assert size is not None
        indices, repeats = (part[places] for part in order)
        return mixing.draw(
            self._order,
            size,
            seed=self.seed,
            epoch=epoch,
            index=indices,
            view=self._views(name, repeats),
            step=torch.full_like(indices, step),
            stream=self._number(name),
            progress=epoch / self.epochs,
        )


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
            shown = DecodedImages(indices, next(decoded))
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
            yield batch.each(lambda tensor: tensor.to(self._device))


def _sized(recipe: Recipe, side: int) -> Recipe:
    if recipe.out_size is None:
        recipe = replace(recipe, out_size=(side, side))
    recipe.view_size(side, side)
    return recipe
