r"""Trains S3H with its parts on and off and compares the runs on images they left out.

    python -m benchmarks.ablation --preset cifar100-lt/s3h --data-root DIR --epochs 60
    python -m benchmarks.ablation --preset digits-lt/s3h --rows full bcl --seeds 0 1 2

The rows ``mixing`` and ``average`` add class-balanced CutMix and an average of the
weights to the full method, ``mixing-average`` both; with 40 epochs and two seeds:

    python -m benchmarks.ablation --data-root DIR --epochs 40 --seeds 0 1 \
        --rows full mixing average mixing-average

``average`` measures the runs of ``full`` by their averaged weights, so these are
trained once. Each other row is a run of ``python -m s3h_ext.train`` on ``1 - holdout``
of the training images of each class. The score is the mean of the per-class accuracies
on the training images that the run did not see: those held out and, where the data are
cut from an archive, those that the long-tailed cut leaves over. The test split plays no
part. A finished run is left alone and an interrupted one goes on where it stopped, so
the same command can be given until the table is full; a finished run of other options
is an error. Writes ``ablation.csv`` and ``ablation.png`` into the output folder after
every run; a line takes the place of the one of its preset, row, epochs and holdout. The
runs themselves are in ``--runs``.
Options that are not listed go to ``python -m s3h_ext.train``.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np

from benchmarks.reproduce import (
    INTERRUPTED,
    on_terminate,
    other_options,
    refuse,
    train,
)
from s3h_ext.command_line import Parser
from s3h_ext.data.load import PHOTOGRAPHS
from s3h_ext.evaluate import main as evaluate
from s3h_ext.presets import preset_names
from s3h_ext.report.metrics import GROUPS, class_groups
from s3h_ext.runs.folder import RunFolder
from s3h_ext.runs.options import OptionError

#: Which options switch a part off. Two whole views in place of a montage, as in BCL.
OFF = {
    "sampling": ("--method.contrast_recipe", "supcon", "--method.views", "2"),
    "network": ("--method.heads", "1", "--model.classifier", "linear"),
    "task": ("--method.partner", "none"),
}
#: Row -> the parts that are on, in the order in which they are worth having.
ROWS: dict[str, tuple[str, ...]] = {
    "full": ("sampling", "network", "task"),
    "bcl": (),
    "no-sampling": ("network", "task"),
    "no-network": ("sampling", "task"),
    "no-task": ("sampling", "network"),
    "sampling": ("sampling",),
    "network": ("network",),
    "task": ("task",),
}
_MIXING = ("--method.mixing.kind", "cutmix")
# Some hundred steps, a few of 40 epochs of CIFAR-100-LT.
_AVERAGE = ("--optim.ema_decay", "0.99")
#: Row -> what it adds to the full method.
ADDED = {"average": (), "mixing": _MIXING, "mixing-average": _MIXING}
#: Row -> the row whose runs it measures once more, by the average of their weights.
#: Keeping an average leaves a training as it is, so one run serves both.
AVERAGED = {"average": "full", "mixing-average": "mixing"}
RESULTS = Path(__file__).parent / "results"
COLUMNS = (
    *("preset", "row", *OFF, "epochs", "holdout", "seeds", "split", "images"),
    *("balanced", "balanced_std", *GROUPS, "minutes"),
)


def parts_of(row: str) -> tuple[str, ...]:
    """Return the parts that are on in a row."""
    return ROWS["full" if row in ADDED else row]


def row_options(row: str, digits: bool) -> list[str]:
    """Return the options that make the preset that row."""
    off = [part for part in OFF if part not in parts_of(row)]
    options = [option for part in off for option in OFF[part]]
    if "network" in off and "task" not in off:
        # There is no second head then; the other model can be a momentum copy.
        options += ["--method.partner", "momentum"]
    options += ADDED.get(row, ())
    options += _AVERAGE if AVERAGED.get(row, row) in AVERAGED.values() else ()
    # Digits have no mirror images and no colours.
    return ["crop" if digits and word == "supcon" else word for word in options]


def group_sizes(folder: Path) -> dict[str, int]:
    """Return how many classes are many-, medium- and few-shot in a finished run."""
    with (folder / "per_class.csv").open(newline="", encoding="utf-8") as file:
        counts = [int(line["train_images"]) for line in csv.DictReader(file)]
    sizes = np.bincount(class_groups(np.array(counts)), minlength=len(GROUPS))
    return dict(zip(GROUPS, sizes.tolist(), strict=True))


def left_out(preset: str) -> str:
    """Return the name of the split that a run of the preset is measured on."""
    return "val" if preset.partition("/")[0] in PHOTOGRAPHS else "unused"


def weights_of(row: str) -> str:
    """Return which weights of its runs a row measures, where they keep an average."""
    return "last" if row in AVERAGED.values() else "average"


def measures(folder: Path, split: str, row: str) -> Path:
    """Return the file with the accuracies on a split of a run of a row."""
    evaluation = RunFolder(folder).evaluation(split, weights=weights_of(row))
    return evaluation / "metrics.json"


def scores(folder: Path, split: str, row: str) -> dict[str, float]:
    """Return the accuracies on a split, its size and the minutes of a finished run.

    ``balanced`` is the mean over the groups, weighted by their numbers of classes.
    """
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    measured = json.loads(measures(folder, split, row).read_text(encoding="utf-8"))
    sizes = group_sizes(folder)
    found = {
        group: float(measured[group]) for group in GROUPS if measured[group] is not None
    }
    classes = sum(sizes[group] for group in found)
    balanced = sum(sizes[group] * value for group, value in found.items()) / classes
    return {
        "balanced": balanced,
        **found,
        "images": measured["images"],
        "minutes": summary["seconds"] / 60,
    }


def collect(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a line for each row that has a finished run."""
    lines = []
    split = left_out(options.preset)
    for row in options.rows:
        folders = [run_folder(options, row, seed) for seed in options.seeds]
        done = [
            scores(folder, split, row)
            for folder in folders
            if measures(folder, split, row).exists()
        ]
        if not done:
            continue
        line: dict[str, Any] = {
            "preset": options.preset,
            "row": row,
            **{part: "on" if part in parts_of(row) else "off" for part in OFF},
            "epochs": options.epochs,
            "holdout": options.holdout,
            "seeds": len(done),
            "split": split,
            "images": done[0]["images"],
            "balanced_std": "",
        }
        for name in ("balanced", *GROUPS, "minutes"):
            values = [score[name] for score in done if name in score]
            line[name] = f"{statistics.mean(values):.2f}" if values else ""
        if len(done) > 1:
            deviation = statistics.stdev(score["balanced"] for score in done)
            line["balanced_std"] = f"{deviation:.2f}"
        lines.append(line)
    return lines


