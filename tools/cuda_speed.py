"""A model of the hot kernels' speed, made from their machine code.

    nvcc ... -cubin -o FILE.cubin csrc/cuda/similarity_bf16.cu
    python tools/cuda_speed.py [--update] FILE.cubin...    or object files

Per kernel and GPU: what a warp issues for one tile, how long each unit of a quarter
of a multiprocessor is busy with it, how many products lie between a load from shared
memory and its first use, and the cycles that follow when the quarter's warps take
turns. No kernel runs. Fails where a time is 5 % above the committed table, or
a spill came into a loop.

The tile's path through the code is the cheapest closed walk over a barrier that does
the tile's products and copies, and at least half of its exponentials (those with a
branch of their own do not count: there would be too many walks). A kernel of other
loops has a table of the blocks that count, known by how many of which instructions they
have, and how often each runs. The walk is replayed with the waits that the compiler
wrote into each instruction; what it leaves to the hardware has the fixed latencies and
rates below. Those are from the literature, and frozen so that tables compare: only a
measurement on a GPU changes them.
"""

from __future__ import annotations

import argparse
import csv
import re
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from cuda_resources import short_name
from sass import (
    Block,
    Instruction,
    blocks_of,
    cheapest_walk,
    disassemble,
    functions,
)

TABLE = Path(__file__).resolve().parents[1] / "csrc" / "cuda" / "speed.csv"
WORSE = 1.05
WARPS = 2  # of a quarter: two blocks of four warps a multiprocessor


class Gpu(NamedTuple):
    """Rates in cycles of a quarter per warp instruction."""

    name: str
    multiprocessors: int
    gigahertz: float
    tensor: float  # mma.sync: 62 % of wgmma's rate on Hopper
    fp32: float


class Work(NamedTuple):
    """What a warp does for one tile, and the tiles of SupCon at N = 32,768, D = 128."""

    products: int
    copies: int  # of 16 bytes a thread, into shared memory
    exponentials: int
    tiles: int


Counts = dict[str, int]  # of instructions in a block, by name or whole operation


class Visits(NamedTuple):
    """Which blocks a warp runs for one tile, and how often.

    From the kernel's entry it goes by all of ``before`` to the one ``start``, and from
    there ``rounds`` times back to it, by each of ``each`` as often as it says.
    """

    before: tuple[Counts, ...]
    start: Counts
    each: tuple[tuple[Counts, int], ...]
    rounds: int
    tiles: int  # of four warps, for the problem
    warps: int  # of a quarter


class Row(NamedTuple):
    """One kernel on one GPU; units in cycles of a quarter per tile and warp."""

    kernel: str
    arch: str
    gpu: str
    products: int
    exponentials: int
    shared_loads: int  # LDSM
    local: int  # spills' loads and stores
    issue: int
    tensor: int
    shared: int
    mufu: int
    alu: int
    fp32: int
    use_mean: float  # products between a load and its first use
    use_median: float
    cycles: int  # by the replay
    bound_ms: float  # the busiest unit alone
    expected_ms: float  # by the replay


