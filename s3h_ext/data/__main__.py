"""``python -m s3h_ext.data``: download a data set, check it, list training images."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from s3h_ext.command_line import FAILURES, Parser
from s3h_ext.data.load import DATASETS, PHOTOGRAPHS, load_dataset
from s3h_ext.data.longtail import PROFILES
from s3h_ext.data.sets.check import check
from s3h_ext.data.sets.download import download
from s3h_ext.data.sets.registry import MEDMNIST_SIZES, OFFICIAL_FILES
from s3h_ext.data.train_list import list_hash, train_list
from s3h_ext.files import write_bytes
from s3h_ext.text import printable


def _parser() -> Parser:
    parser = Parser(
        prog="python -m s3h_ext.data", description=__doc__, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True)
    get = commands.add_parser(
        "download",
        help="download a data set, or resume its download; verify and unpack it",
    )
    look = commands.add_parser(
        "check", help="check that a data set is complete and official; summarise it"
    )
    downloads = sorted({name for name, _ in OFFICIAL_FILES})
    for command, names in (
        (get, downloads),
        (look, [*downloads, "arrays", *PHOTOGRAPHS]),
    ):
        command.add_argument("name", choices=names)
        command.add_argument("--root", required=True, help="folder of the data sets")
        command.add_argument(
            "--size", type=int, choices=MEDMNIST_SIZES, help="pixels, for MedMNIST"
        )
    get.add_argument("--url", help="another address for the same file")
    get.add_argument("--keep_archive", action="store_true", help="after unpacking it")
    get.add_argument("--quiet", action="store_true", help="no progress bar")
    look.add_argument(
        "--imbalance",
        type=float,
        nargs="+",
        default=[],
        help="imbalance factors to test against these data",
    )
    look.add_argument("--profile", choices=PROFILES, default="exp")
    _add_labels(look)
    look.add_argument(
        "--decode",
        action="store_true",
        help="decode every photograph and list those that cannot be read",
    )
    draw = commands.add_parser(
        "list", help="write the training images that a run with these options draws"
    )
    draw.add_argument("name", choices=DATASETS)
    draw.add_argument("--root", help="folder of the data sets")
    _add_labels(draw)
    for name in ("imbalance", "val_fraction", "test_fraction"):
        draw.add_argument(f"--{name}", type=float, help="as in the training")
    draw.add_argument("--size", type=int, help="pixels, for MedMNIST")
    draw.add_argument("--profile", choices=PROFILES, default="exp")
    draw.add_argument("--split_seed", type=int, default=0)
    draw.add_argument("--output", type=Path, help="file; default: standard output")
    for command in (get, look, draw):
        command.set_defaults(parser=command)
    return parser


def _add_labels(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--lists", help="folder of the list files of photographs, if not the root"
    )
    command.add_argument(
        "--label_pattern",
        help="of folder: regular expression whose group finds the class in a path",
    )


def _list(options: argparse.Namespace) -> None:
    names = ("root", "lists", "imbalance", "size", "profile", "test_fraction")
    given = {name: getattr(options, name) for name in (*names, "label_pattern")}
    dataset = load_dataset(
        options.name,
        val_fraction=options.val_fraction or 0.0,
        seed=options.split_seed,
        **given,
    )
    text = train_list(dataset)
    assert text is not None  # all named data sets have one
    if options.output is not None:
        write_bytes(options.output, text.encode("utf-8", "surrogateescape"))
        print(f"{list_hash(dataset)}  {printable(options.output)}")
    else:
        sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape"))
        sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status: 0, 1 for bad data, or 130."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        if options.command == "list":
            _list(options)
            return 0
        if options.command == "check":
            report = check(
                options.name,
                options.root,
                imbalance=options.imbalance,
                profile=options.profile,
                size=options.size,
                lists=options.lists,
                label_pattern=options.label_pattern,
                decode=options.decode,
            )
            print(printable(report.text()))
            return 1 if report.problems else 0
        place = download(
            options.name,
            options.root,
            size=options.size,
            url=options.url,
            keep_archive=options.keep_archive,
            progress=not options.quiet,
        )
    except KeyboardInterrupt:
        goes_on = "; run the same command again to resume"
        print(
            "\nstopped" + (goes_on if options.command == "download" else ""),
            file=sys.stderr,
        )
        return 130
    except FAILURES as error:
        print(f"error: {options.parser.as_typed(str(error))}", file=sys.stderr)
        return 1
    print(f"{options.name} is in {printable(place)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
