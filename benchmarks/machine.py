"""What a timing is held against: the machine's own limits, its name, versions."""

from __future__ import annotations

import atexit
import functools
import math
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Peak:
    """GFLOP/s of float32 and of bfloat16 pairs (0: none), Gexp/s; all threads."""

    float32: float
    bfloat16: float
    exponentials: float

    def best_of(self, other: Peak) -> Peak:
        """The limits are what was reached once; other load only takes away."""
        return Peak(
            max(self.float32, other.float32),
            max(self.bfloat16, other.bfloat16),
            max(self.exponentials, other.exponentials),
        )


@functools.cache
def _program() -> str:
    folder = tempfile.mkdtemp(prefix="s3h-peak-")
    atexit.register(shutil.rmtree, folder)
    program = f"{folder}/peak"
    flags = ["-O3", "-std=c++20", "-march=native", "-pthread"]
    command = ["c++", *flags, str(ROOT / "peak.cpp"), "-o", program]
    subprocess.run(command, check=True)
    return program


def measure_peak() -> Peak:
    """Runs benchmarks/peak.cpp on as many threads as torch uses."""
    command = [_program(), str(torch.get_num_threads())]
    words = subprocess.run(
        command, check=True, capture_output=True, text=True
    ).stdout.split()
    return Peak(*map(float, words[1:]))


def processor() -> str:
    """The CPU's name as the kernel gives it."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown"


def timings(call: Callable[[], object], budget: float) -> list[float]:
    """Sorted milliseconds of single calls, for about ``budget`` seconds."""
    call()
    start = time.perf_counter()
    call()
    once = time.perf_counter() - start
    times = []
    for _ in range(max(3, min(40, int(budget / max(once, 1e-6))))):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return sorted(times)


def peak_extra(call: Callable[[], object]) -> float:
    """MiB that one more call adds to the resident set, at its highest.

    Memory that is kept from one call to the next was there before.
    """
    clear = Path("/proc/self/clear_refs")
    if not clear.exists():
        return math.nan
    clear.write_text("5")
    before = resource.getpagesize() * int(
        Path("/proc/self/statm").read_text().split()[1]
    )
    call()
    status = Path("/proc/self/status").read_text()
    high = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return (int(high.split()[1]) * 1024 - before) / 2**20
