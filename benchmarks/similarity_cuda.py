"""Contrastive losses on a GPU: our kernels against what else a user could run.

    python -m benchmarks.similarity_cuda [--quick] [--output DIR]

SupCon (N x N, D = 128) and prototypes (N x C), float32 and bfloat16: forward, full
(forward + backward) and, for small N, full as the replay of a CUDA graph. Times are
CUDA events after a warm-up; the table at the end says how many times longer each peer
takes than ours. Loss and gradients of ours are first compared with the eager algebraic
form in float32; where they differ, ours has no row and the status is not 0. Appends to
``similarity_cuda.csv``.

``--device cpu`` runs the same code at tiny sizes: a test of this file, not a benchmark.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import itertools
import math
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.tables import append
from s3h_ext.losses import prototypical_supcon_loss, supcon_loss
from s3h_ext.ops import similarity_logsumexp
from s3h_ext.ops._library import CUDA
from s3h_ext.runs.precision import device_name

TEMPERATURE = 0.1
CLASSES = 100
OURS = "s3h_ext"
# Up to here a launch is short enough for its overhead to matter.
GRAPH_ROWS = 4096
WARM_UP = 5
# Largest error, relative to the norm of what is right: of mistakes, not of rounding.
TOLERANCE = {torch.float32: 1e-2, torch.bfloat16: 3e-2}

Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    kind: str  # supcon or prototypes
    rows: int
    columns: int
    depth: int
    dtype: torch.dtype

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.kind} {self.rows} x {self.columns} x {self.depth} {dtype}"


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
    runs: int
    extra_mib: float
    tflops: float  # by 6NMD for full and 2NMD for forward, whatever was calculated
    loss: float
    failure: str
    gpu: str
    driver: str
    cuda: str
    torch: str
    kernels: str


def supcon_mask(z: Tensor, labels: Tensor) -> Tensor:
    """The SupContrast form: the N x N mask."""
    scores = z @ z.T / TEMPERATURE
    scores = scores - scores.detach().amax(dim=1, keepdim=True)
    others = 1 - torch.eye(len(z), device=z.device, dtype=z.dtype)
    same = (labels[:, None] == labels).to(z.dtype) * others
    logs = scores - (scores.exp() * others).sum(dim=1, keepdim=True).log()
    return -((same * logs).sum(dim=1) / same.sum(dim=1).clamp(min=1)).mean()


def supcon_algebraic(z: Tensor, labels: Tensor) -> Tensor:
    """One log-sum-exp and class sums: the best plain form known to us."""
    scores = (z @ z.T / TEMPERATURE).fill_diagonal_(-math.inf)
    sums = z.new_zeros(CLASSES, z.shape[1]).index_add(0, labels, z)
    counts = torch.zeros(CLASSES, device=z.device).index_add(
        0, labels, torch.ones_like(labels, dtype=torch.float32)
    )
    own = sums.index_select(0, labels) - z
    positives = (counts.index_select(0, labels) - 1).clamp(min=1)
    attraction = (z * own).sum(dim=1) / (TEMPERATURE * positives)
    return (scores.logsumexp(dim=1) - attraction).mean()


def prototype_algebraic(z: Tensor, labels: Tensor, centres: Tensor) -> Tensor:
    scores = z @ centres.T / TEMPERATURE
    own = scores.gather(1, labels[:, None])[:, 0]
    rest = scores.scatter(1, labels[:, None], -math.inf)
    return (rest.logsumexp(dim=1) - own).mean()


def linear_cross_entropy(z: Tensor, labels: Tensor, centres: Tensor) -> Tensor:
    """Own class in the denominator: another loss, the same work."""
    return F.linear_cross_entropy(z / TEMPERATURE, centres, labels)


def peers(case: Case) -> Iterator[tuple[str, Loss, bool]]:
    """Yields (name, function, whether it holds the N x M matrix), ours first."""
    if case.kind == "prototypes":
        yield (
            OURS,
            lambda z, y, p: prototypical_supcon_loss(z, y, p, temperature=TEMPERATURE),
            False,
        )
        yield "eager algebraic", prototype_algebraic, True
        yield "compiled algebraic", torch.compile(prototype_algebraic), True
        if hasattr(F, "linear_cross_entropy"):
            yield "linear_cross_entropy", linear_cross_entropy, False
        return
    yield (
        OURS,
        lambda z, y: supcon_loss(z, y, temperature=TEMPERATURE, num_classes=CLASSES),
        False,
    )
    yield (
        "s3h_ext op",
        lambda z, y: similarity_logsumexp(
            z, temperature=TEMPERATURE, assume_normalized=True
        ).mean(),
        False,
    )
    yield "eager mask", supcon_mask, True
    yield "eager algebraic", supcon_algebraic, True
    yield "compiled mask", torch.compile(supcon_mask), True
    yield "compiled algebraic", torch.compile(supcon_algebraic), True
    try:
        from pytorch_metric_learning.losses import SupConLoss
    except ImportError:
        print("  pytorch-metric-learning is not installed")
    else:
        yield "pytorch-metric-learning", SupConLoss(TEMPERATURE), True
    try:
        from inf_cl import cal_flash_loss
    except ImportError:
        print("  Inf-CL is not installed")
    else:
        # One positive per row, and the row itself in the denominator: another
        # loss, the same work. It calculates in float32.
        yield (
            "Inf-CL",
            lambda z, y: cal_flash_loss(
                z, z, scale=1 / TEMPERATURE, head_dim=z.shape[1]
            ).mean(),
            False,
        )


def machine(device: torch.device) -> dict[str, str]:
    """Returns the columns that say what the numbers were taken on."""
    found = {
        "gpu": device_name(device),
        "driver": "",
        "cuda": torch.version.cuda or "",
        "torch": torch.__version__,
        # On a CPU an operator without its native kernel raises.
        "kernels": "plain PyTorch"
        if device.type == "cuda" and CUDA is None
        else "native",
    }
    if device.type == "cuda":
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        found["driver"] = subprocess.run(
            query, check=True, capture_output=True, text=True
        ).stdout.split("\n")[0]
    return found


def timings(
    call: Callable[[], object], device: torch.device, budget: float
) -> list[float]:
    """Returns sorted milliseconds of single calls, for about ``budget`` seconds."""
    for _ in range(WARM_UP):
        call()
    if device.type != "cuda":
        times = []
        for _ in range(3):
            start = time.perf_counter()
            call()
            times.append(1e3 * (time.perf_counter() - start))
        return sorted(times)
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    once = time.perf_counter() - start
    runs = max(7, min(300, int(budget / max(once, 1e-6))))
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(runs + 1)]
    marks[0].record()
    for mark in marks[1:]:
        call()
        mark.record()
    torch.cuda.synchronize()
    pairs = itertools.pairwise(marks)
    return sorted(first.elapsed_time(second) for first, second in pairs)


def peak_extra(call: Callable[[], object], device: torch.device) -> float:
    """MiB that one more call takes from the allocator, at its highest."""
    if device.type != "cuda":
        return math.nan
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def captured(call: Callable[[], object]) -> Callable[[], None]:
    """Returns the replay of ``call`` as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph, outside = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph):
            call()
    except RuntimeError:
        torch.cuda.set_stream(outside)  # torch leaves its own
        raise
    return graph.replay


