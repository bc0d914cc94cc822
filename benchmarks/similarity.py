"""Contrastive losses on the CPU: our kernel against what else a user could run.

``python -m benchmarks.similarity [--quick] [--output DIR]``

Every peer runs in the same process and interleaved with ours, forward and full
(forward + backward); the machine's own limits (benchmarks/peak.cpp) are measured
beside them. Appends to ``similarity.csv``, prints a table, draws ``similarity.png``.

The floor is the time that the arithmetic takes at the measured peak:
4N²D/peak + N²/exp for SupCon (symmetric), 8NCD/peak + 2NC/exp for prototypes.
"""

from __future__ import annotations

import argparse
import atexit
import csv
import datetime
import functools
import math
import platform
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from s3h_ext.losses import prototypical_supcon_loss, supcon_loss
from s3h_ext.ops import similarity_logsumexp

ROOT = Path(__file__).resolve().parent
TEMPERATURE = 0.1
CLASSES = 100
# A peer that would hold more than this many N x M elements is marked, not run.
MOST_ELEMENTS = 1 << 28


@dataclass(frozen=True)
class Row:
    date: str
    case: str
    rows: int
    columns: int
    depth: int
    dtype: str
    peer: str
    mode: str
    p20_ms: float
    median_ms: float
    p80_ms: float
    extra_mib: float
    floor_fraction: float
    peak_gflops: float
    exp_g: float
    cpu: str
    threads: int
    torch: str


@dataclass(frozen=True)
class Peak:
    float32: float
    bfloat16: float
    exponentials: float


_NO_PEAK = Peak(0.0, 0.0, 0.0)


@functools.cache
def peak_program() -> str:
    folder = tempfile.mkdtemp(prefix="s3h-peak-")
    atexit.register(shutil.rmtree, folder)
    program = f"{folder}/peak"
    flags = ["-O3", "-std=c++20", "-march=native", "-pthread"]
    command = ["c++", *flags, str(ROOT / "peak.cpp"), "-o", program]
    subprocess.run(command, check=True)
    return program


def measure_peak(best: Peak = _NO_PEAK) -> Peak:
    """Measures the limits; never below ``best``, which other load cannot undo."""
    command = [peak_program(), str(torch.get_num_threads())]
    words = subprocess.run(
        command, check=True, capture_output=True, text=True
    ).stdout.split()
    return Peak(
        max(best.float32, float(words[1])),
        max(best.bfloat16, float(words[2])),
        max(best.exponentials, float(words[3])),
    )


def supcon_mask(z: Tensor, labels: Tensor) -> Tensor:
    """The SupContrast form: the N x N mask."""
    scores = z @ z.T / TEMPERATURE
    scores = scores - scores.detach().amax(dim=1, keepdim=True)
    others = 1 - torch.eye(len(z))
    same = (labels[:, None] == labels).float() * others
    logs = scores - (scores.exp() * others).sum(dim=1, keepdim=True).log()
    return -((same * logs).sum(dim=1) / same.sum(dim=1).clamp(min=1)).mean()


def supcon_algebraic(z: Tensor, labels: Tensor) -> Tensor:
    """One log-sum-exp and class sums: the best plain form known to us."""
    scores = (z @ z.T / TEMPERATURE).fill_diagonal_(-math.inf)
    sums = z.new_zeros(CLASSES, z.shape[1]).index_add(0, labels, z)
    counts = torch.bincount(labels, minlength=CLASSES)
    own = sums.index_select(0, labels) - z
    positives = (counts[labels] - 1).clamp(min=1)
    attraction = (z * own).sum(dim=1) / (TEMPERATURE * positives)
    return (scores.logsumexp(dim=1) - attraction).mean()


def supcon_flex_forward(z: Tensor, labels: Tensor) -> Tensor:
    """flex_attention's log-sum-exp; its CPU form has no backward."""
    from torch.nn.attention.flex_attention import flex_attention

    def without_self(
        score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor
    ) -> Tensor:
        return torch.where(i == j, -math.inf, score)

    rows = z[None, None]
    _, lse = flex_attention(
        rows, rows, rows, score_mod=without_self, scale=1 / TEMPERATURE, return_lse=True
    )
    return lse.sum()


