"""``python -m s3h_ext.info``: versions, what is built, and why parts are missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
from collections.abc import Sequence

from s3h_ext.command_line import info_parser

if __name__ == "__main__":
    info_parser().parse_args()  # before PyTorch is imported

import torch

from s3h_ext import __version__
from s3h_ext.ops._library import CPU, CUDA, CUDA_LIBRARY_PATH

_FALLBACK = "operations on CUDA tensors run as chunked plain PyTorch"


def _dali() -> str:
    for package in ("nvidia-dali-cuda130", "nvidia-dali-cuda120"):
        try:
            return f"{importlib.metadata.version(package)} ({package})"
        except importlib.metadata.PackageNotFoundError:
            continue
    return (
        "not installed: pip install 's3h-ext[dali-cuda13]' (or [dali-cuda12]); "
        "it runs without a GPU too"
    )


def _gpu() -> str:
    if torch.version.cuda is None:
        return "none: this PyTorch is built without CUDA"
    if not torch.cuda.is_available():
        return f"none found; torch is built for CUDA {torch.version.cuda}"
    names = []
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        names.append(f"{torch.cuda.get_device_name(index)} (sm_{major}{minor})")
    return ", ".join(names)


def _cuda_kernels() -> str:
    how = CPU.text("s3h_cuda_build") if CPU.loaded else "nothing was built"
    if CUDA is not None and CUDA.loaded:
        return f"built ({how}), {CUDA.path}"
    if CUDA is not None:
        return f"built ({how}), but every call fails: {CUDA.error}"
    if CUDA_LIBRARY_PATH.is_file():
        return f"built ({how}), not loaded: this PyTorch has no CUDA"
    return f"not built ({how}): {_FALLBACK}"


def describe() -> dict[str, str]:
    """Return what ``python -m s3h_ext.info`` prints, by label.

    Example:
        >>> describe()["s3h_ext"] == __version__
        True
    """
    lines = {
        "s3h_ext": __version__,
        "python": f"{platform.python_version()} ({platform.platform()})",
        "torch": torch.__version__,
        "threads": str(torch.get_num_threads()),
    }
    if CPU.loaded:
        lines["CPU kernels"] = f"built, {CPU.path}"
        lines["built with"] = CPU.text("s3h_built_with")
        lines["CPU dispatch level"] = (
            f"{CPU.text('s3h_cpu_dispatch_level')} "
            f"(built: {CPU.text('s3h_cpu_built_levels')}; "
            f"torch uses {torch.backends.cpu.get_cpu_capability()})"
        )
    else:
        lines["CPU kernels"] = f"missing: {CPU.error}"
    lines["CUDA kernels"] = _cuda_kernels()
    lines["CUDA archs"] = CPU.text("s3h_cuda_archs") if CPU.loaded else "none"
    lines["GPU"] = _gpu()
    lines["DALI"] = _dali()
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Print :func:`describe`."""
    info_parser().parse_args(arguments)
    lines = describe()
    width = max(map(len, lines))
    for label, text in lines.items():
        print(f"{label:<{width}}  {text}")


if __name__ == "__main__":
    main()
