"""``python -m s3h_ext.train``: train a classifier on long-tailed data."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from s3h_ext import huge_pages
from s3h_ext.command_line import train_help

if __name__ == "__main__":  # before PyTorch is imported
    if (asked := train_help(sys.argv[1:])) is not None:
        print(asked, end="")
        raise SystemExit
    huge_pages.restart(sys.argv[1:])

from s3h_ext.command_line import FAILURES
from s3h_ext.data.sets.naming import class_lines
from s3h_ext.data.source.decode import UnreadableImageError
from s3h_ext.ops._library import CPU
from s3h_ext.runs.checkpoint import checkpoint_paths
from s3h_ext.runs.config import TrainConfig
from s3h_ext.runs.option_names import as_typed
from s3h_ext.runs.options import parse_options
from s3h_ext.text import printable
from s3h_ext.training.distributed import (
    LostProcessError,
    World,
    exit_process,
    join_world,
)
from s3h_ext.training.finite import DivergedError
from s3h_ext.training.trainer import Trainer


def output_folder(config: TrainConfig, resume: bool) -> Path:
    """Return the requested folder or the next free one; to resume, the latest one."""
    if config.output is not None:
        return Path(config.output)
    name = (config.preset or config.data.name).replace("/", "-")
    first = Path("runs") / f"{name}-seed{config.seed}"
    taken = [first] if first.exists() else []
    number = 2
    while (candidate := first.with_name(f"{first.name}-{number}")).exists():
        taken.append(candidate)
        number += 1
    if resume:
        return taken[-1] if taken else first
    return candidate if taken else first


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if (asked := train_help(arguments)) is not None:
        print(asked, end="")
        return 0
    world = World()
    config = None
    try:
        CPU.require()
        config, resume = parse_options(arguments)
        world = join_world(config.device, config.distributed)
        with world.report_lost_peers():
            output = world.broadcast(output_folder(config, resume))
            trainer = Trainer(config, output, resume=resume, world=world)
    except FAILURES as error:
        text = as_typed(str(error), config and config.dump()["method"])
        print(f"error: {text}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # reading photographs may take minutes
        print("\nstopped before the training began", file=sys.stderr)
        return 130
    if world.first:
        _announce(trainer)
    try:
        trainer.fit()
    except KeyboardInterrupt:
        if world.first:
            print(
                f"\nstopped {trainer.place}; to resume, run the same command "
                f"with --output {shlex.quote(str(output))} --resume",
                file=sys.stderr,
            )
        return 130
    except (DivergedError, LostProcessError, UnreadableImageError, OSError) as error:
        saved = any(checkpoint_paths(trainer.folder))
        last = "the last checkpoint is in" if saved else "there is no checkpoint yet in"
        print(f"error: {error}; {last} {output}", file=sys.stderr)
        if isinstance(error, DivergedError) and saved:
            print(
                "--resume would diverge again; a new run with a lower --optim.lr or a "
                "longer --optim.warmup_epochs may not",
                file=sys.stderr,
            )
        return 1
    world.close()
    return 0


def _announce(trainer: Trainer) -> None:
    counts = trainer.dataset.class_counts
    print(
        f"{trainer.config.preset or 'custom'}: {trainer.method.label} on "
        f"{trainer.dataset.name}, {counts.sum()} images ({counts.max()} to "
        f"{counts.min()} a class), {trainer.precision} on {trainer.device}, "
        f"in {trainer.folder}",
        file=sys.stderr,
    )
    for warning in trainer.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    for line in (*class_lines(trainer.dataset), *trainer.dataset.notes):
        print(printable(line), file=sys.stderr)
    if trainer.state.epochs_done:
        print(f"resuming after epoch {trainer.state.epochs_done}", file=sys.stderr)


if __name__ == "__main__":
    exit_process(main())
