"""Named streams: a step may draw several batches, each in its own way."""

from __future__ import annotations

from dataclasses import dataclass

from s3h_ext.checks import COUNT, check
from s3h_ext.data.samplers import check_sampler
from s3h_ext.data.views.mixing import Mixing
from s3h_ext.data.views.recipes import get_recipe

__all__ = ["Stream"]


@dataclass(frozen=True)
class Stream:
    """How to draw one of a step's batches: sampler, recipe and number of views.

    Attributes:
        sampler: ``"instance-balanced"``, ``"class-balanced"``, ``"square-root"``,
            ``"progressive"`` or ``"M-per-class"``, such as ``"4-per-class"``.
        recipe: Augmentation, a name of :data:`s3h_ext.data.views.recipes.RECIPES`.
        views: Views of each image, or montages per image.
        follows: Name of a stream whose images to show again, in the same order, instead
            of drawing with ``sampler``; ``None`` to draw.
        mixing: How to mix other images into its views; ``None`` for no mixing.

    Raises:
        ValueError: a name is unknown, there is no view, or montages are mixed.
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
