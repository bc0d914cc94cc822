"""``tools/gpu_evidence.sh`` with an interpreter, a driver and tools that are played."""

import csv
import importlib
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TIMES = "tools/gpu_evidence_times.py"
# Says what it is asked to run; fails, or hangs, if that is in it. Libraries load after
# as many builds as it is told.
PYTHON = r"""#!/usr/bin/env bash
echo "${OMP_NUM_THREADS:-} $*" >>"$CALLS"
if [ "$1" = -c ]; then
  case $2 in
    *"x.loaded"*) built=$(grep -c "pip install --no-build" "$CALLS")
      [ "$built" -ge "${BUILDS:-0}" ] || { echo "no CUDA library" >&2; exit 1; } ;;
    *is_available*) exit "${NO_CUDA:-0}" ;;
    *nvidia.dali*) exit "${NO_DALI:-0}" ;;
  esac
  exit 0
fi
echo "said by $*"
if [[ "$*" == *benchmarks.reproduce* ]]; then
  while [ "$1" != --output ]; do shift; done
  ls "$2" && mkdir -p "$2/ce-seed${SEED:-0}/checkpoints" "$2/half/checkpoints"
  touch "$2/ce-seed${SEED:-0}/"{summary.json,checkpoints/a} "$2/half/checkpoints/a"
fi
[ -n "${FAIL:-}" ] && [[ "$*" == *"$FAIL"* ]] && exit 4
if [ -n "${HANG:-}" ] && [[ "$*" == *"$HANG"* ]]; then
  trap 'echo saved; exit 130' TERM
  for _ in {1..600}; do sleep 0.1; done
fi
exit 0
"""
TOOL = '#!/bin/sh\necho "$(basename "$0") $*" >>"$CALLS"\n'
DRIVER = '#!/bin/sh\n[ -z "$NO_GPU" ] && echo "NVIDIA played, 580.1"\n'


@pytest.fixture
def played(tmp_path):
    """Returns how to start the script in a checkout of its own."""
    tree = tmp_path / "tree"
    (tree / "tools").mkdir(parents=True)
    (tree / "s3h_ext").mkdir()
    (tree / "python_tests").mkdir()
    shutil.copy(ROOT / "tools/gpu_evidence.sh", tree / "tools")
    for name in ("test_a.py", "test_b.py"):
        (tree / "python_tests" / name).write_text("@pytest.mark.cuda\n")
    (tree / "python_tests" / "test_c.py").write_text("")
    tools = {"python": PYTHON, "nvidia-smi": DRIVER}
    tools |= dict.fromkeys(("ncu", "compute-sanitizer"), TOOL)
    for name, text in tools.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def start(*stages, **variables):
        places = {
            name.upper(): str(tmp_path / name) for name in ("python", "out", "calls")
        }
        path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        environment = os.environ | path | places | variables
        environment.pop("PLAYED", None)
        command = [str(tree / "tools/gpu_evidence.sh"), *stages]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, env=environment, **pipes)

    def run(*stages, **variables):
        process = start(*stages, **variables)
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    run.start, run.tree, run.out = start, tree, tmp_path / "out"
    run.calls = lambda: (tmp_path / "calls").read_text()
    return run


def families(calls):
    return [part.split()[0] for part in calls.split(TIMES)[1:]]


