"""Asking for huge pages: when, how often, and that a process stays itself."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from python_tests.processes import python
from python_tests.small_runs import QUICK
from s3h_ext import huge_pages

PAGES = "glibc.malloc.hugetlb=1"
ARENAS = "glibc.malloc.arena_max"
BOTH = f"{PAGES}:{ARENAS}=1"
NEW = huge_pages._glibc() >= (2, 35)
glibc = pytest.mark.skipif(not NEW, reason="needs glibc 2.35 or newer")


@pytest.fixture
def kernel(monkeypatch, tmp_path):
    """A kernel in mode madvise, glibc 2.36, no GPU; returns what sets the mode."""
    path = tmp_path / "enabled"

    def set_mode(mode):
        words = ("always", "madvise", "never")
        path.write_text(" ".join(f"[{w}]" if w == mode else w for w in words) + "\n")

    set_mode("madvise")
    monkeypatch.setattr(huge_pages, "_KERNEL", path)
    monkeypatch.setattr(huge_pages, "_glibc", lambda: (2, 36))
    monkeypatch.setattr(huge_pages, "_GPUS", (tmp_path / "nvidia0",))
    return set_mode


@pytest.mark.parametrize(
    ("environment", "tunables"),
    [
        ({}, BOTH),
        ({"MALLOC_ARENA_MAX": "4"}, PAGES),
        ({"GLIBC_TUNABLES": f"{ARENAS}=2"}, f"{ARENAS}=2:{PAGES}"),
        ({"GLIBC_TUNABLES": "glibc.malloc.check=0"}, f"glibc.malloc.check=0:{BOTH}"),
        ({"S3H_HUGE_PAGES": "1"}, BOTH),
        ({"S3H_HUGE_PAGES": ""}, BOTH),
    ],
)
def test_what_is_there_is_kept(kernel, environment, tunables):
    before = {"HOME": "/home", **environment}
    asking = huge_pages.asking(before)
    assert asking == {**before, "GLIBC_TUNABLES": tunables, "S3H_HUGE_PAGES": "asked"}
    assert huge_pages.asking(asking) is None
    del asking["GLIBC_TUNABLES"]  # as the loader does for programs with privileges
    assert huge_pages.asking(asking) is None


@pytest.mark.parametrize(
    "environment",
    [
        {"S3H_HUGE_PAGES": "0"},
        {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"},
        {"GLIBC_TUNABLES": "glibc.malloc.check=0:glibc.malloc.hugetlb=2"},
    ],
)
def test_a_decision_is_left_alone(kernel, environment):
    assert huge_pages.asking(environment) is None


def test_a_program_that_runs_this_one_is_not_started_again(kernel, monkeypatch):
    kernel("madvise")
    monkeypatch.setattr(sys, "orig_argv", ["python", "host.py"])
    monkeypatch.setattr(sys, "argv", ["train", "--device", "cpu"])
    monkeypatch.setattr(os, "execve", lambda *arguments: pytest.fail("started again"))
    huge_pages.restart(sys.argv[1:])


def test_it_takes_a_kernel_and_a_library_that_can(kernel, monkeypatch):
    for mode, wanted in (("always", True), ("madvise", True), ("never", False)):
        kernel(mode)
        assert (huge_pages.asking({}) is not None) == wanted
    assert "not requested; the kernel's mode is never" in huge_pages.describe()
    kernel("madvise")
    for version in ((2, 34), (0,)):
        monkeypatch.setattr(huge_pages, "_glibc", lambda version=version: version)
        assert huge_pages.asking({}) is None
    monkeypatch.setattr(huge_pages, "_glibc", lambda: (2, 36))
    huge_pages._KERNEL.unlink()
    assert huge_pages.asking({}) is None


@pytest.mark.parametrize("text", [None, "", "musl 1.2", "glibc 2.41.9000"])
def test_versions_of_the_library(monkeypatch, text):
    def confstr(name):
        if text == "":
            raise ValueError(name)
        return text

    monkeypatch.setattr(os, "confstr", confstr)
    assert huge_pages._glibc() == ((2, 41) if text and "glibc" in text else (0,))


@pytest.mark.parametrize(
    ("arguments", "gpu_there", "expected"),
    [
        ([], False, False),
        ([], True, True),
        (["--device", "cpu"], True, False),
        (["--device=cuda:1"], False, True),
        (["--device", "cuda", "--device", "cpu"], True, False),
        (["--config", "cpu.yaml"], True, False),
        (["--config=cpu.yaml", "--device", "cuda"], True, True),
        (["--config", "missing.yaml"], True, True),
        (["--config"], True, True),
    ],
)
def test_a_run_on_a_gpu_is_left_alone(
    kernel, monkeypatch, tmp_path, arguments, gpu_there, expected
):
    monkeypatch.chdir(tmp_path)
    Path("cpu.yaml").write_text("epochs: 3\ndevice: cpu\noptim: {lr: 1}\n")
    if gpu_there:
        Path("nvidia0").touch()
    assert huge_pages._on_gpu(arguments, {}) == expected
    assert not huge_pages._on_gpu([], {"CUDA_VISIBLE_DEVICES": ""})


PROGRAM = """
import json, os, sys
from pathlib import Path
from s3h_ext import huge_pages
huge_pages._KERNEL = Path(sys.argv[1])
names = ("GLIBC_TUNABLES", "S3H_HUGE_PAGES", "KEPT")
print(json.dumps([os.getpid(), sys.argv[2:], sys.flags.utf8_mode,
                  {name: os.environ.get(name) for name in names}]), flush=True)