def prototype_algebraic(z: Tensor, labels: Tensor, centres: Tensor) -> Tensor:
    scores = z @ centres.T / TEMPERATURE
    own = scores.gather(1, labels[:, None])[:, 0]
    rest = scores.scatter(1, labels[:, None], -math.inf)
    return (rest.logsumexp(dim=1) - own).mean()


def prototype_linear_cross_entropy(
    z: Tensor, labels: Tensor, centres: Tensor
) -> Tensor:
    """Own class in the denominator: another loss, the same work."""
    return F.linear_cross_entropy(z / TEMPERATURE, centres, labels)


def timings(call: Callable[[], object], budget: float) -> list[float]:
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

    Memory that a peer or our kernel keeps from one call to the next (ours: up to
    32 MiB a thread) was there before.
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


def peers(case: str) -> Iterator[tuple[str, Callable[..., Tensor], bool]]:
    """Yields (name, function, whether it holds the N x M matrix)."""
    if case == "supcon":
        yield (
            "s3h_ext",
            lambda z, y: supcon_loss(
                z, y, temperature=TEMPERATURE, num_classes=CLASSES
            ),
            False,
        )
        yield (
            "s3h_ext op",
            lambda z, y: similarity_logsumexp(z, temperature=TEMPERATURE).sum(),
            False,
        )
        yield "eager mask", supcon_mask, True
        yield "eager algebraic", supcon_algebraic, True
        yield "compiled mask", torch.compile(supcon_mask), True
        yield "compiled algebraic", torch.compile(supcon_algebraic), True
        try:
            from pytorch_metric_learning.losses import SupConLoss
        except ImportError:
            pass
        else:
            yield "pytorch-metric-learning", SupConLoss(TEMPERATURE), True
        yield "flex_attention", torch.compile(supcon_flex_forward), False
        return
    yield (
        "s3h_ext",
        lambda z, y, p: prototypical_supcon_loss(z, y, p, temperature=TEMPERATURE),
        False,
    )
    yield "eager algebraic", prototype_algebraic, True
    yield "compiled algebraic", torch.compile(prototype_algebraic), True
    if hasattr(F, "linear_cross_entropy"):
        yield "linear_cross_entropy", prototype_linear_cross_entropy, True


