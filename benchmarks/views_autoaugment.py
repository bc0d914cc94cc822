"""The recipe ``autoaugment+cutout`` on a GPU: what :mod:`benchmarks.views_cuda` times.

Shift by up to 4, mirror, AutoAugment for CIFAR-10, a hole of 16, on two views each of
32 x 32 images that lie on the device. Everybody draws in every call. Kornia and
torchvision draw a sub-policy once per call and so go image by image.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.views_work import MEAN, STD, Work
from s3h_ext.data.views.recipes import get_recipe
from s3h_ext.data.views.render import render_crops

__all__ = ["CASE", "kornia", "ours", "torchvision"]

CASE = "autoaugment+cutout"
_HOLE = {"scale": (0.25, 0.25), "ratio": (1.0, 1.0), "value": 0.0}


def ours(work: Work, dtype: torch.dtype) -> Callable[[], Tensor]:
    """Boxes, operations and holes drawn, then two kernels."""
    recipe, source = get_recipe(CASE), work.patches.image
    repeat = len(source) // len(work.images)
    view = torch.arange(repeat, device=source.device)
    view = view.repeat_interleave(len(work.images))

    def run() -> Tensor:
        crops = recipe.describe(32, 32, seed=0, epoch=0, index=source, view=view)
        return render_crops(
            work.images,
            source,
            crops,
            recipe,
            size=(32, 32),
            mean=MEAN,
            std=STD,
            dtype=dtype,
        )

    return run


def kornia(work: Work) -> Callable[[], Tensor]:
    """Kornia's AutoAugment, on pixels in [0, 1]."""
    import kornia.augmentation as K
    from kornia.augmentation.auto import AutoAugment

    pipeline = torch.nn.Sequential(
        K.RandomCrop((32, 32), padding=4, p=1.0),
        K.RandomHorizontalFlip(),
        AutoAugment("cifar10"),
        K.RandomErasing(p=1.0, **_HOLE),
        K.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
    )

    def run() -> Tensor:
        planes = work.images[work.patches.image].permute(0, 3, 1, 2).float() / 255
        return torch.cat([pipeline(each) for each in planes.split(1)])

    return run


def torchvision(work: Work) -> Callable[[], Tensor]:
    """The v2 transforms, of torchvision, on bytes up to the hole."""
    from torchvision.transforms import v2

    pipeline = v2.Compose(
        [
            v2.RandomCrop(32, padding=4),
            v2.RandomHorizontalFlip(),
            v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10, fill=128),
            v2.RandomErasing(p=1.0, **_HOLE),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )

    def run() -> Tensor:
        planes = work.images[work.patches.image].permute(0, 3, 1, 2)
        return torch.stack([pipeline(each) for each in planes])

    return run
