"""The info page names what is there and why something is not."""

import subprocess
import sys

import torch

from s3h_ext import __version__, info


def test_describe_names_versions_and_what_is_built():
    lines = info.describe()
    assert lines["s3h_ext"] == __version__
    assert lines["torch"] == torch.__version__
    assert lines["CPU kernels"].startswith("built")
    assert lines["CPU dispatch level"].split()[0] in {
        "baseline",
        "avx2",
        "avx512",
        "avx512_bf16",
    }
    assert "plain PyTorch" in lines["CUDA kernels"]


def test_missing_library_is_explained(monkeypatch, tmp_path):
    monkeypatch.setattr(info, "CPU", type(info.CPU)(tmp_path / "_none.so"))
    lines = info.describe()
    assert "pip install --no-build-isolation" in lines["CPU kernels"]


def test_entry_point_prints_every_line():
    printed = subprocess.run(
        [sys.executable, "-m", "s3h_ext.info"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for label in info.describe():
        assert label in printed
