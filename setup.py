"""Builds the native libraries with CMake and Ninja; see CMakeLists.txt.

Environment:
    S3H_CUDA: auto (default: where nvcc is found and torch has CUDA), on or off.
    TORCH_CUDA_ARCH_LIST: GPU architectures, "8.0;9.0+PTX" where unset.
    CUDA_HOME: the CUDA toolkit.
    NVCC_CCBIN: the C++ compiler that nvcc calls, its own choice where unset.
    CXX: the C++ compiler.
    CMAKE_ARGS: further options of CMake's configuration.
    S3H_WERROR: 1 lets a compiler's warning stop the build.
    MAX_JOBS: compile jobs, Ninja's own choice where unset.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
INSTALL_LINE = "pip install --no-build-isolation ."
BUILD_TOOLS = "'setuptools>=77' wheel pybind11 cmake ninja"
MIN_TORCH = (2, 11)
MIN_NVCC = (12, 0)  # the first with C++20


def find_torch() -> tuple[Path, str, str | None]:
    """Returns the installed torch package's directory, version and CUDA version."""
    try:
        import torch
    except ImportError:
        raise SystemExit(
            "s3h_ext builds against the torch you have, and none is importable "
            "here. pip's isolated build environment hides it. Run:\n\n"
            f"    pip install 'torch>=2.11' {BUILD_TOOLS}\n"
            f"    {INSTALL_LINE}\n"
        ) from None
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    if (major, minor) < MIN_TORCH:
        raise SystemExit(
            f"s3h_ext needs torch >= 2.11, found {torch.__version__}. Run:\n\n"
            f"    pip install -U 'torch>=2.11' && {INSTALL_LINE}\n"
        )
    return Path(torch.__file__).resolve().parent, torch.__version__, torch.version.cuda


def find_tool(name: str) -> str:
    """Returns the path of a build tool beside this interpreter or on PATH."""
    beside = Path(sys.executable).parent / name
    # A virtual environment has the version that was asked for.
    own = sys.prefix != sys.base_prefix and beside.is_file()
    found = str(beside) if own else shutil.which(name)
    if found is None and beside.is_file():
        found = str(beside)
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


def nvcc_version(nvcc: str) -> tuple[int, int] | None:
    """Returns nvcc's version, None where it does not say."""
    run = subprocess.run([nvcc, "--version"], capture_output=True, text=True)
    found = re.search(r"release (\d+)\.(\d+)", run.stdout)
    return (int(found[1]), int(found[2])) if found else None


@functools.cache
def refusal(nvcc: str) -> str | None:
    """Returns why nvcc compiles nothing, None where it does.

    It refuses a host compiler that is newer than it knows, for example.
    """
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "try.cu"
        source.write_text("#include <cstdint>\n__global__ void kernel() {}\n")
        run = subprocess.run(
            [nvcc, "-std=c++20", "-c", str(source), "-o", f"{folder}/try.o"],
            capture_output=True,
            text=True,
        )
    if run.returncode == 0:
        return None
    lines = (run.stdout + run.stderr).strip().splitlines()
    said = next((line for line in lines if "error" in line), *lines[-1:] or ["no word"])
    # "/path:8:2: error: #error -- unsupported GNU version! gcc versions later ..."
    said = re.sub(r"^.*?error\s*:\s*(#error\s*(-- )?)?", "", said)
    return re.sub(r'["\\;$]', " ", said)[:200]  # it goes through CMake


