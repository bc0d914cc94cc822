"""Builds the native libraries with CMake and Ninja; see CMakeLists.txt.

Environment:
    S3H_CUDA: auto (default), on or off.
    S3H_WERROR: 0 builds with warnings that do not stop the build.
    MAX_JOBS: compile jobs, Ninja's own choice where unset.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
INSTALL_LINE = "pip install --no-build-isolation ."
MIN_TORCH = (2, 11)


def torch_directory() -> tuple[Path, str]:
    """Returns the installed torch package's directory and version."""
    try:
        import torch
    except ImportError:
        raise SystemExit(
            "s3h_ext builds against the torch you have, and none is importable "
            "here. pip's isolated build environment hides it; install torch "
            "first (pip install 'torch>=2.11'), then run:\n\n"
            f"    {INSTALL_LINE}\n"
        ) from None
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    if (major, minor) < MIN_TORCH:
        raise SystemExit(
            f"s3h_ext needs torch >= 2.11, found {torch.__version__}. Run:\n\n"
            f"    pip install -U 'torch>=2.11' && {INSTALL_LINE}\n"
        )
    return Path(torch.__file__).resolve().parent, torch.__version__


def find_tool(name: str) -> str:
    """Returns the path of a build tool on PATH or beside this interpreter."""
    beside = Path(sys.executable).parent / name
    found = shutil.which(name) or (str(beside) if beside.is_file() else None)
    if found is None:
        raise SystemExit(
            f"s3h_ext needs {name} to build. Run:\n\n"
            f"    pip install {name} && {INSTALL_LINE}\n"
        )
    return found


def pybind11_directory() -> str:
    """Returns where pybind11 keeps its CMake files."""
    try:
        import pybind11
    except ImportError:
        raise SystemExit(
            "s3h_ext needs pybind11 to build. Run:\n\n"
            f"    pip install 'pybind11>=2.13' && {INSTALL_LINE}\n"
        ) from None
    return pybind11.get_cmake_dir()


def find_nvcc() -> str | None:
    """Returns nvcc's path: from CUDA_HOME, from PATH or from the usual folder."""
    home = os.environ.get("CUDA_HOME")
    places = [f"{home}/bin/nvcc"] if home else []
    places += ["nvcc", "/usr/local/cuda/bin/nvcc"]
    return next(filter(None, map(shutil.which, places)), None)


def cuda_note() -> str:
    """Returns what to record about CUDA, after checking ``S3H_CUDA``."""
    wish = os.environ.get("S3H_CUDA", "auto")
    if wish not in ("auto", "on", "off"):
        raise SystemExit(f"S3H_CUDA must be auto, on or off, got {wish!r}")
    if wish == "on":
        raise SystemExit(
            "S3H_CUDA=on, but this version has no CUDA kernels to build: on CUDA "
            "the operations run as plain PyTorch. Use S3H_CUDA=auto or off."
        )
    nvcc = "found" if find_nvcc() else "not found"
    return f"this version has no CUDA kernels (S3H_CUDA={wish}, nvcc {nvcc})"


class CMakeBuild(build_ext):
    """One library per extension, under the file name CMake gives it."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", os.sep) + ".so"

    def build_extension(self, ext: Extension) -> None:
        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        torch_path, torch_version = torch_directory()
        # In the tree and not in pip's temporary folder: a second build compiles
        # only what changed, and compile_commands.json stays for the editor.
        build = ROOT / "build" / f"cmake-torch-{torch_version}"
        build.mkdir(parents=True, exist_ok=True)
        output.mkdir(parents=True, exist_ok=True)
        werror = "OFF" if os.environ.get("S3H_WERROR") == "0" else "ON"
        cmake = find_tool("cmake")
        configure = [
            cmake,
            *("-G", "Ninja", "-S", str(ROOT), "-B", str(build)),
            f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DS3H_OUTPUT_DIR={output}",
            f"-DS3H_TORCH_DIR={torch_path}",
            f"-DS3H_TORCH_VERSION={torch_version}",
            f"-DS3H_CUDA_NOTE={cuda_note()}",
            f"-DS3H_WARNINGS_AS_ERRORS={werror}",
            f"-Dpybind11_DIR={pybind11_directory()}",
            f"-DPython_EXECUTABLE={sys.executable}",
        ]
        target = ext.name.rpartition("._")[2]
        jobs = os.environ.get("MAX_JOBS")
        compile_ = [cmake, "--build", str(build), "--target", target]
        if jobs:
            compile_ += ["-j", jobs]
        subprocess.run(configure, check=True)
        subprocess.run(compile_, check=True)


torch_directory()
setup(
    ext_modules=[
        Extension(f"s3h_ext.{name}", sources=[]) for name in ("_s3h_cpu", "_s3h_host")
    ],
    cmdclass={"build_ext": CMakeBuild},
)
