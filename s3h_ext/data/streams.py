"""Named streams: a step may draw several batches, each its own way."""

from __future__ import annotations

from dataclasses import dataclass

from s3h_ext.checks import COUNT, check
from s3h_ext.data.samplers import check_sampler
from s3h_ext.data.views.mixing import Mixing
from s3h_ext.data.views.recipes import get_recipe

__all__ = ["Stream"]


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
