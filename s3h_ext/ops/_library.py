"""Declares the ``s3h`` operator namespace and loads the native libraries into it.

Schemas are defined in Python, so importing, fake tensors and documentation work without
any binary. If a native library does not load, importing succeeds; the error is kept and
raised when one of its kernels is first called.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

# torch.library and torch.ops have no type annotations.
registry: Any = torch.library
LIBRARY: Any = registry.Library("s3h", "DEF")
_FOLDER = Path(__file__).resolve().parent.parent
CPU_LIBRARY_PATH = _FOLDER / "_s3h_cpu.so"
CUDA_LIBRARY_PATH = _FOLDER / "_s3h_cuda.so"


class NativeLibrary:
    """A shared library of kernels, or the reason why it could not be loaded.

    Attributes:
        path: where the library is expected.
        error: why it could not be loaded; None if it is loaded.
    """

    def __init__(self, path: Path) -> None:
        """Try to load ``path`` and keep the outcome."""
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
            # torch's message only names the path; the loader's names the missing
            # symbol.
            cause = error.__cause__
            self.error = cause if isinstance(cause, OSError) else error

    @property
    def loaded(self) -> bool:
        """Whether the kernels can be called."""
        return self.error is None

    def text(self, symbol: str) -> str:
        """Return the string of the C function ``const char* symbol()``.

        Raises:
            RuntimeError: the library is not loaded.
        """
        if self._symbols is None:
            raise self.failure()
        function = self._symbols[symbol]
        function.restype = ctypes.c_char_p
        return str(function().decode())

    def require(self) -> None:
        """Raise early the error that the first kernel call would raise.

        Raises:
            ImportError: the library is not loaded.
        """
        if not self.loaded:
            raise ImportError(str(self.failure())) from self.error

    def failure(self) -> RuntimeError:
        """Return the error to raise at a call, with its cause attached."""
        error = RuntimeError(
            f"the native library {self.path.name} is not available: {self.error}"
        )
        error.__cause__ = self.error
        return error

    def fail(self, *args: Any, **kwargs: Any) -> Any:
        """Raise :meth:`failure` in place of a kernel."""
        raise self.failure()


def load_cuda(path: Path = CUDA_LIBRARY_PATH) -> NativeLibrary | None:
    """Load the library of CUDA kernels, or keep the reason why that failed.

    Returns:
        The library, or None if it was not built or torch has no CUDA.
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
    """Register an implementation of each operator for each dispatch key.

    If a library is installed, its kernels are used. If it does not load, every call
    raises its error: running something slower in its place would hide it. Without a
    library, the portable implementation is used (:mod:`s3h_ext.ops.plain`).

    Args:
        libraries: the library of each dispatch key; None if there is none.
        operators: portable implementation of each operator, or None.
    """
    has_kernel: Any = torch._C._dispatch_has_kernel_for_dispatch_key
    for key, library in libraries.items():
        for name, plain in operators.items():
            if library is not None and not library.loaded:
                LIBRARY.impl(name, library.fail, key)
            elif plain is not None and not has_kernel(f"s3h::{name}", key):
                LIBRARY.impl(name, plain, key)


def count_changes(*operators: str) -> None:
    """Bump the version of the arguments that ``operators`` write to, in every call.

    Autograd rejects a backward through a tensor that was modified after its use. It
    detects that by the tensor's version, which a library's operators must bump
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
