"""``python -m s3h_ext.data``: get a data set, check it, carry it, see its views."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from s3h_ext.command_line import Parser
from s3h_ext.data.archives import LAYOUTS, ArchiveError
from s3h_ext.data.check import check
from s3h_ext.data.download import DownloadError, download
from s3h_ext.data.files import printable
from s3h_ext.data.longtail import PROFILES
from s3h_ext.data.pack import pack
from s3h_ext.data.photographs import PHOTOGRAPHS
from s3h_ext.data.recipes import get_recipe
from s3h_ext.data.sources import OCTMNIST_SIZES, SOURCES, find_source
from s3h_ext.data.streams import Stream
from s3h_ext.data.unpack import unpack


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m s3h_ext.data", description=__doc__, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True)
    get = commands.add_parser(
        "download", help="fetch a data set, or go on with it; verify and unpack it"
    )
    look = commands.add_parser(
        "check", help="say whether a data set is complete, official, and what is in it"
    )
    downloads = sorted({name for name, _ in SOURCES})
    for command, names in ((get, downloads), (look, [*downloads, *PHOTOGRAPHS])):
        command.add_argument("name", choices=names)
        command.add_argument("--root", required=True, help="folder of the data sets")
        command.add_argument(
            "--size", type=int, choices=OCTMNIST_SIZES, help="pixels, for octmnist"
        )
    get.add_argument("--url", help="another address of the same file")
    get.add_argument("--keep_archive", action="store_true", help="after unpacking it")
    get.add_argument("--quiet", action="store_true", help="no progress bar")
    look.add_argument(
        "--imbalance",
        type=float,
        nargs="+",
        default=[],
        help="factors that must be possible with these data",
    )
    look.add_argument("--profile", choices=PROFILES, default="exp")
    look.add_argument(
        "--lists", help="folder of the list files of photographs, if not the root"
    )
    look.add_argument(
        "--decode",
        action="store_true",
        help="decode every photograph and list those that cannot be read",
    )
    into = commands.add_parser(
        "pack", help="write the images of a long-tailed cut into one small file"
    )
    out = commands.add_parser("unpack", help="unpack such a file")
    for command, verb in ((into, "read from"), (out, "unpack into")):
        command.add_argument("name", choices=sorted(LAYOUTS))
        command.add_argument("--root", required=True, help=f"folder to {verb}")
    into.add_argument("--to", required=True, help="the .tar.xz file to write")
    into.add_argument(
        "--imbalance",
        type=float,
        default=100.0,
        help="the smallest factor that is needed; every higher one can be cut too",
    )
    into.add_argument("--profile", choices=PROFILES, default="exp")
    out.add_argument("file", type=Path, help="a file that pack has written")
    show = commands.add_parser(
        "show",
        help="draw the views of a training step, with the boxes they were cut from",
        epilog="All options of s3h_ext.train are understood: --preset cifar100-lt/ce, "
        "--data.root DIR, --seed 3, ...",
    )
    show.add_argument("--out", required=True, help="the PNG file to write")
    show.add_argument("--images", type=int, default=4, help="images of the step")
    show.add_argument("--epoch", type=int, default=0)
    show.add_argument("--step", type=int, default=0)
    show.add_argument(
        "--recipe",
        nargs="+",
        help="show these recipes on the same images, instead of the method's streams",
    )
    return parser


def _show(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    # Presets are a matter of training, which imports this package.
    from s3h_ext.data.feed import Feed
    from s3h_ext.data.show import draw_views
    from s3h_ext.ops.similarity import CPU
    from s3h_ext.training.distributed import World
    from s3h_ext.training.loading import open_dataset
    from s3h_ext.training.options import parse_options
    from s3h_ext.training.reading import read_once

    CPU.require()
    config, _, _ = parse_options(arguments)
    dataset = open_dataset(config.data)
    if config.data.unreadable == "skip":  # what a training would begin with
        feed = Feed("auto", config.data.workers, "skip")
        dataset = read_once(dataset, feed, World())
    streams = config.method.streams()
    if options.recipe:
        leader = options.recipe[0]
        streams = {
            name: Stream(
                recipe=name,
                views=1 if get_recipe(name).montage else 2,
                follows=None if name == leader else leader,
            )
            for name in options.recipe
        }
    picture = draw_views(
        dataset,
        streams,
        images=options.images,
        seed=config.seed,
        epoch=options.epoch,
        epochs=config.epochs,
        step=options.step,
    )
    Path(options.out).write_bytes(picture)
    print(printable(f"{', '.join(streams)} of {dataset.name} are in {options.out}"))


def _unpack(options: argparse.Namespace) -> Path:
    source, root = find_source(options.name), Path(options.root)
    assert source.folder is not None
    root.mkdir(parents=True, exist_ok=True)
    return unpack(
        options.file, root, folder=source.folder, wanted=source.members.keys()
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status: 0, 1 for bad data, 130."""
    parser = _parser()
    options, others = parser.parse_known_args(arguments)
    if others and options.command != "show":
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    try:
        if options.command == "show":
            _show(options, others)
            return 0
        if options.command == "pack":
            file = pack(
                options.name,
                options.root,
                options.to,
                imbalance=options.imbalance,
                profile=options.profile,
            )
            print(f"{printable(file)}: {file.stat().st_size / 2**20:.1f} MiB")
            return 0
        if options.command == "unpack":
            print(f"{options.name} is in {printable(_unpack(options))}")
            return 0
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
        goes_on = "; the same command goes on from here"
        print(
            "\nstopped" + (goes_on if options.command == "download" else ""),
            file=sys.stderr,
        )
        return 130
    except (DownloadError, ArchiveError, ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.name} is in {printable(place)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
