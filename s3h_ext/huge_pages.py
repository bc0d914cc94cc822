"""Huge pages for a training on the CPU.

The operators of a training step allocate tensors of many megabytes and give them back.
Where free memory is fragmented, as on virtual machines that have been up for a while,
address translation of their 4 KiB pages can cost more than the arithmetic
(docs/cpu.md). glibc asks the kernel for pages of 2 MiB if ``GLIBC_TUNABLES`` said so
when the process started, which is why a program has to start itself again.

Nothing here imports PyTorch, whose import takes seconds.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["OPT_OUT", "asking", "describe", "restart"]

#: Set to 0: leave the process as it is. :func:`restart` sets it too, so that a process
#: restarts once, whatever becomes of the other variables on the way.
OPT_OUT = "S3H_HUGE_PAGES"
_OFF, _DONE = "0", "asked"
#: Of glibc. One arena for all threads: others are heaps of at most 64 MiB, which are
#: mapped and unmapped in pieces.
PAGES, ARENAS = "glibc.malloc.hugetlb=1", "glibc.malloc.arena_max=1"

_KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_GPUS = (Path("/dev/nvidiactl"), Path("/dev/nvidia0"), Path("/dev/dxg"))


def restart(arguments: Sequence[str]) -> None:
    """Start this process again with huge pages, where that is possible and of use.

    Same process id, same command line, standard streams as they are. Call it before
    PyTorch is imported, and from a program's entry point only. It returns where nothing
    is to be done: on a GPU, where the process was restarted already, where
    ``GLIBC_TUNABLES`` says something about huge pages or ``S3H_HUGE_PAGES`` is 0,
    without glibc 2.35 or newer, and where the kernel gives no huge pages. ``--device``
    and ``--config`` among the program's ``arguments`` say where it will run.
    """
    given = sys.argv[1:]
    if sys.orig_argv[len(sys.orig_argv) - len(given) :] != given:
        return  # another program runs this one inside of its process
    if not sys.executable or _on_gpu(arguments, os.environ):
        return
    environment = asking(os.environ)
    if environment is None:
        return
    try:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
    except OSError:
        return  # it trains without


def asking(environment: Mapping[str, str]) -> dict[str, str] | None:
    """Return an environment whose processes ask for huge pages.

    Returns:
        ``None`` where they would not get any, or ``environment`` has it settled.
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
    """Return how this process's memory is paged, in words for a log."""
    if _asked(os.environ) and _mode() in ("madvise", "always"):
        return f"huge pages: GLIBC_TUNABLES={os.environ['GLIBC_TUNABLES']}"
    return f"huge pages: not requested; the kernel's mode is {_mode()}"


def _asked(environment: Mapping[str, str]) -> bool:
    return "glibc.malloc.hugetlb" in environment.get("GLIBC_TUNABLES", "")


def _glibc() -> tuple[int, ...]:
    """Return the version of glibc, ``(0,)`` where the C library is another one."""
    try:
        text = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, ValueError, OSError):
        return (0,)
    found = re.fullmatch(r"glibc (\d+)\.(\d+).*", text)
    return (int(found[1]), int(found[2])) if found else (0,)


def _mode() -> str:
    """Return when the kernel gives huge pages: always, madvise or never."""
    try:
        found = re.search(r"\[(\w+)\]", _KERNEL.read_text())
    except OSError:
        return "never"
    return found[1] if found else "never"


def _on_gpu(arguments: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Say whether a program will run on a GPU, as far as that is cheap to know."""
    device = _device(arguments)
    if device != "auto":
        return device != "cpu"
    if environment.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    return any(path.exists() for path in _GPUS)


def _device(arguments: Sequence[str]) -> str:
    """Return the device that a command line asks for, by itself or in its files."""
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
                continue  # a parser says why
            if found := re.search(r"^device:\s*['\"]?([\w:]+)", text, re.MULTILINE):
                device = found[1]
    return device
