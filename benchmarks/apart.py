"""Cases in processes of their own: an illegal access on a GPU spoils its process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence


def apart(
    module: str, cases: Sequence[Sequence[str]], common: Sequence[str] = ()
) -> int:
    """Runs a module once for each case, whatever becomes of the others.

    Args:
        module: to be run with ``-m``.
        cases: the arguments of each.
        common: arguments of all.

    Returns:
        0, or 1 where any of them failed.
    """
    failed = False
    for case in cases:
        command = [sys.executable, "-m", module, *case, *common]
        if status := subprocess.run(command).returncode:
            failed = True
            print(f"{' '.join(case)}: status {status}", file=sys.stderr, flush=True)
    return 1 if failed else 0
