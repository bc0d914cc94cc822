"""Argument parsers of the commands that use a run.

Nothing here imports PyTorch, so ``--help`` and errors in options appear immediately.
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from s3h_ext.presets import preset_table


class CommandError(RuntimeError):
    """An error that ends a command; the message says why, and what to do about it."""


#: Errors that end a command with a message instead of a traceback.
FAILURES = (CommandError, ValueError, TypeError, OSError, ImportError)
SPLITS = ("test", "val", "train", "unused")
FORMATS = ("onnx", "pt2")
CLASSIFIERS = ("head", "logit-adjusted", "tau-norm", "nearest-mean", "knn")


class Parser(argparse.ArgumentParser):
    """A parser that treats ``--batch-size`` and ``--batch_size`` alike."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse arguments with either spelling."""
        given = sys.argv[1:] if args is None else args
        return super().parse_known_args([*map(self._respelt, given)], namespace)

    def _respelt(self, argument: str) -> str:
        name, equals, value = argument.partition("=")
        if not name.startswith("--") or name in self._option_string_actions:
            return argument
        for option in self._option_string_actions:
            if _plain(option) == _plain(name):
                return f"{option}{equals}{value}"
        return argument

    def failed(self, error: BaseException) -> int:
        """Print an error; return the exit status 2."""
        print(f"error: {self.as_typed(str(error))}", file=sys.stderr)
        return 2

    def as_typed(self, message: str) -> str:
        """Return an error with its leading option name as the user types it."""
        found = re.match(r"(?:data\.)?([a-z_.]+): ", message)
        for option in self._option_string_actions if found else ():
            if found and option in (f"--{found[1]}", f"--data.{found[1]}"):
                return f"{option}{message[found.end(1) :]}"
        return message


def _plain(option: str) -> str:
    return re.sub(r"[-_.]", "-", option)


def train_help(arguments: Sequence[str]) -> str | None:
    """Return the text for ``--list`` or ``--help``; None if there is a run to train.

    ``--list`` prints the presets, ``--help`` the common options, ``--help all`` all.
    """
    if "--list" in arguments:
        return preset_table()
    if not {"-h", "--help", "--help=all"} & {*arguments}:
        return None
    whole = arguments[-1] in ("all", "--help=all")
    name = "train_options.txt" if whole else "train_help.txt"
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def evaluate_parser() -> Parser:
    """Return the parser of ``python -m s3h_ext.evaluate``."""
    parser = Parser(
        prog="python -m s3h_ext.evaluate",
        description="Evaluate a run's newest checkpoint and write metrics.json, "
        "per_class.csv, confusion.csv and calibration.csv.",
    )
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument(
        "--split",
        choices=SPLITS,
        default="test",
        help="default: test; unused: training images of the archive that the run has "
        "not seen",
    )
    parser.add_argument(
        "--classifier",
        choices=CLASSIFIERS,
        default="head",
        help="on the run's features; default: head, the run's own",
    )
    parser.add_argument(
        "--weights",
        choices=("average", "last"),
        default="average",
        help="of a run with --optim.ema_decay; default: average; last: the last step's",
    )
    parser.add_argument(
        "--tau",
        type=float,
        help="strength of logit-adjusted (default: 1) and tau-norm (default: of 0 to "
        "2, the best on held-out images by balanced accuracy)",
    )
    parser.add_argument(
        "--choose_on",
        choices=("val", "unused"),
        help="held-out images to choose tau-norm's tau on; default: val",
    )
    parser.add_argument(
        "--neighbours", type=int, help="training images that vote in knn; default: 20"
    )
    parser.add_argument(
        "--auc",
        action="store_true",
        help="compute the area under the ROC curve, each class against the others",
    )
    _add_data(parser)
    parser.add_argument("--batch_size", type=int, help="default: as in the run")
    _add_device(parser)
    parser.add_argument(
        "--output",
        type=Path,
        help="folder; default: RUN/evaluation-SPLIT, with -CLASSIFIER if not head, "
        "and -last",
    )
    _add_import(parser)
    return parser


