"""Views of two images: mixup and CutMix, with the weights of their labels.

    mixup   w x_a + (1 - w) x_b               Zhang et al., ICLR 2018, equation 1
    CutMix  a box of x_b pasted onto x_a      Yun et al., ICCV 2019, equations 1 and 2

Which image is mixed in is drawn by a sampler of its own. With ``"class-balanced"``
CutMix is the context-rich oversampling of CMO (Park et al., CVPR 2022, section 3.2):
rare classes on the backgrounds of frequent ones; ConCutMix (Pan et al., IEEE TIP 2024)
does so on the view of the classifier.
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

# See the module docstring of recipes.py for the addresses of all draws.
_MIX_STREAMS = 192
_MIXED_VIEWS = 1 << 23
_CLASS, _MEMBER, _WHETHER, _WEIGHT, _TOP, _LEFT = range(6)


@dataclass(frozen=True)
class Mix(Tensors):
    """Partners of a batch's views, and the weights of the labels.

    Attributes:
        partners: int64 ``[V, B]``, the images mixed in, as positions in the image set;
            the view's own where nothing is.
        weights: float32 ``[V, B]``, of the view's own label; 1 where nothing is mixed.
        boxes: int64 ``[V, B, 4]``: top, left, height and width of what is pasted, in
            the view; empty where nothing is. The whole view for mixup.
        view: int64 ``[V, B]``, numbers of the partners' crops.
        size: Height and width of the views.
        pasted: Whether partners are pasted; if not, they are blended.
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
        """Returns the mix with the ``kept`` partners alone, bool ``[V, B]``."""
        return replace(
            self,
            partners=torch.where(kept, self.partners, indices),
            weights=self.weights.masked_fill(~kept, 1),
            boxes=self.boxes.masked_fill(~kept[..., None], 0),
        )


@dataclass(frozen=True)
class Mixing:
    """Mixes the views of a stream, and weights the labels by the area seen.

    The weight of the view's own label is uniform on [0, 1], the Beta(1, 1) of the
    papers. The box of CutMix has the share ``1 - weight`` of the view, about a uniform
    centre; what leaves the view is cut off, and the label has the weight of what is
    left. The image mixed in has a crop, flip and colours of its own.

    Args:
        kind: ``"mixup"`` or ``"cutmix"``.
        probability: with which a view is mixed, in (0, 1].
        sampler: how the image mixed in is drawn from all training images:
            ``"class-balanced"`` as in CMO, ``"instance-balanced"`` (every image alike),
            ``"square-root"`` or ``"progressive"``.
        unit: whether each ``"image"`` or each ``"batch"`` has its own decision to mix,
            weight and position of the box. Partners are drawn for each image.
        start: share of the training before which nothing is mixed.
        end: share from which on nothing is; 0.985 is epoch 197 of 200.

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
        """Returns whether views are mixed at a progress of the training, in [0, 1)."""
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
        """Draws what is mixed into the views of a batch; a pure function.

        ``order`` and ``size`` are of the training images and of the views. ``index``
        and ``step`` are int64 ``[B]``: the images of the batch, and the step of the
        epoch that each belongs to; ``view`` is int64 ``[V, B]``, numbers of their
        views.
        """
        address = {"seed": seed, "epoch": epoch, "stream": _MIX_STREAMS + stream}
        owner = index.expand_as(view)
        words = philox_words(
            **address, index=owner.reshape(-1), view=view.reshape(-1), draws=_LEFT + 1
        ).view(*view.shape, -1)
        shared = words
        if self.unit == "batch":
            # Addressed by the step, not the image: a batch shares one draw.
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
            # A tensor divides: CUDA multiplies by the reciprocal of a number.
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
    """Returns boxes of the area ``1 - weight``, cut off at the view, ``[..., 4]``."""
    share = (1 - weight).sqrt()  # of each side
    starts, sides = [], []
    for side, draw in zip(size, (_TOP, _LEFT), strict=True):
        length = (share * side).floor().to(torch.int64)
        centre = (words[..., draw] * side) >> 32
        first = centre - (length >> 1)
        start, stop = first.clamp(min=0), (first + length).clamp(max=side)
        starts.append(start)
        sides.append(stop - start)
    return torch.stack([*starts, *sides], dim=-1)
