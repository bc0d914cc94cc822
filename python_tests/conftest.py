"""Common settings: reproducible draws, and skips that CI can turn into failures."""

import os
from pathlib import Path

import pytest
import torch

from python_tests.small_digits import FULL_SIDE, digits


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)


@pytest.fixture
def full_size_digits(monkeypatch):
    """The digits as users have them, for a test that is about their pixels."""
    monkeypatch.setattr(digits, "_SIDE", FULL_SIDE)


def pytest_collection_modifyitems(items):
    """Skips what is marked ``cuda`` where there is no GPU."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Makes a skip a failure where S3H_FAIL_ON_SKIP says so by its reason."""
    outcome = yield
    _fail_on_skip(outcome.get_result())


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector):
    """Does the same for a module that is skipped as a whole."""
    outcome = yield
    _fail_on_skip(outcome.get_result())


def _fail_on_skip(report):
    wanted = os.environ.get("S3H_FAIL_ON_SKIP", "")
    if report.skipped and not hasattr(report, "wasxfail") and wanted:
        reason = str(report.longrepr)
        if any(word in reason for word in wanted.split(",")):
            report.outcome = "failed"
            report.longrepr = f"skipped, but S3H_FAIL_ON_SKIP={wanted}: {reason}"


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """The folder of a short training on the built-in digits; not to be changed."""
    from s3h_ext.train import main

    folder = tmp_path_factory.mktemp("runs") / "digits run ü"
    options = (
        "--preset digits-lt/cb-ce --model.backbone resnet20 --batch_size 64 --epochs 2 "
        "--data.val_fraction 0.2 --device cpu --precision fp32 --report false"
    ).split()
    assert main([*options, "--output", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def data_root():
    """The folder of the real CIFAR archives, where it is there."""
    root = os.environ.get("S3H_DATA_ROOT")
    if root is None:
        pytest.skip("S3H_DATA_ROOT does not point to the CIFAR folders")
    return Path(root)