def merged(path: Path, lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a table's lines with ``lines`` in the places of those they supersede."""
    kept: list[dict[str, Any]] = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            kept += csv.DictReader(file)
    names = ("preset", "row", "epochs", "holdout")
    return list(
        {tuple(str(line[n]) for n in names): line for line in (*kept, *lines)}.values()
    )


def write_table(lines: Sequence[dict[str, Any]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(lines)


def draw(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw a bar for each row, its groups beside it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 0.9 + 0.55 * len(lines)))
    colours = ("#1f618d", "#7f8c8d", "#5dade2", "#c0392b")
    names = ("balanced", *GROUPS)
    for number, (name, colour) in enumerate(zip(names, colours, strict=True)):
        axis.barh(
            [place + 0.2 * (number - 1.5) for place in range(len(lines))],
            [float(line[name] or 0) for line in lines],
            height=0.18,
            color=colour,
            label="mean over classes" if name == "balanced" else name,
        )
    for place, line in enumerate(lines):
        axis.text(float(line["balanced"]) + 0.5, place - 0.3, line["balanced"], size=7)
    axis.set_yticks(range(len(lines)), [line["row"] for line in lines])
    axis.invert_yaxis()
    axis.set_xlabel("accuracy on training images that were left out, %")
    axis.set_title(f"{lines[0]['preset']}, {lines[0]['epochs']} epochs", size=10)
    axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def alike(line: dict[str, Any], options: argparse.Namespace) -> bool:
    """Say whether a line may stand beside this call's in a picture."""
    names = ("preset", "epochs", "holdout")
    return all(str(line[name]) == str(getattr(options, name)) for name in names)


def run_folder(options: argparse.Namespace, row: str, seed: int) -> Path:
    name = f"{options.preset.replace('/', '-')}-{options.epochs}epochs"
    return Path(options.runs / f"{name}-{AVERAGED.get(row, row)}-seed{seed}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(
        prog="python -m benchmarks.ablation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # what is left over is the trainer's, as --method
    )
    presets = [name for name in preset_names() if name.partition("/")[2] == "s3h"]
    parser.add_argument("--preset", choices=presets, default="cifar100-lt/s3h")
    rows = [*ROWS, *ADDED]
    parser.add_argument("--rows", nargs="+", choices=rows, default=rows)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--holdout", type=float, default=0.1)
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs") / "ablation")
    parser.add_argument("--data-root", default=os.environ.get("S3H_DATA_ROOT"))
    parser.add_argument("--budget", type=float, help="minutes; none: until all is done")
    options, rest = parser.parse_known_args(arguments)
    refuse(parser, rest, {"--seed": "--seeds", "--data.val_fraction": "--holdout"})
    if not 0.0 < options.holdout < 1.0:
        parser.error(f"--holdout: expected a share in (0, 1), got {options.holdout}")
    if options.budget is not None and not options.budget > 0:
        parser.error(f"--budget: expected minutes above 0, got {options.budget}")
    rest += ["--epochs", str(options.epochs)]
    rest += ["--data.val_fraction", str(options.holdout), "--report", "false"]
    minutes = options.budget
    deadline = time.monotonic() + (minutes * 60 if minutes else float("inf"))
    spent = Event()
    with on_terminate(spent):
        return fill(options, rest, deadline, spent)


def fill(
    options: argparse.Namespace, rest: Sequence[str], deadline: float, spent: Event
) -> int:
    """Run the rows that the table lacks, one after another; return the exit status."""
    split = left_out(options.preset)
    measure = ["--split", split]
    if options.data_root is not None:
        rest = [*rest, "--data.root", options.data_root]
        measure += ["--data-root", options.data_root]
    digits = options.preset.startswith("digits")
    refused = False
    for seed, row in product(options.seeds, options.rows):
        folder = run_folder(options, row, seed)
        if not (folder / "summary.json").exists():
            continue
        arguments = ["--preset", options.preset, "--seed", str(seed), *rest]
        arguments += row_options(row, digits)
        try:
            other = other_options(folder, arguments)
        except (OptionError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        if other:
            refused = True
            print(
                f"{folder}: finished with other options: {'; '.join(other)}",
                file=sys.stderr,
            )
    if refused:
        return 1
    status: int | None = 0
    failed = []
    for seed, row in product(options.seeds, options.rows):
        folder = run_folder(options, row, seed)
        if not (folder / "summary.json").exists():
            arguments = [*rest, *row_options(row, digits)]
            status = train(
                options.preset, seed, folder, arguments, deadline, spent=spent
            )
            if status is None:
                print(f"{folder}: stopped, the budget is spent")
                break
            if status == INTERRUPTED:
                break
            if status:
                failed.append(folder)
                continue
        if not measures(folder, split, row).exists() and evaluate(
            [str(folder), *measure, "--weights", weights_of(row)]
        ):
            failed.append(folder)
            continue
        table = options.output / "ablation.csv"
        lines = merged(table, collect(options))
        write_table(lines, table)
        draw(
            [line for line in lines if alike(line, options)], table.with_suffix(".png")
        )
    for folder in failed:
        print(f"{folder}: failed", file=sys.stderr)
    if status == INTERRUPTED:
        return INTERRUPTED
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