def choose_cuda(torch_version: str, torch_cuda: str | None) -> tuple[str | None, str]:
    """Returns nvcc to build the CUDA kernels with, or None, and why.

    ``auto`` builds where they can be used: with an nvcc that works, for a torch that
    has CUDA.
    """
    wish = os.environ.get("S3H_CUDA", "auto")
    if wish not in ("auto", "on", "off"):
        raise SystemExit(f"S3H_CUDA must be auto, on or off, got {wish!r}")
    asked = f"S3H_CUDA={wish}"
    if wish == "off":
        return None, asked
    nvcc = find_nvcc()
    if wish == "on" and nvcc is None:
        raise SystemExit(
            "S3H_CUDA=on, but nvcc is neither in $CUDA_HOME/bin nor on the PATH nor "
            "in /usr/local/cuda/bin. Install the CUDA toolkit"
            + (f" {torch_cuda}" if torch_cuda else "")
            + " or say where it is, then run:\n\n"
            f"    CUDA_HOME=/path/to/cuda S3H_CUDA=on {INSTALL_LINE}\n\n"
            "Or build without the CUDA kernels: S3H_CUDA=off\n"
        )
    if nvcc is None:
        return None, f"{asked}, nvcc not found"
    if wish == "auto" and torch_cuda is None:
        return None, f"{asked}, torch {torch_version} has no CUDA"
    version = nvcc_version(nvcc)
    if version is not None and version < MIN_NVCC:
        old = f"{nvcc} is of CUDA {version[0]}.{version[1]}, older than 12.0"
        if wish == "on":
            raise SystemExit(
                f"S3H_CUDA=on, but {old}. Say where a newer toolkit is, then run:\n\n"
                f"    CUDA_HOME=/path/to/cuda S3H_CUDA=on {INSTALL_LINE}\n"
            )
        return None, f"{asked}, {old}"
    refused = refusal(nvcc)
    if refused is not None:
        if wish == "on":
            raise SystemExit(
                f"S3H_CUDA=on, but {nvcc} does not compile: {refused}\n\n"
                "Name a C++ compiler that it takes, for example g++-12, then run:\n\n"
                f"    NVCC_CCBIN=g++-12 S3H_CUDA=on {INSTALL_LINE}\n\n"
                "Or build without the CUDA kernels: S3H_CUDA=off\n"
            )
        note = (
            f"{asked}, {nvcc} does not compile: {refused} (NVCC_CCBIN names a C++ "
            "compiler that it takes, S3H_CUDA=off leaves it alone)"
        )
        print(f"s3h_ext: no CUDA kernels: {note}", file=sys.stderr)
        return None, note
    return nvcc, asked


def forget_other_settings(build: Path) -> None:
    """Removes CMake's cache of another configuration.

    CMake would refuse that of a checkout that was moved, and keep an old compiler.
    """
    names = ("CXX", "NVCC_CCBIN", "CMAKE_ARGS")
    settings = "".join(f"{name}={os.environ.get(name, '')}\n" for name in names)
    settings += f"{ROOT}\n"
    record = build / "settings.txt"
    if not record.is_file() or record.read_text(encoding="utf-8") != settings:
        (build / "CMakeCache.txt").unlink(missing_ok=True)
        record.write_text(settings, encoding="utf-8")


class CMakeBuild(build_ext):
    """One library per extension, under the file name CMake gives it."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", os.sep) + ".so"

    def build_extension(self, ext: Extension) -> None:
        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        torch_path, torch_version, torch_cuda = find_torch()
        nvcc, note = choose_cuda(torch_version, torch_cuda)
        # In the tree and not in pip's temporary folder: a second build compiles
        # only what changed, and compile_commands.json stays for the editor.
        build = ROOT / "build" / f"cmake-torch-{torch_version}"
        build.mkdir(parents=True, exist_ok=True)
        forget_other_settings(build)
        output.mkdir(parents=True, exist_ok=True)
        if nvcc is None:  # what another setting has left here would be loaded
            (output / "_s3h_cuda.so").unlink(missing_ok=True)
        # Not by default: a compiler of tomorrow warns of what today's do not.
        werror = "ON" if os.environ.get("S3H_WERROR") == "1" else "OFF"
        cmake = find_tool("cmake")
        configure = [
            cmake,
            *("-G", "Ninja", "-S", str(ROOT), "-B", str(build)),
            f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DS3H_OUTPUT_DIR={output}",
            f"-DS3H_TORCH_DIR={torch_path}",
            f"-DS3H_TORCH_VERSION={torch_version}",
            f"-DS3H_CUDA={'ON' if nvcc else 'OFF'}",
            f"-DS3H_CUDA_NOTE={note}",
            f"-DS3H_WARNINGS_AS_ERRORS={werror}",
            f"-Dpybind11_DIR={pybind11_directory()}",
            f"-DPython_EXECUTABLE={sys.executable}",
        ]
        if nvcc:
            configure.append(f"-DCMAKE_CUDA_COMPILER={nvcc}")
        configure += shlex.split(os.environ.get("CMAKE_ARGS", ""))
        jobs = os.environ.get("MAX_JOBS")
        target = ext.name.rpartition("._")[2]
        compile_ = [cmake, "--build", str(build), "--target", target]
        if jobs:
            compile_ += ["-j", jobs]
        subprocess.run(configure, check=True)
        subprocess.run(compile_, check=True)


class FreshPython(build_py):
    """Without what an earlier build left, such as modules that are deleted since."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib) / "s3h_ext", ignore_errors=True)
        super().run()


def extensions() -> list[Extension]:
    nvcc, _ = choose_cuda(*find_torch()[1:])
    names = ["_s3h_cpu", "_s3h_host", *(["_s3h_cuda"] if nvcc else [])]
    return [Extension(f"s3h_ext.{name}", sources=[]) for name in names]


setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": CMakeBuild, "build_py": FreshPython},
)