def agrees(
    name: str, found: Sequence[Tensor], right: Sequence[Tensor], dtype: torch.dtype
) -> bool:
    """Says whether a contender's values are those of a plain form; prints it if not."""
    errors = [
        torch.linalg.vector_norm(a.float() - b.float())
        / torch.linalg.vector_norm(b.float())
        for a, b in zip(found, right, strict=True)
    ]
    error = float(torch.stack(errors).max())  # NaN where there is one
    if error <= TOLERANCE[dtype]:
        return True
    print(f"  {name}: not timed, its values are off by {error:.2g} of their norm")
    return False


def draw(case: Case, device: torch.device) -> list[Tensor]:
    """Returns a peer's inputs: unit rows, labels and, for prototypes, unit centres."""

    def unit(rows: int) -> Tensor:
        drawn = F.normalize(torch.randn(rows, case.depth, device=device), dim=1)
        return drawn.to(case.dtype).requires_grad_()

    classes = CLASSES if case.kind == "supcon" else case.columns
    found = [unit(case.rows), torch.randint(classes, (case.rows,), device=device)]
    return [*found, unit(case.columns)] if case.kind == "prototypes" else found


def modes(
    function: Loss, inputs: Sequence[Tensor], graph: bool
) -> dict[str, Callable[[], Callable[[], object]]]:
    """Returns, by name, what makes each call: a capture may fail like a call."""
    leaves = [tensor for tensor in inputs if tensor.requires_grad]

    def forward() -> None:
        with torch.no_grad():
            function(*inputs)

    def full() -> None:
        torch.autograd.grad(function(*inputs), leaves)

    found: dict[str, Callable[[], Callable[[], object]]] = {
        "forward": lambda: forward,
        "full": lambda: full,
    }
    if graph:
        found["full, graph"] = lambda: captured(full)
    return found


