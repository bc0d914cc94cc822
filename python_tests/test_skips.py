"""A skip that CI does not allow is a failure, of a test and of a whole module."""

import os
from pathlib import Path

import pytest

from python_tests.processes import python

ROOT = Path(__file__).resolve().parents[1]
TEST = "import pytest\n\ndef test():\n    pytest.importorskip('no_such_module')\n"
MODULE = "import pytest\npytest.importorskip('no_such_module')\n"


@pytest.mark.parametrize(("text", "failed"), [(TEST, 1), (MODULE, 2)])
@pytest.mark.parametrize("reason", ["could not import", "another reason"])
def test_a_skip_fails_by_its_reason(tmp_path, text, failed, reason):
    status = failed if reason == "could not import" else 0
    (tmp_path / "test_it.py").write_text(text)
    # Of a module all of whose tests are skipped nothing is left to run.
    (tmp_path / "test_more.py").write_text("def test():\n    pass\n")
    options = ["-q", "-p", "python_tests.conftest", "-c", os.devnull]
    environment = os.environ | {"S3H_FAIL_ON_SKIP": reason, "PYTHONPATH": str(ROOT)}
    where = {"cwd": tmp_path, "env": environment, "status": status}
    python("-m", "pytest", *options, "--rootdir", ".", ".", **where)
