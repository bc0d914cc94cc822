"""``python -m s3h_ext.data``: get a data set, check it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from s3h_ext.command_line import FAILURES, Parser
from s3h_ext.data.load import PHOTOGRAPHS
from s3h_ext.data.longtail import PROFILES
from s3h_ext.data.sets.check import check
from s3h_ext.data.sets.download import download
from s3h_ext.data.sets.registry import OCTMNIST_SIZES, OFFICIAL_FILES
from s3h_ext.text import printable


def _parser() -> argparse.ArgumentParser:
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
    for command, names in ((get, downloads), (look, [*downloads, *PHOTOGRAPHS])):
        command.add_argument("name", choices=names)
        command.add_argument("--root", required=True, help="folder of the data sets")
        command.add_argument(
            "--size", type=int, choices=OCTMNIST_SIZES, help="pixels, for octmnist"
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
    look.add_argument(
        "--lists", help="folder with the list files of photographs, if not the root"
    )
    look.add_argument(
        "--decode",
        action="store_true",
        help="decode every photograph and list those that cannot be read",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status: 0, 1 for bad data, 130."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        if options.command == "check":
            report = check(
                options.name,
                options.root,
                imbalance=options.imbalance,
                profile=options.profile,
                size=options.size,
                lists=options.lists,
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
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.name} is in {printable(place)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
