"""Downloads the official files: resumes broken transfers, verifies before use."""

from __future__ import annotations

import errno
import fcntl
import http.client
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from tqdm import tqdm

from s3h_ext.command_line import CommandError
from s3h_ext.data.sets.registry import OfficialFile, find_official, md5_of
from s3h_ext.data.sets.unpack import unpack

__all__ = ["DownloadError", "download"]

_BLOCK = 1 << 16
_MARGIN = 64 << 20


class DownloadError(CommandError):
    """A data set could not be downloaded; the message says why and what to do."""


@dataclass(frozen=True)
class _Options:
    progress: bool
    timeout: float
    attempts: int
    pause: float


def download(
    name: str | OfficialFile,
    root: str | Path,
    *,
    size: int | None = None,
    url: str | None = None,
    keep_archive: bool = False,
    progress: bool = True,
    timeout: float = 30.0,
    attempts: int = 5,
    pause: float = 1.0,
) -> Path:
    """Download a data set from its official address into ``root``.

    A broken transfer leaves ``FILE.part``, and the next call resumes it. The checksum
    is verified before anything is unpacked, and the final name appears when everything
    is in place. An archive copied into ``root`` by hand is used as if it had been
    downloaded.

    Args:
        name: ``"cifar10"``, ``"cifar100"``, a set of MedMNIST, or a source of your own.
        root: Target folder; created if it does not exist.
        size: Image side in pixels, for MedMNIST: 28, 64, 128 or 224.
        url: Another address of the same file, such as a mirror.
        keep_archive: Keep a downloaded archive after unpacking it.
        progress: Show a progress bar.
        timeout: Seconds to wait for the server.
        attempts: Number of attempts to resume a broken transfer.
        pause: Seconds to wait before each.

    Returns:
        The unpacked folder, or the file if there is nothing to unpack.

    Raises:
        ValueError: there is no such data set, or ``url`` is not a web address.
        DownloadError: no connection, no such file, a wrong checksum, not enough space,
            or ``root`` holds other files of these names.
        ArchiveError: the archive is not safe to unpack.
        OSError: ``root`` is not writable.

    Example:
        >>> download("cifar100", "/path/to/data")  # doctest: +SKIP
        PosixPath('/path/to/data/cifar-100-python')
    """
    source = find_official(name, size) if isinstance(name, str) else name
    if url is not None:
        source = replace(source, url=url)
    if urllib.parse.urlsplit(source.url).scheme not in ("http", "https"):
        raise ValueError(f"url: expected http:// or https://, got {source.url!r}")
    root = Path(root)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise DownloadError(f"root: expected a folder, got the file {root}") from error
    final = root / (source.folder or source.file)
    if final.exists():
        if _is_official(source, final):
            return final
        raise DownloadError(
            f"{final}: exists but is not the official data set, so it was not changed. "
            "Move it away, or give another --root"
        )
    with _only_one(root / f".{source.file}.lock"):
        archive = root / source.file
        fetched = not archive.exists()
        if fetched:
            _fetch(source, archive, _Options(progress, timeout, attempts, pause))
        elif (md5 := md5_of(archive)) != source.md5:
            raise DownloadError(
                f"{archive}: expected MD5 {source.md5}, got {md5}. Remove it and run "
                "the command again to download it"
            )
        if source.folder is None:
            return archive
        unpacked = unpack(archive, root, folder=source.folder, wanted=source.members)
        if fetched and not keep_archive:
            archive.unlink()
        return unpacked


def _is_official(source: OfficialFile, final: Path) -> bool:
    if source.folder is None:
        return final.is_file() and md5_of(final) == source.md5
    return all(
        (final / member).is_file() and md5_of(final / member) == md5
        for member, md5 in source.members.items()
    )


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DownloadError(
                f"{path.parent}: another process is downloading this file"
            ) from error
        except OSError as error:
            # The file system has no locks; the checksum would reveal a corrupted file.
            if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                raise
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _fetch(source: OfficialFile, archive: Path, options: _Options) -> None:
    part = archive.with_name(f"{archive.name}.part")
    resumed = part.exists() and part.stat().st_size > 0
    while True:
        _transfer(source, part, options)
        md5 = md5_of(part)
        if md5 == source.md5:
            part.replace(archive)
            return
        part.unlink()
        if not resumed:
            raise DownloadError(
                f"{source.url}: expected MD5 {source.md5}, got {md5}. The file was "
                "removed. The server, or a proxy, sends a different file: try again, "
                "or give another address with --url"
            )
        # The part left by an earlier call may belong to another file.
        resumed = False


