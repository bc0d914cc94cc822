"""Class-wise EMA clustering on the CPU: our kernels against what else a user could run.

``python -m benchmarks.prototypes [--quick] [--part I/N] [--output DIR]``

A step is accumulate + apply, in one operation or in two: nearest prototype of the own
class, sums, counts and distortions, the farthest sample of each class, moving averages,
expiry and splitting. Every class has K rows, so that the plain form's padding costs it
nothing.
vector-quantize-pytorch has no classes; it runs with one codebook a class on samples
that are sorted into an array [C, N // C, D] beforehand, so on up to C - 1 samples less,
and with its own rule of expiry.

Peers run in one process, in turns for each size. Appends to
``prototypes.csv``, prints a table, draws ``prototypes.png``.
"""

from __future__ import annotations

import argparse
import csv
import datetime
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from s3h_ext import huge_pages

if __name__ == "__main__":
    huge_pages.restart(["--device=cpu"])  # before PyTorch is imported

import torch
from torch import Tensor

from benchmarks.machine import ROOT, cpu_name
from benchmarks.tables import append
from benchmarks.timing import interleaved, peak_extra
from s3h_ext.ops import (
    PrototypeUpdate,
    accumulate_prototypes,
    apply_prototypes_,
    update_prototypes_,
)
from s3h_ext.ops.plain import prototypes as plain

MOMENTUM, EXPIRE_BELOW = 0.99, 0.1
# A peer that would hold more than this many elements is marked, not run.
MOST_ELEMENTS = 1 << 28
TARGET = (4096, 1000, 8, 128)


@dataclass(frozen=True)
class Row:
    date: str
    samples: int
    classes: int
    rows_per_class: int
    depth: int
    peer: str
    p20_ms: float
    median_ms: float
    p80_ms: float
    extra_mib: float
    cpu: str
    threads: int
    torch: str


def plain_step(
    features: Tensor, labels: Tensor, state: tuple[Tensor, Tensor, Tensor, Tensor]
) -> None:
    """The best plain form known to us: gathers the K prototypes of each sample."""
    prototypes, sums, masses, offsets = state
    classes = len(offsets) - 1
    depth = prototypes.shape[1]
    own = prototypes.view(classes, -1, depth).index_select(0, labels)
    distances = (features[:, None] - own).square().sum(dim=2)
    best, nearest = distances.min(dim=1)
    assigned = offsets.index_select(0, labels) + nearest
    batch_sums = torch.zeros_like(prototypes).index_add_(0, assigned, features)
    counts = torch.zeros_like(masses).index_add_(0, assigned, torch.ones_like(best))
    distortions = torch.zeros_like(masses).index_add_(0, assigned, best)
    far = best.new_full((classes,), -1.0)
    far.scatter_reduce_(0, labels, best, "amax")
    numbers = torch.arange(len(labels), device=features.device)
    numbers = torch.where(best == far.index_select(0, labels), numbers, len(labels))
    farthest = torch.full((classes,), len(labels), device=features.device)
    farthest.scatter_reduce_(0, labels, numbers, "amin")
    chosen = features.index_select(0, farthest.clamp(max=len(labels) - 1))
    far_features = torch.where((farthest < len(labels))[:, None], chosen, 0)
    plain.apply_prototypes_(
        prototypes,
        sums,
        masses,
        offsets,
        batch_sums,
        counts,
        distortions,
        far_features,
        MOMENTUM,
        EXPIRE_BELOW,
        False,
    )


def our_step(
    features: Tensor, labels: Tensor, state: tuple[Tensor, Tensor, Tensor, Tensor]
) -> None:
    update_prototypes_(
        features, labels, *state, momentum=MOMENTUM, expire_below=EXPIRE_BELOW
    )


class OurTwoOps:
    """What a training of several processes does, but for the reduction.

    Keeps the memory of an update from step to step.
    """

    update: PrototypeUpdate | None = None

    def __call__(
        self,
        features: Tensor,
        labels: Tensor,
        state: tuple[Tensor, Tensor, Tensor, Tensor],
    ) -> None:
        prototypes, sums, masses, offsets = state
        self.update = accumulate_prototypes(
            features, labels, prototypes, masses, offsets, out=self.update
        )
        apply_prototypes_(
            prototypes,
            sums,
            masses,
            offsets,
            self.update,
            momentum=MOMENTUM,
            expire_below=EXPIRE_BELOW,
        )