def ours_agrees(case: Case, inputs: Sequence[Tensor]) -> bool:
    """Compares our loss and gradients with the eager algebraic form in float32."""
    functions = {name: function for name, function, _ in peers(case)}
    features, labels, *centres = inputs
    # Pairs: every anchor has a positive, as the forms differ where one has none.
    classes = CLASSES if case.kind == "supcon" else case.columns
    labels = torch.arange(case.rows, device=labels.device) // 2 % classes

    def values(name: str, dtype: torch.dtype) -> list[Tensor]:
        # Of the case's type first: what rounding its inputs changes is no mistake.
        leaves = [
            t.detach().to(case.dtype).to(dtype).requires_grad_()
            for t in (features, *centres)
        ]
        loss = functions[name](leaves[0], labels, *leaves[1:])
        return [loss.detach(), *torch.autograd.grad(loss, leaves)]

    found = values(OURS, case.dtype)
    return agrees(OURS, found, values("eager algebraic", torch.float32), case.dtype)


def measure(
    case: Case,
    device: torch.device,
    budget: float,
    most_elements: int,
    wrong: list[str],
) -> Iterator[Row]:
    """Times every peer; a case where our values are wrong is added to ``wrong``."""
    inputs = draw(case, device)
    about = machine(device)
    work = 2e-9 * case.rows * case.columns * case.depth
    graph = device.type == "cuda" and case.rows <= GRAPH_ROWS
    right = True
    if case.rows * case.columns > most_elements:
        print(
            f"  {OURS}: not checked, that holds {case.rows} x {case.columns} elements"
        )
    else:
        try:
            right = ours_agrees(case, inputs)
        except Exception as error:  # ours fails below, or there is no room for both
            print(f"  {OURS}: not checked: {type(error).__name__}")
    if not right:
        wrong.append(str(case))
    for name, function, holds in peers(case):
        if name.startswith(OURS) and not right:
            continue
        if holds and case.rows * case.columns > most_elements:
            print(f"  {name}: not run, it holds {case.rows} x {case.columns} elements")
            continue
        for mode, make in modes(function, inputs, graph).items():
            times, extra, loss, failure = [math.nan], math.nan, math.nan, ""
            try:
                call = make()
                times = timings(call, device, budget)
                extra = peak_extra(call, device)
                with torch.no_grad():
                    loss = float(function(*inputs))
            except Exception as error:  # a peer's failure is a result too
                failure = type(error).__name__
                print(f"  {name}, {mode}: {failure}: {str(error).splitlines()[:1]}")
            median = statistics.median(times)
            row = Row(
                date=datetime.date.today().isoformat(),
                case=case.kind,
                rows=case.rows,
                columns=case.columns,
                depth=case.depth,
                dtype=str(case.dtype).removeprefix("torch."),
                peer=name,
                mode=mode,
                p20_ms=round(times[len(times) // 5], 5),
                median_ms=round(median, 5),
                p80_ms=round(times[len(times) * 4 // 5], 5),
                runs=0 if failure else len(times),
                extra_mib=round(extra, 2),
                tflops=round(work * (1 if mode == "forward" else 3) / median, 2),
                loss=round(loss, 5),
                failure=failure,
                **about,
            )
            if not failure:
                print(
                    f"  {name:<24} {mode:<12} {row.median_ms:>10.4f} ms "
                    f"[{row.p20_ms:.4f}, {row.p80_ms:.4f}] {row.extra_mib:>9.2f} MiB "
                    f"{row.tflops:>7.2f} TFLOP/s  loss {row.loss:.4f}",
                    flush=True,
                )
            yield row
            if device.type == "cuda":
                gc.collect()
                # Before PyTorch 2.13 a failed capture leaves a cache that cannot be.
                with suppress(RuntimeError):
                    torch.cuda.empty_cache()
    torch.compiler.reset()


def ratios(rows: Sequence[Row]) -> list[str]:
    """Returns lines: how many times longer than ours each peer takes."""
    lines = []
    for key in dict.fromkeys(
        (r.case, r.rows, r.columns, r.dtype, r.mode) for r in rows
    ):
        same = [r for r in rows if (r.case, r.rows, r.columns, r.dtype, r.mode) == key]
        ours = next((r.median_ms for r in same if r.peer == OURS), math.nan)
        others = [
            f"{r.peer} {r.failure or f'{r.median_ms / ours:.2f}'}"
            for r in same
            if not r.peer.startswith(OURS)
        ]
        case, n, m, dtype, mode = key
        lines.append(f"{case} {n} x {m} {dtype}, {mode}: " + ", ".join(others))
    return lines


def cases(device: str, quick: bool) -> list[Case]:
    single, half = torch.float32, torch.bfloat16
    if device == "cpu":
        return [
            *(Case("supcon", 64, 64, 16, dtype) for dtype in (single, half)),
            Case("prototypes", 64, 40, 16, single),
        ]
    sizes = (1024, 32_768) if quick else (256, 1024, 4096, 8192, 16_384, 32_768, 65_536)
    found = [Case("supcon", n, n, 128, t) for n in sizes for t in (single, half)]
    classes = (8192,) if quick else (1000, 8192, 100_000, 1_000_000)
    found += [
        Case("prototypes", 1024, c, 128, t) for c in classes for t in (single, half)
    ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="a few sizes only")
    parser.add_argument("--rows", type=int, nargs="*", help="only these N")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="for each timing")
    parser.add_argument(
        "--most_elements",
        type=int,
        default=1 << 31,
        help="a peer that would hold a larger N x M matrix is not run",
    )
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "no GPU that this PyTorch can use; --device cpu tests the code"
        )
    if arguments.device == "cuda" and CUDA is None:
        print("The CUDA kernels are not built: ours runs as chunked plain PyTorch.")
    arguments.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    target = arguments.output / "similarity_cuda.csv"
    taken: list[Row] = []
    wrong: list[str] = []
    for case in cases(arguments.device, arguments.quick):
        if arguments.rows and case.rows not in arguments.rows:
            continue
        print(case)
        budget, most = arguments.seconds, arguments.most_elements
        for row in measure(case, device, budget, most, wrong):
            taken.append(row)
            append(target, [asdict(row)])
    print("\nTimes longer than ours:", *ratios(taken), sep="\n")
    if wrong:
        raise SystemExit(f"wrong values: {'; '.join(wrong)}")


if __name__ == "__main__":
    main()