if "forget" in sys.argv:
    os.environ.pop("GLIBC_TUNABLES", None)
huge_pages.restart(sys.argv[2:])
print(sys.stdin.read())
assert "torch" not in sys.modules
"""


def plain():
    """The environment without a decision on pages and arenas."""
    decision = re.compile("GLIBC_|MALLOC_|S3H_HUGE")
    return {name: v for name, v in os.environ.items() if not decision.match(name)}


def start(tmp_path, *arguments, **environment):
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    (tmp_path / "program.py").write_text(PROGRAM)
    process = subprocess.Popen(
        [sys.executable, "-X", "utf8", "program.py", "enabled", *arguments],
        cwd=tmp_path,
        env={
            **plain(),
            "KEPT": "ü",
            "PYTHONPATH": str(Path(huge_pages.__file__).parent.parent),
            **environment,
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    out, _ = process.communicate("typed", timeout=60)
    assert process.returncode == 0
    *starts, rest = out.splitlines()
    assert rest == "typed"
    return process.pid, [json.loads(line) for line in starts]


@glibc
@pytest.mark.parametrize("forget", [False, True])
def test_the_process_starts_again_once_and_stays_itself(tmp_path, forget):
    arguments = ["--device=cpu", "two words", *(["forget"] if forget else [])]
    pid, starts = start(tmp_path, *arguments)
    assert len(starts) == 2
    for number, (own, seen, utf8, environment) in enumerate(starts):
        assert (own, seen, utf8) == (pid, arguments, 1)
        assert environment["GLIBC_TUNABLES"] == (BOTH if number else None)
        assert environment["KEPT"] == "ü"


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        (["--device=cpu"], {"S3H_HUGE_PAGES": "0"}),
        (["--device=cpu"], {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}),
        (["--device=cuda"], {}),
    ],
)
def test_a_process_that_need_not_start_again_does_not(tmp_path, arguments, environment):
    _, starts = start(tmp_path, *arguments, **environment)
    assert len(starts) == 1


@glibc
def test_a_training_asks_and_says_so(tmp_path):
    options = ["--epochs", "1", "--output", tmp_path]
    python("-m", "s3h_ext.train", *QUICK, *options, env=plain())
    log = (tmp_path / "train.log").read_text()
    asked = huge_pages.asking(plain())
    assert log.count("huge pages: ") == 1
    assert (f"huge pages: GLIBC_TUNABLES={BOTH}" in log) == (asked is not None)


def test_importing_the_library_changes_nothing():
    code = (
        "import os; before = dict(os.environ); import s3h_ext.train, "
        "s3h_ext.training.trainer; assert dict(os.environ) == before"
    )
    python("-c", code, env=plain())
