"""Rendering views on the CPU: ours, and what else a user could run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.views_work import MEAN, STD, Work, stitched
from s3h_ext.ops import render_views


def ours(work: Work, dtype: torch.dtype = torch.float32) -> Callable[[], Tensor]:
    return lambda: render_views(
        work.images, work.patches, out_size=work.out, mean=MEAN, std=STD, dtype=dtype
    )


def crop(image: np.ndarray, box: list[int]) -> np.ndarray:
    top, left, height, width = box
    rows, columns = image.shape[:2]
    if top < 0 or left < 0 or top + height > rows or left + width > columns:
        image = np.pad(image, ((4, 4), (4, 4), (0, 0)))
        top, left = top + 4, left + 4
    return image[top : top + height, left : left + width]


def pillow(work: Work) -> Callable[[], Tensor]:
    """Pillow resizes, numpy does the rest, image by image."""
    from PIL import Image

    p = work.patches
    images = [image.numpy() for image in work.images]
    index, boxes, flips = p.image.tolist(), p.box.tolist(), p.flip.tolist()
    colour = p.colour.numpy()
    mean, std = np.float32(MEAN), np.float32(STD)
    size = (work.size, work.size)

    def run() -> Tensor:
        out = np.empty((len(p), *size, 3), np.float32)
        for i, which in enumerate(index):
            part = crop(images[which], boxes[i])
            if part.shape[:2] != size:
                part = np.asarray(
                    Image.fromarray(part).resize(size, Image.Resampling.BILINEAR)
                )
            if flips[i]:
                part = part[:, ::-1]
            mixed = part.astype(np.float32) @ (colour[i, :, :3].T / 255)
            mixed += colour[i, :, 3]
            np.clip(mixed, 0, 1, out=mixed)
            np.divide(mixed - mean, std, out=out[i])
        return stitched(work, torch.from_numpy(out).permute(0, 3, 1, 2))

    return run


def interpolate(work: Work) -> Callable[[], Tensor]:
    """Crops resized one by one by F.interpolate on bytes, the rest on the batch."""
    p = work.patches
    planes = [image.permute(2, 0, 1) for image in work.images]
    index, boxes = p.image.tolist(), p.box.tolist()
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (MEAN, STD))
    matrix = p.colour[:, :, :3] / 255
    flip, offset = p.flip[:, None, None, None], p.colour[:, :, 3, None, None]
    size = (work.size, work.size)

    def run() -> Tensor:
        parts = []
        for which, (top, left, height, width) in zip(index, boxes, strict=True):
            image = planes[which]
            if work.size == 32:
                image = F.pad(image, (4, 4, 4, 4))
                top, left = top + 4, left + 4
            part = image[None, :, top : top + height, left : left + width]
            if part.shape[2:] != size:
                part = F.interpolate(part, size=size, mode="bilinear", antialias=True)
            parts.append(part)
        batch = torch.cat(parts)
        batch = torch.where(flip, batch.flip(-1), batch).float()
        batch = torch.einsum("pdc,pcyx->pdyx", matrix, batch)
        batch = (batch + offset).clamp_(0, 1)
        return stitched(work, (batch - mean) / std)

    return run


def kornia(work: Work) -> Callable[[], Tensor]:
    """Kornia's augmentations, on a batch where sizes allow, else image by image."""
    import kornia.augmentation as K

    size = (work.size, work.size)
    if work.out == 32:
        first: Any = K.RandomCrop(size, padding=4, p=1.0)
    else:
        first = K.RandomResizedCrop(size, scale=(0.2, 1.0), p=1.0)
    pipeline = torch.nn.Sequential(
        first,
        K.RandomHorizontalFlip(),
        K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        K.RandomGrayscale(p=0.2),
        K.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
    )
    repeat = len(work.patches) // len(work.images)

    def run() -> Tensor:
        if isinstance(work.images, Tensor):
            batch = work.images.permute(0, 3, 1, 2).float() / 255
            return pipeline(batch.repeat(repeat, 1, 1, 1))
        parts = []
        for image in work.images:
            planes = image.permute(2, 0, 1)[None].float() / 255
            parts.append(pipeline(planes.expand(repeat, -1, -1, -1)))
        return stitched(work, torch.cat(parts))

    return run


def dali_views(work: Work, pixels: Any) -> tuple[Any, ...]:
    """A node of DALI's graph for each view of the images ``pixels``."""
    from nvidia.dali import fn, types

    size = work.size

    def view() -> Any:
        if work.out == 32:
            cropped = fn.slice(
                pixels,
                fn.random.uniform(range=[-4, 4], shape=2),
                [float(size), float(size)],
                axes=[0, 1],
                normalized_anchor=False,
                normalized_shape=False,
                out_of_bounds_policy="pad",
            )
        else:
            cropped = fn.random_resized_crop(
                pixels,
                size=[size, size],
                random_area=[0.2, 1.0],
                interp_type=types.INTERP_LINEAR,
                antialias=True,
            )
        coloured = fn.color_twist(
            cropped,
            brightness=fn.random.uniform(range=[0.6, 1.4]),
            contrast=fn.random.uniform(range=[0.6, 1.4]),
            saturation=fn.random.uniform(range=[0.6, 1.4]),
            hue=fn.random.uniform(range=[-36.0, 36.0]),
        )
        return fn.crop_mirror_normalize(
            coloured,
            mirror=fn.random.coin_flip(),
            mean=[255 * value for value in MEAN],
            std=[255 * value for value in STD],
            output_layout="CHW",
        )

    return tuple(view() for _ in range(len(work.patches) // len(work.images)))


def dali(work: Work) -> Callable[[], Tensor]:
    """DALI's own random crops and jitter on the CPU, all views from one feeding."""
    from nvidia.dali import fn, pipeline_def

    if isinstance(work.images, Tensor):
        images: Any = work.images.numpy()
    else:
        images = [image.numpy() for image in work.images]
    count = len(images)

    # Without prefetching, or it would work while the others' clocks run.
    @pipeline_def(
        batch_size=count,
        num_threads=torch.get_num_threads(),
        device_id=None,
        exec_pipelined=False,
        exec_async=False,
    )
    def define() -> Any:
        source = fn.external_source(
            source=lambda: images, batch=True, no_copy=True, layout="HWC"
        )
        return dali_views(work, source)

    pipeline = define()
    pipeline.build()

    def run() -> Tensor:
        views = [torch.from_numpy(out.as_array()) for out in pipeline.run()]
        return stitched(work, torch.cat(views))

    return run


def peers(work: Work) -> Iterator[tuple[str, str, Callable[[], Tensor]]]:
    """Yields name, version and function of what can run here, ours first."""
    yield "s3h_ext", version("s3h-ext"), ours(work)
    yield "s3h_ext bf16", version("s3h-ext"), ours(work, torch.bfloat16)
    for name, package, make in (
        ("DALI CPU", "nvidia-dali-cuda130", dali),
        ("DALI CPU", "nvidia-dali-cuda120", dali),
        ("PIL + numpy", "pillow", pillow),
        ("F.interpolate", "torch", interpolate),
        ("kornia", "kornia", kornia),
    ):
        try:
            yield name, version(package), make(work)
        except (ImportError, PackageNotFoundError) as error:
            print(f"  {name}: not run, {error}")