def test_the_first_stage_takes_values_and_times_first(played):
    status, out, err = played("a")
    assert status == 0, out + err
    calls = played.calls()
    assert "pip install" not in calls  # nothing was to be built
    order = (
        "ceilings similarity views prototypes stop sanitize sanitize profile sanitize"
    )
    assert families(calls) == order.split()
    lines = calls.splitlines()
    tests = [i for i, line in enumerate(lines) if "-m pytest" in line]
    tools = [i for i, line in enumerate(lines) if "compute-sanitizer" in line]
    times = [i for i, line in enumerate(lines) if f"{TIMES} prototypes" in line]
    assert times < tests[:1] < tools[:1]
    # A process for each file that has a test for a GPU.
    chosen = sorted(line.split()[-1] for line in lines if "-m pytest" in line)
    assert chosen == ["python_tests/test_a.py", "python_tests/test_b.py"]
    assert "python_tests/test_a.py: status 0, said by" in out
    assert "memcheck" in calls
    assert "racecheck" in calls
    assert "all steps passed" in (played.out / "summary.txt").read_text()
    assert "NVIDIA played" in (played.out / "machine.txt").read_text()
    assert len(list(played.out.iterdir())) <= 8


def test_what_fails_is_named_and_the_rest_goes_on(played):
    status, _, err = played("a", FAIL="test_a.py")
    assert status == 1
    assert "FAILED: " in err
    assert "test-files" in err
    assert "test_a.py: status 4" in (played.out / "tests.txt").read_text()
    assert "profile" in families(played.calls())


def test_libraries_that_do_not_load_are_built_once(played):
    assert played("a", BUILDS="1")[0] == 0
    calls = played.calls()
    assert calls.count("pip install --no-build-isolation") == 1
    assert calls.index("pip install") < calls.index(TIMES)


def test_a_build_that_fails_ends_the_visit(played):
    status, out, _ = played("a", BUILDS="1", FAIL="pip install")
    assert status == 3
    assert "no kernels, so there is nothing to see: no CUDA library" in out
    assert "said by -m pip install --no-build-isolation" in out  # its log
    assert not families(played.calls())


def test_libraries_that_were_brought_along_are_used(played):
    packed = played.tree / "build/gpu/lib"
    packed.mkdir(parents=True)
    subprocess.run(["gzip"], input=b"x", stdout=(packed / "_s3h_cuda.so.gz").open("wb"))
    assert played("a")[0] == 0
    library = played.tree / "s3h_ext/_s3h_cuda.so"
    assert library.read_bytes() == b"x"
    # Not in the place of one that was built since.
    library.write_bytes(b"newer")
    os.utime(packed / "_s3h_cuda.so.gz", (1, 1))
    assert played("a")[0] == 0
    assert library.read_bytes() == b"newer"


def shorten(played, old, new):
    script = played.tree / "tools/gpu_evidence.sh"
    text = script.read_text()
    assert old in text
    script.write_text(text.replace(old, new))


def test_tests_that_hang_are_ended_and_leave_their_logs(played):
    shorten(played, "step 170 tests.txt", "step 2 tests.txt")
    status, out, _ = played("a", HANG="test_b.py")
    assert status == 1
    assert "status 124" in out
    log = (played.out / "tests.txt").read_text()
    assert "said by -m pytest" in log
    assert "profile" in families(played.calls())


def test_a_step_that_hangs_is_ended_with_its_stage(played):
    shorten(played, "a) stage_seconds=540", "a) stage_seconds=8")
    began = time.monotonic()
    status, out, err = played("a", HANG="similarity")
    assert time.monotonic() - began < 60
    assert status == 1
    assert "saved" in (played.out / "times.txt").read_text()
    assert "no time left for: " in out
    assert "FAILED: " in err
    assert "views" not in families(played.calls())


