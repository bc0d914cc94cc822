"""Imports point one way, and the operations bring nothing along."""

import subprocess
import sys

import pytest

FOREIGN = (
    "s3h_ext.data",
    "s3h_ext.training",
    "s3h_ext.models",
    "s3h_ext.methods",
    "torch._dynamo",
    "nvidia.dali",
    "matplotlib",
    "sklearn",
    "jsonargparse",
    "tensorboard",
)


@pytest.mark.parametrize("module", ["s3h_ext.ops", "s3h_ext.losses"])
def test_import_brings_nothing_along(module):
    code = f"import sys, {module}; print(*sys.modules, sep='\\n')"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    found = [
        name
        for name in loaded
        if any(name == top or name.startswith(top + ".") for top in FOREIGN)
    ]
    assert not found


def test_package_itself_imports_nothing():
    code = "import sys, s3h_ext; assert 'torch' not in sys.modules; print('fine')"
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert printed.strip() == "fine"
