"""From JPEG files to two normalised 224 x 224 views: our sources against stock ones.

``python -m benchmarks.pipeline [--seconds 15] [--output DIR]``

All run in one process and take turns, an epoch of batches each, so that a change of
the machine's clock meets all of them. Ours and PIL begin a turn with nothing and end
it with nothing left. Stock DALI knows no end: it begins with the batches that it
prefetched and prefetches as many again, which is waited for, and counted as CPU time
but not as time. CPU time is that of the process. Appends to ``pipeline.csv`` and prints
a table.

    ours + DALI, ours + PIL   decode once, our boxes, both views in one pass
    stock DALI                readers.file, decode once, two random_resized_crop, flip,
                              crop_mirror_normalize
    PIL + numpy               as many threads, image by image: decode once, two crops
                              resized by Pillow, flip and normalise by numpy

Views: a crop of 0.2 to 1 of the area, resized, flipped with probability 0.5,
normalised, float32 channels first to the eye of PyTorch. Photographs are the JPEG files
under ``$S3H_DATA_ROOT/imagenet-sample``, or generated ones of their mean size.
"""

from __future__ import annotations

import argparse
import datetime
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from s3h_ext import huge_pages

if __name__ == "__main__":
    huge_pages.restart(["--device=cpu"])  # before PyTorch is imported

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.machine import cpu_name
from benchmarks.tables import append
from benchmarks.views_work import resized_crop
from s3h_ext.data import FilePixels, ImageFiles, Source, Stream
from s3h_ext.data.source.decode import Decoder, PillowDecoder, Unreadable
from s3h_ext.data.views.recipes import RECIPES, Recipe
from s3h_ext.ops.view_constraints import RandomResizedCrop

ROOT = Path(__file__).resolve().parent
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE = 224
SCALE = (0.2, 1.0)
# Long enough for two batches that stock DALI works ahead, in seconds.
SETTLE = 0.5


@dataclass(frozen=True)
class Row:
    date: str
    peer: str
    images_per_second: float
    cpu_ms_per_image: float
    median_s: float
    p20_s: float
    p80_s: float
    images: int
    batch: int
    turns: int
    threads: int
    cpu: str
    torch: str
    peer_version: str


def photographs(folder: Path) -> list[str]:
    """Returns the paths of the sample, or of as many generated JPEGs in ``folder``."""
    root = os.environ.get("S3H_DATA_ROOT")
    found = sorted(Path(root).glob("imagenet-sample/*/*.JPEG")) if root else []
    if found:
        return [str(path) for path in found]
    print("no imagenet-sample in S3H_DATA_ROOT: generated JPEGs of 379 x 455 pixels")
    draw = np.random.default_rng(0)
    for number in range(148):
        blocks = draw.integers(0, 256, (48, 57, 3), np.uint8)
        image = Image.fromarray(blocks).resize((455, 379), Image.Resampling.BICUBIC)
        image.save(folder / f"{number}.jpg", quality=90)
    return sorted(str(path) for path in folder.iterdir())


Turn = Callable[[], Iterator[Tensor]]


def ours(files: ImageFiles, batch: int, threads: int, source: str) -> Turn:
    RECIPES["benchmark"] = Recipe(crop=RandomResizedCrop(SCALE), flip=0.5)
    decoder: Decoder
    if source == "dali":
        from s3h_ext.data.source.dali import DaliDecoder

        decoder = DaliDecoder(files, Unreadable(), workers=threads)
    else:
        decoder = PillowDecoder(files, Unreadable(), workers=threads)
    made = Source(
        FilePixels(files, decoder, mean=MEAN, std=STD),
        {"pair": Stream(recipe="benchmark", views=2)},
        num_classes=1,
        batch_size=batch,
        epochs=1 << 20,
        seed=0,
    )
    epochs = iter(range(1 << 20))
    return lambda: (step["pair"].images for step in made.epoch(next(epochs)))


