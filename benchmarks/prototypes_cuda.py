"""Class-wise EMA clustering on a GPU: our kernels against what else a user could run.

    python -m benchmarks.prototypes_cuda [--quick] [--output DIR]

The sizes and peers of :mod:`benchmarks.prototypes`, on the GPU, and our step as the
replay of a CUDA graph beside it. Times are CUDA events after a warm-up. What our steps
change is first compared with the plain form; where they differ, they have no row and
the status is not 0. Appends to ``prototypes_cuda.csv``.

``--device cpu`` runs the same code at a tiny size: a test of this file, no benchmark.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.prototypes import (
    MOST_ELEMENTS,
    OurTwoOps,
    cases,
    our_step,
    peers,
    plain_step,
)
from benchmarks.similarity_cuda import agrees, captured, machine, timings
from benchmarks.tables import append

OURS = "s3h_ext"
TWO_OPS = "s3h_ext, two ops"


@dataclass(frozen=True)
class Row:
    date: str
    samples: int
    classes: int
    rows_per_class: int
    depth: int
    peer: str
    mode: str  # eager or graph
    p20_ms: float
    median_ms: float
    p80_ms: float
    runs: int
    failure: str
    gpu: str
    driver: str
    cuda: str
    torch: str
    kernels: str


def wrong_ours(case: tuple[int, int, int, int], device: torch.device) -> list[str]:
    """Returns which of our steps change something else than the plain form does."""
    n, c, k, d = case
    if n * k * d > MOST_ELEMENTS:
        print(f"  {OURS}: not checked, that holds {n} x {k} x {d} elements")
        return []
    features = torch.randn(n, d, device=device)
    labels = torch.randint(0, c, (n,), device=device)
    offsets = torch.arange(0, c * k + 1, k, device=device)
    prototypes = torch.randn(c * k, d, device=device)
    before = (prototypes, prototypes, torch.ones(c * k, device=device))

    def change(step: Callable[..., None]) -> list[Tensor]:
        state = [tensor.clone() for tensor in before]
        step(features, labels, (*state, offsets))
        return [new - old for new, old in zip(state, before, strict=True)]

    right = change(plain_step)
    steps = {OURS: our_step, TWO_OPS: OurTwoOps()}
    return [
        name
        for name, step in steps.items()
        if not agrees(name, change(step), right, torch.float32)
    ]


def measure(
    case: tuple[int, int, int, int],
    device: torch.device,
    budget: float,
    wrong: list[str],
) -> Iterator[Row]:
    """Times every peer; ours whose values are wrong are added to ``wrong``."""
    about = machine(device)

    def timed(make: Callable[[], Callable[[], object]]) -> tuple[list[float], str]:
        try:
            with torch.no_grad():
                return timings(make(), device, budget), ""
        except Exception as error:  # a peer's failure is a result too
            print(f"  {type(error).__name__}: {str(error).splitlines()[:1]}")
            return [float("nan")], type(error).__name__

    skipped: list[str] = []
    try:
        with torch.no_grad():
            skipped = wrong_ours(case, device)
    except Exception as error:  # ours fails below, or there is no room for both
        print(f"  {OURS}: not checked: {type(error).__name__}")
    wrong += [f"{case}, {name}" for name in skipped]
    # The peers create what they work on by default here. Their calls are outside of the
    # mode, which would cost every operation host time.
    with torch.device(device):
        found = list(peers(*case))
    for name, call in found:
        if name in skipped:
            continue
        modes: dict[str, Callable[[], Callable[[], object]]] = {
            "eager": lambda call=call: call
        }
        if name == OURS and device.type == "cuda":
            modes["graph"] = lambda call=call: captured(call)
        for mode, make in modes.items():
            times, failure = timed(make)
            row = Row(
                datetime.date.today().isoformat(),
                *case,
                peer=name,
                mode=mode,
                p20_ms=round(times[len(times) // 5], 5),
                median_ms=round(statistics.median(times), 5),
                p80_ms=round(times[len(times) * 4 // 5], 5),
                runs=0 if failure else len(times),
                failure=failure,
                **about,
            )
            print(
                f"  {name:<24} {mode:<6} {row.median_ms:>10.4f} ms "
                f"[{row.p20_ms:.4f}, {row.p80_ms:.4f}] {failure}",
                flush=True,
            )
            yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="one size only")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="for each timing")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "no GPU that this PyTorch can use; --device cpu tests the code"
        )
    arguments.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    target = arguments.output / "prototypes_cuda.csv"
    wrong: list[str] = []
    found = cases(arguments.quick) if device.type == "cuda" else [(64, 10, 2, 16)]
    for case in found:
        print("N {}, C {}, K {}, D {}".format(*case))
        for row in measure(case, device, arguments.seconds, wrong):
            append(target, [asdict(row)])
    if wrong:
        raise SystemExit(f"wrong values: {'; '.join(wrong)}")


if __name__ == "__main__":
    main()
