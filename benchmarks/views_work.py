"""What the benchmarks of rendering render: images, and patches of them."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s3h_ext.ops import Patches

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CASES = ("cifar", "photos", "montage")


@dataclass(frozen=True)
class Work:
    """Images and the patches to render of them.

    Attributes:
        images: uint8 ``[H_i, W_i, 3]`` or one ``[N, H, W, 3]``.
        patches: In the order of their views; `rect` repeats after `parts` patches.
        size: Height and width of a patch in its view.
        out: Height and width of a view.
        parts: Patches of a view.
    """

    images: Tensor | list[Tensor]
    patches: Patches
    size: int
    out: int
    parts: int

    @property
    def views(self) -> int:
        return len(self.patches) // self.parts


def photographs(batch: int) -> list[Tensor]:
    """Returns decoded photographs, the sample's repeated as often as it takes."""
    root = os.environ.get("S3H_DATA_ROOT")
    files = sorted(Path(root).glob("imagenet-sample/*/*")) if root else []
    if not files:
        print("no imagenet-sample in S3H_DATA_ROOT: noise of 379 x 455 pixels")
        shape = (379, 455, 3)
        return [torch.randint(0, 256, shape, dtype=torch.uint8) for _ in range(batch)]
    from PIL import Image

    every = max(1, len(files) // batch)
    chosen = [files[i * every % len(files)] for i in range(batch)]
    return [
        torch.from_numpy(np.array(Image.open(file).convert("RGB"))) for file in chosen
    ]


def resized_crop(random: np.random.Generator, height: int, width: int) -> list[int]:
    """Returns a box of 0.2 to 1 times the area, of aspect ratio 3/4 to 4/3."""
    while True:
        side = math.sqrt(random.uniform(0.2, 1) * height * width)
        stretch = math.exp(random.uniform(-0.5, 0.5) * math.log(4 / 3))
        h, w = round(side / stretch), round(side * stretch)
        if h <= height and w <= width:
            top, left = random.integers(height - h + 1), random.integers(width - w + 1)
            return [int(top), int(left), h, w]


def make_work(case: str, batch: int) -> Work:
    """Two views of each image; a montage of four crops counts as one view."""
    montage = case == "montage"
    parts = 4 if montage else 1
    count = 2 * batch * parts
    index = torch.arange(count) % batch
    random = np.random.default_rng(0)
    if case == "cifar":
        images: Any = torch.randint(0, 256, (batch, 32, 32, 3), dtype=torch.uint8)
        size = out = 32
        box = torch.from_numpy(random.integers(-4, 5, (count, 4)))
        box[:, 2:] = 32
    else:
        images = photographs(batch)
        size, out = 112 if montage else 224, 224
        shapes = [images[which].shape[:2] for which in index.tolist()]
        box = torch.tensor([resized_crop(random, *shape) for shape in shapes])
    flip = torch.from_numpy(random.random(count) < 0.5)
    # What a jitter amounts to; its numbers do not matter for the time.
    colour = torch.from_numpy(0.1 * random.standard_normal((count, 3, 4))).float()
    colour[:, :, :3] += torch.eye(3)
    view = rect = None
    if parts == 4:
        view = torch.arange(count) // 4
        corner = torch.tensor([[0, 0], [0, size], [size, 0], [size, size]])
        rect = torch.cat([corner, torch.full((4, 2), size)], dim=1).repeat(2 * batch, 1)
    patches = Patches(
        index, box, flip, colour, view=view, rect=rect, views=count // parts
    )
    return Work(images, patches, size, out, parts)


def stitched(work: Work, patches: Tensor) -> Tensor:
    """Puts channels-first patches ``[P, 3, s, s]`` together to views."""
    if work.parts == 1:
        return patches
    quads = patches.view(-1, 2, 2, 3, work.size, work.size)
    return quads.permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, work.out, work.out)
