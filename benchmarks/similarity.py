"""Contrastive losses on the CPU: our kernel against what else a user could run.

``python -m benchmarks.similarity [--suite NAME ...] [--peer NAME ...] [--output DIR]``

Suites: ``small`` (N to 4,096), ``large`` (16,384), ``huge`` (to 65,536), ``depths``,
``rectangular`` (prototypes), ``keys`` (SupCon against a queue of M rows, time and
memory), ``memory``; all of them if none is named. On 2 cores each
takes up to three minutes, ``large`` and ``memory`` more; ``--rows`` and ``--peer``
divide them.

Every peer of a case runs in one process, call by call in turn with the others. A call
is a forward that records its graph, and a backward; both are timed and so is their sum.
The floor is the time that the arithmetic takes at the machine's own limits, which are
measured before and after each case (benchmarks/peak.cpp): 4N²D/peak + N²/exp for
SupCon (symmetric; a quarter of it and half of it in the forward), 8NCD/peak + 2NC/exp
for prototypes, 6NMD/peak + 2NM/exp for a queue, which gets no gradient.

Memory is what one step adds to the resident set at its highest, in a fresh process for
each point, after a step of 64 rows. A compiled peer runs once before, so that its
compilation is not counted.

Writes to ``similarity.csv``, where a row takes the place of the one before it of the
same CPU and what was not run has a row that says why, prints a table for each case, and
draws ``similarity.png``.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import datetime
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from s3h_ext import huge_pages

if __name__ == "__main__":
    huge_pages.restart(["--device=cpu"])  # before PyTorch is imported

import torch
from torch import Tensor

import s3h_ext
from benchmarks.machine import ROOT, Peak, cpu_name, measure_peak
from benchmarks.similarity_peers import OP, OURS, Peer, inputs, peers
from benchmarks.similarity_plot import draw

# A peer that holds the matrix is not run where it has more elements than this.
MOST_ELEMENTS = 1 << 28
# A call that takes longer is timed three times, without a call before to warm up.
LONG_CALL = 2.0
MODES = ("forward", "backward", "full")


@dataclass(frozen=True)
class Case:
    name: str
    rows: int
    columns: int
    depth: int
    dtype: str = "float32"

    def floor_ms(self, mode: str, peak: Peak) -> float:
        """The least time that this case's arithmetic can take."""
        elements = 1e-9 * self.rows * self.columns
        rate = peak.float32 if self.dtype == "float32" else peak.bfloat16
        of_keys = 0 if self.name == "keys" else 1
        flops, exponentials = {
            "forward": (1, 0.5),
            "backward": (2 + of_keys, 0.5),
            "full": (3 + of_keys, 1),
        }[mode]
        whole = 1 if self.name == "supcon" else 2
        return (
            1e3
            * whole
            * elements
            * (flops * self.depth / rate + exponentials / peak.exponentials)
        )

    def inputs(self) -> list[Tensor]:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return inputs(self.name, self.rows, self.columns, self.depth, dtype)


@dataclass(frozen=True)
class Row:
    """A line of the table; empty where it does not apply."""

    date: str
    case: str
    rows: int
    columns: int
    depth: int
    dtype: str
    peer: str
    mode: str
    calls: int | str = ""
    p20_ms: float | str = ""
    median_ms: float | str = ""
    p80_ms: float | str = ""
    floor_ms: float | str = ""
    floor_fraction: float | str = ""
    extra_mib: float | str = ""
    note: str = ""
    peak_gflops: float | str = ""
    peak_gexp: float | str = ""
    cpu: str = ""
    threads: int = 0
    torch: str = ""
    s3h_ext: str = ""


def square(rows: int, depth: int = 128, dtype: str = "float32") -> Case:
    return Case("supcon", rows, rows, depth, dtype)


