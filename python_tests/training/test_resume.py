"""When a run goes on, when it is refused, and what it needs for that."""

import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

from python_tests.small_runs import QUICK, assert_same_weights, losses_of, trainer_of
from s3h_ext.runs.checkpoint import CheckpointError, load_checkpoint
from s3h_ext.runs.folder import RunFolder
from s3h_ext.train import main
from s3h_ext.training.state import check_together

HOLDER = """
import sys
from pathlib import Path
from s3h_ext.runs.folder import RunFolder
RunFolder(Path(sys.argv[1])).lock()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def first_stage(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first") / "run"
    assert main([*QUICK, "--epochs", "1", "--output", str(folder)]) == 0
    return folder


@pytest.fixture
def elsewhere(tmp_path):
    """Another process that trains in a folder, until it is told to end."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.communicate()


def test_a_folder_where_another_process_trains_is_refused(tmp_path, elsewhere, capsys):
    for more in ([], ["--resume"]):
        assert main([*QUICK, "--output", str(tmp_path), *more]) == 2
        assert "another process is training in" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    elsewhere.communicate()
    assert main([*QUICK, "--epochs", "1", "--output", str(tmp_path)]) == 0


def test_a_process_may_train_again_where_it_does(tmp_path):
    def refused():
        command = [sys.executable, "-c", HOLDER, str(tmp_path)]
        return subprocess.run(command, input=b"", capture_output=True).returncode

    RunFolder(tmp_path).lock()
    RunFolder(tmp_path).lock()
    assert refused()
    RunFolder(tmp_path).unlock()
    assert not refused()
    RunFolder(tmp_path).unlock()


def test_an_evaluation_that_fails_costs_no_training(tmp_path, monkeypatch):
    whole = trainer_of(tmp_path / "whole")
    whole.fit()
    broken = trainer_of(tmp_path / "parts")

    def fail(split):
        raise OSError("no image")

    monkeypatch.setattr(broken, "evaluate", fail)
    with pytest.raises(OSError, match="no image"):
        broken.fit()
    steps = broken.source.steps_per_epoch
    (path,) = (tmp_path / "parts" / "checkpoints").glob("*.safetensors")
    assert load_checkpoint(path)["unfinished_epoch"]["steps"] == steps
    rest = trainer_of(tmp_path / "parts", resume=True)
    trained = []
    step = rest._step
    monkeypatch.setattr(rest, "_step", lambda *given: trained.append(1) or step(*given))
    rest.fit()
    assert len(trained) == steps  # those of the second epoch
    assert_same_weights(rest.method.state_dict(), whole.method.state_dict())
    assert rest.state.images_trained == whole.state.images_trained
    assert losses_of(rest) == losses_of(whole)


def test_a_second_stage_goes_on_without_its_first(tmp_path, first_stage):
    first = tmp_path / "first"
    shutil.copytree(first_stage, first)
    arguments = ["--method", "ClassifierRetraining", "--init_from", str(first)]
    run = trainer_of(tmp_path / "second", *arguments)
    run.epochs = 1
    run.fit()
    first.rename(tmp_path / "moved")
    rest = trainer_of(tmp_path / "second", *arguments, resume=True)
    summary = rest.fit()
    assert rest.state.epochs_done == 2
    assert summary["first_stage"].startswith("digits-lt/ce (")
    with pytest.raises(CheckpointError, match="init_from: .* has no valid"):
        trainer_of(tmp_path / "other", *arguments)


def test_an_unfinished_first_stage_is_refused(tmp_path):
    first = trainer_of(tmp_path / "first")
    first.epochs = 1
    first.fit()
    message = "init_from: expected a finished run, got .*, which has done 1 of 2 epochs"
    with pytest.raises(CheckpointError, match=message):
        trainer_of(tmp_path / "second", "--init_from", str(tmp_path / "first"))


def test_processes_that_go_on_from_different_places_are_refused(tmp_path):
    world = SimpleNamespace(gather=lambda place: [place, (0, 0)])
    message = "got epoch 1, step 3; epoch 0, step 0 as the newest"
    state = {"epochs_done": 1, "unfinished_epoch": {"steps": 3}}
    with pytest.raises(CheckpointError, match=message):
        check_together(world, state, RunFolder(tmp_path))
    # One process without a checkpoint.
    world = SimpleNamespace(gather=lambda place: [place, (2, 0)])
    with pytest.raises(CheckpointError, match="got epoch 0, step 0; epoch 2, step 0"):
        check_together(world, None, RunFolder(tmp_path))
