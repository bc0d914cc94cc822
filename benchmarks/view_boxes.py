"""Boxes of views: how many per second, by form and constraint.

``python -m benchmarks.view_boxes [--output DIR]``

Times the operator on one and on all threads, the host module, the tensor form, and the
procedure of torchvision's RandomResizedCrop in Python, image by image, for batches of
1024 boxes of 375 x 500 images. Writes ``view_boxes.csv`` and prints a table of boxes
per millisecond (median of the repetitions).
"""

from __future__ import annotations

import argparse
import csv
import math
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from s3h_ext.data.views.host_boxes import sample_view_boxes_host
from s3h_ext.ops import sample_view_boxes
from s3h_ext.ops.plain import view_boxes as plain
from s3h_ext.ops.view_constraints import (
    FOUR_CORNERS,
    Constraint,
    Overlap,
    PadCrop,
    RandomResizedCrop,
)

COUNT = 1024
HEIGHT, WIDTH = 375, 500
CONSTRAINTS = {
    "padded shift": Constraint(PadCrop(4)),
    "resized crop": Constraint(RandomResizedCrop((0.08, 1.0))),
    "resized crop in a corner region": Constraint(
        RandomResizedCrop((0.2, 1.0)), FOUR_CORNERS
    ),
    "resized crop, sibling IoU in 0.1 .. 0.5": Constraint(
        RandomResizedCrop((0.08, 1.0)), overlap=Overlap(0.1, 0.5)
    ),
}


def image_by_image(scale: tuple[float, float], ratio: tuple[float, float]) -> None:
    low, high = (math.log(value) for value in ratio)
    for _ in range(COUNT):
        for _ in range(10):
            area = HEIGHT * WIDTH * random.uniform(*scale)
            aspect = math.exp(random.uniform(low, high))
            width = round(math.sqrt(area * aspect))
            height = round(math.sqrt(area / aspect))
            if 0 < width <= WIDTH and 0 < height <= HEIGHT:
                random.randint(0, HEIGHT - height)
                random.randint(0, WIDTH - width)
                break


def forms(constraint: Constraint) -> dict[str, Callable[[], object]]:
    index, view = torch.arange(COUNT) // 2, torch.arange(COUNT) % 2
    sizes = torch.tensor([[HEIGHT, WIDTH]]).repeat(COUNT, 1)
    arrays = sizes.numpy(), index.numpy(), view.numpy()
    numbers = constraint.numbers()
    address = {"seed": 0, "epoch": 0}

    def operator(threads: int) -> object:
        torch.set_num_threads(threads)
        return sample_view_boxes(
            sizes, constraint, sample_index=index, view=view, **address
        )

    threads = torch.get_num_threads()
    timed: dict[str, Callable[[], object]] = {
        f"operator, {threads} threads": lambda: operator(threads),
        "operator, 1 thread": lambda: operator(1),
        "host module": lambda: sample_view_boxes_host(
            arrays[0], constraint, sample_index=arrays[1], view=arrays[2], **address
        ),
        f"tensor form, {threads} threads": lambda: (
            torch.set_num_threads(threads),
            plain.sample_view_boxes(sizes, index, view, numbers, 0, 0, 0),
        ),
    }
    crop = constraint.crop
    if constraint == Constraint(crop) and isinstance(crop, RandomResizedCrop):
        timed["Python, image by image"] = lambda: image_by_image(crop.scale, crop.ratio)
    return timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="for each timing")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    threads = torch.get_num_threads()
    rows = []
    print("| constraint | form | boxes per ms |\n|---|---|---:|")
    for name, constraint in CONSTRAINTS.items():
        for form, run in forms(constraint).items():
            times = []
            run()
            end = time.perf_counter() + arguments.seconds
            while time.perf_counter() < end or len(times) < 5:
                start = time.perf_counter()
                run()
                times.append(1e6 * (time.perf_counter() - start))
            torch.set_num_threads(threads)
            low, high = np.percentile(times, [20, 80])
            median = statistics.median(times)
            figures = [f"{value:.1f}" for value in (low, median, high)]
            rows.append([name, form, COUNT, *figures])
            print(f"| {name} | {form} | {1000 * COUNT / median:,.0f} |")
    with (arguments.output / "view_boxes.csv").open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(
            ["constraint", "form", "boxes", "p20_us", "median_us", "p80_us"]
        )
        writer.writerows(rows)


if __name__ == "__main__":
    main()
