"""Two trainings at once with one thread each, against one training with two threads.

    python -m benchmarks.two_runs [--preset cifar100-lt/ce] [--data_root DIR]
        [--epochs 3] [--rounds 3]

Trains by the command a user gives, in turns; the first epoch of a run warms up. A run's
rate is that of its other epochs, and the rates of two runs are added. Options that are
not listed go to ``python -m s3h_ext.train``. Appends a row to ``two_runs.csv`` in
``--output`` and prints it.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.machine import cpu_name
from benchmarks.tables import append


def images_per_second(run: Path) -> float:
    """Return a finished run's mean rate, without its first epoch."""
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as stream:
        rates = [float(row["images_per_second"]) for row in csv.DictReader(stream)]
    return statistics.harmonic_mean(rates[1:])


def train(runs: int, threads: int, options: list[str]) -> float:
    """Train at once so many times, and return the sum of the runs' rates.

    Raises:
        subprocess.CalledProcessError: a training failed.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch) / str(i) for i in range(runs)]
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "s3h_ext.train", *options, f"--output={folder}"],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for folder in folders
        ]
        statuses = [process.wait() for process in processes]
        for process, status in zip(processes, statuses, strict=True):
            if status:
                raise subprocess.CalledProcessError(status, process.args)
        return sum(map(images_per_second, folders))


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--preset", default="cifar100-lt/ce")
    parser.add_argument("--data_root", type=Path)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results"
    )
    asked, rest = parser.parse_known_args()
    if asked.epochs < 2:
        parser.error(f"--epochs must be 2 or more, got {asked.epochs}")
    options = [f"--preset={asked.preset}", f"--epochs={asked.epochs}", *rest]
    if asked.data_root is not None:
        options.append(f"--data.root={asked.data_root}")
    one, two = [], []
    for _ in range(asked.rounds):
        one.append(train(1, 2, options))
        two.append(train(2, 1, options))
    row = {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu_name(),
        "torch": torch.__version__,
        "preset": " ".join((asked.preset, *rest)),
        "one_run_images_per_second": round(statistics.median(one), 1),
        "two_runs_images_per_second": round(statistics.median(two), 1),
        "ratio": round(
            statistics.median(b / a for a, b in zip(one, two, strict=True)), 3
        ),
    }
    for name, value in row.items():
        print(f"{name:28} {value}")
    asked.output.mkdir(parents=True, exist_ok=True)
    append(asked.output / "two_runs.csv", [row])


if __name__ == "__main__":
    main()
