"""Trains the presets of a results table, one run after the other or several at once.

    python -m benchmarks.reproduce --suite cifar100-lt --data-root DIR --seeds 0 1 2
    python -m benchmarks.reproduce --suite cifar100-lt --data-root DIR --budget 120
    python -m benchmarks.reproduce --suite cifar100-lt --data-root DIR --jobs 8

A finished run is left alone and an interrupted one goes on where it stopped, so the
same command can be given until the table is full; then
``python -m benchmarks.results_table`` writes it. A finished run of other options is an
error. The default folder is that of the runs that come with the project: to train those
again, give another ``--output``.
When the budget is spent, or SIGTERM comes, the runs under way save a checkpoint and
stop, which takes seconds.

``--jobs`` is for a GPU that one small network does not fill. What the runs print then
goes to ``console.log`` in their folders, and each gets its share of the CPUs as threads
where ``OMP_NUM_THREADS`` does not say how many. Kernels of different processes take
turns on a GPU, so what is gained is the time in which one alone would leave it idle.
Options that are not listed go to
``python -m s3h_ext.train``.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event
from typing import IO

from s3h_ext.command_line import Parser
from s3h_ext.presets import OTHER_FACTORS, preset_names
from s3h_ext.runs.checkpoint import differences
from s3h_ext.runs.folder import RunFolder
from s3h_ext.runs.options import parse_options

#: In the order in which a table is most worth having.
METHODS = (
    *("ce", "hybrid-psc", "hybrid-sc", "cws", "cb-ce", "bcl", "s3h", "ldam-drw"),
    *("balanced-softmax", "ce-drw", "focal", "cb-focal"),
)
SUITES = [
    data_set + suffix
    for suffix in ("", *(f"-if{factor}" for factor in OTHER_FACTORS))
    for data_set in ("cifar100-lt", "cifar10-lt")
]
SUITES.append("digits-lt")
#: The module of a run.
PROGRAM = "s3h_ext.train"
#: Options that make no other row of a table.
PLACE = ("device", "precision")
#: How long a run gets to write its checkpoint after the budget is spent.
STOP_SECONDS = 120
#: Status of a run that Ctrl-C or SIGTERM ended.
INTERRUPTED = 130
#: And of one that they ended before it could listen, or that had to be killed.
STOPPED = (INTERRUPTED, -signal.SIGTERM, -signal.SIGKILL)


def suite_presets(suite: str) -> list[str]:
    data_set, mark, factor = suite.partition("-if")
    wanted = [f"{data_set}/{method}{mark}{factor}" for method in METHODS]
    there = set(preset_names())
    return [name for name in wanted if name in there]


def run_folder(root: Path, preset: str, seed: int) -> Path:
    return root / f"{preset.replace('/', '-')}-seed{seed}"


def other_options(
    folder: Path, arguments: Sequence[str], aside: Sequence[str] = ()
) -> list[str]:
    """Return in what a run's options differ from those of a command line.

    Args:
        folder: of the run.
        arguments: the command line.
        aside: options that do not matter.

    Raises:
        OptionError: there are no such options.
        OSError: the folder holds no options.
        ValueError: its config.yaml is damaged.
    """
    saved = RunFolder(folder).read_config()
    same = {name: saved[name] for name in aside if name in saved}
    return differences(saved, {**parse_options(arguments)[0].dump(), **same})


@contextmanager
def console(folder: Path, shared: bool) -> Iterator[IO[bytes] | None]:
    """Where a run prints: beside the others' output, or into a file of its own."""
    if shared:
        yield None
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "console.log").open("ab") as stream:
        yield stream


