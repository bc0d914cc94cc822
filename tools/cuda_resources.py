"""What the CUDA compiler reports of each kernel, held against a committed table.

    nvcc -Xptxas -v ... >LOG 2>&1
    python tools/cuda_resources.py --release 13.0 [--update] LOG...

Registers and shared memory decide how many blocks a multiprocessor holds, and a spill
costs a hot kernel dearly; neither shows in a test. Fails where a kernel spills that
must not, and where the compiler of the table reports anything else than the table
says. Another compiler's numbers differ of themselves: then only spills are looked at.
"""

from __future__ import annotations

import argparse
import csv
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

TABLE = Path(__file__).resolve().parents[1] / "csrc" / "cuda" / "resources.csv"
# By name and architecture, "" for any.
MAY_SPILL = {
    # Not where it counts at depth 128: the loop for numbers that are not bounded, next
    # to the one in cuda_speed's table. At other depths both accumulators and the
    # chunk's addresses are alive at once.
    *(
        (f"scores_backward<{element}, (Depth){depth}, {plain}>", "")
        for element in ("Bf16", "Fp16")
        for depth in (0, 1, 2)
        for plain in ("false", "true")
    ),
    # The same loop of float32 rows.
    ("scores_backward<Fp32<true>, (Depth)2, false>", ""),
    ("scores_backward<Fp32<true>, (Depth)2, true>", ""),
    # One register, around the rare path of a division.
    ("apply_class<float>", "sm_90"),
    # One or two, of float64 and of rows that are not of 128 elements.
    ("collect_classes<double, 1>", "sm_100"),
    ("forward_fp64", "sm_120"),
    ("triangle_forward<Fp32<true>, (Depth)0, true>", "sm_100"),
    ("triangle_forward<Fp32<true>, (Depth)0, true>", "sm_120"),
}


class Kernel(NamedTuple):
    """One kernel for one architecture; sizes in bytes, registers per thread."""

    kernel: str
    arch: str
    registers: int
    static_shared: int
    stack: int
    spill_stores: int
    spill_loads: int


_ENTRY = re.compile(r"Compiling entry function '(\S+)' for '(\w+)'")
_FRAME = re.compile(
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
)
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


def parse(log: str) -> list[Kernel]:
    """Returns the kernels of a log of ``-Xptxas -v``, sorted."""
    found: list[Kernel] = []
    name = arch = ""
    frame = (0, 0, 0)
    for line in log.splitlines():
        if match := _ENTRY.search(line):
            name, arch = match.groups()
            frame = (0, 0, 0)
        elif match := _FRAME.search(line):
            stack, stores, loads = map(int, match.groups())
            frame = (stack, stores, loads)
        elif name and (match := _USED.search(line)):
            shared = _SHARED.search(line)
            found.append(
                Kernel(
                    name,
                    arch,
                    int(match[1]),
                    int(shared[1]) if shared else 0,
                    *frame,
                )
            )
            name = ""
    return sorted(found)


def readable(kernels: list[Kernel]) -> list[Kernel]:
    """Returns the kernels with the names that the sources give them."""
    mangled = "\n".join(kernel.kernel for kernel in kernels)
    names = subprocess.run(
        ["c++filt"], input=mangled, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return sorted(
        kernel._replace(kernel=short_name(name))
        for kernel, name in zip(kernels, names, strict=True)
    )


def short_name(name: str) -> str:
    """Returns a demangled name without result, namespaces and parameters."""
    name = re.sub(r"s3h::cuda::|\(anonymous namespace\)::", "", name)
    depth = 0
    for i, character in enumerate(name):
        depth += {"<": 1, ">": -1}.get(character, 0)
        if character == "(" and depth == 0:
            name = name[:i]
            break
    return name.removeprefix("void ")


def spilling(kernels: list[Kernel]) -> list[str]:
    """Returns a line for each kernel that spills and must not."""
    return [
        f"{k.kernel} spills on {k.arch}: {k.spill_stores} bytes stored, "
        f"{k.spill_loads} loaded"
        for k in kernels
        if k.spill_stores + k.spill_loads > 0
        and not {(k.kernel, ""), (k.kernel, k.arch)} & MAY_SPILL
    ]


def differences(kernels: list[Kernel], table: list[Kernel]) -> list[str]:
    """Returns a line for each kernel that is not as the table has it.

    Architectures that were not compiled, or that the table lacks, are left out.
    """
    shared = {k.arch for k in kernels} & {k.arch for k in table}
    now = {(k.kernel, k.arch): k for k in kernels if k.arch in shared}
    then = {(k.kernel, k.arch): k for k in table if k.arch in shared}
    lines = []
    for key in sorted(now.keys() | then.keys()):
        if now.get(key) != then.get(key):
            lines.append(f"{key[0]} on {key[1]}: {_say(then, key)} -> {_say(now, key)}")
    return lines


def _say(kernels: dict[tuple[str, str], Kernel], key: tuple[str, str]) -> str:
    kernel = kernels.get(key)
    if kernel is None:
        return "not there"
    return ", ".join(
        f"{name} {value}"
        for name, value in zip(Kernel._fields[2:], kernel[2:], strict=True)
    )


def read_table(path: Path) -> tuple[str, list[Kernel]]:
    """Returns the compiler's release and the kernels of the table."""
    if not path.exists():
        return "none", []
    with path.open(newline="") as file:
        release = file.readline().split()[-1]
        rows = list(csv.reader(file))[1:]
    return release, [Kernel(row[0], row[1], *map(int, row[2:])) for row in rows]


def write_table(path: Path, release: str, kernels: list[Kernel]) -> None:
    """Writes the table, its first line naming the compiler."""
    with path.open("w", newline="") as file:
        file.write(f"# nvcc {release}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Kernel._fields)
        writer.writerows(kernels)


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("logs", nargs="+", type=Path)
    parser.add_argument("--release", required=True, help="of nvcc")
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--update", action="store_true", help="write the table anew")
    options = parser.parse_args(arguments)
    kernels = readable([k for log in options.logs for k in parse(log.read_text())])
    if not kernels:
        print("cuda-resources: no kernel in the logs", file=sys.stderr)
        return 1
    problems = spilling(kernels)
    release, table = read_table(options.table)
    if options.update:
        write_table(options.table, options.release, kernels)
    elif release == options.release:
        problems += differences(kernels, table)
    else:
        print(
            f"cuda-resources: the table is of nvcc {release}, this is "
            f"{options.release}: only spills were looked at"
        )
    for problem in problems:
        print(f"cuda-resources: {problem}", file=sys.stderr)
    if problems and not options.update:
        print(
            f"cuda-resources: {options.table.name} says otherwise, or a kernel spills; "
            "if that is meant: tools/cuda_compile.sh --update",
            file=sys.stderr,
        )
    if not problems:
        print(f"cuda-resources: {len(kernels)} kernels as expected")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
