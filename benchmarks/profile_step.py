"""Whose time a training step is: our kernels', the convolutions', or nobody's.

    python -m benchmarks.profile_step [--preset NAME ...] [--device cuda|cpu]
        [--steps N] [--output DIR] [options of s3h_ext.train]

Runs the public ``Trainer`` and looks at some of its steps with ``torch.profiler``: on a
GPU a whole epoch after the first, on a CPU four steps after two. As many steps are
timed before that without the profiler, which makes steps longer. Where the trainer can
capture a step as a CUDA graph, a GPU is asked both ways (``--graphs`` asks for one).
Data come from ``--data.root`` or ``S3H_DATA_ROOT``, else they are generated.

On a GPU the time is that of kernels and copies on the device, told apart by their
names; *idle* is the part of the unprofiled wall time in which nothing ran there. On a
CPU it is the self time of operators in the main thread; *idle* is the rest of the wall
time: Python, and what no operator stands for. Crops are drawn ahead for many steps at
once, so few steps on a CPU hold one such drawing or none.

Appends to ``profile_step.csv``: a row for each kind of work, for each kernel or
operator of ours, and for each other one that is a thousandth of all work. Options that
have no column of their own stand behind the preset's name. ``--tiny`` takes a hundredth
of the images: a test of this file.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from s3h_ext import huge_pages

if __name__ == "__main__":
    huge_pages.restart(sys.argv[1:])  # before PyTorch is imported

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.apart import apart
from benchmarks.cifar_like import dataset_of
from benchmarks.similarity_cuda import machine
from benchmarks.tables import append
from benchmarks.training_cuda import PRESETS, TINY, commit, graph_modes, unseen, wait
from s3h_ext.command_line import Parser
from s3h_ext.runs.folder import RunFolder
from s3h_ext.runs.options import parse_options
from s3h_ext.training.runlog import RunLog
from s3h_ext.training.trainer import Trainer

OURS = "s3h"
IDLE = "idle"
KINDS = (
    *(OURS, "convolution", "batch norm", "matrix product", "optimiser"),
    *("elementwise", "memory copies", "other", IDLE),
)
#: Names of kernels -> kind; the first that is found anywhere in the name counts.
KERNELS = (
    (OURS, r"\bs3h::|\b_z\w*3s3h"),
    ("optimiser", r"multi_tensor_apply|fused_?sgd"),
    ("batch norm", r"batch_?norm|\bbn_"),
    ("convolution", r"conv|cudnn|implicit_gemm|dgrad|wgrad|fprop|winograd|nhwc|nchw"),
    ("matrix product", r"gemm|gemv|cublas|cutlass|nvjet|splitk"),
    ("memory copies", r"^mem(cpy|set)|direct_copy|catarray|fillfunctor"),
    ("elementwise", r"\bat::|\bat_cuda_detail::|\bcub::|elementwise|reduce"),
)
#: The same for operators.
OPERATORS = (
    # With gradients the forward kernel counts as the second of these.
    (OURS, r"^s3h::|^generatedbackwardfor_s3h_"),
    ("optimiser", r"^optimizer\.|_fused_sgd|_foreach"),
    ("batch norm", r"batch_norm"),
    ("convolution", r"conv"),
    ("matrix product", r"^aten::(addmm|mm|bmm|baddbmm|linear|matmul)$"),
    ("memory copies", r"^aten::(copy_|_to_copy|to|clone|contiguous|cat|fill_|zero_)$"),
    ("elementwise", r"^aten::"),
)


#: Options that have a column, or only say where the data are.
ELSEWHERE = ("--graphs", "--batch_size", "--precision", "--data.root")


@dataclass
class Work:
    """One kernel or operator: how often, and milliseconds in all."""

    calls: int = 0
    milliseconds: float = 0.0


@dataclass(frozen=True)
class Found:
    """What a number of steps were made of; milliseconds of all of them."""

    work: Mapping[str, Work]
    busy: float
    wall: float


@dataclass(frozen=True)
class Row:
    date: str
    preset: str  # and the options that change it
    graphs: str
    data: str
    precision: str
    batch_size: int
    steps: int
    kind: str
    name: str  # of the kernel or operator; empty: all of the kind
    calls_per_step: float
    ms_per_step: float
    share_of_work: float  # of everything that ran, idle left out
    share_of_wall: float
    step_ms: float  # of wall time, without the profiler
    profiled_step_ms: float
    threads: int
    commit: str
    gpu: str
    driver: str
    cuda: str
    torch: str
    kernels: str


def kind_of(name: str, kinds: Iterable[tuple[str, str]]) -> str:
    """Returns the kind of work that a name stands for.

    Example:
        >>> kind_of("aten::native_batch_norm_backward", OPERATORS)
        'batch norm'
    """
    lower = name.lower()
    return next((kind for kind, words in kinds if re.search(words, lower)), "other")


def changed(preset: str, options: Iterable[str]) -> str:
    """Returns the preset's name and the options that change what is measured.

    Example:
        >>> changed("cifar100-lt/s3h", ["--graphs=off", "--method.views", "2"])
        'cifar100-lt/s3h --method.views 2'
    """
    words, kept = [preset], True
    for word in options:
        if word.startswith("--"):
            kept = word.partition("=")[0] not in ELSEWHERE
        if kept:
            words.append(word)
    return " ".join(words)


def short(name: str) -> str:
    """Returns a kernel's name without what is not needed to know it again.

    Example:
        >>> short("void s3h::cuda::(anonymous namespace)::render<float>(Arguments)")
        's3h::render'
    """
    if found := re.search(r"\bs3h::(?:(?:\w+|\(anonymous namespace\))::)*(\w+)", name):
        return f"s3h::{found[1]}"
    return name.removeprefix("void ")[:300]


def device_work(events: Iterable[Mapping[str, Any]]) -> tuple[dict[str, Work], float]:
    """Adds up kernels and copies of a trace.

    Args:
        events: of a Chrome trace; times in microseconds.

    Returns:
        The work by name, and the milliseconds in which any of it ran.
    """
    work: dict[str, Work] = defaultdict(Work)
    spans = []
    for event in events:
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset"):
            entry = work[short(event["name"])]
            entry.calls += 1
            entry.milliseconds += event["dur"] / 1e3
            spans.append((event["ts"], event["ts"] + event["dur"]))
    busy, end = 0.0, float("-inf")
    for first, last in sorted(spans):
        busy += max(0.0, last - max(first, end))
        end = max(end, last)
    return dict(work), busy / 1e3


def operator_work(profiler: profile) -> tuple[dict[str, Work], float]:
    """Adds up the self times of operators."""
    work = {
        entry.key: Work(entry.count, entry.self_cpu_time_total / 1e3)
        for entry in profiler.key_averages()
        if entry.self_cpu_time_total > 0
    }
    return work, sum(entry.milliseconds for entry in work.values())


class Done(Exception):
    """All steps that were wanted have been seen."""


class Watch(RunLog):
    """A log that lets some steps go by, times the next, profiles those after them."""

    def __init__(
        self, folder: Path, device: torch.device, skipped: int, steps: int
    ) -> None:
        super().__init__(RunFolder(folder), [], skipped + 2 * steps, 0)
        self._device = device
        self._ends = (skipped, skipped + steps, skipped + 2 * steps)
        self._done = 0
        self._clock = 0.0
        activity = (
            ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
        )
        self.profiler = profile(activities=[activity])
        self.milliseconds: list[float] = []  # of wall time: unprofiled, profiled

    def step(
        self, epoch: int, loss: float | None, images_per_second: float | None
    ) -> None:
        super().step(epoch, loss, images_per_second)
        self._done += 1
        if self._done not in self._ends:
            return
        wait(self._device)
        now = time.perf_counter()
        phase = self._ends.index(self._done)
        if phase:
            self.milliseconds.append(1e3 * (now - self._clock))
        if phase == 1:
            self.profiler.start()
        if phase == 2:
            self.profiler.stop()
            raise Done
        self._clock = time.perf_counter()


def watched(trainer: Trainer, folder: Path, skipped: int, steps: int) -> Watch:
    """Trains until the steps have been seen."""
    with unseen():
        log = Watch(folder, trainer.device, skipped, steps)
        try:
            for epoch in range(trainer.config.epochs):
                trainer.train_epoch(epoch, log)
        except Done:
            return log
        finally:
            log.close()
    raise ValueError(
        f"steps: {trainer.config.epochs} epochs have fewer than {skipped + 2 * steps}"
    )


def found_by(watch: Watch, device: torch.device, folder: Path) -> Found:
    unprofiled, profiled = watch.milliseconds
    if device.type != "cuda":
        return Found(*operator_work(watch.profiler), wall=profiled)
    trace = folder / "trace.json"
    watch.profiler.export_chrome_trace(str(trace))
    events = json.loads(trace.read_text(errors="replace"))["traceEvents"]
    work, busy = device_work(events)
    if not work:
        # Some versions of CUPTI do not see into graphs.
        raise RuntimeError("the profiler saw no kernel; try --graphs off")
    return Found(work, busy, wall=unprofiled)


def entries(
    found: Found, kinds: Iterable[tuple[str, str]]
) -> list[tuple[str, str, Work]]:
    """Returns kind, name and work: of each kind, of ours, of a thousandth of all."""
    total = sum(entry.milliseconds for entry in found.work.values())
    groups: dict[str, dict[str, Work]] = {kind: {} for kind in KINDS}
    for name, entry in found.work.items():
        groups[kind_of(name, kinds)][name] = entry
    groups[IDLE][""] = Work(0, max(0.0, found.wall - found.busy))
    listed = []
    for kind, group in groups.items():
        calls = sum(entry.calls for entry in group.values())
        milliseconds = sum(entry.milliseconds for entry in group.values())
        listed.append((kind, "", Work(calls, milliseconds)))
        listed += [
            (kind, name, entry)
            for name, entry in sorted(
                group.items(), key=lambda item: -item[1].milliseconds
            )
            if name and (kind == OURS or entry.milliseconds >= total / 1000)
        ]
    return listed


def measure(preset: str, options: argparse.Namespace, rest: Sequence[str]) -> list[Row]:
    arguments = [f"--preset={preset}", f"--device={options.device}", *rest]
    config, _ = parse_options(arguments)
    device = torch.device(options.device)
    dataset, kind = dataset_of(config.data, TINY if options.tiny else 1.0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trainer = Trainer(config, folder, dataset=dataset)
        on_gpu = device.type == "cuda"
        epoch = trainer.source.steps_per_epoch
        steps = options.steps or (epoch if on_gpu else 4)
        watch = watched(trainer, folder, epoch if on_gpu else 2, steps)
        found = found_by(watch, device, folder)
    total = sum(entry.milliseconds for entry in found.work.values())
    about = {"commit": commit(), **machine(device)}
    unprofiled, profiled = watch.milliseconds
    return [
        Row(
            date=datetime.date.today().isoformat(),
            preset=changed(preset, rest),
            graphs=str(getattr(config, "graphs", "")),
            data=kind,
            precision=trainer.precision,
            batch_size=config.batch_size,
            steps=steps,
            kind=group,
            name=name,
            calls_per_step=round(entry.calls / steps, 2),
            ms_per_step=round(entry.milliseconds / steps, 5),
            share_of_work=0.0
            if group == IDLE
            else round(entry.milliseconds / total, 5),
            share_of_wall=round(entry.milliseconds / found.wall, 5),
            step_ms=round(unprofiled / steps, 4),
            profiled_step_ms=round(profiled / steps, 4),
            threads=torch.get_num_threads(),
            **about,
        )
        for group, name, entry in entries(found, KERNELS if on_gpu else OPERATORS)
    ]


def say(rows: Sequence[Row]) -> None:
    first = rows[0]
    print(
        f"{first.preset}{first.graphs and f', graphs {first.graphs}'}, "
        f"{first.precision}, batch {first.batch_size}, {first.data} data, "
        f"{first.steps} steps on {first.gpu}: {first.step_ms:.3f} ms a step, profiled "
        f"{first.profiled_step_ms:.3f}"
    )
    print(f"  {'':44} {'calls':>7} {'ms':>9} {'of work':>8} {'of wall':>8}")
    for row in rows:
        if row.name and row.kind not in (OURS, "other"):
            continue
        title = f"  {row.name[:42]}" if row.name else row.kind
        share = "" if row.kind == IDLE else f"{100 * row.share_of_work:.1f} %"
        print(
            f"  {title:44} {row.calls_per_step:>7.1f} {row.ms_per_step:>9.3f} "
            f"{share:>8} {100 * row.share_of_wall:>6.1f} %"
        )
    print(flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(
        prog="python -m benchmarks.profile_step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--preset", nargs="+", default=list(PRESETS))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--steps", type=int, default=0, help="0: as said above")
    parser.add_argument("--tiny", action="store_true", help="few generated images")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results"
    )
    options, rest = parser.parse_known_args(arguments)
    if options.steps < 0:
        parser.error(f"--steps: expected at least 1, got {options.steps}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU that this PyTorch can use; there is --device cpu")
    asked = any(argument.startswith("--graphs") for argument in rest)
    modes = graph_modes() if options.device == "cuda" and not asked else ("",)
    if len(options.preset) * len(modes) > 1:
        cases = [
            ("--preset", preset, *([f"--graphs={mode}"] if mode else []))
            for preset in options.preset
            for mode in modes
        ]
        own = [f"--device={options.device}", f"--output={options.output}"]
        own += [f"--steps={options.steps}", *(["--tiny"] if options.tiny else [])]
        return apart("benchmarks.profile_step", cases, [*own, *rest])
    options.output.mkdir(parents=True, exist_ok=True)
    rows = measure(options.preset[0], options, rest)
    say(rows)
    append(options.output / "profile_step.csv", [asdict(row) for row in rows])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
