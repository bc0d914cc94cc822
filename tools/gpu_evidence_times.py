"""The headline numbers of a short visit to a GPU: values first, then times.

    python tools/gpu_evidence_times.py ceilings|similarity|views|prototypes
    python tools/gpu_evidence_times.py profile|sanitize|stop

A family of kernels has a process of its own: an illegal access on a GPU spoils its
process. Appends to ``evidence.csv``, a row for each case. Where the values are wrong
the row says by how much, there is no time, and the status is not 0. ``profile``
launches the hot kernels for ncu, ``sanitize`` every family at small odd shapes for
compute-sanitizer, ``stop`` a kernel that has to stop with a message.

``--device cpu`` runs the same code at tiny sizes: a test of this file, no benchmark.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.prototypes import our_step
from benchmarks.prototypes_cuda import wrong_ours
from benchmarks.similarity_cuda import captured, machine, timings
from benchmarks.tables import append
from benchmarks.views_cuda import copy, least_bytes, moved, plain
from benchmarks.views_peers import ours
from benchmarks.views_work import make_work
from s3h_ext.losses import balanced_contrastive_loss, supcon_loss
from s3h_ext.ops import (
    Patches,
    class_sum_dots,
    render_views,
    similarity_logsumexp,
    update_prototypes_,
)

TAU = 0.1
#: Largest error of the log-sum-exp, absolute, and of the gradient, of its norm: of
#: mistakes, not of rounding.
BOUNDS = {
    torch.bfloat16: (1e-3, 1e-2),
    torch.float16: (1e-3, 2e-3),
    torch.float32: (2e-5, 2e-5),
}
#: Calls in one graph, so that no launch of the host's is in the time.
INSIDE = 20


@dataclass(frozen=True)
class Row:
    date: str
    what: str
    size: int
    dtype: str
    error: float
    bound: float
    right: bool
    graph_ms: float  # of one call among many in a CUDA graph
    eager_ms: float
    rate: float
    unit: str  # of the rate
    gpu: str
    driver: str
    cuda: str
    torch: str
    kernels: str


@dataclass(frozen=True)
class Timed:
    """A call, what it has to do, and how far its values may be off."""

    what: str
    size: int
    dtype: torch.dtype
    call: Callable[[], object]
    work: float = float("nan")  # FLOPs or bytes
    unit: str = ""  # TFLOP/s or TB/s
    error: float = 0.0
    bound: float = 0.0

    @property
    def right(self) -> bool:
        return self.error <= self.bound  # False for NaN


def milliseconds(timed: Timed, device: torch.device) -> tuple[float, float]:
    """Returns the median time of a call in a graph (NaN on a CPU), and by itself."""
    eager = statistics.median(timings(timed.call, device, 0.3))
    if device.type != "cuda":
        return float("nan"), eager
    inside = max(1, min(INSIDE, int(20 / max(eager, 1e-3))))

    def several() -> None:
        for _ in range(inside):
            timed.call()

    return statistics.median(timings(captured(several), device, 0.3)) / inside, eager


def relative(found: Tensor, right: Tensor) -> float:
    difference = torch.linalg.vector_norm(found.double() - right.double())
    return float(difference / torch.linalg.vector_norm(right.double()))


def ceilings(device: torch.device) -> Iterator[Timed]:
    """What the machine can do at best: copy, multiply."""
    gpu = device.type == "cuda"
    source = torch.ones(1 << (31 if gpu else 20), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    size = source.numel()
    copy_ = lambda: target.copy_(source)  # noqa: E731
    yield Timed("copy", size, torch.uint8, copy_, 2 * size, "TB/s")
    n = 8192 if gpu else 64
    x = torch.randn(n, n, device=device, dtype=torch.bfloat16)
    multiply = lambda: x @ x  # noqa: E731
    yield Timed("matrix product", n, x.dtype, multiply, 2 * n**3, "TFLOP/s")


def errors(z: Tensor, labels: Tensor, classes: int) -> dict[str, float]:
    """Returns how far the calls of :func:`similarity` are off, in float64.

    The classes are of one size. Errors are those of all values or, of the gradients, of
    some rows; relative to the norm of what is right, but for the log-sum-exp.
    """
    wide = z.double()
    some = torch.randperm(len(z), device=z.device)[:128]
    number = len(z) / classes  # of rows of each class

    def lse_and_push(balanced: bool) -> tuple[Tensor, Tensor]:
        def scores(rows: Tensor) -> Tensor:
            own = torch.arange(len(rows), device=z.device), rows
            all_ = wide[rows] @ wide.T / TAU
            if balanced:
                all_ -= (number - (labels[rows, None] == labels).double()).log()
            return all_.index_put(own, wide.new_tensor(-torch.inf))

        blocks = torch.arange(len(z), device=z.device).split(2048)
        lse = torch.cat([scores(rows).logsumexp(dim=1) for rows in blocks])
        of_some = scores(some)
        weights = (of_some - lse[some, None]).exp() + (of_some - lse).exp()
        return lse, weights @ wide / TAU

    sums = wide.new_zeros(classes, z.shape[1]).index_add(0, labels, wide)
    dots = (wide * (sums[labels] - wide)).sum(dim=1)
    scale = TAU * (number - 1)
    pull = 2 * (sums[labels] - wide)[some] / scale
    leaf = z.clone().requires_grad_()

    def gradient(value: Tensor) -> Tensor:
        return torch.autograd.grad(value, leaf)[0][some]

    def off(loss: Tensor, lse: Tensor, push: Tensor) -> float:
        return max(
            relative(loss.detach(), (lse - dots / scale).mean()),
            relative(gradient(loss), (push - pull) / len(z)),
        )

    lse, push = lse_and_push(balanced=False)
    found = similarity_logsumexp(leaf, temperature=TAU, assume_normalized=True)
    given = {"temperature": TAU, "num_classes": classes}
    found_dots = class_sum_dots(z, query_classes=labels, num_classes=classes)
    return {
        "lse": float((found.detach().double() - lse).abs().max()),
        "lse gradient": relative(gradient(found.sum()), push),
        "supcon": off(supcon_loss(leaf, labels, **given), lse, push),
        "balanced": off(
            balanced_contrastive_loss(leaf, labels, **given),
            *lse_and_push(balanced=True),
        ),
        "class sums": relative(found_dots, dots),
    }


def similarity(device: torch.device) -> Iterator[Timed]:
    sizes = (1024, 4096, 32_768) if device.type == "cuda" else (64,)
    cases = [(n, dtype) for n in sizes for dtype in (torch.bfloat16, torch.float32)]
    cases.append((sizes[-1], torch.float16))
    for n, dtype in cases:
        z = F.normalize(torch.randn(n, 128, device=device), dim=1).to(dtype)
        leaf = z.clone().requires_grad_()
        classes = n // 16
        labels = torch.arange(n, device=device) % classes
        off = errors(z, labels, classes)
        absolute, bound = BOUNDS[dtype]
        flops = 2 * 128 * n**2
        given = {"temperature": TAU, "num_classes": classes}

        def logsumexp(rows: Tensor) -> Tensor:
            return similarity_logsumexp(rows, temperature=TAU, assume_normalized=True)

        def forward(z: Tensor = z) -> None:
            with torch.no_grad():
                logsumexp(z)

        def gradient(
            loss: Callable[..., Tensor],
            leaf: Tensor = leaf,
            labels: Tensor = labels,
            given: dict[str, Any] = given,
        ) -> None:
            torch.autograd.grad(loss(leaf, labels, **given), leaf)

        def both(leaf: Tensor = leaf) -> None:
            torch.autograd.grad(logsumexp(leaf).sum(), leaf)

        def dots(
            z: Tensor = z, labels: Tensor = labels, classes: int = classes
        ) -> None:
            class_sum_dots(z, query_classes=labels, num_classes=classes)

        supcon = partial(gradient, supcon_loss)
        balanced = partial(gradient, balanced_contrastive_loss)
        for what, call, work, unit, error, limit in (
            ("logsumexp forward", forward, flops, "TFLOP/s", "lse", absolute),
            ("logsumexp, both", both, 3 * flops, "TFLOP/s", "lse gradient", bound),
            ("supcon, both", supcon, 3 * flops, "TFLOP/s", "supcon", bound),
            ("balanced, both", balanced, 3 * flops, "TFLOP/s", "balanced", bound),
            ("class sums", dots, z.nbytes, "TB/s", "class sums", 1e-5),
        ):
            yield Timed(what, n, dtype, call, work, unit, off[error], limit)


def views(device: torch.device) -> Iterator[Timed]:
    for case, batch in (("cifar", 512), ("photos", 256)):
        work = moved(make_work(case, batch if device.type == "cuda" else 2), device)
        right = plain(work)()
        for dtype, bound in ((torch.float32, 1e-4), (torch.bfloat16, 1e-2)):
            call = ours(work, dtype)
            size = least_bytes(work, dtype.itemsize)
            yield Timed(
                *(f"views of {case}", work.views, dtype, call, size, "TB/s"),
                *(relative(call(), right), bound),
            )
        moving = copy(work, device)
        size = least_bytes(work, 4)
        yield Timed(f"copy of {case}", work.views, torch.float32, moving, size, "TB/s")


def prototypes(device: torch.device) -> Iterator[Timed]:
    case = (4096, 1000, 8, 128) if device.type == "cuda" else (64, 10, 2, 16)
    n, classes, each, depth = case
    features = torch.randn(n, depth, device=device)
    labels = torch.randint(classes, (n,), device=device)
    offsets = torch.arange(0, classes * each + 1, each, device=device)
    state = [torch.randn(classes * each, depth, device=device) for _ in range(2)]
    state += [torch.ones(classes * each, device=device), offsets]
    wrong = wrong_ours(case, device)
    yield Timed(
        "prototypes",
        n,
        torch.float32,
        lambda: our_step(features, labels, tuple(state)),
        error=float("nan") if wrong else 0.0,
    )


def profile(device: torch.device) -> None:
    """Each hot kernel, for ncu."""
    gpu = device.type == "cuda"
    z = F.normalize(torch.randn(32_768 if gpu else 64, 128, device=device), dim=1)
    for dtype in (torch.bfloat16, torch.float32):
        leaf = z.to(dtype).requires_grad_()
        lse = similarity_logsumexp(leaf, temperature=TAU, assume_normalized=True)
        lse.sum().backward()
        labels = torch.arange(len(z), device=device) // 16
        balanced_contrastive_loss(leaf, labels, temperature=TAU).backward()
    ours(moved(make_work("photos", 256 if gpu else 2), device))()


def _sanitize_similarity(
    shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device
) -> None:
    n, m, depth = shape
    q = torch.randn(n, depth, device=device).to(dtype).requires_grad_()
    k = torch.randn(m, depth, device=device).to(dtype).requires_grad_()
    y, x = (torch.arange(size, device=device) % 3 for size in (n, m))
    unit = F.normalize(q.detach().float(), dim=1).to(dtype).requires_grad_()
    similarity_logsumexp(unit, temperature=TAU, assume_normalized=True).sum().backward()
    for classes in (None, 3):
        for reduction in ("mean", "none"):
            supcon_loss(
                unit, y, temperature=TAU, num_classes=classes, reduction=reduction
            ).sum().backward()
    unit_keys = F.normalize(k.detach().float(), dim=1).to(dtype).requires_grad_()
    for rows, keys, normalized in ((q, k, False), (unit, unit_keys, True)):
        given: dict[str, Any] = {"temperature": TAU, "assume_normalized": normalized}
        given |= {"query_labels": y, "same_label_bias": 0.5}
        similarity_logsumexp(rows, key_bias=y.float(), **given).sum().backward()
        to_keys = {"key_labels": x, "self_index": y % m, "key_bias": x.float()}
        similarity_logsumexp(rows, keys, **to_keys, **given).sum().backward()
    class_sum_dots(q, k, query_classes=y, key_classes=x, num_classes=3).sum().backward()


def sanitize(device: torch.device) -> None:
    """Every family at small odd shapes, for compute-sanitizer."""
    for deterministic in (True, False):
        torch.use_deterministic_algorithms(deterministic)
        for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
            for shape in ((1, 1, 1), (65, 130, 7), (70, 66, 128), (129, 70, 136)):
                _sanitize_similarity(shape, dtype, device)
    rows = [torch.randn(6, 20, device=device), torch.zeros(6, 20, device=device)]
    update_prototypes_(
        torch.randn(50, 20, device=device),
        torch.arange(50, device=device) % 3,
        *rows,
        torch.ones(6, device=device),
        torch.tensor([0, 1, 3, 6], device=device),
    )
    images = torch.randint(0, 256, (3, 40, 33, 3), dtype=torch.uint8, device=device)
    box = torch.tensor([[-2, 3, 40, 33], [0, 0, 7, 5], [5, 5, 20, 20]], device=device)
    render_views(
        images,
        Patches(torch.arange(3, device=device), box),
        out_size=(35, 21),
        mean=(0.5,) * 3,
        std=(0.2,) * 3,
    )
    print("done")


def stop(device: torch.device) -> None:
    """A kernel that stops; whether what it says is seen is for the caller to find."""
    images = torch.zeros(1, 8, 8, 3, dtype=torch.uint8, device=device)
    box = torch.tensor([[0, 0, 8, 8]], device=device)
    patches = Patches(torch.tensor([7], device=device), box)
    try:
        render_views(images, patches, out_size=8, mean=(0.5,) * 3, std=(0.2,) * 3)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except (RuntimeError, IndexError, ValueError) as error:
        print(f"raised: {str(error).splitlines()[0]}")
        return
    raise SystemExit("an image that is not there was rendered")


FAMILIES = {
    "ceilings": ceilings,
    "similarity": similarity,
    "views": views,
    "prototypes": prototypes,
}
LAUNCHES = {"profile": profile, "sanitize": sanitize, "stop": stop}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", choices=[*FAMILIES, *LAUNCHES])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--output", type=Path, default=Path("gpu-results"))
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.manual_seed(0)
    if options.family in LAUNCHES:
        LAUNCHES[options.family](device)
        return 0
    options.output.mkdir(parents=True, exist_ok=True)
    about, wrong = machine(device), False
    for timed in FAMILIES[options.family](device):
        graph = eager = float("nan")
        if timed.right:
            graph, eager = milliseconds(timed, device)
        wrong |= not timed.right
        scale = 1e-9 / (graph if device.type == "cuda" else eager)
        row = Row(
            date=datetime.date.today().isoformat(),
            what=timed.what,
            size=timed.size,
            dtype=str(timed.dtype).removeprefix("torch."),
            error=timed.error,
            bound=timed.bound,
            right=timed.right,
            graph_ms=round(graph, 5),
            eager_ms=round(eager, 5),
            rate=round(timed.work * scale, 3),
            unit=timed.unit,
            **about,
        )
        append(options.output / "evidence.csv", [asdict(row)])
        print(
            f"{row.what:<30} {row.size:>10} {row.dtype:<9}"
            f"{'' if row.right else ' WRONG'} off {row.error:.1e} (at most "
            f"{row.bound:.0e})  graph {row.graph_ms:.4f} ms, eager {row.eager_ms:.4f} "
            f"ms  {row.rate:.2f} {row.unit}",
            flush=True,
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
