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
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from s3h_ext import huge_pages

if __name__ == "__main__":
    huge_pages.restart(["--device=cpu"])  # before PyTorch is imported

import torch

from benchmarks.machine import cpu_name
from benchmarks.tables import append
from benchmarks.views_peers import peers
from benchmarks.views_work import CASES, make_work

ROOT = Path(__file__).resolve().parent


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
            cpu=cpu_name(),
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
