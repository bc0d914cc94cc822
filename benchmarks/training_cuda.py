"""What an epoch of a preset takes on a GPU, and so what its whole training would.

    python -m benchmarks.training_cuda [--preset NAME ...] [--epochs 6] [--output DIR]

Each preset is trained by the public ``Trainer`` for some epochs, with the step launched
kernel by kernel and with the step as a CUDA graph (``--graphs off``, ``on``; where the
trainer knows that option), the two in turns. An epoch is timed from its first draw to
the end of the device's work. Evaluation of the test split and a checkpoint are timed by
themselves. Data come from ``--data-root`` or ``S3H_DATA_ROOT``; where CIFAR is not
there, from generated images of the same number, sizes and classes.

Appends to ``training_cuda.csv``, a row for each preset and mode:

* ``first_seconds``: the first epoch, with warm-up and capture; ``epoch_seconds``: the
  median of the others; ``images_per_second``: training images over that;
* ``train_seconds``: first + (preset's epochs - 1) * median, extrapolated;
  ``with_evaluation_seconds``: and the preset's evaluations;
  ``with_checkpoints_seconds``: and a checkpoint as often as the preset says;
* ``peak_mib``: memory of torch's allocator at its highest, from the trainer's making to
  the end of its first epoch.

``--device cpu`` runs the same code at a tiny size: a test of this file, no benchmark.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import os
import statistics
import subprocess
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.apart import apart
from benchmarks.cifar_like import dataset_of
from benchmarks.similarity_cuda import machine
from benchmarks.tables import append
from s3h_ext.command_line import Parser
from s3h_ext.data import LongTailDataset
from s3h_ext.runs.config import TrainConfig
from s3h_ext.runs.options import parse_options
from s3h_ext.training.runlog import RunLog
from s3h_ext.training.trainer import Trainer

PRESETS = ("cifar100-lt/ce", "cifar100-lt/hybrid-psc", "cifar100-lt/s3h")
#: Preset -> seconds its training is to take on an H200, evaluation included.
TARGETS = {"cifar100-lt/hybrid-psc": 60.0}
#: Share of each class on a CPU, where only the code is tried.
TINY = 0.01


@dataclass(frozen=True)
class Row:
    date: str
    preset: str
    graphs: str  # off, on; empty where the trainer has no such option
    data: str  # real or generated
    images: int
    steps: int  # of an epoch
    batch_size: int
    precision: str
    epochs: int  # measured, the first one included
    first_seconds: float
    epoch_seconds: float
    fastest_epoch_seconds: float
    slowest_epoch_seconds: float
    images_per_second: float
    evaluation_seconds: float
    checkpoint_seconds: float
    preset_epochs: int
    train_seconds: float
    with_evaluation_seconds: float
    with_checkpoints_seconds: float
    peak_mib: float
    failure: str
    commit: str
    gpu: str
    driver: str
    cuda: str
    torch: str
    kernels: str


def graph_modes() -> tuple[str, ...]:
    """Returns the ways the trainer can launch a step; one empty name: it has no say."""
    names = {field.name for field in dataclasses.fields(TrainConfig)}
    return ("off", "on") if "graphs" in names else ("",)


def commit() -> str:
    """Returns what is checked out, as far as git tells; ``S3H_COMMIT`` where not."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    try:
        found = subprocess.run(
            command,
            check=True,
            capture_output=True,
            text=True,
            cwd=Path(__file__).parent,
        )
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("S3H_COMMIT", "")
    return found.stdout.strip()


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextlib.contextmanager
def unseen() -> Iterator[None]:
    """Progress bars are drawn as in a training, and nobody has to see them."""
    with open(os.devnull, "w") as null, contextlib.redirect_stderr(null):
        yield


@dataclass
class Run:
    """One preset in one mode, and its times so far."""

    trainer: Trainer
    log: RunLog
    peak_mib: float = float("nan")
    seconds: list[float] = field(default_factory=list)

    def epoch(self) -> None:
        wait(self.trainer.device)
        start = time.perf_counter()
        self.trainer.train_epoch(len(self.seconds), self.log)
        wait(self.trainer.device)
        self.seconds.append(time.perf_counter() - start)

    def evaluation(self) -> float:
        def once() -> float:
            start = time.perf_counter()
            self.trainer.evaluate("test")
            return time.perf_counter() - start

        once()
        return statistics.median(once() for _ in range(3))

    def checkpoint(self) -> float:
        def once() -> float:
            start = time.perf_counter()
            self.trainer.save()
            return time.perf_counter() - start

        return statistics.median(once() for _ in range(3))


def start(
    arguments: Sequence[str], folder: Path, dataset: LongTailDataset, epochs: int
) -> Run:
    """Makes a trainer and trains its first epoch."""
    config, _ = parse_options(arguments)
    on_gpu = torch.device(config.device).type == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    trainer = Trainer(config, folder, dataset=dataset)
    run = Run(
        trainer,
        RunLog(trainer.folder, [], trainer.source.steps_per_epoch * epochs, 0),
    )
    run.epoch()
    if on_gpu:
        run.peak_mib = (torch.cuda.max_memory_allocated() - before) / 2**20
    return run


def checkpoints_of(config: TrainConfig) -> int:
    """Returns how many a run writes: one before an evaluation and one after it."""
    last, every = config.epochs, config.checkpoint_every
    due = [e for e in range(1, last + 1) if e == last or e % every == 0]
    return sum(2 if e == last or e % config.eval_every == 0 else 1 for e in due)