def test_sigterm_reaches_the_step_and_nothing_follows(played):
    process = played.start("a", HANG="ceilings")
    log = played.out / "times.txt"
    deadline = time.monotonic() + 60
    while not (log.exists() and "said by" in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert "saved" in log.read_text()
    assert families(played.calls()) == ["ceilings"]


def test_the_second_stage_trains_decodes_and_builds(played):
    (played.tree / "s3h_ext/_s3h_cpu.so").touch()
    assert played("b")[0] == 0
    calls = played.calls()
    trained = calls.index("benchmarks.training_cuda --device cuda")
    decoded = calls.index("--data.source dali --device cuda")
    assert trained < decoded < calls.index("pip install --no-build-isolation")
    assert not list(played.tree.glob("s3h_ext/*.so"))  # by the build, played here


def test_without_dali_the_second_stage_says_so(played):
    status, out, _ = played("b", NO_DALI="1")
    assert status == 0
    assert "DALI is not installed" in out
    assert "--data.source" not in played.calls()


def test_a_batch_goes_on_where_the_last_one_stopped(played):
    assert played("batch", BATCH_ARGS="--methods ce")[0] == 0
    call = next(line for line in played.calls().splitlines() if "reproduce" in line)
    assert "--jobs 8 --budget 6.5" in call
    assert call.endswith("--methods ce")
    first = played.out / "runs.tgz.aa"

    def members():
        with tarfile.open(first) as archive:
            return {name.removeprefix("./") for name in archive.getnames()}

    assert {"ce-seed0/summary.json", "half/checkpoints/a"} <= members()
    assert "ce-seed0/checkpoints" not in members()  # a finished run needs none
    # As another machine gets it: beside the libraries.
    packed = played.tree / "build/gpu"
    packed.mkdir(parents=True)
    shutil.move(first, packed / first.name)
    assert played("batch", SEED="1")[0] == 0
    assert {"ce-seed0/summary.json", "ce-seed1/summary.json"} <= members()


def test_everything_without_a_limit(played):
    assert played("full", BENCHMARK_ARGS="--seconds 0.3")[0] == 0
    calls = played.calls()
    for name in "similarity_cuda views_cuda prototypes_cuda".split():
        assert f"benchmarks.{name} --device cuda --output {played.out} --sec" in calls
    assert "-k compile_full_graph" in calls
    assert "s3h_ext.train --device cuda --epochs 3" in calls


@pytest.mark.parametrize(
    ("missing", "said"),
    [("NO_GPU", "nvidia-smi finds no NVIDIA GPU"), ("NO_CUDA", "cannot use the GPU")],
)
def test_without_a_gpu_it_ends_at_once(played, missing, said):
    status, _, err = played("a", **{missing: "1"})
    assert status == 1
    assert said in err
    assert not families(played.calls() if missing == "NO_CUDA" else "")


def test_an_unknown_stage_is_named(played):
    status, _, err = played("c")
    assert status == 2
    assert "there is no stage c; there are prepare, a, b" in err


def times(monkeypatch, *arguments):
    """The program of the times, with a command line."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    monkeypatch.setattr(sys, "argv", ["it", *arguments, "--device", "cpu"])
    return importlib.import_module("gpu_evidence_times")


@pytest.mark.parametrize(
    "family", "ceilings similarity views prototypes profile sanitize stop".split()
)
def test_times_on_a_cpu(tmp_path, monkeypatch, family):
    assert times(monkeypatch, family, "--output", str(tmp_path)).main() == 0
    table = tmp_path / "evidence.csv"
    if family in ("profile", "sanitize", "stop"):
        assert not table.exists()
        return
    with table.open() as stream:
        rows = list(csv.DictReader(stream))
    assert {row["right"] for row in rows} == {"True"}
    assert all(float(row["eager_ms"]) > 0 for row in rows)
    assert {row["gpu"] for row in rows} != {""}


def test_the_times_are_a_program(tmp_path):
    command = [sys.executable, str(ROOT / TIMES), "stop", "--device", "cpu"]
    plain = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run(command, cwd=tmp_path, env=plain, check=True)


def test_wrong_values_have_no_time(tmp_path, monkeypatch, capsys):
    program = times(monkeypatch, "prototypes", "--output", str(tmp_path))
    monkeypatch.setattr(program, "wrong_ours", lambda *_: ["s3h_ext"])
    assert program.main() == 1
    assert "WRONG" in capsys.readouterr().out
    with (tmp_path / "evidence.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    assert row["right"] == "False"
    assert row["eager_ms"] == row["graph_ms"] == "nan"
