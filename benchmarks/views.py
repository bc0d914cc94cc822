"""Rendering views on the CPU: our kernel against what else a user could run.

``python -m benchmarks.views [--case NAME ...] [--output DIR]``

Every peer gets the same decoded images and must end at normalised float32 views; all
run in one process and take turns, so that a change of the machine's clock meets all of
them. We, PIL and F.interpolate get the same boxes, flips and colour matrices; DALI and
kornia draw their own of about the same distribution, their usual way, inside the clock.
On one thread of a busy machine our drawing takes 0.07 ms per 256 views of 32 x 32 as
the trainer does it, ahead for many steps, and 0.69 ms for one call; rendering them
takes 0.41 ms there. Appends to ``views.csv``, prints a table, draws ``views.png``.
Photographs are the JPEG files under ``$S3H_DATA_ROOT/imagenet-sample``, or noise of
their mean size where there are none.

What the peers do differently: Pillow is a serial loop on one thread and rounds to bytes
after each pass; DALI repeats the border pixel where the others renormalise, and does
not prefetch here; ``F.interpolate`` takes one size per call, so that crops are resized
one by one; kornia samples bilinearly without antialiasing, and its jitter turns hue in
HSV.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.tables import append
from s3h_ext.ops import Patches, render_views
from s3h_ext.training.precision import device_name

ROOT = Path(__file__).resolve().parent
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CASES = ("cifar", "photos", "montage")


@dataclass(frozen=True)
class Row:
    date: str
    case: str
    peer: str
    views_per_second: float
    median_ms: float
    p20_ms: float
    p80_ms: float
    views: int
    batch: int
    cpu: str
    threads: int
    torch: str
    peer_version: str


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


def ours(work: Work, dtype: torch.dtype = torch.float32) -> Callable[[], Tensor]:
    return lambda: render_views(
        work.images, work.patches, out_size=work.out, mean=MEAN, std=STD, dtype=dtype
    )


def stitched(work: Work, patches: Tensor) -> Tensor:
    """Puts channels-first patches ``[P, 3, s, s]`` together to views."""
    if work.parts == 1:
        return patches
    quads = patches.view(-1, 2, 2, 3, work.size, work.size)
    return quads.permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, work.out, work.out)


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


def measure(case: str, batch: int, seconds: float) -> Iterator[Row]:
    work = make_work(case, batch)
    running = list(peers(work))
    right = running[0][2]()
    for name, _, call in running:
        views = call()
        assert views.shape == (work.views, 3, work.out, work.out), name
        if name in ("PIL + numpy", "F.interpolate"):
            # Two roundings to bytes, a colour matrix, a deviation of 0.22.
            assert (views - right).abs().max() < 4 / 255 / 0.22, name
    times: dict[str, list[float]] = {name: [] for name, _, _ in running}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["s3h_ext"]) < 5:
        for name, _, call in running:
            start = time.perf_counter()
            call()
            times[name].append(1e3 * (time.perf_counter() - start))
    for name, number, _ in running:
        ordered = sorted(times[name])
        median = statistics.median(ordered)
        yield Row(
            date=datetime.date.today().isoformat(),
            case=case,
            peer=name,
            views_per_second=round(1e3 * work.views / median, 1),
            median_ms=round(median, 3),
            p20_ms=round(ordered[len(ordered) // 5], 3),
            p80_ms=round(ordered[len(ordered) * 4 // 5], 3),
            views=work.views,
            batch=batch,
            cpu=device_name(torch.device("cpu")),
            threads=torch.get_num_threads(),
            torch=torch.__version__,
            peer_version=number,
        )


def draw(source: Path, path: Path) -> None:
    """Draws views per second of each case's latest rows."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with source.open(newline="", encoding="utf-8") as stream:
        latest = {(row["case"], row["peer"]): row for row in csv.DictReader(stream)}
    titles = {
        "cifar": "32 x 32, two crops",
        "photos": "photographs, two of 224 x 224",
        "montage": "photographs, 2 x 2 of 112 x 112",
    }
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.2))
    for axis, (case, title) in zip(axes, titles.items(), strict=True):
        rows = [row for (of, _), row in latest.items() if of == case][::-1]
        names = [row["peer"] for row in rows]
        rates = [float(row["views_per_second"]) for row in rows]
        colours = ["C0" if name.startswith("s3h_ext") else "0.6" for name in names]
        bars = axis.barh(names, rates, color=colours)
        axis.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=8)
        axis.set(title=title, xlabel="views per second")
        if rates:
            axis.set_xlim(right=1.3 * max(rates))
    threads = next(iter(latest.values()))["threads"]
    figure.suptitle(f"Crop, flip, jitter, normalise with {threads} threads")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--output", type=Path, default=ROOT / "results")
    parser.add_argument("--seconds", type=float, default=30.0, help="for each case")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    target = arguments.output / "views.csv"
    for case in arguments.case:
        rows = list(measure(case, 128 if case == "cifar" else 32, arguments.seconds))
        print(f"{case}: {rows[0].views} views of {rows[0].batch} images")
        for row in rows:
            ratio = rows[0].views_per_second / row.views_per_second
            print(
                f"  {row.peer:<14} {row.views_per_second:>10,.0f} views/s "
                f"{row.median_ms:>9.2f} ms [{row.p20_ms:.2f}, {row.p80_ms:.2f}]"
                f"  s3h_ext is {ratio:.1f} times as fast"
            )
        append(target, [asdict(row) for row in rows])
    draw(target, arguments.output / "views.png")


if __name__ == "__main__":
    main()
