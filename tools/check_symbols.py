"""Check that an op library imports only stable-ABI symbols from torch.

Usage: python tools/check_symbols.py [LIBRARY]
where LIBRARY is s3h_ext/_s3h_cpu.so if not given.

The stable ABI is C: every torch function the library may use has an unmangled name
that starts with ``aoti_torch_`` or ``torch_``. A mangled ``at::``, ``c10::`` or
``torch::`` name among the imports would tie the binary to one torch version. A name
of ours among them is a function that was left out of the build.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ALLOWED_C = re.compile(r"^(aoti_torch_|torch_)")
MANGLED_TORCH = re.compile(r"^_ZN?K?\w*?(2at|3c10|5torch|6caffe2)\w")
OURS = re.compile(r"^_ZN?K?3s3h")


def imported_symbols(library: Path) -> list[str]:
    nm = shutil.which("nm")
    if nm is None:
        raise SystemExit("check_symbols.py: nm not found; install binutils")
    listing = subprocess.run(
        [nm, "-D", "--undefined-only", str(library)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [line.split()[-1].split("@")[0] for line in listing.splitlines()]


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
    print(f"{library.name}: {len(stable)} stable-ABI symbols, no other torch symbol")


if __name__ == "__main__":
    main(sys.argv[1:])