GPUS = {
    "sm_80": Gpu("A100", 108, 1.41, 8.0, 2.0),
    "sm_90": Gpu("H200", 132, 1.755, 6.4, 1.0),
}
_N = 32768
_ALL, _HALF = (_N // 128) * (_N // 64), (_N // 128) * (_N // 128 + 1)
_ALL32, _HALF32 = (_N // 64) * (_N // 32), (_N // 64) * (_N // 64 + 1)
WORK = {
    "scores_backward<Bf16, (Depth)2, true>": Work(256, 8, 64, _ALL),
    "scores_backward<Bf16, (Depth)2, false>": Work(256, 8, 64, _ALL),
    "scores_backward<Fp16, (Depth)2, true>": Work(256, 8, 64, _ALL),
    "scores_backward<Fp16, (Depth)2, false>": Work(256, 8, 64, _ALL),
    "triangle_forward<Bf16, (Depth)2, true>": Work(128, 8, 64, _HALF),
    "triangle_forward<Bf16, (Depth)2, false>": Work(128, 8, 64, _HALF),
    "scores_forward<Bf16, (Depth)2, true>": Work(128, 8, 64, _ALL),
    "scores_backward<Fp32<true>, (Depth)2, true>": Work(192, 8, 16, _ALL32),
    "triangle_forward<Fp32<true>, (Depth)2, true>": Work(96, 8, 16, _HALF32),
}

# 512 views of 224 x 224, each one whole patch, windows of 3 pixels, coloured, float32,
# from 7 rows of the image per 4 of the view. First a patch's job, a window, the warp's
# rows; then, for each 32 columns, two rows' loads, a row's sums, the finished pixels,
# the words that leave; the colours are the start. A block's 8 warps are two tiles of
# four. The job is one thread's; each warp's walk has it, as the others wait for it.
VISITS = {
    "render<3, false>": Visits(
        before=({"STS": 7, "SEL": 6}, {"DFMA": 10, "DADD": 6}, {"LDS": 7, "STS": 2}),
        start={"FFMA": 36, "FMNMX": 24},
        each=(
            ({"LDG.E.CONSTANT": 6}, 4),
            ({"FFMA": 21, "PRMT": 9}, 7),
            ({"FFMA": 12, "STS": 12}, 1),
            ({"LDS.128": 4, "STG.E.128": 4}, 1),
        ),
        rounds=7,
        tiles=512 * 7 * 2,
        warps=6,
    ),
}

# Cycles from the start of a unit's work to its result.
LATENCY = {"shared": 33.0, "mufu": 20.0, "global": 30.0, "other": 14.0}
QUEUE = 64  # cycles of work that a queued unit accepts ahead
MUFU, ALU = 8.0, 2.0
UNQUEUED = {"tensor", "fp32", "alu"}


def _work(block: Block) -> tuple[int, int, int]:
    products = sum(i.name == "HMMA" for i in block.instructions)
    copies = sum(
        i.name == "LDGSTS" and ".128" in i.operation for i in block.instructions
    )
    powers = sum(i.operation == "MUFU.EX2" for i in block.instructions)
    return products, copies, powers if powers >= 4 else 0


def tile_walk(blocks: list[Block], work: Work) -> list[Instruction]:
    """Returns the cheapest closed walk over a barrier that does a tile's work.

    Raises:
        ValueError: if there is none.
    """
    does = [_work(block) for block in blocks]
    most = (work.products, work.copies, work.exponentials // 2)
    best: tuple[int, list[int]] | None = None
    for start, block in enumerate(blocks):
        barrier = any(i.operation.startswith("BAR.SYNC") for i in block.instructions)
        if not (barrier and _returns(blocks, start)):
            continue
        found = cheapest_walk(blocks, does, most, start, start)
        if found and (best is None or found[0] < best[0]):
            best = found
    if best is None:
        raise ValueError(f"no walk with {work.products} products")
    return [i for number in best[1] for i in blocks[number].instructions]


def visits_walk(blocks: list[Block], visits: Visits) -> list[Instruction]:
    """Returns the cheapest walk that makes the visits.

    Raises:
        ValueError: if there is none, or several blocks to start from.
    """

    def fits(block: Block, counts: Counts) -> bool:
        names = Counter(n for i in block.instructions for n in {i.name, i.operation})
        return all(names[name] == count for name, count in counts.items())

    def walk(wanted: list[tuple[Counts, int]], start: int, end: int) -> list[int]:
        does = [tuple(int(fits(block, c)) for c, _ in wanted) for block in blocks]
        found = cheapest_walk(blocks, does, tuple(n for _, n in wanted), start, end)
        if found is None:
            raise ValueError(f"no walk by {wanted}")
        return found[1]

    starts = [n for n, block in enumerate(blocks) if fits(block, visits.start)]
    if len(starts) != 1:
        raise ValueError(f"expected one block of {visits.start}, got {len(starts)}")
    (start,) = starts
    numbers = walk([(counts, 1) for counts in visits.before], 0, start)
    numbers += visits.rounds * walk(list(visits.each), start, start)
    return [i for number in numbers for i in blocks[number].instructions]


def _returns(blocks: list[Block], start: int) -> bool:
    seen: set[int] = set()
    waiting = [start]
    while waiting:
        for follower in blocks[waiting.pop()].next:
            if follower not in seen:
                seen.add(follower)
                waiting.append(follower)
    return start in seen


def unit_of(i: Instruction, gpu: Gpu) -> tuple[str, float]:
    """Returns the unit that an instruction occupies, and for how many cycles.

    Shared memory serves the four quarters in turn, 128 bytes a cycle.
    """
    name, operation = i.name, i.operation
    if name == "HMMA":
        return "tensor", gpu.tensor
    if name == "MUFU":
        return "mufu", MUFU
    if name in ("LDSM", "LDS", "STS", "LDGSTS", "SHFL"):
        matrices = re.search(r"88\.(\d)", operation)
        wide = int(matrices[1]) if matrices else 4 * (".128" in operation)
        return "shared", 4.0 * (wide or (2 if ".64" in operation else 1))
    if name in ("FMUL", "FADD", "FFMA"):
        return "fp32", gpu.fp32
    if name.startswith("IMAD"):
        return "fp32", 2.0
    if name in ("LDG", "STG", "LDL", "STL", "RED", "REDG", "ATOM", "ATOMG"):
        return "global", 4.0
    if name[0] == "U" or name in ("BRA", "BSSY", "BSYNC", "NOP", "BAR", "DEPBAR"):
        return "other", 0.0
    if name in ("LDC", "ULDC", "S2R", "S2UR", "LDGDEPBAR", "WARPSYNC", "CS2R"):
        return "other", 0.0
    return "alu", ALU


def replay(walk: list[Instruction], gpu: Gpu, warps: int = WARPS) -> float:
    """Returns the cycles of a quarter per tile and warp, the warps taking turns."""
    rounds = 8
    units = [unit_of(i, gpu) for i in walk]
    issued = [0] * warps
    ready = [n * len(walk) / warps for n in range(warps)]
    barriers = [[0.0] * 6 for _ in range(warps)]
    free: dict[str, float] = {}
    slot = 0.0
    begun = when = 0.0
    warp = total = 0

    def earliest(warp: int) -> float:
        at = issued[warp] % len(walk)
        i, unit = walk[at], units[at][0]
        waits = (barriers[warp][b] for b in range(6) if i.waits >> b & 1)
        ahead = 0.0 if unit in UNQUEUED else QUEUE
        return max(ready[warp], slot, free.get(unit, 0.0) - ahead, *waits)

    while total < rounds * len(walk) * warps:
        # The one that went last goes on if it can; then the oldest.
        when, _, warp = min((earliest(w), w != warp, w) for w in range(warps))
        at = issued[warp] % len(walk)
        i, (unit, busy) = walk[at], units[at]
        begins = max(when, free.get(unit, 0.0))
        free[unit] = begins + busy
        slot = when + 1
        ready[warp] = when + i.stall
        result = begins + LATENCY.get(unit, LATENCY["other"])
        for b in i.sets:
            barriers[warp][b] = max(barriers[warp][b], result)
        for b in i.reads:
            barriers[warp][b] = max(barriers[warp][b], begins + busy + 4)
        issued[warp] += 1
        total += 1
        if total == 2 * len(walk) * warps:
            begun = when
    return (when - begun) / ((rounds - 2) * warps)


_REGISTER = re.compile(r"\bR(\d+)\b")


def use_distances(walk: list[Instruction]) -> list[int]:
    """Returns the products between each LDSM and the first that reads its result."""
    found = []
    for start, load in enumerate(walk):
        if load.name != "LDSM":
            continue
        first = int(_REGISTER.findall(load.operands)[0])
        loaded = set(range(first, first + 4))
        products = 0
        for later in walk[start + 1 :] + walk[:start]:
            registers = [int(r) for r in _REGISTER.findall(later.operands)]
            if later.name == "HMMA":
                # D, A of four registers, B of two; RZ has no number.
                sources = {r + k for r in registers[1:2] for k in range(4)}
                sources |= {r + k for r in registers[2:3] for k in range(2)}
            else:
                sources = set(registers[1:])
            if loaded & sources:
                found.append(products)
                break
            products += later.name == "HMMA"
    return found


def row_of(kernel: str, arch: str, walk: list[Instruction]) -> Row:
    """Returns the table's row of a kernel's walk."""
    gpu = GPUS[arch]
    visits = VISITS.get(kernel)
    tiles = visits.tiles if visits else WORK[kernel].tiles
    names = Counter(i.name for i in walk)
    busy: Counter[str] = Counter()
    for i in walk:
        unit, cycles = unit_of(i, gpu)
        busy[unit] += cycles  # type: ignore[assignment]
    cycles = replay(walk, gpu, visits.warps if visits else WARPS)
    distances = use_distances(walk)
    issue = len(walk)
    # A block's four warps have a quarter each.
    each = tiles / gpu.multiprocessors / gpu.gigahertz / 1e6
    bound = max(issue, *busy.values())
    return Row(
        kernel,
        arch,
        gpu.name,
        names["HMMA"],
        sum(i.operation == "MUFU.EX2" for i in walk),
        names["LDSM"],
        names["LDL"] + names["STL"],
        issue,
        *(round(busy[unit]) for unit in ("tensor", "shared", "mufu", "alu", "fp32")),
        round(statistics.mean(distances), 1) if distances else 0.0,
        statistics.median(distances) if distances else 0.0,
        round(cycles),
        round(bound * each, 3),
        round(cycles * each, 3),
    )


def rows_of(listing: str) -> list[Row]:
    """Returns the rows of the hot kernels of a listing."""
    target = re.search(r"\.target\s+(sm_\d+)", listing)
    arch = target[1] if target else ""
    if arch not in GPUS:
        raise ValueError(f"expected a listing for {' or '.join(GPUS)}, got {arch!r}")
    found = functions(listing)
    names = subprocess.run(
        ["c++filt"], input="\n".join(found), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    rows = []
    for kernel, lines in zip(map(short_name, names), found.values(), strict=True):
        if kernel in WORK:
            walk = tile_walk(blocks_of(lines), WORK[kernel])
        elif kernel in VISITS:
            walk = visits_walk(blocks_of(lines), VISITS[kernel])
        else:
            continue
        rows.append(row_of(kernel, arch, walk))
    return rows


def read_table(path: Path) -> list[dict[str, str]]:
    """Returns the committed rows, none where there is no table."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(line for line in file if line[0] != "#"))


def write_table(path: Path, rows: list[Row]) -> None:
    """Writes the table anew."""
    with path.open("w", newline="") as file:
        file.write("# tools/cuda_speed.py: a model, no measurement\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Row._fields)
        writer.writerows(sorted(rows))


def worse(rows: list[Row], table: list[dict[str, str]]) -> list[str]:
    """Returns a line for each row that the table lacks or that became slower."""
    then = {(row["kernel"], row["arch"]): row for row in table}
    lines = []
    for row in rows:
        old = then.get((row.kernel, row.arch))
        if old is None:
            lines.append(f"{row.kernel} on {row.arch} is not in the table")
            continue
        if row.local > int(old["local"]):
            lines.append(
                f"{row.kernel} on {row.arch}: spills' accesses {old['local']} -> "
                f"{row.local}"
            )
        for field in ("bound_ms", "expected_ms"):
            before, now = float(old[field]), float(getattr(row, field))
            if now > WORSE * before:
                lines.append(
                    f"{row.kernel} on {row.arch}: {field} {before} -> {now}, "
                    f"{100 * (now / before - 1):.0f} % worse"
                )
    return lines


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, help="cubins or object files")
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--update", action="store_true", help="write the table anew")
    options = parser.parse_args(arguments)
    rows = [
        row
        for file in options.files
        for listing in disassemble(file, GPUS)
        for row in rows_of(listing)
    ]
    if options.update:
        write_table(options.table, rows)
        return 0
    problems = worse(rows, read_table(options.table))
    for problem in problems:
        print(f"cuda-speed: {problem}", file=sys.stderr)
    if problems:
        print(
            f"cuda-speed: {options.table.name} says otherwise; if that is meant: "
            "tools/cuda_compile.sh --update",
            file=sys.stderr,
        )
    else:
        print(f"cuda-speed: {len(rows)} kernels as fast as the table has them")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
