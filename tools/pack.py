"""A long-tailed cut of CIFAR as one small file, to be carried to another machine.

python -m tools.pack pack cifar100 --root DIR --to FILE.tar.xz [--imbalance 100]
python -m tools.pack unpack cifar100 FILE.tar.xz --root OTHER_DIR
"""

from __future__ import annotations

import argparse
import io
import lzma
import pickle
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from s3h_ext.data import ImageSet
from s3h_ext.data.longtail import PROFILES, class_profile, pick_subset
from s3h_ext.data.sets.archive import Archive, ArchiveError
from s3h_ext.data.sets.cifar import LAYOUTS, read_archive
from s3h_ext.data.sets.registry import find_official
from s3h_ext.data.sets.unpack import unpack

__all__ = ["main", "pack"]

# Each pixel as its difference from the one above, which is 32 bytes back: photographs
# take two thirds of their size. A lower preset is no faster to speak of, and larger.
_FILTERS = (
    {"id": lzma.FILTER_DELTA, "dist": 32},
    {"id": lzma.FILTER_LZMA2, "preset": 6},
)


def pack(
    name: str,
    root: str | Path,
    to: str | Path,
    *,
    imbalance: float = 100.0,
    profile: str = "exp",
) -> Path:
    """Writes the training images that a cut keeps, and all test images, to a file.

    Unpacked, it is a folder in the form of the official archive, and from it
    :func:`~s3h_ext.data.load_dataset` cuts the very data set it cuts from ``root``:
    the same images in the same order, with this factor and with every higher one. A
    lower factor, or another profile, is refused there, for want of images.

    That holds because a draw shuffles each class as a whole before it cuts it: the rows
    are written in the order that the shuffle of the smaller class turns into the order
    wanted.

    Args:
        name: ``"cifar10"`` or ``"cifar100"``.
        root: The unpacked archive, or the folder it lies in.
        to: The file to write, a ``.tar.xz``; it must not exist.
        imbalance: Largest class over smallest, the smallest factor that is needed.
        profile: ``"exp"`` or ``"step"``.

    Returns:
        The file.

    Raises:
        ValueError: there is no such archive or profile, or a class has fewer images
            than the cut asks for.
        FileNotFoundError: ``root`` does not hold the archive.
        FileExistsError: ``to`` is there already.
        ArchiveError: the archive is damaged.
        OSError: ``to`` cannot be written.

    Example:
        >>> pack("cifar100", "data", "cifar100.tar.xz")  # doctest: +SKIP
        PosixPath('cifar100.tar.xz')
    """
    to = Path(to)
    if to.exists():
        raise FileExistsError(f"to: {to} is there already")
    archive = _cut(read_archive(name, root), imbalance, profile)
    partial = to.with_name(f"{to.name}.partial")
    try:
        with (
            lzma.open(partial, "wb", format=lzma.FORMAT_XZ, filters=_FILTERS) as stream,
            tarfile.open(fileobj=stream, mode="w") as tar,
        ):
            for member, content in _files(name, archive):
                # Time, owner and mode are tarfile's defaults: the same cut gives the
                # same bytes.
                info = tarfile.TarInfo(f"{LAYOUTS[name].folder}/{member}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        partial.rename(to)
    finally:
        partial.unlink(missing_ok=True)
    return to


def _cut(whole: Archive, imbalance: float, profile: str) -> Archive:
    classes = len(whole.class_names)
    available = np.bincount(whole.train.labels, minlength=classes)
    counts = class_profile(
        classes, largest=int(available.max()), imbalance=imbalance, profile=profile
    )
    wanted = pick_subset(whole.train.labels, counts)
    labels = np.repeat(np.arange(classes), counts)
    # Row places[i] of the cut is what its reader will draw as image i.
    places = pick_subset(labels, counts)
    images = np.empty((len(labels), *whole.train.images.shape[1:]), np.uint8)
    images[places] = whole.train.images[wanted]
    return Archive(ImageSet(images, labels), whole.test, whole.class_names)


def _files(name: str, archive: Archive) -> Iterator[tuple[str, bytes]]:
    """Yields the archive's files in the official form, as name and content."""
    layout = LAYOUTS[name]
    for members, split in (
        (layout.train, archive.train),
        (layout.test, archive.test),
    ):
        rows = split.images.transpose(0, 3, 1, 2).reshape(len(split), -1)
        for member, part, own in zip(
            members,
            np.array_split(rows, len(members)),
            np.array_split(split.labels, len(members)),
            strict=True,
        ):
            # A copy, without the array that the part shares its memory with.
            yield member, _pickled({"data": part.copy(), layout.labels: own.tolist()})
    yield layout.meta, _pickled({layout.names: list(archive.class_names)})


def _pickled(content: Mapping[str, object]) -> bytes:
    # From protocol 5 on numpy asks for more names than the reader allows.
    return pickle.dumps(content, protocol=4)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
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
    return parser


def _unpack(options: argparse.Namespace) -> Path:
    source, root = find_official(options.name), Path(options.root)
    assert source.folder is not None
    root.mkdir(parents=True, exist_ok=True)
    return unpack(
        options.file, root, folder=source.folder, wanted=source.members.keys()
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status: 0, or 1 for an error."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "unpack":
            print(f"{options.name} is in {_unpack(options)}")
            return 0
        file = pack(
            options.name,
            options.root,
            options.to,
            imbalance=options.imbalance,
            profile=options.profile,
        )
    except (ArchiveError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{file}: {file.stat().st_size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
