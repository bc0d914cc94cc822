"""Common settings: reproducible draws, and skips that CI can turn into failures."""

import os

import pytest
import torch


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)


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
    report = outcome.get_result()
    wanted = os.environ.get("S3H_FAIL_ON_SKIP", "")
    if report.skipped and not hasattr(report, "wasxfail") and wanted:
        reason = str(report.longrepr)
        if any(word in reason for word in wanted.split(",")):
            report.outcome = "failed"
            report.longrepr = f"skipped, but S3H_FAIL_ON_SKIP={wanted}: {reason}"
