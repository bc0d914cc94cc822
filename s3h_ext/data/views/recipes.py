"""Augmentation recipes: they describe views, and do not render them.

A recipe turns the address of a view (seed, epoch, image, view, stream) into a
:class:`ViewSpec`: a source box, a flip, a colour matrix, a list of operations, a hole.
:mod:`s3h_ext.data.views.render` turns the description into pixels. The draws of an
address have fixed slots, so all recipes draw the same crops and flips, whatever else
they do:

    0 flip   1 top   2 left   3 greyscale   4 jitter   5 brightness   6 contrast
    7 saturation   8 hue   9 region   10, 11 place in a montage
    12 + 2t, 13 + 2t   area and aspect ratio of try t of a resized crop

Holes and operations use the draws of stream 64 + s: slots 0 and 1 are the hole's
centre, the policy starts at 2, followed by 2 for the blur and 1 for solarising. Orders
use stream 128 + s (:mod:`s3h_ext.data.samplers`). Mixing
(:mod:`s3h_ext.data.views.mixing`) uses stream 192 + s at the view's own address:

    0 class and 1 member of it that is mixed in   2 whether   3 weight
    4 top and 5 left of the box

If a batch is mixed as one, slots 2 to 5 are drawn for the step instead of the image, at
view 2**23 + v. The crop of the image mixed in is that of view 2**23 + view of the image
that it is mixed into, in stream s (and 64 + s).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from s3h_ext.checks import check, check_choice, number_in
from s3h_ext.data.tensors import Tensors
from s3h_ext.data.views.colour import ColorJitter, draw_colour
from s3h_ext.data.views.policies import AutoAugment, Policy, RandAugment
from s3h_ext.data.views.timm_randaugment import TimmRandAugment, parse_randaugment
from s3h_ext.ops.augment import Operation
from s3h_ext.ops.philox import philox_uniform
from s3h_ext.ops.view_boxes import sample_view_boxes
from s3h_ext.ops.view_constraints import (
    FOUR_CORNERS,
    Centre,
    Constraint,
    Crop,
    Grid,
    PadCrop,
    RandomResizedCrop,
    Whole,
    as_constraint,
)

__all__ = ["MAX_STREAMS", "RECIPES", "Recipe", "ViewSpec", "get_recipe"]

#: Largest number of streams with separate draws for policies and orders.
MAX_STREAMS = 64

_FLIP, _GREY, _HUE, _KEY = 0, 3, 8, 10
# Range of the standard deviation of the blur, in pixels.
_BLUR = (0.1, 2.0)


@dataclass(frozen=True)
class ViewSpec(Tensors):
    """Descriptions of crops, one entry each; leading dimensions are arbitrary.

    A view is one crop, or four in a montage. The order of operations is crop, resize,
    flip, colour matrix, operations, hole.

    Attributes:
        box: int64 ``[..., 4]``: top, left, height, width in source pixels. Parts
            outside the image are black.
        flip: bool ``[...]``: mirror left to right.
        fallback: bool ``[...]``: whether the box is its constraint's fallback.
        colour: float32 ``[..., 3, 4]`` on pixels in [0, 1], the result clamped to
            [0, 1]; ``None`` for the identity.
        operations: int64 ``[..., K]``, see :class:`s3h_ext.ops.augment.Operation`; or
            ``None``.
        magnitudes: float64 ``[..., K]``, if there are operations.
        hole: int64 ``[..., 4]``: a black rectangle in the view, or ``None``.
        key: float64 ``[...]``, sort keys that distribute crops over montages; ``None``
            if each crop is a view.
        resized: Whether boxes are resized to the output; if not, every box has the
            output's size.
    """

    box: Tensor
    flip: Tensor
    fallback: Tensor
    colour: Tensor | None = None
    operations: Tensor | None = None
    magnitudes: Tensor | None = None
    hole: Tensor | None = None
    key: Tensor | None = None
    resized: bool = False

    def narrow(self, dim: int, start: int, stop: int) -> ViewSpec:
        """Return the crops ``start .. stop - 1`` along a leading dimension."""
        return self.each(lambda tensor: tensor.narrow(dim, start, stop - start))

    def flatten(self) -> ViewSpec:
        """Return the same crops with one leading dimension."""
        last = self.flip.dim() - 1
        return self.each(lambda tensor: tensor.flatten(0, last))

    def select(self, index: Tensor) -> ViewSpec:
        """Return the crops at ``index`` (int64 ``[M]``) of the first dimension."""
        return self.each(lambda tensor: tensor.index_select(0, index))

    def followed_by(self, other: ViewSpec) -> ViewSpec:
        """Concatenate with other crops of the same recipe; both must be flat."""
        rest = iter(other.tensors())
        return self.each(lambda tensor: torch.cat((tensor, next(rest))))


@dataclass(frozen=True)
class Recipe:
    """A composition of augmentations; everything is off by default.

    Attributes:
        crop: How to draw the box: a crop of the image, or a constraint.
        flip: Probability of mirroring left to right.
        jitter: Colour jitter or ``None``.
        grey: Probability of greyscale.
        policy: Operations on the bytes of the crop, after the colours.
        blur: Probability of a subsequent Gaussian blur, with a standard deviation drawn
            from 0.1 to 2 pixels (Chen et al., "SimCLR", ICML 2020; MoCo v2).
        solarize: Probability of inverting values from 128 on, after the blur (Grill et
            al., "BYOL", NeurIPS 2020).
        cutout: Side of a black square around a uniform centre, clipped at the border
            (DeVries and Taylor, arXiv 1708.04552); 0 for none. Applied last.
        montage: Whether a view is four crops, two by two. The crops of a batch are
            permuted over its views, so that a montage shows four images.
        out_size: Height and width of the views; ``None`` for those of the source.
    """

    crop: Constraint | Crop = field(default_factory=Whole)
    flip: float = 0.0
    jitter: ColorJitter | None = None
    grey: float = 0.0
    policy: Policy | TimmRandAugment | None = None
    blur: float = 0.0
    solarize: float = 0.0
    cutout: int = 0
    montage: bool = False
    out_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.cutout < 0:
            raise ValueError(f"cutout: expected at least 0, got {self.cutout}")
        probability = number_in("[0, 1]", "a probability")
        check(probability, blur=self.blur, solarize=self.solarize)
        if self.out_size is not None and min(self.out_size) < 1:
            raise ValueError(f"out_size: expected positive sides, got {self.out_size}")

    @property
    def crops(self) -> int:
        """Number of crops in a view."""
        return 4 if self.montage else 1

    def check_channels(self, channels: int) -> None:
        """Check that the images have the channels that colour changes need.

        Raises:
            ValueError: jitter or greyscale for images with one channel.
        """
        if channels != 3 and (self.jitter is not None or self.grey > 0):
            names = [repr(name) for name, recipe in RECIPES.items() if recipe == self]
            raise ValueError(
                f"recipe: {' or '.join(names) or 'this one'} changes colours and needs "
                f"images of 3 channels, got {channels}; use one without jitter and "
                "grey, such as 'crop-flip'"
            )

    def view_size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of the views of images of the given size.

        Raises:
            ValueError: the views are montages and a side is odd.
        """
        size = (height, width) if self.out_size is None else self.out_size
        if self.montage and (size[0] % 2 or size[1] % 2):
            raise ValueError(
                f"recipe: a 2x2 montage needs even sides, got {size[0]} x {size[1]}"
            )
        return size

    def crop_size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of rendered crops of images of the given size."""
        height, width = self.view_size(height, width)
        return (height // 2, width // 2) if self.montage else (height, width)

    def describe(
        self,
        height: int | Tensor,
        width: int | Tensor,
        *,
        seed: int,
        epoch: int,
        index: Tensor,
        view: Tensor | int,
        stream: int = 0,
    ) -> ViewSpec:
        """Draw crops; a pure function of its arguments.

        Args:
            height: Height of the source images, or int64 with one for each element of
                ``index`` if sizes differ; the recipe then needs an ``out_size``.
            width: Width of the source images, in the same form.
            seed: Seed, in [0, 2**32).
            epoch: Epoch, in [0, 2**32).
            index: Image numbers, int64 ``[...]``.
            view: Numbers of an image's crops, int64 broadcastable with ``index``.
            stream: Number of the stream, in [0, 64).

        Returns:
            One crop per element of ``index`` and ``view``, broadcast.

        Raises:
            ValueError: an argument is out of range.

        Example:
            >>> recipe, index = get_recipe("crop-flip"), torch.tensor([0])
            >>> spec = recipe.describe(
            ...     32, 32, seed=5, epoch=2, index=index, view=0, stream=1)
            >>> spec.box.tolist(), spec.flip.tolist()
            ([[-1, 2, 32, 32]], [True])
        """
        if not 0 <= stream < MAX_STREAMS:
            raise ValueError(
                f"stream: expected 0 <= stream < {MAX_STREAMS}, got {stream}"
            )
        views = view if isinstance(view, Tensor) else torch.full_like(index, view)
        sizes: Tensor | tuple[int, int]
        if isinstance(height, Tensor) or isinstance(width, Tensor):
            if self.out_size is None:
                raise ValueError(
                    "out_size: expected a size, because image sizes differ; got None"
                )
            shape = torch.broadcast_shapes(index.shape, views.shape)
            sides = (torch.as_tensor(side).expand(shape) for side in (height, width))
            sizes = torch.stack(list(sides), dim=-1).reshape(-1, 2)
            height, width = self.out_size
        else:
            sizes = height, width
        index, views = torch.broadcast_tensors(index, views)
        leading = index.shape
        index, views = index.reshape(-1), views.reshape(-1)
        address = {"seed": seed, "epoch": epoch, "index": index, "view": views}
        box, fallback = sample_view_boxes(
            sizes,
            self.crop,
            seed=seed,
            epoch=epoch,
            sample_index=index,
            view=views,
            stream=stream,
        )
        # A 24-bit uniform times an integer is exact in float64, so no product is
        # rounded up to the end of its range.
        uniforms = philox_uniform(**address, stream=stream, draws=self._draws)
        uniforms = uniforms.to(torch.float64)
        if self.flip > 0:
            flip = uniforms[..., _FLIP] < self.flip
        else:
            flip = torch.zeros_like(fallback)
        operations, magnitudes, hole = self._bytes(height, width, stream, address)
        spec = ViewSpec(
            box=box,
            flip=flip,
            fallback=fallback,
            colour=draw_colour(uniforms, self.jitter, self.grey),
            operations=operations,
            magnitudes=magnitudes,
            hole=hole,
            # 48 bits: a fair shuffle, and exact in float64.
            key=uniforms[:, _KEY] + uniforms[:, _KEY + 1] * 2.0**-24
            if self.montage
            else None,
            resized=self._resizes(),
        )
        return spec.each(lambda tensor: tensor.reshape(*leading, *tensor.shape[1:]))

    @property
    def _draws(self) -> int:
        if self.montage:
            return _KEY + 2
        if self.jitter is not None:
            return _HUE + 1
        if self.grey > 0:
            return _GREY + 1
        return _FLIP + 1 if self.flip > 0 else 0

    def _resizes(self) -> bool:
        constraint = as_constraint(self.crop)
        same = isinstance(constraint.crop, PadCrop | Whole)
        same &= constraint.region == Grid() and self.out_size is None
        return not same or self.montage

    def _bytes(
        self, height: int, width: int, stream: int, address: dict[str, Any]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Draw the operations, their magnitudes and the hole."""
        steps: list[tuple[Tensor, Tensor]] = []
        hole = None
        after = 2 + (0 if self.policy is None else self.policy.draws)
        draws = after + (3 if self.blur or self.solarize else 0)
        if draws == 2 and self.cutout == 0:
            return None, None, None
        height, width = self.crop_size(height, width)
        uniforms = philox_uniform(**address, stream=MAX_STREAMS + stream, draws=draws)
        uniforms = uniforms.to(torch.float64)
        if self.policy is not None:
            steps.append(self.policy.describe(uniforms[..., 2:], height, width))
        if self.blur:
            chosen, share = uniforms[..., after : after + 2].split(1, -1)
            deviation = _BLUR[0] + (_BLUR[1] - _BLUR[0]) * share
            blurred = torch.where(chosen < self.blur, int(Operation.BLUR), 0)
            steps.append((blurred, deviation))
        if self.solarize:
            chosen = uniforms[..., after + 2 : after + 3]
            inverted = torch.where(chosen < self.solarize, int(Operation.SOLARIZE), 0)
            steps.append((inverted, torch.full_like(chosen, 128.0)))
        if self.cutout > 0:
            hole = torch.full((len(uniforms), 4), self.cutout, device=uniforms.device)
            for axis, side in enumerate((height, width)):
                centre = (uniforms[..., axis] * side).to(torch.int64)
                hole[..., axis] = centre - self.cutout // 2
        if not steps:
            return None, None, hole
        operations, magnitudes = (
            torch.cat(parts, dim=-1) for parts in zip(*steps, strict=True)
        )
        return operations, magnitudes, hole