SUITES: dict[str, list[Case]] = {
    "small": [
        *(square(n) for n in (256, 1024, 4096)),
        *(square(n, dtype="bfloat16") for n in (1024, 4096)),
    ],
    "large": [square(16384), square(16384, dtype="bfloat16")],
    "huge": [square(32768), square(65536)],
    "depths": [square(4096, depth) for depth in (64, 96, 127, 256, 512)],
    "rectangular": [
        Case("prototypes", 1024, c, 128) for c in (100, 1000, 8192, 100_000)
    ],
    "keys": [Case("keys", 256, m, 128) for m in (16384, 65536)],
    "memory": [square(n) for n in (1024, 4096, 16384, 32768, 65536)],
}
# Beside ours; where other sizes and types are asked for, the best ones are enough.
FEW = ("eager algebraic", "compiled algebraic")


def row_of(case: Case, peer: str, mode: str, **found: object) -> Row:
    return Row(
        date=datetime.date.today().isoformat(),
        case=case.name,
        rows=case.rows,
        columns=case.columns,
        depth=case.depth,
        dtype=case.dtype,
        peer=peer,
        mode=mode,
        cpu=cpu_name(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        s3h_ext=s3h_ext.__version__,
        **found,  # type: ignore[arg-type]
    )


def chosen(case: Case, few: bool, only: list[str] | None) -> Iterator[Peer]:
    for peer in peers(case.name):
        ours = peer.name in (OURS, OP)
        if few and not ours and peer.name not in FEW:
            continue
        if only is None or ours or peer.name in only:
            yield peer


def step(peer: Peer, tensors: list[Tensor]) -> tuple[float, float]:
    """Seconds of one forward and of its backward."""
    for tensor in tensors:
        tensor.grad = None
    start = time.perf_counter()
    loss = peer.function(*tensors)
    middle = time.perf_counter()
    if peer.backward:
        loss.backward()
    return middle - start, time.perf_counter() - middle


def measure(case: Case, found: list[Peer], budget: float) -> Iterator[Row]:
    """Times every peer, in turn; ``budget`` in seconds for each."""
    tensors = case.inputs()
    peak = measure_peak()
    rounds: dict[str, int] = {}
    times: dict[str, list[tuple[float, float]]] = {}
    # Once: what a peer has compiled must last until its turns are over.
    torch.compiler.reset()
    for peer in found:
        if peer.holds_matrix and case.rows * case.columns > MOST_ELEMENTS:
            note = f"not run: holds {case.rows} x {case.columns} elements"
            yield row_of(case, peer.name, "full", note=note)
            continue
        try:
            if peer.name.startswith(("compiled", "flex")):
                step(peer, tensors)
            first = step(peer, tensors)
            long = sum(first) > LONG_CALL
            once = sum(first) if long else sum(step(peer, tensors))
        except Exception as error:  # a peer's failure is a result too
            note = f"not run: {type(error).__name__}"
            yield row_of(case, peer.name, "full", note=note)
            continue
        rounds[peer.name] = max(2 if long else 5, min(60, int(budget / once)))
        times[peer.name] = [first] if long else []
    for i in range(max(rounds.values(), default=0)):
        for peer in found:
            if i < rounds.get(peer.name, 0):
                times[peer.name].append(step(peer, tensors))
    peak = peak.best_of(measure_peak())
    for peer in found:
        if peer.name not in times:
            continue
        for mode in MODES if peer.backward else MODES[:1]:
            part = {"forward": slice(0, 1), "backward": slice(1, 2), "full": slice(2)}
            ms = sorted(1e3 * sum(pair[part[mode]]) for pair in times[peer.name])
            floor = case.floor_ms(mode, peak)
            median = statistics.median(ms)
            yield row_of(
                case,
                peer.name,
                mode,
                calls=len(ms),
                p20_ms=round(ms[len(ms) // 5], 4),
                median_ms=round(median, 4),
                p80_ms=round(ms[len(ms) * 4 // 5], 4),
                floor_ms=round(floor, 4),
                floor_fraction=round(floor / median, 3),
                peak_gflops=(
                    peak.float32 if case.dtype == "float32" else peak.bfloat16
                ),
                peak_gexp=peak.exponentials,
            )


def resident(what: str) -> int:
    """Bytes of the resident set now (``VmRSS``) or at its highest (``VmHWM``)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    line = next(line for line in lines if line.startswith(what))
    return int(line.split()[1]) * 1024


def memory_point(case: Case, name: str) -> float:
    """MiB that a step of this process adds; meant for a fresh one."""
    peer = next(peer for peer in peers(case.name) if peer.name == name)
    small = Case(case.name, 64, 64, case.depth, case.dtype).inputs()
    step(peer, small)
    tensors = case.inputs()
    if name.startswith("compiled"):
        step(peer, tensors)
        for tensor in tensors:
            tensor.grad = None
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = resident("VmRSS")
    step(peer, tensors)
    return (resident("VmHWM") - before) / 2**20


def measure_memory(case: Case, found: list[Peer]) -> Iterator[Row]:
    for peer in found:
        if peer.holds_matrix and case.rows * case.columns > MOST_ELEMENTS:
            note = f"not run: holds {case.rows} x {case.columns} elements"
            yield row_of(case, peer.name, "memory", note=note)
            continue
        point = json.dumps({"case": asdict(case), "peer": peer.name})
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.similarity", "--memory-point", point],
            cwd=ROOT.parent,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            note = f"not run: {reason.split(':')[0]}"
            yield row_of(case, peer.name, "memory", note=note)
            continue
        yield row_of(case, peer.name, "memory", extra_mib=round(float(done.stdout), 1))


def table(case: Case, rows: list[Row]) -> None:
    """Prints one case; ratios are the peer's time over ours."""
    print(f"\n{case.name} {case.rows} x {case.columns} D={case.depth} {case.dtype}")
    medians = {(row.peer, row.mode): row for row in rows}
    ours = medians.get((OURS, "full"))
    for name in dict.fromkeys(row.peer for row in rows):
        full = medians.get((name, "full")) or medians.get((name, "memory"))
        if full is None:
            full = medians[name, "forward"]
        if full.note:
            print(f"  {name:<24} {full.note}")
        elif full.mode == "memory":
            print(f"  {name:<24} {full.extra_mib:>10} MiB")
        else:
            parts = " ".join(
                f"{medians[name, mode].median_ms:>10.3f}"
                for mode in MODES
                if (name, mode) in medians
            )
            ratio = ours and float(full.median_ms) / float(ours.median_ms)
            print(
                f"  {name:<24} {parts} ms [{full.p20_ms:.2f}, {full.p80_ms:.2f}] "
                f"x{ratio or 0:.2f}, {full.floor_fraction:.2f} of the floor's speed",
                flush=True,
            )


def record(path: Path, rows: list[Row]) -> None:
    """Appends rows to the file and drops those that they supersede."""
    names = [field.name for field in fields(Row)]

    def subject(row: dict[str, object]) -> tuple[object, ...]:
        what = ("case", "rows", "columns", "depth", "dtype", "peer", "cpu")
        return (*(str(row[name]) for name in what), row["mode"] == "memory")

    kept: list[dict[str, object]] = []
    found = [asdict(row) for row in rows]
    if path.exists():
        replaced = {subject(row) for row in found}
        with path.open(newline="", encoding="utf-8") as stream:
            kept += (r for r in csv.DictReader(stream) if subject(r) not in replaced)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept + found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", nargs="*", choices=SUITES, default=list(SUITES))
    parser.add_argument("--rows", type=int, nargs="*", help="only these N")
    parser.add_argument("--peer", nargs="*", help="only these beside ours")
    parser.add_argument("--output", type=Path, default=ROOT / "results")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each peer")
    parser.add_argument("--memory-point", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if arguments.memory_point:
        point = json.loads(arguments.memory_point)
        print(memory_point(Case(**point["case"]), point["peer"]))
        return
    arguments.output.mkdir(parents=True, exist_ok=True)
    target = arguments.output / "similarity.csv"
    for suite in arguments.suite:
        for case in SUITES[suite]:
            if arguments.rows and case.rows not in arguments.rows:
                continue
            few = suite == "depths" or case.dtype != "float32"
            found = list(chosen(case, few, arguments.peer))
            if suite == "memory":
                found = [p for p in found if p.name not in (OP, "flex_attention")]
                rows = list(measure_memory(case, found))
            else:
                rows = list(measure(case, found, arguments.seconds))
            if suite == "keys":
                rows += measure_memory(case, found)
            table(case, rows)
            record(target, rows)
    draw(target, arguments.output / "similarity.png")


if __name__ == "__main__":
    main()
