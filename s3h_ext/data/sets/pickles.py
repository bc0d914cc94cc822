"""Reads pickles of plain data without executing what a pickle could.

A pickle may call anything, claim lengths beyond its size, grow the memo to any index,
and request hashes of nested tuples that take 2**n steps. So its instructions are
scanned before Python's unpickler sees them: only those for plain data are allowed,
lengths must not exceed the file, nor memo indices its size, and tuples are few. The
unpickler can then resolve only the given names.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Mapping
from typing import Any

__all__ = ["RefusedGlobalError", "load_plain"]

_INSTRUCTIONS = frozenset(
    """
    PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BINFLOAT INT BININT BININT1 BININT2
    LONG1 STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 UNICODE
    BINUNICODE SHORT_BINUNICODE BINUNICODE8 EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE
    TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT SETITEM SETITEMS PUT BINPUT LONG_BINPUT
    MEMOIZE GET BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD
    """.split()
)
# A numpy array needs six. The hash of 20 nested ones takes a million steps.
_MOST_TUPLES = 20


class RefusedGlobalError(pickle.UnpicklingError):
    """The pickle asks for a global that is not in the table."""


class _Unpickler(pickle.Unpickler):
    def __init__(
        self, content: bytes, allowed: Mapping[tuple[str, str], object]
    ) -> None:
        # Keep strings of Python 2 as bytes.
        super().__init__(io.BytesIO(content), encoding="bytes", fix_imports=False)
        self._allowed = allowed

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._allowed[module, name]
        except KeyError:
            raise RefusedGlobalError(f"{module}.{name}"[:200]) from None


def load_plain(content: bytes, allowed: Mapping[tuple[str, str], object]) -> Any:
    """Read a pickle of dictionaries, lists, tuples, strings and numbers.

    Time and memory are linear in its size. Containers may hold one another and
    themselves, so code that walks through them must limit its steps. ``allowed`` maps
    (module, name) to a stand-in; the pickle may call it and set the state of the
    result, and both run only the stand-in's code.

    Raises:
        RefusedGlobalError: the pickle asks for another global.
        Exception: of almost any type if the pickle is broken.
    """
    tuples = 0
    for instruction, argument, _ in pickletools.genops(content):
        name = instruction.name
        if name not in _INSTRUCTIONS:
            raise pickle.UnpicklingError(f"instruction {name}")
        if name.endswith("PUT") and not 0 <= int(argument or 0) <= len(content):
            raise pickle.UnpicklingError(f"{name} of {argument}")
        tuples += name.startswith("TUPLE")
    if tuples > _MOST_TUPLES:
        raise pickle.UnpicklingError(f"{tuples} tuples")
    return _Unpickler(content, allowed).load()
