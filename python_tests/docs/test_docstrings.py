"""The examples in docstrings."""

import doctest
import importlib
import pkgutil

import pytest

import s3h_ext

MODULES = [
    module.name
    for module in pkgutil.walk_packages(s3h_ext.__path__, "s3h_ext.")
    # Native libraries, and what runs when it is imported.
    if "._s3h_" not in module.name and not module.name.endswith("__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_are_true(name, full_size_digits):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
