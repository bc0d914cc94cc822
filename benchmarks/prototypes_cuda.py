"""Class-wise EMA clustering on a GPU: our kernels against what else a user could run.

    python -m benchmarks.prototypes_cuda [--quick] [--output DIR]

The sizes and peers of :mod:`benchmarks.prototypes`, on the GPU, and our step as the
replay of a CUDA graph beside it. Times are CUDA events after a warm-up. Appends to
``prototypes_cuda.csv``.

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

from benchmarks.prototypes import cases, peers
from benchmarks.similarity_cuda import captured, machine, timings
from benchmarks.tables import append

OURS = "s3h_ext"


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


def measure(
    case: tuple[int, int, int, int], device: torch.device, budget: float
) -> Iterator[Row]:
    about = machine(device)

    def timed(make: Callable[[], Callable[[], object]]) -> tuple[list[float], str]:
        try:
            with torch.no_grad():
                return timings(make(), device, budget), ""
        except Exception as error:  # a peer's failure is a result too
            print(f"  {type(error).__name__}: {str(error).splitlines()[:1]}")
            return [float("nan")], type(error).__name__

    # The peers create what they work on, and what they fill, by default here.
    with torch.device(device):
        for name, call in peers(*case):
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
    found = cases(arguments.quick) if device.type == "cuda" else [(64, 10, 2, 16)]
    for case in found:
        print("N {}, C {}, K {}, D {}".format(*case))
        for row in measure(case, device, arguments.seconds):
            append(target, [asdict(row)])


if __name__ == "__main__":
    main()
