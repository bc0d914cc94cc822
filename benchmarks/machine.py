"""What a timing is held against: the machine's own limits, its name, versions."""

from __future__ import annotations

import atexit
import functools
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from s3h_ext.ops._library import CPU
from s3h_ext.runs.precision import device_name

ROOT = Path(__file__).resolve().parent


def cpu_name() -> str:
    """The CPU's name and the instructions that our kernels use, as ``AMD EPYC (avx2)``.

    The name alone says little on a virtual machine, and a family of CPUs is told from
    another one by its instructions.
    """
    level = CPU.text("s3h_cpu_dispatch_level") if CPU.loaded else "no kernels"
    return f"{device_name(torch.device('cpu'))} ({level})"


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
