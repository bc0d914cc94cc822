"""Machine code of CUDA kernels as nvdisasm lists it: instructions and basic blocks."""

from __future__ import annotations

import heapq
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple


class Instruction(NamedTuple):
    """One instruction with the waits that the compiler gave it."""

    operation: str  # with its suffixes
    predicated: bool
    operands: str
    stall: int
    sets: tuple[int, ...]  # barriers that it frees when its result is there
    reads: tuple[int, ...]  # that it frees when its operands were read
    waits: int  # mask of barriers

    @property
    def name(self) -> str:
        """Returns the operation without suffixes."""
        return self.operation.split(".")[0]


class Block(NamedTuple):
    """Instructions in sequence, and where they lead."""

    instructions: list[Instruction]
    next: list[int]


_LINE = re.compile(
    r"/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*(.*?)\s*;.*/\* 0x\w+ \*/"
)
_CONTROL = re.compile(r"^\s*/\* 0x([0-9a-f]{16}) \*/\s*$")
_LABEL = re.compile(r"^(\.L_\w+):")


def functions(listing: str) -> dict[str, list[str]]:
    """Returns the lines of each kernel of a listing of ``nvdisasm -c -hex``."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in listing.splitlines():
        if match := re.match(r"\.text\.(\w+):", line):
            lines = found.setdefault(match[1], [])
        lines.append(line)
    return found


def blocks_of(lines: list[str]) -> list[Block]:
    """Returns the basic blocks of a kernel in their order."""
    labels: dict[str, int] = {}
    blocks: list[list[Instruction]] = [[]]
    pending: tuple[str, bool, str] | None = None

    def close() -> None:
        if blocks[-1]:
            blocks.append([])

    for line in lines:
        if match := _LABEL.match(line):
            close()
            labels[match[1]] = len(blocks) - 1
        elif match := _LINE.search(line):
            pending = match[2], match[1] is not None, match[3]
        elif pending and (match := _CONTROL.match(line)):
            control = int(match[1], 16) >> 41
            sets, reads = control >> 5 & 7, control >> 8 & 7
            blocks[-1].append(
                Instruction(
                    *pending,
                    max(control & 15, 1),
                    (sets,) if sets < 6 else (),
                    (reads,) if reads < 6 else (),
                    control >> 11 & 63,
                )
            )
            pending = None
            if _leaves(blocks[-1][-1]):
                close()
    # Where the threads of a barrier register go on together: by its last BSSY.
    meeting: dict[str, int] = {}
    result = []
    for number, block in enumerate(blocks):
        for i in block:
            if i.name == "BSSY":
                register, target = i.operands.split(", ")
                meeting[register] = labels[target[2:-1]]
        following = [number + 1] if number + 1 < len(blocks) else []
        last = block[-1] if block else None
        if last and _leaves(last):
            if last.name in ("BRA", "CALL"):
                taken = [labels[last.operands[last.operands.index("`(") + 2 : -1]]]
            else:
                taken = [meeting[last.operands]] if last.name == "BSYNC" else []
            # An operand before the target makes a branch conditional too.
            if not last.predicated and "," not in last.operands:
                following = []
            following = taken + following
        result.append(Block(block, following))
    return result


def cheapest_walk(
    blocks: list[Block],
    does: Sequence[tuple[int, ...]],
    most: tuple[int, ...],
    start: int,
    end: int,
) -> tuple[int, list[int]] | None:
    """Returns the instructions and blocks of the cheapest walk that does enough.

    ``does`` says what each block does, of several kinds of work, and ``most`` what the
    walk has to. The blocks are those before it comes, or comes back, to ``end``.
    """
    State = tuple[int, tuple[int, ...]]
    first: State = (start, (0,) * len(most))
    before: dict[State, State | None] = {first: None}
    cost = {first: 0}
    heap: list[tuple[int, State]] = [(0, first)]
    while heap:
        so_far, state = heapq.heappop(heap)
        if so_far > cost[state]:
            continue
        number, done = state
        if number == end and done == most:
            walk = []
            at = before[state]
            while at is not None:
                walk.append(at[0])
                at = before[at]
            return so_far, walk[::-1]
        after = tuple(
            min(a + b, c) for a, b, c in zip(done, does[number], most, strict=True)
        )
        spent = so_far + len(blocks[number].instructions)
        for follower in blocks[number].next:
            reached = (follower, after)
            if spent < cost.get(reached, spent + 1):
                cost[reached] = spent
                before[reached] = state
                heapq.heappush(heap, (spent, reached))
    return None


def _leaves(i: Instruction) -> bool:
    # A call of a label is a far branch; a function comes back.
    far = i.name == "CALL" and i.operands.startswith("`(.L")
    return far or i.name in ("BRA", "EXIT", "RET", "BSYNC")


def disassemble(file: Path, architectures: Iterable[str]) -> list[str]:
    """Returns the listing of a cubin, or those of an object file's architectures."""
    if file.suffix == ".cubin":
        return [_run("nvdisasm", "-c", "-hex", str(file))]
    with tempfile.TemporaryDirectory() as scratch:
        _run("cuobjdump", "-xelf", "all", str(file.resolve()), folder=scratch)
        return [
            listing
            for cubin in sorted(Path(scratch).iterdir())
            if any(f".{arch}." in cubin.name for arch in architectures)
            for listing in disassemble(cubin, architectures)
        ]


def _run(name: str, *arguments: str, folder: str | None = None) -> str:
    # Those that pip installed, at the version of constraints-dev.txt.
    inside = Path(sysconfig.get_path("purelib")) / "nvidia" / "cu13" / "bin"
    tool = shutil.which(name, path=str(inside)) or shutil.which(name)
    if tool is None:
        raise FileNotFoundError(f"expected {name}: pip install nvidia-cuda-{name}")
    done = subprocess.run(
        [tool, *arguments], capture_output=True, text=True, check=True, cwd=folder
    )
    return done.stdout
