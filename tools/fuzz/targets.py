"""The readers under fuzz, each as a function of the fuzzer's bytes.

A target returns when the reader accepts the input or refuses it by one of its
documented errors, and raises whatever else happens. It needs no fuzzer, so the tests
replay the corpus through the same code.
"""

import io
import os
import resource
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from s3h_ext.data.sets.archive import ArchiveError
from s3h_ext.data.sets.cifar import read_archive
from s3h_ext.runs.options import OptionError, parse_options

CORPUS = Path(__file__).resolve().parent / "corpus"
_ARCHIVE_FILES = ("train", "test", "meta")
_SEPARATOR = b"\n---\n"
_MAX_RSS_GROWTH = 512 << 10  # KiB
_MAX_CPU_SECONDS = 10.0


class Violation(BaseException):
    """A reader did what no input may make it do; no handler of errors catches it."""


class Sentry:
    """Notices programs started, sockets opened, files written, memory grabbed."""

    FORBIDDEN = (
        *("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty"),
        *("subprocess.Popen", "pty.spawn", "socket.connect", "webbrowser.open"),
        *("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link"),
        *("os.symlink", "os.chmod", "os.chown", "shutil.rmtree", "ctypes.dlopen"),
    )

    def __init__(self) -> None:
        self.active = False
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self.active:
            return
        writes = event == "open" and (
            set(str(arguments[1] or "")) & set("wax+")
            or int(arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        )
        if event in self.FORBIDDEN or writes:
            self.seen.append(f"{event} {str(arguments)[:200]}")
            raise Violation(self.seen[-1])

    def watch(self, reader: Callable[..., object], *arguments: object) -> object:
        """Calls the reader; raises Violation even if the reader swallowed it."""
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        # Not the clock on the wall: a busy machine would look like a slow reader.
        started = time.process_time()
        self.active = True
        try:
            return reader(*arguments)
        finally:
            self.active = False
            seen, self.seen = self.seen, []
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            if seen:
                raise Violation(seen[0])
            if (seconds := time.process_time() - started) > _MAX_CPU_SECONDS:
                raise Violation(f"took {seconds:.1f} s")
            if grown > _MAX_RSS_GROWTH:
                raise Violation(f"took {grown >> 10} MiB")


_sentry: Sentry | None = None


def _watch(reader: Callable[..., Any], *arguments: object) -> Any:
    # Audit hooks cannot be taken away again, so there is one for all targets.
    global _sentry
    _sentry = _sentry or Sentry()
    return _sentry.watch(reader, *arguments)


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise Violation(what)


def _check_refusal(error: BaseException, path: Path | None = None) -> None:
    """A refusal is short and names the file; running out of something is none."""
    _require(path is None or str(path) in str(error), f"unnamed file: {error}")
    _require(len(str(error)) < 5000, f"a message of {len(str(error))} characters")
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (MemoryError, RecursionError)):
            raise Violation(f"{type(cause).__name__} inside the reader") from error
        cause = cause.__cause__ or cause.__context__


def archive(data: bytes, folder: Path) -> str:
    """First byte: which file of a CIFAR-100 folder to replace; rest: its content."""
    if not data:
        return "empty"
    name = _ARCHIVE_FILES[data[0] % 3]
    root = folder / f"{name}-fuzzed"
    if not root.exists():
        root.mkdir()
        for sound in _ARCHIVE_FILES:
            (root / sound).write_bytes((CORPUS / "archive" / sound).read_bytes()[1:])
    (root / name).write_bytes(data[1:])
    try:
        read = _watch(read_archive, "cifar100", root)
    except ArchiveError as error:
        _check_refusal(error, root / name)
        return "refused"
    for split in (read.train, read.test):
        images, labels = split.images, split.labels
        _require(images.dtype == np.uint8, "images that are not uint8")
        _require(images.shape == (len(labels), 32, 32, 3), "images without labels")
        _require(((labels >= 0) & (labels < 100)).all(), "labels out of range")
    _require(len(read.class_names) == 100, "class names")
    return "accepted"


def options(data: bytes, folder: Path) -> str:
    """Arguments, one a line; after a line ``---`` a YAML file for ``--config``."""
    head, separator, content = data.partition(_SEPARATOR)
    arguments = [os.fsdecode(line) for line in head.split(b"\n") if line]
    if separator:
        path = folder / "own.yaml"
        path.write_bytes(content)
        arguments = ["--config", str(path), *arguments]
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            _watch(parse_options, arguments)
    except OptionError as error:
        _check_refusal(error)
        return "refused"
    except SystemExit as error:
        # --help and --print_config end the program by themselves.
        _require(error.code == 0, "left by SystemExit instead of an OptionError")
        return "left"
    return "accepted"


TARGETS: dict[str, Callable[[bytes, Path], str]] = {
    "archive": archive,
    "options": options,
}
