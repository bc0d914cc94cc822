"""Chooses the device and the precision of a run."""

from __future__ import annotations

import platform
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from s3h_ext.runs.config import PrecisionName


def resolve_device(name: str) -> torch.device:
    """Return the device called ``name``; ``auto`` is CUDA if available.

    Raises:
        ValueError: no device has that name, or it is not on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")  # not supported
    if device.type not in ("cpu", "cuda"):
        raise ValueError(
            f"device: expected 'auto', 'cpu', 'cuda' or 'cuda:N', got {name!r}"
        )
    if device.type == "cuda" and (
        not torch.cuda.is_available()
        or (device.index or 0) >= torch.cuda.device_count()
    ):
        raise ValueError(
            f"device: {name!r} does not exist; PyTorch sees "
            f"{torch.cuda.device_count()} CUDA devices"
        )
    return device


def resolve_precision(name: PrecisionName, device: torch.device) -> str:
    """Return ``"bf16"`` or ``"fp32"`` for ``name`` on ``device``.

    ``auto`` uses bf16 only if the chip multiplies it natively; elsewhere it is emulated
    and slower than float32.
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    return (
        "bf16" if {"avx512_bf16", "amx_bf16"} & {*_cpuinfo("flags").split()} else "fp32"
    )


def _cpuinfo(field: str) -> str:
    """Return one field of the first processor in ``/proc/cpuinfo``, if it exists."""
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.startswith(field):
            return line.partition(":")[2].strip()
    return ""


def autocast(
    precision: str, device: torch.device, *, cache: bool = True
) -> AbstractContextManager[object]:
    """Return the autocast context for ``"fp32"`` or ``"bf16"``.

    ``cache`` keeps converted weights until the context ends. A recording made inside it
    that outlives it would read freed memory.
    """
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16, cache_enabled=cache)
    return nullcontext()


def device_name(device: torch.device) -> str:
    """Return the name of the chip, as far as the system reports it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _cpuinfo("model name") or platform.processor() or platform.machine()