def stock_dali(files: ImageFiles, batch: int, threads: int) -> Turn:
    from nvidia.dali import fn, pipeline_def, types

    paths = [files.name(i) for i in range(len(files))]

    @pipeline_def(batch_size=batch, num_threads=threads, device_id=None)
    def define() -> Any:
        encoded, _ = fn.readers.file(
            files=paths, random_shuffle=True, pad_last_batch=False
        )
        image = fn.decoders.image(encoded, output_type=types.RGB)
        return tuple(view(image) for _ in range(2))

    def view(image: Any) -> Any:
        pixels = fn.random_resized_crop(
            image,
            size=[SIDE, SIDE],
            random_area=list(SCALE),
            interp_type=types.INTERP_LINEAR,
            antialias=True,
        )
        return fn.crop_mirror_normalize(
            pixels,
            mirror=fn.random.coin_flip(),
            mean=[255 * value for value in MEAN],
            std=[255 * value for value in STD],
            output_layout="CHW",
        )

    pipeline = define()
    pipeline.build()
    pipeline.run()

    def turn() -> Iterator[Tensor]:
        for _ in range(len(paths) // batch):
            for views in pipeline.run():
                yield torch.from_numpy(views.as_array())

    return turn


def pillow(files: ImageFiles, batch: int, threads: int) -> Turn:
    mean, std = np.float32(MEAN) * 255, np.float32(STD) * 255
    draw = np.random.default_rng(0)

    def one(index: int) -> list[np.ndarray]:
        with Image.open(files.name(index)) as image:
            pixels = image.convert("RGB")
        views = []
        for _ in range(2):
            top, left, rows, columns = resized_crop(draw, pixels.height, pixels.width)
            box = (left, top, left + columns, top + rows)
            part = pixels.crop(box).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
            array = np.asarray(part)
            if draw.random() < 0.5:
                array = array[:, ::-1]
            views.append((array.astype(np.float32) - mean) / std)
        return views

    def turn() -> Iterator[Tensor]:
        order = random.sample(range(len(files)), len(files))
        with ThreadPoolExecutor(threads) as pool:
            found = pool.map(one, order)
            for _ in range(len(order) // batch):
                views = [view for _ in range(batch) for view in next(found)]
                yield torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2)

    return turn


def peers(
    files: ImageFiles, batch: int, threads: int
) -> Iterator[tuple[str, str, Turn]]:
    """Yields name, version and a turn of what can run here, ours first."""
    own = version("s3h-ext")
    yield "ours + PIL", own, ours(files, batch, threads, "pil")
    yield "PIL + numpy", version("pillow"), pillow(files, batch, threads)
    for package in ("nvidia-dali-cuda130", "nvidia-dali-cuda120"):
        try:
            number = version(package)
        except PackageNotFoundError:
            continue
        yield "ours + DALI", own, ours(files, batch, threads, "dali")
        yield "stock DALI", number, stock_dali(files, batch, threads)
        return
    print("  DALI: not run, it is not installed")


def measure(
    files: ImageFiles, batch: int, threads: int, seconds: float
) -> Iterator[Row]:
    running = list(peers(files, batch, threads))
    images = len(files) // batch * batch
    walls: dict[str, list[float]] = {name: [] for name, _, _ in running}
    cpus: dict[str, list[float]] = {name: [] for name, _, _ in running}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(walls["ours + PIL"]) < 4:
        for name, _, turn in running:
            wall, cpu = time.perf_counter(), time.process_time()
            views = 0
            for got in turn():
                views += got.shape[-5:].numel() // (3 * SIDE * SIDE)
            walls[name].append(time.perf_counter() - wall)
            if name == "stock DALI":
                time.sleep(SETTLE)
            cpus[name].append(time.process_time() - cpu)
            assert views == 2 * images, (name, views)
    for name, number, _ in running:
        # The first turn finds nothing in any cache.
        ordered = sorted(walls[name][1:])
        median = statistics.median(ordered)
        yield Row(
            date=datetime.date.today().isoformat(),
            peer=name,
            images_per_second=round(images / median, 1),
            cpu_ms_per_image=round(1e3 * statistics.median(cpus[name][1:]) / images, 3),
            median_s=round(median, 4),
            p20_s=round(ordered[len(ordered) // 5], 4),
            p80_s=round(ordered[len(ordered) * 4 // 5], 4),
            images=images,
            batch=batch,
            turns=len(ordered),
            threads=threads,
            cpu=cpu_name(),
            torch=torch.__version__,
            peer_version=number,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=4, help="times the photographs")
    parser.add_argument("--output", type=Path, default=ROOT / "results")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        names = photographs(Path(folder)) * arguments.repeat
        names = names[: len(names) // arguments.batch * arguments.batch]
        files = ImageFiles.of("/", names, [0] * len(names))
        rows = list(measure(files, arguments.batch, threads, arguments.seconds))
    print(f"{rows[0].images} JPEGs to two views each, {threads} threads")
    for row in rows:
        print(
            f"  {row.peer:<12} {row.images_per_second:>8,.0f} images/s "
            f"{row.cpu_ms_per_image:>7.2f} CPU-ms/image   median of {row.turns} turns "
            f"{row.median_s:.2f} s [{row.p20_s:.2f}, {row.p80_s:.2f}]"
        )
    path = arguments.output / "pipeline.csv"
    append(path, [asdict(row) for row in rows])


if __name__ == "__main__":
    main()
