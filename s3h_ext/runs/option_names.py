"""The trainer's options as users type them: spelling, messages, similar names."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from s3h_ext import methods
from s3h_ext.runs.config import DataConfig, TrainConfig

__all__ = ["OptionError", "as_typed", "method_options", "nearest", "nearest_option"]

_TOP = {field.name for field in fields(TrainConfig)}
_DATA = {field.name for field in fields(DataConfig)}


class OptionError(ValueError):
    """An option is unknown or has a bad value; the message says what was expected."""


def as_typed(message: str, method: object = None) -> str:
    """Return an error message with its leading option spelt as it is typed.

    Arguments of methods are looked up in ``method``, as given in a record.

    Example:
        >>> as_typed("root: expected a folder of images, got None")
        '--data.root: expected a folder of images, got None'
    """
    found = re.match(r"([a-z]\w*(?:\.\w+)*): ", message)
    if found is None:
        return message
    option = found[1]
    if "." in option:
        typed = option if option.partition(".")[0] in _TOP else None
    elif option in _TOP - {"data", "model", "method", "optim", "distributed"}:
        typed = option
    else:
        typed = _of_method(option, method)
        if typed is None and option in _DATA:
            typed = f"data.{option}"
    return message if typed is None else f"--{typed}{message[found.end(1) :]}"


def _of_method(name: str, method: object, prefix: str = "method") -> str | None:
    """Return the full option for an argument of a method or of a nested one."""
    if not isinstance(method, Mapping):
        return None
    options = method.get("init_args") or {}
    if name in {*options, *method_options(str(method.get("class_path")))}:
        return f"{prefix}.{name}"
    for key, value in options.items():
        if found := _of_method(name, value, f"{prefix}.{key}"):
            return found
    return None


def method_options(class_path: str | None = None) -> list[str]:
    """Return the options of a class of :mod:`s3h_ext.methods`, or of all of them."""
    classes: list[Any] = [
        getattr(methods, name) for name in methods.__all__ if name != "Method"
    ]
    if class_path is not None:
        classes = [c for c in classes if c.__name__ == class_path.rpartition(".")[2]]
    return [name for c in classes for name in inspect.signature(c).parameters]


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a "did you mean" question with the most similar name, or nothing."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""


def nearest_option(name: str, known: Iterable[str]) -> str:
    """Do the same for an option, also by its last part: ``lr`` is ``optim.lr``."""
    options = list(dict.fromkeys(known))
    last = name.rpartition(".")[2]
    same = [option for option in options if option.rpartition(".")[2] == last]
    match = same or difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    if not match:
        return ""
    return f"; did you mean {' or '.join(repr(f'--{option}') for option in match)}?"
