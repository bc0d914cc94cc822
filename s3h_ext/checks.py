"""Argument checks whose errors state what was expected and what was given."""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Callable, Iterable
from typing import Any

__all__ = [
    "COUNT",
    "NOT_NEGATIVE",
    "POSITIVE",
    "SEED",
    "ZERO_OR_MORE",
    "Rule",
    "check",
    "check_choice",
    "number_in",
]

#: Description of the expected value, and a test of it.
Rule = tuple[str, Callable[[Any], bool]]
COUNT: Rule = ("a whole number >= 1", lambda value: value >= 1)
NOT_NEGATIVE: Rule = ("a whole number >= 0", lambda value: value >= 0)
SEED: Rule = ("a whole number in [0, 2**32)", lambda value: 0 <= value < 2**32)
POSITIVE: Rule = ("a finite number > 0", lambda v: math.isfinite(v) and v > 0)
ZERO_OR_MORE: Rule = ("a finite number >= 0", lambda v: math.isfinite(v) and v >= 0)


def number_in(interval: str, what: str = "a number") -> Rule:
    """Return the rule for an interval such as ``"[0, 1)"``."""
    low, high = map(float, interval[1:-1].split(","))
    after = operator.le if interval[0] == "[" else operator.lt
    before = operator.le if interval[-1] == "]" else operator.lt
    return f"{what} in {interval}", lambda v: after(low, v) and before(v, high)


def check(rule: Rule, prefix: str = "", /, **values: Any) -> None:
    """Check that values satisfy a rule; ``None`` means not set.

    Raises:
        ValueError: a value does not.

    Example:
        >>> check(number_in("[0, 1)", "a share"), "data.", val_fraction=1.5)
        Traceback (most recent call last):
        ValueError: data.val_fraction: expected a share in [0, 1), got 1.5
    """
    expected, holds = rule
    for name, value in values.items():
        if value is not None and not holds(value):
            raise ValueError(f"{prefix}{name}: expected {expected}, got {value!r}")


def check_choice(argument: str, value: object, choices: Iterable[str]) -> None:
    """Check that a value is among ``choices``; the error names the most similar one.

    Raises:
        ValueError: it is not.

    Example:
        >>> check_choice("to", "steps", ["exp", "step"])
        Traceback (most recent call last):
        ValueError: to: expected one of exp, step, got 'steps'; did you mean 'step'?
    """
    names = list(choices)
    if value not in names:
        near = difflib.get_close_matches(str(value), names, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"{argument}: expected one of {', '.join(names)}, got {value!r}; "
            f"did you mean {near!r}?"
        )
