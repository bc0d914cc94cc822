"""Unpacks archives safely: nothing is written outside the target folder."""

from __future__ import annotations

import gzip
import lzma
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from s3h_ext.data.sets.archive import ArchiveError

__all__ = ["unpack"]

MAX_BYTES = 1 << 30
MAX_MEMBERS = 1000


def unpack(archive: Path, root: Path, *, folder: str, wanted: Collection[str]) -> Path:
    """Unpack ``folder`` from a tar file into ``root``, completely or not at all.

    Only the content of plain files is used: no owners, modes, links or devices. The
    folder is renamed to its final name when it is complete. It must contain the files
    ``wanted``.

    Raises:
        ArchiveError: the file is damaged, too large, lacks a part, or has a member that
            is not a plain file or folder below ``folder``.
        FileExistsError: ``root`` already has such a folder.
        OSError: the disk is full, or ``root`` is not writable.
    """
    target = root / folder
    if target.exists():
        raise FileExistsError(f"{target}: is there already")
    # Beside its final location: a rename cannot cross file systems.
    with tempfile.TemporaryDirectory(prefix=f".{folder}-", dir=root) as scratch:
        try:
            _extract(archive, Path(scratch), folder)
        except (
            tarfile.TarError,
            zlib.error,
            lzma.LZMAError,
            gzip.BadGzipFile,
            EOFError,
            ValueError,
            # A file in place of a folder, or vice versa.
            FileExistsError,
            NotADirectoryError,
            IsADirectoryError,
        ) as error:
            raise ArchiveError(f"{archive}: {error or 'damaged'}") from error
        missing = [n for n in wanted if not (Path(scratch) / folder / n).is_file()]
        if missing:
            raise ArchiveError(f"{archive}: expected {', '.join(missing)} in {folder}")
        (Path(scratch) / folder).rename(target)
    return target


def _extract(archive: Path, scratch: Path, folder: str) -> None:
    written = 0
    with tarfile.open(archive) as tar:
        for count, member in enumerate(tar):
            place = _safe_path(member, folder)
            written += member.size
            if count >= MAX_MEMBERS or written > MAX_BYTES:
                raise ValueError(
                    f"larger than {MAX_MEMBERS} members or {MAX_BYTES >> 20} MiB"
                )
            if member.isdir():
                (scratch / place).mkdir(parents=True, exist_ok=True)
                continue
            (scratch / place).parent.mkdir(parents=True, exist_ok=True)
            source = tar.extractfile(member)
            assert source is not None  # None only if not a plain file
            if (scratch / place).exists():
                raise ValueError(f"the member {member.name[:100]!r} occurs twice")
            with source, (scratch / place).open("xb") as file:
                shutil.copyfileobj(source, file)
        # The checksum of a compressed file follows its last member.
        assert tar.fileobj is not None
        while block := tar.fileobj.read(1 << 20):
            written += len(block)
            if written > MAX_BYTES:
                raise ValueError(f"larger than {MAX_BYTES >> 20} MiB")


def _safe_path(member: tarfile.TarInfo, folder: str) -> PurePosixPath:
    name = repr(member.name[:100])
    place = PurePosixPath(member.name)
    if place.is_absolute() or ".." in place.parts or "\\" in member.name:
        raise ValueError(f"the member {name} leaves the folder")
    if place.parts[:1] != (folder,):
        raise ValueError(f"the member {name} is not in the folder {folder}")
    if not (member.isdir() or member.isreg()) or member.issparse():
        raise ValueError(f"the member {name} is not a regular file (link or device)")
    if member.size < 0:
        raise ValueError(f"the member {name} has a negative size")
    if member.isreg() and len(place.parts) < 2:
        raise ValueError(f"the member {name} is a file instead of the folder")
    return place
