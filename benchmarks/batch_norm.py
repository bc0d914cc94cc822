"""Batch norm, residual and ReLU of ResNet-32's maps: one operation against modules.

    python -m benchmarks.batch_norm [--batch_size 128] [--seconds 1]

Times forward and backward of each kind of map in turns with PyTorch's operations.
Prints milliseconds and appends the rows to ``batch_norm.csv`` in ``--output``.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from s3h_ext import huge_pages

if __name__ == "__main__":
    huge_pages.restart(["--device", "cpu"])  # before PyTorch is imported

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.machine import cpu_name
from benchmarks.tables import append
from benchmarks.timing import interleaved
from s3h_ext.ops import batch_norm_relu

MAPS = ((16, 32), (32, 16), (64, 8))  # channels, side


def in_steps(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None
) -> Tensor:
    """Return what the modules do one after another."""
    out = F.batch_norm(x, None, None, weight, bias, training=True)
    return F.relu(out if residual is None else out + residual)


def measure(
    shape: tuple[int, ...], dtype: torch.dtype, residual: bool, seconds: float
) -> dict[str, float]:
    """Return medians in milliseconds."""
    torch.manual_seed(0)
    layout = torch.channels_last
    x, added, grad = (
        torch.randn(shape).to(dtype).contiguous(memory_format=layout) for _ in range(3)
    )
    given = [x, torch.ones(shape[1]), torch.zeros(shape[1])]
    given = [t.requires_grad_() for t in ([*given, added] if residual else given)]
    forwards: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: batch_norm_relu(*given)[0],
        "pytorch": lambda: in_steps(*given),
    }
    outs = {name: call() for name, call in forwards.items()}
    backwards: dict[str, Callable[[], object]] = {
        name: partial(torch.autograd.grad, out, given, grad, retain_graph=True)
        for name, out in outs.items()
    }
    for call in backwards.values():
        call()
    kinds: dict[str, Mapping[str, Callable[[], object]]] = {
        "forward": forwards,
        "backward": backwards,
    }
    return {
        f"{name}_{direction}_ms": round(timing.median, 4)
        for direction, calls in kinds.items()
        for name, timing in interleaved(calls, seconds).items()
    }


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results"
    )
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    for dtype in (torch.bfloat16, torch.float32):
        for channels, side in MAPS:
            for residual in (False, True):
                shape = (options.batch_size, channels, side, side)
                row: dict[str, object] = {
                    "date": datetime.date.today().isoformat(),
                    "machine": cpu_name(),
                    "threads": torch.get_num_threads(),
                    "torch": torch.__version__,
                    "dtype": str(dtype).removeprefix("torch."),
                    "shape": "x".join(map(str, shape)),
                    "residual": residual,
                }
                row |= measure(shape, dtype, residual, options.seconds)
                print(*row.values(), flush=True)
                rows.append(row)
    options.output.mkdir(parents=True, exist_ok=True)
    append(options.output / "batch_norm.csv", rows)


if __name__ == "__main__":
    main()
