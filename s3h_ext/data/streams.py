"""Named streams: a step may draw several batches, each its own way."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from s3h_ext.data.recipes import get_recipe
from s3h_ext.data.samplers import SAMPLERS

__all__ = ["Stream", "check_follows"]


@dataclass(frozen=True)
class Stream:
    """How one of a step's batches is drawn.

    Attributes:
        sampler: ``"instance-balanced"``, ``"class-balanced"``, ``"square-root"`` or
            ``"progressive"``.
        recipe: A name of :data:`s3h_ext.data.recipes.RECIPES`.
        views: Views of each image; of a montage, as many as there are images.
        follows: Name of the stream whose images it shows again, in the same order; its
            own sampler is then not used. ``None`` for images of its own.

    Raises:
        ValueError: an unknown name, or no view.
    """

    sampler: str = "instance-balanced"
    recipe: str = "crop-flip"
    views: int = 1
    follows: str | None = None

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            near = difflib.get_close_matches(self.sampler, SAMPLERS, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"sampler: expected one of {', '.join(SAMPLERS)}, got "
                f"{self.sampler!r}; did you mean {near!r}?"
            )
        get_recipe(self.recipe)
        if self.views < 1:
            raise ValueError(f"views: expected at least 1, got {self.views}")


def check_follows(name: str, stream: Stream, streams: Mapping[str, Stream]) -> None:
    """Checks that a stream follows one of ``streams`` that has images of its own.

    Raises:
        ValueError: it does not.
    """
    leader = stream.follows
    if leader is None:
        return
    own = [key for key, other in streams.items() if other.follows is None]
    if leader not in own:
        raise ValueError(
            f"follows: expected a stream with images of its own ({', '.join(own)}), "
            f"got {leader!r} in stream {name!r}"
        )