def quantizer_step(
    samples: int, classes: int, rows: int, depth: int
) -> Callable[[], object] | None:
    """One training step of vector-quantize-pytorch; None where it is not there."""
    try:
        from vector_quantize_pytorch.vector_quantize_pytorch import Codebook
    except ImportError as error:
        print(f"  vector-quantize-pytorch: not run: {error}")
        return None
    book = Codebook(
        depth,
        rows,
        num_codebooks=classes,
        decay=MOMENTUM,
        threshold_ema_dead_code=1,
    ).train()
    features = torch.randn(classes, 1, samples // classes, depth)
    return lambda: book(features)


def peers(n: int, c: int, k: int, d: int) -> Iterator[tuple[str, Callable[[], object]]]:
    features = torch.randn(n, d)
    labels = torch.randint(0, c, (n,))

    def with_state(step: Callable[..., None]) -> Callable[[], object]:
        offsets = torch.arange(0, c * k + 1, k)
        prototypes = torch.randn(c * k, d)
        state = (prototypes, prototypes.clone(), torch.ones(c * k), offsets)
        return lambda: step(features, labels, state)

    yield "s3h_ext", with_state(our_step)
    yield "s3h_ext, two ops", with_state(OurTwoOps())
    if n * k * d > MOST_ELEMENTS:
        print(f"  plain forms: not run, they hold {n} x {k} x {d} elements")
    else:
        yield "eager", with_state(plain_step)
        torch.compiler.reset()
        yield "compiled", with_state(torch.compile(plain_step))
    quantize = quantizer_step(n, c, k, d) if n >= c else None
    if quantize is not None:
        yield "vector-quantize-pytorch", quantize


def measure(n: int, c: int, k: int, d: int, budget: float) -> Iterator[Row]:
    calls, extra = {}, {}
    with torch.no_grad():
        for name, call in peers(n, c, k, d):
            try:
                call()
                extra[name] = peak_extra(call)
            except Exception as error:  # a peer's failure is a result too
                print(f"  {name}: {type(error).__name__}: {error}"[:200])
            else:
                calls[name] = call
        times = interleaved(calls, budget)
    for name, timing in times.items():
        print(
            f"  {name:<24} {timing.median:>10.3f} ms "
            f"[{timing.p20:.3f}, {timing.p80:.3f}] {extra[name]:>8.1f} MiB",
            flush=True,
        )
        yield Row(
            date=datetime.date.today().isoformat(),
            samples=n,
            classes=c,
            rows_per_class=k,
            depth=d,
            peer=name,
            p20_ms=round(timing.p20, 4),
            median_ms=round(timing.median, 4),
            p80_ms=round(timing.p80, 4),
            extra_mib=round(extra[name], 1),
            cpu=cpu_name(),
            threads=torch.get_num_threads(),
            torch=torch.__version__,
        )


def draw(source: Path, path: Path) -> None:
    """Draws the time of a step against N, C, K and D, of the CPU most rows are of."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with source.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    cpu = Counter(row["cpu"] for row in rows).most_common(1)[0][0]
    rows = [row for row in rows if row["cpu"] == cpu]
    sizes = ("samples", "classes", "rows_per_class", "depth")
    # The latest row of each peer and size.
    found = {(r["peer"], *(int(r[s]) for s in sizes)): r for r in rows}
    figure, axes = pyplot.subplots(1, 4, figsize=(15, 4), sharey=True)
    for number, axis in enumerate(axes):
        fixed = [v for i, v in enumerate(TARGET) if i != number]
        for peer in dict.fromkeys(key[0] for key in found):
            points = sorted(
                (key[1 + number], float(row["median_ms"]))
                for key, row in found.items()
                if key[0] == peer
                and [v for i, v in enumerate(key[1:]) if i != number] == fixed
            )
            if points:
                axis.loglog(*zip(*points, strict=True), "o-", label=peer)
        others = zip("NCKD", TARGET, strict=True)
        rest = [f"{n}={v}" for i, (n, v) in enumerate(others) if i != number]
        axis.set(xlabel="NCKD"[number], title=", ".join(rest))
        axis.title.set_size(9)
    axes[0].set_ylabel("ms, accumulate + apply")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def cases(quick: bool) -> list[tuple[int, int, int, int]]:
    if quick:
        return [TARGET]
    n, c, k, d = TARGET
    found = [TARGET]
    found += [(v, c, k, d) for v in (256, 1024, 16384, 65536)]
    found += [(n, v, k, d) for v in (10, 100, 10_000)]
    found += [(n, c, v, d) for v in (1, 2, 4, 16)]
    found += [(n, c, k, v) for v in (64, 256, 512)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one size only")
    parser.add_argument("--part", default="1/1", help="I/N: the I-th of N parts")
    parser.add_argument("--output", type=Path, default=ROOT / "results")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each timing")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    part, parts = map(int, arguments.part.split("/"))
    target = arguments.output / "prototypes.csv"
    for case in cases(arguments.quick)[part - 1 :: parts]:
        print("N {}, C {}, K {}, D {}".format(*case))
        for row in measure(*case, arguments.seconds):
            append(target, [asdict(row)])
    draw(target, arguments.output / "prototypes.png")


if __name__ == "__main__":
    main()
