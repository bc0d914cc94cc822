"""``make gpu-check`` with an interpreter and a driver that are played."""

import os
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DEFAULT = (
    "build info tests benchmark-similarity benchmark-views benchmark-prototypes "
    "benchmark-training training-cuda profile train"
).split()
# Says what it is asked to run; fails, or hangs, if that is in it.
PYTHON = """#!/usr/bin/env bash
if [ "$1" = -c ]; then
  [[ "$2" != *find_spec* ]] || echo "${MISSING:-}"
  exit "${NO_CUDA:-0}"
fi
echo "$*" >>"$CALLS"
echo "said by $2"
[ -n "${FAIL:-}" ] && [[ "$*" == *"$FAIL"* ]] && exit 3
if [ -n "${HANG:-}" ] && [[ "$*" == *"$HANG"* ]]; then
  trap 'echo saved; exit 130' TERM
  for _ in {1..600}; do sleep 0.1; done
fi
exit 0
"""


@pytest.fixture
def played(tmp_path):
    """Returns how to start the check, and where it says and leaves what."""
    for name, text in (
        ("python", PYTHON),
        ("nvidia-smi", '#!/bin/sh\n[ -z "$NO_GPU" ] && echo "GPU 0: played"\n'),
    ):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def start(**variables):
        environment = {
            **os.environ,
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "OUT": str(tmp_path / "out"),
            "CALLS": str(tmp_path / "calls"),
            **variables,
        }
        return subprocess.Popen(
            [str(ROOT / "tools/gpu_check.sh"), str(tmp_path / "python")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(**variables):
        process = start(**variables)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    run.start, run.folder = start, tmp_path
    return run


def logs(played):
    found = {path.stem for path in (played.folder / "out").glob("*.log")}
    return found - {"gpu"}


def test_all_default_steps_run_in_order(played):
    status, out, _ = played()
    assert status == 0
    assert [line.split()[1][:-1] for line in out.splitlines() if "== " in line] == (
        DEFAULT
    )
    assert logs(played) == set(DEFAULT)
    assert "said by benchmarks.training_cuda" in out
    assert "all steps passed on GPU 0: played" in out
    calls = (played.folder / "calls").read_text()
    assert "reproduce" not in calls
    for line in calls.splitlines():
        if "benchmarks." in line:
            assert f"--output {played.folder / 'out'}" in line


def test_steps_are_chosen_and_results_are_one_of_them(played):
    variables = {"STEPS": "profile results", "RESULTS_ARGS": "--budget 9 --methods ce"}
    assert played(**variables)[0] == 0
    profile, results = (played.folder / "calls").read_text().splitlines()
    assert profile.startswith("-m benchmarks.profile_step")
    assert "--seeds 0 1 2 --jobs 8" in results
    assert results.endswith("--budget 9 --methods ce")
    assert logs(played) == {"profile", "results"}


def test_options_of_a_benchmark(played):
    steps = "benchmark-similarity benchmark-training"
    assert played(STEPS=steps, BENCHMARK_ARGS="--rows 256 512")[0] == 0
    similarity, training = (played.folder / "calls").read_text().splitlines()
    assert similarity.endswith("--rows 256 512")
    assert "--rows" not in training


def test_a_step_that_fails_is_named_and_the_rest_goes_on(played):
    status, out, err = played(FAIL="-m pytest ")
    assert status == 1
    assert "gpu-check: FAILED: tests (logs in" in err
    assert logs(played) == set(DEFAULT)
    assert "all steps passed" not in out


def test_an_unknown_step_is_named_and_the_rest_goes_on(played):
    status, _, err = played(STEPS="inof info")
    assert status == 1
    assert "STEPS: there is no step inof; there are build info tests" in err
    assert logs(played) == {"info"}


def test_a_step_that_hangs_is_ended_and_the_rest_goes_on(played):
    status, out, err = played(STEPS="info train", HANG="info", STEP_SECONDS="1")
    assert status == 1
    assert "FAILED: info" in err
    assert "saved" in (played.folder / "out" / "info.log").read_text()
    assert "said by s3h_ext.train" in out


def test_sigterm_reaches_the_step_and_nothing_follows(played):
    process = played.start(STEPS="info train", HANG="info")
    log = played.folder / "out" / "info.log"
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if log.exists() and "said by" in log.read_text():
            break
        time.sleep(0.1)
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 143
    assert "saved" in log.read_text()
    assert logs(played) == {"info"}


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("NO_GPU", "nvidia-smi finds no NVIDIA GPU"),
        ("NO_CUDA", "cannot use the GPU"),
        ("MISSING", "lacks 1; nothing was checked"),
    ],
)
def test_without_what_it_needs_it_fails_at_once(played, missing, said):
    status, _, err = played(**{missing: "1"})
    assert status == 1
    assert said in err
    assert not logs(played)
