"""Builds the CUDA kernels for the host and runs them on a problem."""

from __future__ import annotations

import fcntl
import functools
import math
import os
import shutil
import struct
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
BUILD = HERE.parents[1] / "build" / "cuda-host"
SCALARS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
H200_SHARED = 227 * 1024


def run_program(
    variant: str, program: str, *arguments: str, seed: int = 0
) -> subprocess.CompletedProcess[str]:
    """Runs a program of the variant plain, address or thread; it may fail."""
    environment = os.environ | {
        "S3H_EXECUTOR_SEED": str(seed),
        "TSAN_OPTIONS": "halt_on_error=1 exitcode=66",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    return subprocess.run(
        [str(build(variant, program)), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )


def execute(
    program: str,
    numbers: Sequence[int],
    reals: Sequence[float],
    arrays: Sequence[Tensor | None],
    results: Sequence[tuple[torch.dtype, tuple[int, ...]]],
    *,
    multiprocessors: int = 4,
    skip: int = 0,
    variant: str = "plain",
    seed: int = 0,
) -> list[Tensor]:
    """Runs a driver program; returns tensors of the types and shapes of ``results``.

    Every array lies ``skip`` bytes behind an address that suits every load.
    """
    numbers = [multiprocessors, skip, *map(int, numbers)]
    parts = [struct.pack(f"q{len(numbers)}q", len(numbers), *numbers)]
    parts.append(struct.pack(f"q{len(reals)}d", len(reals), *reals))
    for array in arrays:
        data = None if array is None else _bytes(array)
        parts.append(struct.pack("q", -1 if data is None else len(data)))
        parts.append(data or b"")
    with tempfile.TemporaryDirectory() as scratch:
        problem, result = Path(scratch, "problem"), Path(scratch, "result")
        problem.write_bytes(b"".join(parts))
        done = run_program(variant, program, str(problem), str(result), seed=seed)
        if done.returncode != 0:
            raise RuntimeError(f"{program}: {done.returncode}, {done.stderr[-4000:]}")
        data = result.read_bytes()
    tensors = []
    for dtype, shape in results:
        size = math.prod(shape) * dtype.itemsize
        tensors.append(_tensor(data[:size], dtype, shape))
        data = data[size:]
    assert data == b""
    return tensors


def first_quick(cases: Iterable[Any]) -> list[Any]:
    """Returns parameters of a test: the first as it is, the others marked slow."""
    first, *others = cases
    return [first, *(pytest.param(case, marks=pytest.mark.slow) for case in others)]


@functools.cache
def build(variant: str, program: str) -> Path:
    """Builds what has changed of a program; returns where it is."""
    folder = BUILD / f"{variant}-{sysconfig.get_platform()}"
    folder.mkdir(parents=True, exist_ok=True)
    if shutil.which("make") is None or shutil.which("g++") is None:
        raise RuntimeError("the host executor needs make and g++ on the PATH")
    # Not a part of the make that may have started the tests.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    variables = [f"VARIANT={variant}", f"BUILD={folder}", "CXX=g++"]
    command = ["make", "-j2", "-s", "-C", str(HERE), *variables]
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests may run in several processes
        done = subprocess.run(
            [*command, str(folder / program)],
            capture_output=True,
            text=True,
            env=environment,
        )
    if done.returncode != 0:
        raise RuntimeError(f"building {program}, {variant}:\n{done.stderr}")
    return folder / program


def similarity(
    queries: Tensor,
    keys: Tensor | None,
    upstream: Tensor,
    *,
    temperature: float,
    key_bias: Tensor | None = None,
    query_labels: Tensor | None = None,
    key_labels: Tensor | None = None,
    same_label_bias: Tensor | float = 0.0,
    self_index: Tensor | None = None,
    assume_normalized: bool = False,
    deterministic: bool = False,
    allow_tf32: bool = False,
    need_queries: bool = True,
    need_keys: bool = True,
    shared_limit: int = H200_SHARED,
    **execution: Any,
) -> tuple[Tensor, list[Tensor]]:
    """Returns lse and the gradients that were asked for, as the kernels give them."""
    (n, depth), dtype = queries.shape, queries.dtype
    m = n if keys is None else keys.shape[0]
    real = torch.float64 if dtype == torch.float64 else torch.float32
    one = not isinstance(same_label_bias, Tensor)
    need_keys = need_keys and keys is not None
    options = [assume_normalized, deterministic, allow_tf32, need_queries, need_keys]
    results = [(real, (n,))]
    results += [(dtype, (n, depth))] if need_queries else []
    results += [(dtype, (m, depth))] if need_keys else []
    lse, *gradients = execute(
        "similarity",
        [SCALARS.index(dtype), keys is None, n, m, depth, *options, shared_limit],
        [temperature, same_label_bias if one else 0.0],
        [
            *(queries, keys, None if key_bias is None else key_bias.to(real)),
            *(query_labels, key_labels, None if one else same_label_bias.to(real)),
            *(self_index, upstream.to(real)),
        ],
        results,
        **execution,
    )
    return lse, gradients


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()


def _tensor(data: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)


def supcon(
    z: Tensor,
    labels: Tensor,
    grad: Tensor,
    *,
    temperature: float,
    num_classes: int | None = None,
    reduction: str = "mean",
    deterministic: bool = False,
    **execution: Any,
) -> tuple[Tensor, int, Tensor, int]:
    """Returns loss, count and gradient, and how many launches both took."""
    real = torch.float64 if z.dtype == torch.float64 else torch.float32
    reductions = ["none", "mean", "sum"]
    loss, counted, gradient, launches = execute(
        "supcon",
        [
            SCALARS.index(z.dtype),
            *z.shape,
            -1 if num_classes is None else num_classes,
            reductions.index(reduction),
            deterministic,
        ],
        [temperature],
        [z, labels, grad.to(real).reshape(-1)],
        [
            (real, grad.shape),
            (torch.int64, ()),
            (z.dtype, tuple(z.shape)),
            (torch.int64, ()),
        ],
        **execution,
    )
    return loss, int(counted), gradient, int(launches)


def class_sums(q, k, a, b, classes, grad, *, queries=True, keys=True, **execution):
    """Returns dots and the gradients that were asked for, as the kernels give them."""
    real = torch.float64 if q.dtype == torch.float64 else torch.float32
    n, depth = q.shape
    m = n if k is None else k.shape[0]
    keys = keys and k is not None
    results = [(real, (n,))]
    results += [(q.dtype, (n, depth))] if queries else []
    results += [(q.dtype, (m, depth))] if keys else []
    numbers = [SCALARS.index(q.dtype), k is None, n, m, depth, classes, queries, keys]
    arrays = [q, k, a, b, grad.to(real)]
    return execute("class_sums", numbers, [], arrays, results, **execution)