@contextmanager
def on_terminate(spent: Event) -> Iterator[None]:
    """Takes SIGTERM for the end of the budget."""
    previous = signal.signal(signal.SIGTERM, lambda number, frame: spent.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def environment(jobs: int) -> dict[str, str]:
    """Returns that of a run among others: threads for its share of the CPUs."""
    cpus = len(os.sched_getaffinity(0))
    share = {"OMP_NUM_THREADS": str(max(1, cpus // jobs))} if jobs > 1 else {}
    return {**share, **os.environ}


def train(
    preset: str,
    seed: int,
    folder: Path,
    rest: Sequence[str],
    deadline: float,
    *,
    stop: Event | None = None,
    spent: Event | None = None,
    jobs: int = 1,
) -> int | None:
    """Train a preset, or go on with it.

    Args:
        preset: its name.
        seed: of the run.
        folder: of the run.
        rest: further options.
        deadline: when to stop the run, by ``time.monotonic``.
        stop: set where Ctrl-C came, which all runs hear by themselves.
        spent: set where the budget is spent before the deadline.
        jobs: runs at the same time; one alone prints to where this process prints, not
            into the run's folder.

    Returns:
        The run's exit status; ``None`` if the deadline came first.
    """
    stop, spent = stop or Event(), spent or Event()

    def over() -> bool:
        return spent.is_set() or time.monotonic() >= deadline

    if stop.is_set():
        return INTERRUPTED
    if over():
        return None
    command = [sys.executable, "-m", PROGRAM, "--preset", preset]
    command += ["--seed", str(seed), "--output", str(folder), *rest]
    if RunFolder(folder).config.exists():
        command.append("--resume")
    print(" ".join(command), flush=True)
    with console(folder, jobs == 1) as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=stream, env=environment(jobs)
        )
        try:
            while process.poll() is None and not stop.is_set() and not over():
                with suppress(subprocess.TimeoutExpired):
                    process.wait(0.2)
            if process.poll() is None:
                if not stop.is_set():
                    process.send_signal(signal.SIGTERM)
                process.wait(STOP_SECONDS)
        except KeyboardInterrupt:  # the run has got it too
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            print(f"{folder}: did not stop in {STOP_SECONDS} s", file=sys.stderr)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if process.returncode in STOPPED and over():
        return None
    return process.returncode


def refuse(
    parser: argparse.ArgumentParser, rest: Sequence[str], instead: Mapping[str, str]
) -> None:
    """End a command that hands on options which are this program's to give.

    Args:
        parser: says so.
        rest: arguments for the trainer.
        instead: by the option that is refused, what to give in its place.
    """
    for argument in rest:
        name = argument.partition("=")[0]
        known = f"--{name[2:].replace('-', '_')}"  # the trainer's spelling
        if known in instead:
            parser.error(f"{name}: expected {instead[known]}, got {argument}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(
        prog="python -m benchmarks.reproduce",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # what is left over is the trainer's, as --method
    )
    parser.add_argument("--suite", nargs="+", choices=SUITES, default=SUITES[:1])
    parser.add_argument("--methods", nargs="+", help="only these, as ce or hybrid-sc")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--output", type=Path, default=Path("results"))
    parser.add_argument("--data-root", default=os.environ.get("S3H_DATA_ROOT"))
    parser.add_argument("--budget", type=float, help="minutes; none: until all is done")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--dry-run", action="store_true", help="say what is to be done")
    options, rest = parser.parse_known_args(arguments)
    refuse(parser, rest, {"--seed": "--seeds", "--preset": "--suite and --methods"})
    if options.budget is not None and not options.budget > 0:
        parser.error(f"--budget: expected minutes above 0, got {options.budget}")
    if options.jobs < 1:
        parser.error(f"--jobs: expected at least 1, got {options.jobs}")
    presets = [name for suite in options.suite for name in suite_presets(suite)]
    if options.methods is not None:
        known = {name.split("/")[1].partition("-if")[0] for name in presets}
        if unknown := set(options.methods) - known:
            parser.error(
                f"--methods: expected some of {', '.join(sorted(known))}, got "
                f"{', '.join(sorted(unknown))}"
            )
        presets = [
            name
            for name in presets
            if name.split("/")[1].partition("-if")[0] in options.methods
        ]
    if options.data_root is not None:
        rest += ["--data.root", options.data_root]
    minutes = options.budget
    deadline = time.monotonic() + (minutes * 60 if minutes else float("inf"))
    # All presets with the first seed before any with the second: a table with one run
    # each says more than a row with three.
    waiting: dict[Path, tuple[str, int]] = {}
    refused = False
    for seed in options.seeds:
        for preset in presets:
            folder = run_folder(options.output, preset, seed)
            if RunFolder(folder).summary.exists():
                given = ["--preset", preset, "--seed", str(seed), *rest]
                try:
                    other = other_options(folder, given, PLACE)
                except (ValueError, OSError) as error:
                    print(f"error: {error}", file=sys.stderr)
                    return 2
                if other:
                    refused = True
                    print(
                        f"{folder}: finished with other options: {'; '.join(other)}; "
                        "give another --output",
                        file=sys.stderr,
                    )
                else:
                    print(f"{folder}: done")
            elif options.dry_run:
                print(f"{folder}: to do")
            else:
                waiting[folder] = preset, seed
    if refused:
        return 1
    stop, spent = Event(), Event()
    with on_terminate(spent), ThreadPoolExecutor(options.jobs) as pool:
        running = {
            folder: pool.submit(
                train,
                *run,
                folder,
                rest,
                deadline,
                stop=stop,
                spent=spent,
                jobs=options.jobs,
            )
            for folder, run in waiting.items()
        }
        try:
            statuses = {folder: run.result() for folder, run in running.items()}
        except KeyboardInterrupt:
            stop.set()
            statuses = {folder: run.result() for folder, run in running.items()}
    failed = []
    for folder, status in statuses.items():
        if status is None:
            print(f"{folder}: stopped, the budget is spent; the same command goes on")
        elif status not in (0, INTERRUPTED):
            failed.append(folder)
    if INTERRUPTED in statuses.values():
        return INTERRUPTED
    for folder in failed:
        print(f"{folder}: failed", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
