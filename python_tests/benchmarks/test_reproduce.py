"""The runner of a results table: what it runs, skips and goes on with."""

import json
import os
import signal
import time

import pytest

import benchmarks.reproduce
from benchmarks.reproduce import SUITES, environment, main, refuse, suite_presets
from python_tests.small_runs import SMALL
from s3h_ext.command_line import Parser
from s3h_ext.presets import preset_names

QUICK = "--suite digits-lt --methods ce --data.imbalance 100 --epochs 1".split()
QUICK += SMALL


def test_every_suite_has_presets_in_the_order_of_interest():
    for suite in SUITES:
        assert set(suite_presets(suite)) <= set(preset_names())
    first = suite_presets("cifar100-lt-if10")
    assert first[:2] == ["cifar100-lt/ce-if10", "cifar100-lt/hybrid-psc-if10"]
    assert "digits-lt/hybrid-psc" in suite_presets("digits-lt")


def test_what_is_done_is_left_alone_and_what_is_not_goes_on(tmp_path, capfd):
    arguments = [*QUICK, "--output", str(tmp_path)]
    assert main([*arguments, "--dry-run", "--seeds", "0", "1"]) == 0
    folders = [tmp_path / f"digits-lt-ce-seed{seed}" for seed in (0, 1)]
    said = capfd.readouterr().out.splitlines()
    assert said == [f"{folder}: to do" for folder in folders]
    assert main([*arguments, "--budget", "0.01"]) == 0
    assert "stopped, the budget is spent" in capfd.readouterr().out
    summary = tmp_path / "digits-lt-ce-seed0" / "summary.json"
    assert not summary.exists()
    assert main(arguments) == 0
    first = summary.read_bytes()
    assert json.loads(first)["epochs"] == 1
    assert main(arguments) == 0
    assert summary.read_bytes() == first
    assert f"{summary.parent}: done" in capfd.readouterr().out
    assert main([*arguments, "--precision", "auto"]) == 0
    assert main([*arguments, "--optim.lrr", "0.3"]) == 2
    assert main([*arguments, "--optim.lr", "0.3"]) == 1
    said = "finished with other options: optim.lr was 0.1, is 0.3"
    assert said in capfd.readouterr().err


def test_runs_go_side_by_side_and_each_prints_into_its_folder(tmp_path, capfd):
    arguments = [*QUICK, "--output", str(tmp_path), "--seeds", "0", "1"]
    assert main([*arguments, "--jobs", "2"]) == 0
    for seed in (0, 1):
        folder = tmp_path / f"digits-lt-ce-seed{seed}"
        assert json.loads((folder / "summary.json").read_text())["seed"] == seed
        assert f"in {folder}" in (folder / "console.log").read_text()
    assert "images/s" not in capfd.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments, "--jobs", "0"])


def test_runs_side_by_side_share_the_cpus(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)))
    assert environment(8)["OMP_NUM_THREADS"] == "2"
    assert environment(40)["OMP_NUM_THREADS"] == "1"
    assert "OMP_NUM_THREADS" not in environment(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert environment(8)["OMP_NUM_THREADS"] == "3"


def test_sigterm_ends_the_budget_and_runs_may_save(
    tmp_path, played, terminate_once, capfd
):
    played('touch "$2/saved"; exit 130')
    folders = [tmp_path / f"digits-lt-ce-seed{seed}" for seed in range(3)]
    before = signal.getsignal(signal.SIGTERM)
    many = ["--seeds", "0", "1", "2", "--jobs", "2", "--output", str(tmp_path)]
    with terminate_once(*(folder / "started" for folder in folders[:2])):
        assert main([*QUICK, *many]) == 0
    assert [(folder / "saved").exists() for folder in folders] == [True, True, False]
    assert capfd.readouterr().out.count("stopped, the budget is spent") == 3
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_that_does_not_stop_is_ended(tmp_path, played, monkeypatch, capfd):
    played("")
    monkeypatch.setattr(benchmarks.reproduce, "STOP_SECONDS", 0.5)
    folder, soon = tmp_path / "run", time.monotonic() + 2
    assert benchmarks.reproduce.train("digits-lt/ce", 0, folder, [], soon) is None
    assert (folder / "started").exists()
    assert "did not stop in 0.5 s" in capfd.readouterr().err


def test_a_failed_run_is_named_and_the_status_says_so(tmp_path, capfd):
    assert main([*QUICK, "--output", str(tmp_path), "--optim.lr", "-1"]) == 1
    error = capfd.readouterr().err
    assert "optim.lr: expected a finite number" in error
    assert "digits-lt-ce-seed0: failed" in error


def test_options_of_the_trainer_are_no_abbreviations(tmp_path, capfd):
    options = ["--suite", "digits-lt", "--methods", "ce", "--output", str(tmp_path)]
    assert main([*options, "--method", "BCL", "--dry-run"]) == 0
    assert "digits-lt-ce-seed0" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--seed", "1"], "--seed: expected --s"),
        (["--preset=digits-lt/ce"], "--preset: expected --s"),
        (["--methods", "ce", "hybird"], "expected some of"),
    ],
)
def test_options_that_are_not_the_trainer_s_to_get_are_refused(options, said, capsys):
    with pytest.raises(SystemExit):
        main(["--suite", "digits-lt", *options])
    assert said in capsys.readouterr().err


def test_another_spelling_is_refused_too(capsys):
    instead = {"--data.val_fraction": "--holdout"}
    with pytest.raises(SystemExit):
        refuse(Parser(prog="it"), ["--data.val-fraction=0.5"], instead)
    assert "--data.val-fraction: expected --holdout" in capsys.readouterr().err
