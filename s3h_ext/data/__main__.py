"""``python -m s3h_ext.data``: get a data set, and check what is on the disk."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from s3h_ext.data.archives import ArchiveError
from s3h_ext.data.check import check
from s3h_ext.data.download import DownloadError, download
from s3h_ext.data.longtail import PROFILES
from s3h_ext.data.sources import OCTMNIST_SIZES, SOURCES


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m s3h_ext.data", description=__doc__, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True)
    get = commands.add_parser(
        "download", help="fetch a data set, or go on with it; verify and unpack it"
    )
    look = commands.add_parser(
        "check", help="say whether a data set is complete, official, and what is in it"
    )
    for command in (get, look):
        command.add_argument("name", choices=sorted({name for name, _ in SOURCES}))
        command.add_argument("--root", required=True, help="folder of the data sets")
        command.add_argument(
            "--size", type=int, choices=OCTMNIST_SIZES, help="pixels, for octmnist"
        )
    get.add_argument("--url", help="another address of the same file")
    get.add_argument("--keep-archive", action="store_true", help="after unpacking it")
    get.add_argument("--quiet", action="store_true", help="no progress bar")
    look.add_argument(
        "--imbalance",
        type=float,
        nargs="+",
        default=[],
        help="factors that must be possible with these data",
    )
    look.add_argument("--profile", choices=PROFILES, default="exp")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status: 0, 1 for bad data, 130."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "check":
            report = check(
                options.name,
                options.root,
                imbalance=options.imbalance,
                profile=options.profile,
                size=options.size,
            )
            print(report.text())
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
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    except (DownloadError, ArchiveError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.name} is in {place}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
