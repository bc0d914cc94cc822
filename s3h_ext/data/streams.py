"""Named streams: a step may draw several batches, each its own way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from s3h_ext.checks import COUNT, SEED, check
from s3h_ext.data.samplers import check_sampler
from s3h_ext.data.views.mixing import Mixing
from s3h_ext.data.views.recipes import MAX_STREAMS, get_recipe

__all__ = ["Stream", "check_plan"]


@dataclass(frozen=True)
class Stream:
    """Draws one of a step's batches: its sampler, recipe and number of views.

    Attributes:
        sampler: ``"instance-balanced"``, ``"class-balanced"``, ``"square-root"``,
            ``"progressive"`` or ``"M-per-class"``, as in ``"4-per-class"``.
        recipe: A name of :data:`s3h_ext.data.views.recipes.RECIPES`.
        views: Views of each image; of a montage, as many as there are images.
        follows: Name of the stream whose images it shows again, in the same order; its
            own sampler is then not used. ``None`` for images of its own.
        mixing: How other images are mixed into its views; ``None`` for not at all.

    Raises:
        ValueError: an unknown name, no view, or mixed montages.
    """

    sampler: str = "instance-balanced"
    recipe: str = "crop-flip"
    views: int = 1
    follows: str | None = None
    mixing: Mixing | None = None

    def __post_init__(self) -> None:
        check_sampler("sampler", self.sampler)
        if get_recipe(self.recipe).montage and self.mixing is not None:
            raise ValueError(
                "mixing: expected None for a montage, which already shows "
                f"several images; got {self.mixing.kind!r} for {self.recipe!r}"
            )
        check(COUNT, views=self.views)


def check_plan(
    streams: Mapping[str, Stream],
    *,
    images: int,
    batch_size: int,
    epochs: int,
    seed: int,
    rank: int,
    world_size: int,
) -> int:
    """Checks a source's arguments; returns the steps of an epoch.

    Raises:
        ValueError: an argument is out of range, a step would leave a process without an
            image, or a stream follows one that has no images of its own.
    """
    if not 1 <= len(streams) <= MAX_STREAMS:
        raise ValueError(f"streams: expected 1 to {MAX_STREAMS}, got {len(streams)}")
    check(COUNT, batch_size=batch_size, epochs=epochs)
    check(SEED, seed=seed)
    if not 0 <= rank < world_size:
        raise ValueError(f"rank: expected 0 <= rank < {world_size}, got {rank}")
    steps = -(-images // batch_size)
    smallest = images // max(steps, 1)
    if smallest < world_size:
        raise ValueError(
            f"batch_size: expected an image for each of {world_size} processes in "
            f"every step; {images} images in batches of {batch_size} give {smallest}"
        )
    leaders = [name for name, stream in streams.items() if stream.follows is None]
    for name, stream in streams.items():
        if stream.follows not in (None, *leaders):
            raise ValueError(
                "follows: expected a stream with its own images "
                f"({', '.join(leaders)}), got {stream.follows!r} in stream {name!r}"
            )
    return steps