# Our interpretation of S3H's spatial constraint sampling: regions and crops of JigClu
# (Chen et al., CVPR 2021), colours of CBTS's small crops (Zhao et al., IEEE TMM 2025,
# released code) without their RandAugment.
_MONTAGE = Recipe(
    crop=Constraint(RandomResizedCrop(), FOUR_CORNERS),
    flip=0.5,
    jitter=ColorJitter(saturation=0.2),
    grey=0.2,
    montage=True,
)
#: The named recipes.
RECIPES = {
    "none": Recipe(),
    "crop": Recipe(crop=PadCrop()),
    "crop-gray": Recipe(crop=PadCrop(), grey=0.2),
    "crop-flip": Recipe(crop=PadCrop(), flip=0.5),
    "crop-flip-gray": Recipe(crop=PadCrop(), flip=0.5, grey=0.2),
    "crop-flip-jitter-gray": Recipe(
        crop=PadCrop(), flip=0.5, jitter=ColorJitter(), grey=0.2
    ),
    # As in SimCLR and SupCon (Khosla et al., NeurIPS 2020, released code for CIFAR).
    "supcon": Recipe(
        crop=RandomResizedCrop(), flip=0.5, jitter=ColorJitter(), grey=0.2
    ),
    # Another interpretation of Hybrid's "random cropping with size 32 x 32".
    "supcon-no-jitter": Recipe(crop=RandomResizedCrop(), flip=0.5, grey=0.2),
    # Standard for ImageNet-LT and iNaturalist 2018 (Kang et al., ICLR 2020, released
    # code); with greyscale instead of jitter, Hybrid's for photographs.
    "resized-crop-flip": Recipe(crop=RandomResizedCrop((0.08, 1.0)), flip=0.5),
    "resized-crop-flip-jitter": Recipe(
        crop=RandomResizedCrop((0.08, 1.0)),
        flip=0.5,
        jitter=ColorJitter(hue=0.0, probability=1.0),
    ),
    "resized-crop-flip-gray": Recipe(
        crop=RandomResizedCrop((0.08, 1.0)), flip=0.5, grey=0.2
    ),
    # Classification view of BCL and ProCo on CIFAR (released code).
    "autoaugment+cutout": Recipe(
        crop=PadCrop(), flip=0.5, policy=AutoAugment(), cutout=16
    ),
    "randaugment": Recipe(crop=PadCrop(), flip=0.5, policy=RandAugment()),
    "montage-2x2": _MONTAGE,
    # The same for images that must not be mirrored and have no colours, such as digits.
    "montage-2x2-plain": Recipe(crop=_MONTAGE.crop, montage=True),
    # The same without the regions, to measure their effect.
    "montage-2x2-anywhere": replace(_MONTAGE, crop=RandomResizedCrop()),
    # Resize the shorter side to 256, crop 224 from the centre, in one step.
    "evaluation": Recipe(crop=Centre(224 / 256), out_size=(224, 224)),
}


