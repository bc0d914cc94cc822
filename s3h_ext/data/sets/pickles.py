"""A pickle machine without power: no imports, no calls but those it is given.

Python's own C unpickler follows every instruction of a file it does not trust: it
allocates what a length field claims, hashes keys that take 2**n steps, grows its memo
to any index. This one knows the instructions that plain data need and no others, works
on a file already in memory, so that no claimed length exceeds what is there, and takes
only names and numbers as keys.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["PlainUnpickler", "RefusedGlobalError"]


class RefusedGlobalError(pickle.UnpicklingError):
    """The pickle asks for a global that is not in the table."""


_OPCODES = (
    *(pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK),
    *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BINFLOAT),
    *(pickle.INT, pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1),
    *(pickle.STRING, pickle.BINSTRING, pickle.SHORT_BINSTRING),
    *(pickle.BINBYTES, pickle.SHORT_BINBYTES, pickle.BINBYTES8),
    *(pickle.UNICODE, pickle.BINUNICODE, pickle.SHORT_BINUNICODE, pickle.BINUNICODE8),
    *(pickle.EMPTY_LIST, pickle.LIST, pickle.APPEND, pickle.APPENDS),
    *(pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
    *(pickle.EMPTY_DICT, pickle.DICT, pickle.SETITEM, pickle.SETITEMS),
    *(pickle.PUT, pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE),
    *(pickle.GET, pickle.BINGET, pickle.LONG_BINGET),
    *(pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.REDUCE, pickle.BUILD),
    *(pickle.PERSID, pickle.BINPERSID),
)


class _Dispatch(dict[int, Callable[..., None]]):
    def __missing__(self, opcode: int) -> Callable[..., None]:
        raise pickle.UnpicklingError(f"instruction {bytes([opcode])!r}")


class PlainUnpickler(pickle._Unpickler):
    """Reads a pickle of dictionaries, lists, tuples, strings and numbers.

    Time and memory are linear in the size of the pickle. Its containers may hold one
    another, and themselves: whoever walks through them has to count the steps.

    Args:
        content: The pickle.
        allowed: (module, name) -> what stands for it. A REDUCE may call it, and a BUILD
            may set the state of what it returns; both are the stand-in's own code.
        encoding: Of Python 2's strings; ``"bytes"`` leaves them as they are.

    Raises:
        RefusedGlobalError: by ``load``, the pickle asks for another global.
        Exception: by ``load``, almost any other: the pickle is broken.
    """

    # Of the base class, whose stub leaves them out.
    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]
    readline: Callable[[], bytes]

    def __init__(
        self,
        content: bytes,
        allowed: Mapping[tuple[str, str], object],
        *,
        encoding: str = "ASCII",
    ) -> None:
        super().__init__(io.BytesIO(content), encoding=encoding, fix_imports=False)
        self._allowed = allowed

    def find_class(self, module: str, name: str) -> Any:
        """Returns the stand-in for a global."""
        try:
            return self._allowed[module, name]
        except KeyError:
            raise RefusedGlobalError(f"{module}.{name}"[:200]) from None

    def _load_global(self) -> None:
        module, name = self.readline(), self.readline()
        if not name.endswith(b"\n"):
            raise EOFError("in the name of a global")
        self.append(self.find_class(module[:-1].decode(), name[:-1].decode()))

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise pickle.UnpicklingError(f"items set on {type(target).__name__}")
        if len(items) % 2:
            raise pickle.UnpicklingError("key without a value")
        for key in items[::2]:
            # The hash of a tuple of tuples can take for ever.
            if not isinstance(key, (str, bytes, int)):
                raise pickle.UnpicklingError(f"key of type {type(key).__name__}")
        target.update(zip(items[::2], items[1::2], strict=True))

    def _load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def _load_setitems(self) -> None:
        self._set_items(self.pop_mark())

    def _load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._set_items(items)

    dispatch = _Dispatch(
        {
            **{code[0]: pickle._Unpickler.dispatch[code[0]] for code in _OPCODES},
            pickle.GLOBAL[0]: _load_global,
            pickle.SETITEM[0]: _load_setitem,
            pickle.SETITEMS[0]: _load_setitems,
            pickle.DICT[0]: _load_dict,
        }
    )
