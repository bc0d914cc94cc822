"""Huge pages for training on the CPU.

The operators of a training step allocate and free tensors of many megabytes. If free
memory is fragmented, as on virtual machines that have been running for a while, address
translation of their 4 KiB pages can cost more than the arithmetic (docs/cpu.md). glibc
requests pages of 2 MiB if ``GLIBC_TUNABLES`` says so when the process starts, so a
program has to restart itself.

Nothing here imports PyTorch, whose import takes seconds.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["OPT_OUT", "asking", "describe", "restart"]

#: Set to 0 to leave the process as it is. :func:`restart` sets it too, so that a
#: process restarts only once, whatever happens to the other variables.
OPT_OUT = "S3H_HUGE_PAGES"
_OFF, _DONE = "0", "asked"
#: glibc tunables. All threads share one arena, because others are heaps of at most 64
#: MiB, which are mapped and unmapped in pieces.
PAGES, ARENAS = "glibc.malloc.hugetlb=1", "glibc.malloc.arena_max=1"

_KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_GPUS = (Path("/dev/nvidiactl"), Path("/dev/nvidia0"), Path("/dev/dxg"))


def restart(arguments: Sequence[str]) -> None:
    """Restart this process with huge pages, if that is possible and useful.

    Process id, command line and standard streams stay the same. Call it before PyTorch
    is imported, and only from a program's entry point. It returns if there is nothing
    to do: on a GPU, after a restart, if ``GLIBC_TUNABLES`` mentions huge pages or
    ``S3H_HUGE_PAGES`` is 0, without glibc 2.35 or newer, and if the kernel provides no
    huge pages. ``--device`` and ``--config`` among the program's ``arguments``
    determine where it will run.
    """
    given = sys.argv[1:]
    if sys.orig_argv[len(sys.orig_argv) - len(given) :] != given:
        return  # embedded in another program
    if not sys.executable or _on_gpu(arguments, os.environ):
        return
    environment = asking(os.environ)
    if environment is None:
        return
    try:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
    except OSError:
        return  # continue without huge pages


def asking(environment: Mapping[str, str]) -> dict[str, str] | None:
    """Return an environment in which processes request huge pages.

    Returns:
        ``None`` if they would not get any, or ``environment`` already decides it.
    """
    if _asked(environment) or environment.get(OPT_OUT) in (_OFF, _DONE):
        return None
    if _glibc() < (2, 35) or _mode() not in ("madvise", "always"):
        return None
    known = environment.get("GLIBC_TUNABLES", "")
    tunables = [known, PAGES] if known else [PAGES]
    if "MALLOC_ARENA_MAX" not in environment and "arena_max" not in known:
        tunables.append(ARENAS)
    return {
        **environment,
        "GLIBC_TUNABLES": ":".join(tunables),
        OPT_OUT: _DONE,
    }


def describe() -> str:
    """Return the page sizes of this process's memory, as text for a log."""
    if _asked(os.environ) and _mode() in ("madvise", "always"):
        return f"huge pages: GLIBC_TUNABLES={os.environ['GLIBC_TUNABLES']}"
    return f"huge pages: not requested; the kernel's mode is {_mode()}"


def _asked(environment: Mapping[str, str]) -> bool:
    return "glibc.malloc.hugetlb" in environment.get("GLIBC_TUNABLES", "")


def _glibc() -> tuple[int, ...]:
    """Return the version of glibc, or ``(0,)`` for another C library."""
    try:
        text = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, ValueError, OSError):
        return (0,)
    found = re.fullmatch(r"glibc (\d+)\.(\d+).*", text)
    return (int(found[1]), int(found[2])) if found else (0,)


def _mode() -> str:
    """Return when the kernel provides huge pages: always, madvise or never."""
    try:
        found = re.search(r"\[(\w+)\]", _KERNEL.read_text())
    except OSError:
        return "never"
    return found[1] if found else "never"


def _on_gpu(arguments: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Return whether a program will run on a GPU, if that is cheap to find out."""
    device = _device(arguments)
    if device != "auto":
        return device != "cpu"
    if environment.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    return any(path.exists() for path in _GPUS)


def _device(arguments: Sequence[str]) -> str:
    """Return the device that a command line or its config files ask for."""
    device = "auto"
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        name, equals, value = argument.partition("=")
        value = value if equals else following
        if name == "--device":
            device = value
        elif name == "--config":
            try:
                text = Path(value).read_text(encoding="utf-8")
            except (OSError, ValueError):
                continue  # the parser will report it
            if found := re.search(r"^device:\s*['\"]?([\w:]+)", text, re.MULTILINE):
                device = found[1]
    return device