#: Parts that may be added to a named recipe, and their default numbers.
_ADDED = {"blur": 0.5, "solarize": 0.2, "cutout": 16}


def _addition(part: str, argument: str) -> tuple[str, Any]:
    """Return a field of a recipe and its value; ``None`` if the part is unknown."""
    if part.split("-")[0] == "rand":
        return "policy", parse_randaugment(part, argument)
    found = re.fullmatch(r"(blur|solarize)(\d{1,4}(?:\.\d{1,6})?)?", part)
    found = found or re.fullmatch(r"(cutout)(\d{1,4})?", part)
    if found is None:
        return "", None
    value = _ADDED[found[1]]
    return found[1], type(value)(found[2]) if found[2] else value


def get_recipe(name: str, argument: str = "recipe") -> Recipe:
    """Return a recipe by name, with optional additions.

    After the name of one of :data:`RECIPES`, each with a ``+``: timm's RandAugment
    string (:mod:`~s3h_ext.data.views.timm_randaugment`), ``blur`` and ``solarize`` with
    a probability, ``cutout`` with a side; the defaults are 0.5, 0.2 and 16.

    Raises:
        ValueError: there is no such recipe (the message names the most similar one), or
            a part is unknown or repeated.

    Example:
        >>> recipe = get_recipe("crop-flip+rand-n2-m10-mstd0.5+cutout8")
        >>> recipe.policy.deviation, recipe.cutout
        (0.5, 8)
        >>> get_recipe("supcon+blur+solarize0.1").solarize
        0.1
    """
    if name in RECIPES:
        return RECIPES[name]
    base, *parts = name.split("+")
    if parts and "+".join((base, parts[0])) in RECIPES:  # such as autoaugment+cutout
        base, parts = "+".join((base, parts[0])), parts[1:]
    check_choice(argument, base, RECIPES)
    added: dict[str, Any] = {}
    for part in parts:
        what, value = _addition(part, argument)
        if value is None or what in added or getattr(RECIPES[base], what):
            raise ValueError(
                f"{argument}: expected behind {base!r} 'rand-...', 'blur', 'solarize' "
                f"or 'cutout', each once and with a fitting number, got {part!r} in "
                f"{name!r}"
            )
        added[what] = value
    try:
        return replace(RECIPES[base], **added)
    except ValueError as error:
        raise ValueError(f"{argument}: {error} in {name!r}") from None
