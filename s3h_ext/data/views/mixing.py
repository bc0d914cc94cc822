"""Mixing of two images in a view: mixup and CutMix, with label weights.

    mixup   w x_a + (1 - w) x_b               Zhang et al., ICLR 2018, equation 1
    CutMix  a box of x_b pasted onto x_a      Yun et al., ICCV 2019, equations 1 and 2

A separate sampler draws the image to mix in. CutMix with ``"class-balanced"`` is the
context-rich oversampling of CMO (Park et al., CVPR 2022, section 3.2): rare classes on
the backgrounds of frequent ones. ConCutMix (Pan et al., IEEE TIP 2024) applies it to
the classifier's view.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from s3h_ext.checks import check, check_choice, number_in
from s3h_ext.data.samplers import SAMPLERS, EpochOrder
from s3h_ext.data.tensors import Tensors
from s3h_ext.data.views.render import whole_box
from s3h_ext.ops.philox import philox_words

__all__ = ["Mix", "Mixing"]

MixKind = Literal["mixup", "cutmix"]
MixUnit = Literal["image", "batch"]

# The module docstring of recipes.py lists the addresses of all draws.
_MIX_STREAMS = 192
_MIXED_VIEWS = 1 << 23
_CLASS, _MEMBER, _WHETHER, _WEIGHT, _TOP, _LEFT = range(6)


@dataclass(frozen=True)
class Mix(Tensors):
    """Partners of a batch's views, and the weights of the labels.

    Attributes:
        partners: int64 ``[V, B]``, images mixed in, as positions in the image set; the
            view's own image if it is not mixed.
        weights: float32 ``[V, B]``, weight of the view's own label; 1 if not mixed.
        boxes: int64 ``[V, B, 4]``: top, left, height and width of the pasted part of
            the view: empty if not mixed, the whole view for mixup.
        view: int64 ``[V, B]``, view numbers of the partners' crops.
        size: Height and width of the views.
        pasted: Whether partners are pasted (CutMix) or blended (mixup).
    """

    partners: Tensor
    weights: Tensor
    boxes: Tensor
    view: Tensor
    size: tuple[int, int]
    pasted: bool

    @property
    def mixed(self) -> Tensor:
        """True for views that show two images, bool ``[V, B]``."""
        return self.boxes[..., 2:].amin(-1) > 0

    def keep(self, kept: Tensor, indices: Tensor) -> Mix:
        """Return the mix restricted to the ``kept`` partners, bool ``[V, B]``."""
        return replace(
            self,
            partners=torch.where(kept, self.partners, indices),
            weights=self.weights.masked_fill(~kept, 1),
            boxes=self.boxes.masked_fill(~kept[..., None], 0),
        )


@dataclass(frozen=True)
class Mixing:
    """How to mix the views of a stream; labels are weighted by visible area.

    The weight of the view's own label is uniform on [0, 1], the Beta(1, 1) of the
    papers. The box of CutMix covers ``1 - weight`` of the view around a uniform centre.
    It is clipped at the border of the view, and the label weight follows the area that
    remains. The image mixed in has its own crop, flip and colours.

    Args:
        kind: ``"mixup"`` or ``"cutmix"``.
        probability: probability of mixing a view, in (0, 1].
        sampler: how to draw the image to mix in, from all training images:
            ``"class-balanced"`` as in CMO, ``"instance-balanced"`` (uniform),
            ``"square-root"`` or ``"progressive"``.
        unit: draw the decision to mix, the weight and the position of the box once per
            ``"image"`` or once per ``"batch"``. Partners are drawn for each image.
        start: fraction of the training before which nothing is mixed.
        end: fraction after which nothing is mixed; 0.985 is epoch 197 of 200.

    Raises:
        ValueError: a value is out of range.

    Example:
        >>> Mixing(kind="cutmix", start=0.1).active(0.05)
        False
    """

    kind: MixKind = "cutmix"
    probability: float = 0.5
    sampler: str = "class-balanced"
    unit: MixUnit = "image"
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        check_choice("mixing.kind", self.kind, get_args(MixKind))
        check_choice("mixing.unit", self.unit, get_args(MixUnit))
        check_choice("mixing.sampler", self.sampler, SAMPLERS)
        check(number_in("(0, 1]"), "mixing.", probability=self.probability)
        if not 0.0 <= self.start < self.end <= 1.0:
            raise ValueError(
                "mixing.start, mixing.end: expected shares of the training, 0 <= start "
                f"< end <= 1, got {self.start} and {self.end}"
            )

    def active(self, progress: float) -> bool:
        """Return whether views are mixed at ``progress`` of the training, in [0, 1)."""
        return self.start <= progress < self.end

    def draw(
        self,
        order: EpochOrder,
        size: tuple[int, int],
        *,
        seed: int,
        epoch: int,
        index: Tensor,
        view: Tensor,
        step: Tensor,
        stream: int,
        progress: float,
    ) -> Mix:
        """Draw what is mixed into the views of a batch; a pure function.

        ``order`` is that of the training images, ``size`` that of the views. ``index``
        and ``step`` are int64 ``[B]``: the images of the batch and the step of the
        epoch that each belongs to. ``view`` is int64 ``[V, B]``, the numbers of their
        views.
        """
        address = {"seed": seed, "epoch": epoch, "stream": _MIX_STREAMS + stream}
        owner = index.expand_as(view)
        words = philox_words(
            **address, index=owner.reshape(-1), view=view.reshape(-1), draws=_LEFT + 1
        ).view(*view.shape, -1)
        shared = words
        if self.unit == "batch":
            # Addressed by the step instead of the image: the whole batch shares one
            # draw.
            row = torch.arange(len(view), device=view.device)[:, None]
            shared = philox_words(
                **address,
                index=step.expand_as(view).reshape(-1),
                view=(_MIXED_VIEWS + row).expand_as(view).reshape(-1),
                draws=_LEFT + 1,
            ).view(*view.shape, -1)
        mixed = shared[..., _WHETHER] < round(self.probability * 2**32)
        weight = shared[..., _WEIGHT].to(torch.float64) * 2.0**-32
        pasted = self.kind == "cutmix"
        boxes = whole_box(size, view).expand(*view.shape, 4)
        if pasted:
            boxes = _boxes(shared, weight, size)
            area = boxes[..., 2] * boxes[..., 3]
            # Divide by a tensor: CUDA multiplies by the reciprocal of a Python number.
            whole = torch.full_like(weight, size[0] * size[1])
            weight = 1 - area / whole
            mixed &= area > 0
        if not self.active(progress):
            mixed = torch.zeros_like(mixed)
        partners = order.choose(
            self.sampler, words[..., _CLASS], words[..., _MEMBER], progress=progress
        )
        mix = Mix(partners, weight.float(), boxes, _MIXED_VIEWS + view, size, pasted)
        return mix.keep(mixed, index)


def _boxes(words: Tensor, weight: Tensor, size: tuple[int, int]) -> Tensor:
    """Return boxes of the area ``1 - weight``, clipped to the view, ``[..., 4]``."""
    share = (1 - weight).sqrt()  # fraction of each side
    starts, sides = [], []
    for side, draw in zip(size, (_TOP, _LEFT), strict=True):
        length = (share * side).floor().to(torch.int64)
        centre = (words[..., draw] * side) >> 32
        first = centre - (length >> 1)
        start, stop = first.clamp(min=0), (first + length).clamp(max=side)
        starts.append(start)
        sides.append(stop - start)
    return torch.stack([*starts, *sides], dim=-1)
