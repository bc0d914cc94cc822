"""Processes at an instruction set that this CPU has."""

import os

import pytest

from s3h_ext.ops._library import CPU

LEVELS = ["baseline", "avx2", "avx512", "amx_emulated", "avx512_bf16", "amx"]


@pytest.fixture
def at_level(level):
    """The environment of a process that takes the kernels of ``level``."""
    highest = CPU.text("s3h_cpu_dispatch_level")
    # The program in place of a tile unit needs AVX-512 alone.
    needed = "avx512" if level == "amx_emulated" else level
    if LEVELS.index(needed) > LEVELS.index(highest):
        pytest.skip(f"this CPU goes up to {highest}")
    return os.environ | {"S3H_CPU_LEVEL": level}
