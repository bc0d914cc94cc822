"""What the tests of programs that start trainings share."""

import os
import signal
import sys
import threading
import time
from contextlib import contextmanager

import pytest


@pytest.fixture(autouse=True)
def _small_digits(monkeypatch):
    monkeypatch.setattr("benchmarks.reproduce.PROGRAM", "python_tests.small_digits")


@pytest.fixture
def played(tmp_path, monkeypatch):
    """Puts a program in the trainings' place that does on SIGTERM what it is given."""

    def put(on_terminate):
        program = tmp_path / "played"
        program.write_text(
            "#!/usr/bin/env bash\n"
            'while [ "$1" != --output ]; do shift; done\n'
            f"trap '{on_terminate}' TERM\n"
            'mkdir -p "$2"; touch "$2/started"\n'
            "for _ in {1..600}; do sleep 0.1; done\n"
        )
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))

    return put


@pytest.fixture
def terminate_once():
    """Sends this process SIGTERM as soon as all of some files are there."""

    @contextmanager
    def during(*files):
        def terminate():
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:
                if all(file.exists() for file in files):
                    break
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGTERM)

        thread = threading.Thread(target=terminate)
        thread.start()
        yield
        thread.join()

    return during