def row_of(
    config: TrainConfig,
    graphs: str,
    run: Run | None,
    failure: str,
    dataset: LongTailDataset,
    kind: str,
    device: torch.device,
) -> Row:
    """Evaluates, saves a checkpoint, and gathers a row."""
    nothing = float("nan")
    first = median = fastest = slowest = evaluation = checkpoint = nothing
    if run is not None and not failure:
        try:
            evaluation, checkpoint = run.evaluation(), run.checkpoint()
            first, *rest = run.seconds
            median, fastest, slowest = statistics.median(rest), min(rest), max(rest)
        except Exception as error:
            traceback.print_exc()
            failure = type(error).__name__
    train = first + (config.epochs - 1) * median
    evaluated = train + -(-config.epochs // config.eval_every) * evaluation
    saved = evaluated + checkpoints_of(config) * checkpoint
    return Row(
        date=datetime.date.today().isoformat(),
        preset=str(config.preset),
        graphs=graphs,
        data=kind,
        images=len(dataset.train),
        steps=run.trainer.source.steps_per_epoch if run else 0,
        batch_size=config.batch_size,
        precision=run.trainer.precision if run else config.precision,
        epochs=len(run.seconds) if run else 0,
        first_seconds=round(first, 4),
        epoch_seconds=round(median, 5),
        fastest_epoch_seconds=round(fastest, 5),
        slowest_epoch_seconds=round(slowest, 5),
        images_per_second=round(len(dataset.train) / median, 1),
        evaluation_seconds=round(evaluation, 5),
        checkpoint_seconds=round(checkpoint, 5),
        preset_epochs=config.epochs,
        train_seconds=round(train, 2),
        with_evaluation_seconds=round(evaluated, 2),
        with_checkpoints_seconds=round(saved, 2),
        peak_mib=round(run.peak_mib, 1) if run else nothing,
        failure=failure,
        commit=commit(),
        **machine(device),
    )


def measure(preset: str, options: argparse.Namespace, folder: Path) -> list[Row]:
    """Trains a preset in all modes in turns; a mode that fails leaves the others."""
    device = torch.device(options.device)
    arguments = [f"--preset={preset}", f"--device={options.device}"]
    if options.data_root is not None:
        arguments.append(f"--data.root={options.data_root}")
    config, _ = parse_options(arguments)
    part = 1.0 if device.type == "cuda" else TINY
    dataset, kind = dataset_of(config.data, part)
    modes = options.graphs
    runs: dict[str, Run] = {}
    failures = dict.fromkeys(modes, "")

    def attempt(mode: str, epoch: int) -> None:
        if failures[mode]:
            return
        try:
            with unseen():
                if epoch:
                    runs[mode].epoch()
                else:
                    runs[mode] = start(
                        [*arguments, *([f"--graphs={mode}"] if mode else [])],
                        folder / f"{preset.replace('/', '-')}-{mode}",
                        dataset,
                        options.epochs,
                    )
        except Exception as error:  # a result too, and the others go on
            traceback.print_exc()
            failures[mode] = type(error).__name__

    for epoch in range(options.epochs):
        for mode in modes:
            attempt(mode, epoch)
    rows = [
        row_of(config, mode, runs.get(mode), failures[mode], dataset, kind, device)
        for mode in modes
    ]
    for run in runs.values():
        with unseen():
            run.log.close()
    return rows


def say(row: Row) -> None:
    name = f"{row.preset}{row.graphs and f', graphs {row.graphs}'}"
    if row.failure:
        print(f"{name}: {row.failure}", flush=True)
        return
    print(
        f"{name}: {row.epoch_seconds:.4f} s an epoch ({row.images_per_second:.0f} "
        f"images/s, {row.data} data), {row.preset_epochs} epochs "
        f"{row.train_seconds:.1f} s, with evaluation "
        f"{row.with_evaluation_seconds:.1f} s, with checkpoints "
        f"{row.with_checkpoints_seconds:.1f} s; {row.peak_mib:.0f} MiB",
        flush=True,
    )
    if (target := TARGETS.get(row.preset)) is not None:
        print(f"  target, with evaluation, on an H200: {target:.0f} s; here: {row.gpu}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(
        prog="python -m benchmarks.training_cuda",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--preset", nargs="+", default=list(PRESETS))
    parser.add_argument("--epochs", type=int, default=6, help="of each, at least 2")
    modes = graph_modes()
    parser.add_argument("--graphs", nargs="+", choices=modes, default=list(modes))
    parser.add_argument("--data-root", help="folder of the CIFAR archives")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results"
    )
    options = parser.parse_args(arguments)
    if options.epochs < 2:
        parser.error(f"--epochs: expected at least 2, got {options.epochs}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU that this PyTorch can use; --device cpu tests the code")
    options.output.mkdir(parents=True, exist_ok=True)
    if len(options.preset) > 1:
        rest = [f"--device={options.device}", f"--epochs={options.epochs}"]
        rest += [f"--output={options.output}", "--graphs", *options.graphs]
        if options.data_root is not None:
            rest.append(f"--data-root={options.data_root}")
        cases = [("--preset", preset) for preset in options.preset]
        return apart("benchmarks.training_cuda", cases, rest)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(options.preset[0], options, Path(folder))
    for row in rows:
        say(row)
    target = options.output / "training_cuda.csv"
    append(target, [dataclasses.asdict(row) for row in rows])
    return 1 if any(row.failure for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
