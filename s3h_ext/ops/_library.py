"""Declares the ``s3h`` operator namespace and loads the native libraries into it.

Schemas are defined in Python, so importing, fake tensors and documentation work
without any binary. A native library that does not load is not an import error: its
cause is kept here and raised when one of its kernels is first called.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

# torch.library and torch.ops carry no annotations.
registry: Any = torch.library
LIBRARY: Any = registry.Library("s3h", "DEF")
_FOLDER = Path(__file__).resolve().parent.parent
CPU_LIBRARY_PATH = _FOLDER / "_s3h_cpu.so"
CUDA_LIBRARY_PATH = _FOLDER / "_s3h_cuda.so"


class NativeLibrary:
    """A shared library with kernels, or the reason why it is not there.

    Attributes:
        path: where the library is expected.
        error: what went wrong while loading it; None where it is loaded.
    """

    def __init__(self, path: Path) -> None:
        """Tries to load ``path`` and keeps the outcome."""
        self.path = path
        self.error: Exception | None = None
        self._symbols: ctypes.CDLL | None = None
        if not path.is_file():
            self.error = FileNotFoundError(
                f"{path} does not exist: the package was not built. "
                "Run: pip install --no-build-isolation -e ."
            )
            return
        try:
            operators: Any = torch.ops
            operators.load_library(str(path))
            self._symbols = ctypes.CDLL(str(path))
        except (OSError, RuntimeError) as error:
            # torch's own says no more than the path; the loader's names the symbol.
            cause = error.__cause__
            self.error = cause if isinstance(cause, OSError) else error

    @property
    def loaded(self) -> bool:
        """Whether the kernels can be called."""
        return self.error is None

    def text(self, symbol: str) -> str:
        """Returns the string of the C function ``const char* symbol()``.

        Raises:
            RuntimeError: the library is not loaded.
        """
        if self._symbols is None:
            raise self.failure()
        function = self._symbols[symbol]
        function.restype = ctypes.c_char_p
        return str(function().decode())

    def require(self) -> None:
        """Raises at the start of a program what its first kernel would raise.

        Raises:
            ImportError: the library is not loaded.
        """
        if not self.loaded:
            raise ImportError(str(self.failure())) from self.error

    def failure(self) -> RuntimeError:
        """Returns the error to raise at a call, its cause attached."""
        error = RuntimeError(
            f"the native library {self.path.name} is not available: {self.error}"
        )
        error.__cause__ = self.error
        return error

    def fail(self, *args: Any, **kwargs: Any) -> Any:
        """Stands in for a kernel: raises :meth:`failure`."""
        raise self.failure()


def load_cuda(path: Path = CUDA_LIBRARY_PATH) -> NativeLibrary | None:
    """Returns the library of CUDA kernels, loaded or with the reason why not.

    Returns:
        None where there is nothing to load: it was not built, or torch has no CUDA.
    """
    if torch.version.cuda is None or not path.is_file():
        return None
    return NativeLibrary(path)


CPU = NativeLibrary(CPU_LIBRARY_PATH)
CUDA = load_cuda()


LIBRARIES: Mapping[str, NativeLibrary | None] = {"CPU": CPU, "CUDA": CUDA}


def implement(
    libraries: Mapping[str, NativeLibrary | None] = LIBRARIES,
    /,
    **operators: Callable[..., Any] | None,
) -> None:
    """Gives operators their implementation under each dispatch key.

    The kernel that a library has registered serves. A library that does not load raises
    its error at every call: running something slower in its place would hide it. Where
    there is no library, the portable form serves (:mod:`s3h_ext.ops.plain`).

    Args:
        libraries: by dispatch key; None where there is nothing to load.
        operators: the portable form of each operator; None if it has none.
    """
    has_kernel: Any = torch._C._dispatch_has_kernel_for_dispatch_key
    for key, library in libraries.items():
        for name, plain in operators.items():
            if library is not None and not library.loaded:
                LIBRARY.impl(name, library.fail, key)
            elif plain is not None and not has_kernel(f"s3h::{name}", key):
                LIBRARY.impl(name, plain, key)


def count_changes(*operators: str) -> None:
    """Counts each call's changes of the arguments that ``operators`` write into.

    Autograd refuses a backward through a tensor that was changed after its use; it
    knows a change by the tensor's version, which a library's operators must raise
    themselves.
    """
    for operator in operators:
        _count_changes(getattr(torch.ops.s3h, operator).default, operator)


def _count_changes(overload: Any, operator: str) -> None:
    written = [
        place
        for place, argument in enumerate(overload._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    functions: Any = torch._C

    def kernel(keys: Any, *arguments: Any) -> Any:
        torch.autograd.graph.increment_version([arguments[place] for place in written])
        with functions._AutoDispatchBelowADInplaceOrView():
            below = keys & functions._after_ADInplaceOrView_keyset
            return overload.redispatch(below, *arguments)

    LIBRARY.impl(operator, kernel, "ADInplaceOrView", with_keyset=True)
