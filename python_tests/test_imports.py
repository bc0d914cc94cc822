"""Imports point one way, and the operations bring nothing along."""

import pytest

from python_tests.processes import python

FOREIGN = (
    *("s3h_ext.data.", "s3h_ext.training.", "s3h_ext.models.", "s3h_ext.methods."),
    *("torch._dynamo.", "nvidia.dali.", "matplotlib.", "sklearn.", "jsonargparse."),
    "tensorboard.",
)


@pytest.mark.parametrize("module", ["s3h_ext.ops", "s3h_ext.losses"])
def test_import_brings_nothing_along(module):
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = python("-c", code).stdout.split()
    assert not [name for name in loaded if f"{name}.".startswith(FOREIGN)]


def test_package_itself_imports_nothing():
    python("-c", "import sys, s3h_ext; assert 'torch' not in sys.modules")
