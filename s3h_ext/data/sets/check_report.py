"""The report on data on the disk, and which long tails can be cut from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from s3h_ext.data.longtail import class_profile, sorted_profile

__all__ = ["CheckReport", "feasible"]

FACTORS = (1, 10, 20, 50, 100, 200)


@dataclass
class CheckReport:
    """What a check found.

    Attributes:
        lines: The findings, to be read by a person.
        problems: What keeps the data from being used, each with its remedy.
        official: Whether the checksums are the official ones; ``None`` where nothing
            could be compared.
        class_counts: Training images per class; empty where they could not be read.
    """

    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    official: bool | None = None
    class_counts: list[int] = field(default_factory=list)

    def text(self) -> str:
        """Returns the report, problems last."""
        verdict = [f"wrong: {problem}" for problem in self.problems]
        if not verdict:
            doubtful = any(line.startswith("warning: ") for line in self.lines)
            verdict = [
                "nothing is wrong, but see the warning" if doubtful else "all is well"
            ]
        return "\n".join([*self.lines, *verdict])

    def add_factors(
        self, imbalance: Sequence[float], profile: str, *, by_size: bool
    ) -> None:
        """Adds which imbalance factors can be cut; see :func:`feasible`."""
        counts = np.array(self.class_counts, np.int64)
        if counts.min() == 0:
            return
        natural = f"own imbalance {counts.max() / counts.min():.3g}"
        if by_size:
            self.lines.append(natural)
        else:
            asked = sorted({*map(float, FACTORS), *map(float, imbalance)})
            possible = [f for f in asked if feasible(counts, f, profile=profile)]
            self.lines.append(
                f"{natural}; of the factors {', '.join(f'{f:g}' for f in asked)}, "
                f"profile {profile}, can be cut: "
                f"{', '.join(f'{f:g}' for f in possible) or 'none'}"
            )
        more = "" if by_size else "more images than are there, or "
        for factor in imbalance:
            if not feasible(counts, factor, profile=profile, by_size=by_size):
                self.problems.append(
                    f"imbalance {factor:g} cannot be cut with profile {profile}: a "
                    f"class would have {more}none. Use another factor, or a more "
                    "complete archive"
                )
            elif by_size:
                kept = sorted_profile(counts, imbalance=factor, profile=profile)
                self.lines.append(
                    f"cut to imbalance {factor:g}, profile {profile}: {kept.sum()} "
                    f"images, {kept.max()} to {kept.min()} a class; "
                    f"{(kept == counts).sum()} of {len(counts)} classes keep all their "
                    "images"
                )


def feasible(
    counts: NDArray[np.int64],
    imbalance: float,
    *,
    profile: str = "exp",
    by_size: bool = False,
) -> bool:
    """Tells whether a long tail of this factor can be cut without repeating images.

    Args:
        counts: Images per class, int64 ``[C]``; the first class is to be the largest.
        imbalance: Largest over smallest class.
        profile: ``"exp"`` or ``"step"``.
        by_size: The classes differ in size by nature, so the tail is cut along their
            order of size, and a class with fewer images than its place asks for keeps
            all of them.

    Example:
        >>> counts = np.array([500, 160, 50])
        >>> feasible(counts, 10), feasible(counts, 5)
        (True, False)
    """
    try:
        if by_size:
            sorted_profile(counts, imbalance=imbalance, profile=profile)
            return True
        wanted = class_profile(
            len(counts),
            largest=int(counts.max()),
            imbalance=imbalance,
            profile=profile,
        )
    except ValueError:
        return False
    return bool((wanted <= counts).all())
