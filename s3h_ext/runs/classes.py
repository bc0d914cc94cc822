"""Restricts the classes that an option file may name to those already imported.

The option parser imports any class that a file names, and importing a module runs it.
So while parsing, it may only import the methods known to this process: those of
``s3h_ext``, and those of modules that the caller imported or named on the command line.
"""

from __future__ import annotations

import re
import sys
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass

from jsonargparse import _common, set_parsing_settings

from s3h_ext.methods import Method
from s3h_ext.runs.config import import_paths

__all__ = ["explain", "known_classes_only"]

_DENIED = re.compile(r"Importing '([\w.]+)' is not allowed")


def _with_subclasses(base: type) -> Iterator[type]:
    yield base
    subclasses: list[type] = base.__subclasses__()
    for each in subclasses:
        yield from _with_subclasses(each)


def _with_options(base: type) -> Iterator[type]:
    """Yield a class, its subclasses, and the data classes of their options."""
    for each in _with_subclasses(base):
        yield each
        try:
            hints = typing.get_type_hints(each.__init__)  # type: ignore[misc]
        except Exception:  # names known only to type checkers
            continue
        for hint in hints.values():
            for part in (hint, *typing.get_args(hint)):
                if isinstance(part, type) and is_dataclass(part):
                    yield part


def _known_names() -> Iterator[str]:
    """Yield the import paths of this process's methods and of their options."""
    for each in _with_options(Method):
        yield from import_paths(each)


@contextmanager
def known_classes_only() -> Iterator[None]:
    """Allow jsonargparse to import only the known methods, as a context.

    Its settings are global to the process; on exit, the caller's are restored.
    """
    settings = _common.parsing_settings
    before = dict(settings)
    try:
        # Ignore what the caller allows: only the classes below count.
        settings["import_path_verdicts"] = {}
        set_parsing_settings(
            import_path_denylist=["*"],
            import_path_allowlist=sorted(_known_names()),
            instantiate_subclass_spec_in_any=False,
        )
        yield
    finally:
        settings.update(before)


def explain(message: str) -> str | None:
    """Return an explanation if the parser was about to import another class."""
    found = _DENIED.search(message)
    if found is None:
        return None
    name, module = found[1], found[1].rpartition(".")[0]
    if module in sys.modules:
        return f"method: {name} is not a subclass of s3h_ext.methods.Method"
    return (
        f"method: {name} is not part of s3h_ext. Its module was not imported, because "
        "that would run its code. If you trust it, give --method "
        f"{name} to train, and --import {module} to evaluate, predict "
        "and export; in Python, import it first"
    )
