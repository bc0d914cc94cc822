"""What the build takes: tools, nvcc, and what the op libraries may need."""

import importlib.util
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools

from python_tests.processes import python

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "tools" / "check_symbols.py"


@pytest.fixture
def build(monkeypatch):
    """The names of setup.py, which builds nothing here."""
    monkeypatch.setattr(setuptools, "setup", lambda **options: None)
    monkeypatch.setenv("S3H_CUDA", "off")
    return runpy.run_path(str(ROOT / "setup.py"))


def fake_tool(folder, name, says):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


def test_the_tool_of_the_environment_comes_before_that_of_the_system(
    build, tmp_path, monkeypatch
):
    old = fake_tool(tmp_path / "system", "cmake", "cmake version 3.16")
    monkeypatch.setenv("PATH", str(old.parent))
    own = fake_tool(tmp_path / "venv", "cmake", "cmake version 4.0")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv" / "python"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    assert build["find_tool"]("cmake") == str(own)
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    assert build["find_tool"]("cmake") == str(old)
    old.unlink()
    assert build["find_tool"]("cmake") == str(own)


@pytest.mark.parametrize(
    ("release", "taken"), [("11.8", False), ("12.0", True), ("13.0", True)]
)
def test_an_old_nvcc_is_not_taken(build, tmp_path, monkeypatch, release, taken):
    says = f"Cuda compilation tools, release {release}, V{release}.1"
    nvcc = fake_tool(tmp_path / "bin", "nvcc", says)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("S3H_CUDA", "auto")
    found, note = build["choose_cuda"]("2.13.0", "13.0")
    assert found == (str(nvcc) if taken else None)
    assert taken or "is of CUDA 11.8, older than 12.0" in note
    monkeypatch.setenv("S3H_CUDA", "on")
    if taken:
        assert build["choose_cuda"]("2.13.0", "13.0")[0] == str(nvcc)
    else:
        with pytest.raises(SystemExit, match="older than 12.0"):
            build["choose_cuda"]("2.13.0", "13.0")


REFUSES = r"""#!/bin/sh
[ "$1" = --version ] && { echo "Cuda compilation tools, release 13.0, V13.0"; exit; }
echo 'In file included from <command-line>:'
echo '/cuda/host.h:8:2: error: #error -- unsupported GNU version! gcc "16"; $no \n'
exit 1
"""


@pytest.fixture
def refusing_nvcc(tmp_path, monkeypatch):
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text(REFUSES)
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    return nvcc


def test_an_nvcc_that_refuses_the_compiler_leaves_the_cpu_library(
    build, refusing_nvcc, monkeypatch, capfd
):
    monkeypatch.setenv("S3H_CUDA", "auto")
    found, note = build["choose_cuda"]("2.13.0", "13.0")
    assert found is None
    assert f"{refusing_nvcc} does not compile: unsupported GNU version! gcc" in note
    assert "NVCC_CCBIN" in note
    assert "S3H_CUDA=off" in note
    assert not set('";$\\') & set(note)  # it becomes a macro, by way of CMake
    assert note in capfd.readouterr().err


def test_an_nvcc_that_refuses_the_compiler_fails_where_it_was_asked_for(
    build, refusing_nvcc, monkeypatch
):
    monkeypatch.setenv("S3H_CUDA", "on")
    with pytest.raises(SystemExit, match="unsupported GNU version") as raised:
        build["choose_cuda"]("2.13.0", "13.0")
    assert "NVCC_CCBIN=g++-12 S3H_CUDA=on pip install" in str(raised.value)
    assert "S3H_CUDA=off" in str(raised.value)


def test_another_compiler_is_another_configuration(build, tmp_path, monkeypatch):
    cache = tmp_path / "CMakeCache.txt"

    def kept(**variables):
        for name in ("CXX", "NVCC_CCBIN", "CMAKE_ARGS"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        cache.touch()
        build["forget_other_settings"](tmp_path)
        return cache.exists()

    assert not kept()
    assert kept()
    assert not kept(CXX="g++-13")
    assert kept(CXX="g++-13")
    assert not kept(CXX="g++-13", CMAKE_ARGS="-DS3H_LEVELS=")
    assert not kept()


def test_without_torch_the_build_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit, match="isolated build environment") as raised:
        runpy.run_path(str(ROOT / "setup.py"))
    assert "pip install 'torch>=2.11' 'setuptools>=77' wheel" in str(raised.value)
    assert "pip install --no-build-isolation ." in str(raised.value)


CUDA_STREAM = """
int aoti_torch_get_current_cuda_stream(int device, void** stream);
int use(void** stream) { return aoti_torch_get_current_cuda_stream(0, stream); }
"""


@pytest.mark.skipif(shutil.which("objdump") is None, reason="binutils are not here")
@pytest.mark.parametrize("linked", [True, False])
def test_a_name_of_torchs_cuda_library_needs_libtorch(tmp_path, linked):
    folder = Path(importlib.util.find_spec("torch").origin).parent / "lib"
    (tmp_path / "use.c").write_text(CUDA_STREAM)
    library = tmp_path / "use.so"
    compiler = shutil.which("cc") or shutil.which("gcc")
    command = [compiler, "-shared", "-fPIC", "-o", library, tmp_path / "use.c"]
    command += ["-Wl,--no-as-needed", folder / "libtorch_cpu.so"]
    subprocess.run([*command, *([folder / "libtorch.so"] * linked)], check=True)
    done = python(SCRIPT, library, status=0 if linked else 1)
    assert linked or "does not need libtorch.so" in done.stderr
