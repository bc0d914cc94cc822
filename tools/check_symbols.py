"""Check that an op library imports only stable-ABI symbols from torch.

Usage: python tools/check_symbols.py [LIBRARY]
where LIBRARY is s3h_ext/_s3h_cpu.so if not given.

The stable ABI is C: every torch function the library may use has an unmangled name
that starts with ``aoti_torch_`` or ``torch_``. A mangled ``at::``, ``c10::`` or
``torch::`` name among the imports would tie the binary to one torch version. A name
of ours among them is a function that was left out of the build.

A function of torch's CUDA library is found through libtorch.so alone, so the library
has to name that among those it needs.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ALLOWED_C = re.compile(r"^(aoti_torch_|torch_)")
MANGLED_TORCH = re.compile(r"^_ZN?K?\w*?(2at|3c10|5torch|6caffe2)\w")
OURS = re.compile(r"^_ZN?K?3s3h")
IN_TORCH_CUDA = re.compile(r"^aoti_torch_(\w*_)?cuda_")


def binutils(tool: str, *arguments: str) -> list[str]:
    """Return the lines that a tool prints."""
    path = shutil.which(tool)
    if path is None:
        raise SystemExit(f"check_symbols.py: {tool} not found; install binutils")
    run = subprocess.run([path, *arguments], check=True, capture_output=True, text=True)
    return run.stdout.splitlines()


def imported_symbols(library: Path) -> list[str]:
    lines = binutils("nm", "-D", "--undefined-only", str(library))
    return [line.split()[-1].split("@")[0] for line in lines]


def needed_libraries(library: Path) -> list[str]:
    lines = binutils("objdump", "-p", str(library))
    return [line.split()[1] for line in lines if line.split()[:1] == ["NEEDED"]]


def main(arguments: list[str]) -> None:
    root = Path(__file__).resolve().parent.parent
    library = Path(arguments[0]) if arguments else root / "s3h_ext" / "_s3h_cpu.so"
    if not library.is_file():
        raise SystemExit(f"check_symbols.py: {library} does not exist; build it first")
    symbols = imported_symbols(library)
    stable = [name for name in symbols if ALLOWED_C.match(name)]
    tied = [name for name in symbols if MANGLED_TORCH.match(name)]
    missing = [name for name in symbols if OURS.match(name)]
    if missing:
        raise SystemExit(
            f"check_symbols.py: {library.name} imports what it should hold itself:\n  "
            + "\n  ".join(missing)
        )
    if tied:
        raise SystemExit(
            f"check_symbols.py: {library.name} imports symbols outside torch's stable "
            "ABI:\n  " + "\n  ".join(tied)
        )
    if not stable:
        raise SystemExit(
            f"check_symbols.py: {library.name} imports no stable-ABI symbol at all; "
            "this is not the op library"
        )
    cuda = [name for name in stable if IN_TORCH_CUDA.match(name)]
    if cuda and "libtorch.so" not in needed_libraries(library):
        raise SystemExit(
            f"check_symbols.py: {library.name} does not need libtorch.so, without "
            "which a torch with CUDA will not find:\n  " + "\n  ".join(cuda)
        )
    print(f"{library.name}: {len(stable)} stable-ABI symbols, no other torch symbol")


if __name__ == "__main__":
    main(sys.argv[1:])
