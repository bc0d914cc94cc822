"""How calls are timed: in turns, so that the machine's moods fall on all of them."""

from __future__ import annotations

import math
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call: median, 20th and 80th percentile."""

    p20: float
    median: float
    p80: float


def interleaved(
    calls: Mapping[str, Callable[[], object]], seconds: float, most: int = 60
) -> dict[str, Timing]:
    """Times calls in turns.

    Args:
        calls: by name; each has been made once already, so that it is warm.
        seconds: what each may take in all; a slow one still gets five turns.
        most: turns of a fast one.

    Returns:
        One timing for each name.
    """
    turns = {}
    for name, call in calls.items():
        start = time.perf_counter()
        call()
        once = time.perf_counter() - start
        turns[name] = max(5, min(most, int(seconds / max(once, 1e-6))))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(max(turns.values(), default=0)):
        for name, call in calls.items():
            if turn < turns[name]:
                start = time.perf_counter()
                call()
                times[name].append(1e3 * (time.perf_counter() - start))
    return {
        name: Timing(
            p20=sorted(found)[len(found) // 5],
            median=statistics.median(found),
            p80=sorted(found)[len(found) * 4 // 5],
        )
        for name, found in times.items()
    }


def peak_extra(call: Callable[[], object]) -> float:
    """MiB that one more call adds to the resident set at its highest; NaN: unknown.

    Memory that is kept from one call to the next was there before.
    """
    clear = Path("/proc/self/clear_refs")
    if not clear.exists():
        return math.nan
    clear.write_text("5")
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    call()
    status = Path("/proc/self/status").read_text().splitlines()
    high = next(line for line in status if line.startswith("VmHWM"))
    return (int(high.split()[1]) * 1024 - pages * resource.getpagesize()) / 2**20