def measure(
    case: str, rows: int, columns: int, depth: int, dtype: torch.dtype, budget: float
) -> Iterator[Row]:
    z = F.normalize(torch.randn(rows, depth), dim=1).to(dtype).requires_grad_()
    inputs = [z, torch.randint(0, CLASSES if case == "supcon" else columns, (rows,))]
    if case == "prototypes":
        centres = F.normalize(torch.randn(columns, depth), dim=1).to(dtype)
        inputs.append(centres.requires_grad_())
    peak = measure_peak()
    for name, function, holds in peers(case):
        if dtype != torch.float32 and not name.startswith("s3h_ext"):
            continue
        peak = measure_peak(peak)
        if holds and rows * columns > MOST_ELEMENTS:
            print(f"  {name}: not run, it holds {rows} x {columns} elements")
            continue

        def forward(function: Callable[..., Tensor] = function) -> None:
            with torch.no_grad():
                function(*inputs)

        def full(function: Callable[..., Tensor] = function) -> None:
            for tensor in inputs:
                tensor.grad = None
            function(*inputs).backward()

        modes = {"forward": forward, "full": full}
        if name == "flex_attention":
            modes.pop("full")
        for mode, call in modes.items():
            torch.compiler.reset() if name.startswith("compiled") else None
            try:
                times = timings(call, budget)
                extra = peak_extra(call)
            except Exception as error:  # a peer's failure is a result too
                print(f"  {name}, {mode}: {type(error).__name__}")
                continue
            work = rows * columns * depth * 1e-9
            rate = peak.float32 if dtype == torch.float32 else peak.bfloat16
            pairs = rows * columns * 1e-9 / peak.exponentials
            if case == "supcon":
                floor = (
                    work / rate + pairs / 2
                    if mode == "forward"
                    else 4 * work / rate + pairs
                )
            else:
                floor = (
                    2 * work / rate + pairs
                    if mode == "forward"
                    else 8 * work / rate + 2 * pairs
                )
            median = statistics.median(times)
            row = Row(
                date=datetime.date.today().isoformat(),
                case=case,
                rows=rows,
                columns=columns,
                depth=depth,
                dtype=str(dtype).removeprefix("torch."),
                peer=name,
                mode=mode,
                p20_ms=round(times[len(times) // 5], 4),
                median_ms=round(median, 4),
                p80_ms=round(times[len(times) * 4 // 5], 4),
                extra_mib=round(extra, 1),
                floor_fraction=round(1e3 * floor / median, 3),
                peak_gflops=rate,
                exp_g=peak.exponentials,
                cpu=platform.processor() or platform.machine(),
                threads=torch.get_num_threads(),
                torch=torch.__version__,
            )
            print(
                f"  {name:<24} {mode:<8} {row.median_ms:>10.2f} ms "
                f"[{row.p20_ms:.2f}, {row.p80_ms:.2f}] {row.extra_mib:>8.1f} MiB "
                f"{row.floor_fraction:>6.2f} of the floor's speed",
                flush=True,
            )
            yield row


def draw(source: Path, path: Path) -> None:
    """Draws time and memory of the full SupCon step against N, log-log."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with source.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    # The latest row of each peer and size.
    chosen = {
        (r["peer"], int(r["rows"])): r
        for r in rows
        if (r["case"], r["mode"], r["depth"], r["dtype"])
        == ("supcon", "full", "128", "float32")
        and r["peer"] != "s3h_ext op"
    }
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4))
    for peer in dict.fromkeys(peer for peer, _ in chosen):
        sizes = sorted(n for name, n in chosen if name == peer)
        times = [float(chosen[peer, n]["median_ms"]) for n in sizes]
        memory = [max(float(chosen[peer, n]["extra_mib"]), 0.1) for n in sizes]
        axes[0].loglog(sizes, times, "o-", label=peer)
        axes[1].loglog(sizes, memory, "o-", label=peer)
    axes[0].set(xlabel="N", ylabel="ms", title="SupCon, forward + backward, D = 128")
    axes[1].set(xlabel="N", ylabel="MiB", title="peak extra memory")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few sizes only")
    parser.add_argument("--rows", type=int, nargs="*", help="only these N")
    parser.add_argument("--output", type=Path, default=ROOT / "results")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each timing")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    single, half = torch.float32, torch.bfloat16
    cases = [("supcon", n, n, 128, single) for n in (1024, 4096)]
    cases += [("supcon", n, n, 128, half) for n in (1024, 4096)]
    cases += [("prototypes", 1024, 8192, 128, single)]
    if not arguments.quick:
        cases += [("supcon", n, n, 128, single) for n in (256, 16384, 65536)]
        cases += [("supcon", 4096, 4096, d, single) for d in (64, 96, 100, 256, 512)]
        cases += [("supcon", 16384, 16384, 128, half)]
        cases += [("prototypes", 1024, c, 128, single) for c in (1000, 100_000)]
    target = arguments.output / "similarity.csv"
    for case in cases:
        if arguments.rows and case[1] not in arguments.rows:
            continue
        print(*case[:4], str(case[4]).removeprefix("torch."))
        for row in measure(*case, arguments.seconds):
            new = not target.exists()
            with target.open("a", newline="", encoding="utf-8") as stream:
                writer = csv.DictWriter(stream, asdict(row))
                if new:
                    writer.writeheader()
                writer.writerow(asdict(row))
    draw(target, arguments.output / "similarity.png")


if __name__ == "__main__":
    main()