def check_classifier(parser: Parser, options: argparse.Namespace) -> None:
    """Reject options of :func:`evaluate_parser` that contradict each other."""
    chooses = options.classifier == "tau-norm" and options.tau is None
    if options.tau is not None and options.classifier not in CLASSIFIERS[1:3]:
        parser.error(
            f"--tau: expected it with --classifier {' or '.join(CLASSIFIERS[1:3])}, "
            f"got it with {options.classifier}"
        )
    if options.choose_on is not None and not chooses:
        parser.error(
            "--choose_on: expected it with --classifier tau-norm and without --tau, "
            f"got {options.choose_on}"
        )
    if options.neighbours is not None and options.classifier != "knn":
        parser.error(
            "--neighbours: expected it with --classifier knn, got it with "
            f"{options.classifier}"
        )
    if chooses and options.split in ("val", "unused"):
        parser.error(
            f"--split: tau is chosen on held-out images, so they are no test of it; "
            f"expected test or train, or a --tau, got {options.split}"
        )
    if options.classifier == "knn" and options.split == "train":
        parser.error(
            "--split: with knn a training image would be its own nearest neighbour; "
            "expected test, val or unused, got train"
        )


def predict_parser() -> Parser:
    """Return the parser of ``python -m s3h_ext.predict``."""
    parser = Parser(
        prog="python -m s3h_ext.predict",
        description="Print the most probable classes of image files. Unreadable images "
        "are reported on standard error and in the output; the rest are processed. "
        "Exit status: 0; 1 if an image could not be read; 2 if nothing could be done.",
    )
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument(
        "images", nargs="+", help="files, folders, or - for a list of paths on stdin"
    )
    parser.add_argument(
        "--top", type=int, default=5, help="number of classes to print; default: 5"
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="file, written as FILE.partial until complete; default: standard output",
    )
    parser.add_argument(
        "--format",
        choices=("csv", "json"),
        help="default: by the output's suffix, else csv",
    )
    parser.add_argument("--batch_size", type=int, default=64, help="images per pass")
    _add_device(parser)
    _add_import(parser)
    return parser


def export_parser() -> Parser:
    """Return the parser of ``python -m s3h_ext.export``."""
    parser = Parser(
        prog="python -m s3h_ext.export",
        description="Export a run's network, from normalised images to logits, as ONNX "
        "or as a PyTorch program (pt2). Before the file is kept, it is run on real "
        "images and compared with the network.",
    )
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument(
        "--format", choices=FORMATS, default="onnx", help="default: onnx"
    )
    parser.add_argument("--output", type=Path, help="default: RUN/model.FORMAT")
    parser.add_argument(
        "--images",
        type=Path,
        nargs="+",
        default=(),
        help="files or folders to compare on; default: test images of the data set",
    )
    _add_data(parser)
    _add_import(parser)
    return parser


def info_parser() -> Parser:
    """Return the parser of ``python -m s3h_ext.info``."""
    return Parser(
        prog="python -m s3h_ext.info",
        description="Print versions, what is built, and why something is missing.",
    )


def _add_data(parser: Parser) -> None:
    # The trainer's names, plus an older one.
    for name, what in (("root", "the data"), ("lists", "the list files")):
        parser.add_argument(
            f"--data.{name}",
            *(["--lists"] if name == "lists" else []),
            dest=name,
            help=f"folder of {what}, if moved",
        )


def _add_device(parser: Parser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")


def _add_import(parser: Parser) -> None:
    parser.add_argument(
        "--import",
        dest="imported",
        type=_module,
        action="append",
        metavar="MODULE",
        help="module of the run's method, if it is your own; a run folder never runs "
        "code by itself",
    )


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:  # a module may raise anything
        raise argparse.ArgumentTypeError(
            f"cannot import {name}: {type(error).__name__}: {error}"
        ) from error
