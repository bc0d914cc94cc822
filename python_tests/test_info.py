"""The info page names what is there and why something is not."""

import pytest
import torch

from python_tests.ops.conftest import LEVELS
from python_tests.processes import python
from s3h_ext import __version__, info
from s3h_ext.ops._library import NativeLibrary


def test_describe_names_versions_and_what_is_built():
    lines = info.describe()
    assert lines["s3h_ext"] == __version__
    assert lines["torch"] == torch.__version__
    assert lines["CPU kernels"].startswith("built")
    assert lines["CPU dispatch level"].split()[0] in LEVELS
    built = info.CUDA_LIBRARY_PATH.is_file()
    assert lines["CUDA kernels"].startswith("built" if built else "not built")
    assert ("sm_" in lines["CUDA archs"]) == built


@pytest.mark.parametrize("there", [True, False])
def test_cuda_kernels_without_a_cuda_torch(monkeypatch, tmp_path, there):
    library = tmp_path / "_s3h_cuda.so"
    if there:
        library.touch()
    monkeypatch.setattr(info, "CUDA", None)
    monkeypatch.setattr(info, "CUDA_LIBRARY_PATH", library)
    text = info.describe()["CUDA kernels"]
    assert ("this PyTorch has no CUDA" in text) == there
    assert ("plain PyTorch" in text) != there


def test_cuda_kernels_that_do_not_load_are_explained(monkeypatch, tmp_path):
    library = tmp_path / "_s3h_cuda.so"
    library.write_bytes(b"not a library")
    monkeypatch.setattr(info, "CUDA", NativeLibrary(library))
    text = info.describe()["CUDA kernels"]
    assert "every call fails" in text
    assert "invalid ELF header" in text or "file too short" in text


def test_missing_library_is_explained(monkeypatch, tmp_path):
    monkeypatch.setattr(info, "CPU", type(info.CPU)(tmp_path / "_none.so"))
    lines = info.describe()
    assert "pip install --no-build-isolation" in lines["CPU kernels"]


def test_entry_point_prints_every_line():
    printed = python("-m", "s3h_ext.info").stdout
    for label in info.describe():
        assert label in printed
