"""A bare training loop with and without huge pages, one process after another in turns.

Trains ResNet-32 on 32x32 images that never change, as ``benchmarks.training``'s bare
loop does: forward, backward, step. Each run is a process of its own, since glibc takes
its settings when a process starts.

    python -m benchmarks.huge_pages [--rounds 3] [--steps 14] [--precision auto]
    python -m benchmarks.huge_pages --fill 8 --folder /var/tmp

``--fill`` writes a file of so many GiB first and drops every second piece of 64 KiB of
it from the page cache, which leaves free memory in pieces. The file is in ``--folder``
while the runs go on and is removed behind them. To begin with memory in one piece, as
root: ``sync; echo 3 > /proc/sys/vm/drop_caches; echo 1 > /proc/sys/vm/compact_memory``.

Prints images/s of the best and of the median step, user seconds and page faults of all
steps, and the memory in huge pages at the end; appends these rows to
``huge_pages.csv`` in ``--output``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.tables import append
from s3h_ext import huge_pages
from s3h_ext.models import build_model
from s3h_ext.runs.precision import autocast, device_name, resolve_precision

CPU = torch.device("cpu")
PIECE = 1 << 16


def loop(steps: int, batch_size: int, precision: str) -> dict[str, float]:
    """Train for some steps after two; return what they cost."""
    torch.manual_seed(0)
    layout = torch.channels_last
    model = build_model("resnet32", 100).to(memory_format=layout)
    images = torch.randn(batch_size, 3, 32, 32).contiguous(memory_format=layout)
    labels = torch.randint(0, 100, (batch_size,))
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-4, fused=True
    )
    seconds = []
    before = resource.getrusage(resource.RUSAGE_SELF)
    for turn in range(steps + 2):
        if turn == 2:
            before = resource.getrusage(resource.RUSAGE_SELF)
        started = time.perf_counter()
        with autocast(precision, CPU):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - started)
    after = resource.getrusage(resource.RUSAGE_SELF)
    rollup = Path("/proc/self/smaps_rollup").read_text()
    found = re.search(r"AnonHugePages:\s+(\d+)", rollup)
    return {
        "best_images_per_second": round(batch_size / min(seconds[2:]), 1),
        "median_images_per_second": round(
            batch_size / statistics.median(seconds[2:]), 1
        ),
        "user_seconds": round(after.ru_utime - before.ru_utime, 1),
        "system_seconds": round(after.ru_stime - before.ru_stime, 1),
        "page_faults": after.ru_minflt - before.ru_minflt,
        "huge_pages_mib": int(found[1]) // 1024 if found else 0,
    }


def environments() -> dict[str, dict[str, str]]:
    """Return the processes' environments, without huge pages and with them."""
    plain = dict(os.environ)
    for variable in ("GLIBC_TUNABLES", "MALLOC_ARENA_MAX", huge_pages.OPT_OUT):
        plain.pop(variable, None)
    asking = huge_pages.asking(plain)
    if asking is None:
        raise SystemExit(f"there are none to be had here: {huge_pages.describe()}")
    return {"without": plain, "with": asking}


@contextmanager
def page_cache(gib: float, folder: Path) -> Iterator[None]:
    """Fill the page cache with a file and drop half of it in small pieces."""
    if not gib:
        yield
        return
    size = int(gib * 2**30)
    with tempfile.TemporaryFile(dir=folder) as stream:
        block = os.urandom(1 << 24)
        for _ in range(0, size, len(block)):
            stream.write(block)
        stream.flush()
        os.fsync(stream.fileno())
        for start in range(0, size, 2 * PIECE):
            os.posix_fadvise(stream.fileno(), start, PIECE, os.POSIX_FADV_DONTNEED)
        yield


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    parser.add_argument("--fill", type=float, default=0.0, help="GiB of page cache")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results"
    )
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    precision = resolve_precision(options.precision, CPU)
    if options.one:
        print(json.dumps(loop(options.steps, options.batch_size, precision)))
        return
    command = [sys.executable, "-m", "benchmarks.huge_pages", "--one"]
    command += [f"--steps={options.steps}", f"--batch_size={options.batch_size}"]
    command += [f"--precision={precision}"]
    rows = []
    with page_cache(options.fill, options.folder):
        for turn in range(options.rounds):
            for name, environment in environments().items():
                answer = subprocess.run(
                    command, env=environment, check=True, capture_output=True, text=True
                ).stdout
                row = {
                    "date": datetime.date.today().isoformat(),
                    "cpu": device_name(CPU),
                    "threads": torch.get_num_threads(),
                    "torch": torch.__version__,
                    "precision": precision,
                    "batch_size": options.batch_size,
                    "steps": options.steps,
                    "fill_gib": options.fill,
                    "turn": turn + 1,
                    "huge_pages": name,
                    **json.loads(answer),
                }
                rows.append(row)
                print(
                    f"{name:8}{row['best_images_per_second']:8.1f} best"
                    f"{row['median_images_per_second']:8.1f} median images/s"
                    f"{row['user_seconds']:7.1f} s user"
                    f"{row['page_faults']:10,} faults"
                    f"{row['huge_pages_mib']:7,} MiB huge",
                    flush=True,
                )
    options.output.mkdir(parents=True, exist_ok=True)
    append(options.output / "huge_pages.csv", rows)


if __name__ == "__main__":
    main()