def _transfer(source: OfficialFile, part: Path, options: _Options) -> None:
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            reason = _transfer_once(source, part, options)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code < 500:
                raise DownloadError(
                    f"{source.url}: the server answers {error.code} {error.reason}. "
                    f"{_by_hand(source, part)}"
                ) from error
            reason = f"the server answers {error.code} {error.reason}"
        except (urllib.error.URLError, http.client.HTTPException) as error:
            reason = f"no connection ({getattr(error, 'reason', None) or error})"
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DownloadError(
                    f"{part.parent}: the disk is full. Free some space and run "
                    "the same command again to resume"
                ) from error
            if not isinstance(error, (ConnectionError, TimeoutError)):
                raise
            reason = f"no connection ({error})"
        if reason is None:
            return
        after = part.stat().st_size if part.exists() else 0
        # Keep trying as long as the server sends a little more each time.
        failures = 1 if after > before else failures + 1
        if failures >= options.attempts or (failures > 1 and before == after == 0):
            raise DownloadError(
                f"{source.url}: {reason}. {after} bytes were received; run the same "
                f"command again to resume. {_by_hand(source, part)}"
            )
        time.sleep(options.pause)


def _by_hand(source: OfficialFile, part: Path) -> str:
    return (
        f"You can give another address with --url, or put {source.file} into "
        f"{part.parent} by hand"
    )


def _transfer_once(source: OfficialFile, part: Path, options: _Options) -> str | None:
    """Transfer as much as possible; return why it ended early, otherwise ``None``."""
    offset = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(source.url)
    # With compression, lengths and ranges would count other bytes than the file's.
    request.add_header("Accept-Encoding", "identity")
    if offset:
        request.add_header("Range", f"bytes={offset}-")
    try:
        response = urllib.request.urlopen(request, timeout=options.timeout)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        error.close()
        # Nothing is left to send: the part is complete or belongs to another file. The
        # checksum decides.
        return None
    with response:
        start, total = _extent(response, offset)
        if start != offset:
            offset = 0
            if start != 0:
                part.unlink()
                return f"the server sent bytes from {start}, not what was asked for"
        room = shutil.disk_usage(part.parent).free
        if total is not None and total - offset > room - _MARGIN:
            raise OSError(errno.ENOSPC, "No space left on device")
        with part.open("r+b" if offset else "wb") as file:
            file.seek(offset)
            file.truncate()
            got = offset + _copy(response, file, source.file, offset, total, options)
    if total is not None and got < total:
        return f"the transfer broke off at {got} of {total} bytes"
    return None


def _extent(response: http.client.HTTPResponse, offset: int) -> tuple[int, int | None]:
    """Return where the sent bytes begin, and the size of the whole file if known."""
    if response.status != 206:
        return 0, response.length
    match = re.fullmatch(
        r"bytes (\d{1,18})-\d+/(\d{1,18}|\*)",
        response.headers.get("Content-Range", "").strip(),
    )
    if match is None:
        return -1, None
    return int(match[1]), int(match[2]) if match[2] != "*" else None


def _copy(
    response: IO[bytes] | http.client.HTTPResponse,
    file: IO[bytes],
    title: str,
    offset: int,
    total: int | None,
    options: _Options,
) -> int:
    got = 0
    with tqdm(
        total=total,
        initial=offset,
        unit="B",
        unit_scale=True,
        desc=title,
        disable=not options.progress,
    ) as bar:
        while block := response.read(_BLOCK):
            got += len(block)
            if total is not None and offset + got > total:
                raise DownloadError(f"{title}: the server sends more than it announced")
            file.write(block)
            bar.update(len(block))
    return got
