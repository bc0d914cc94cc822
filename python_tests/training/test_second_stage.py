"""Methods that start from a finished run."""

import json
import shutil

import pytest
import torch

from python_tests.small_runs import QUICK, train
from s3h_ext.runs.checkpoint import CheckpointError
from s3h_ext.train import main


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first")
    trainer, _ = train(folder, "--epochs", "1")
    return folder, trainer


def second(folder, finished_run, *arguments):
    return train(folder, "--init_from", str(finished_run[0]), *arguments)


def test_crt_trains_a_new_classifier_on_the_first_runs_backbone(tmp_path, finished_run):
    retraining = ["--method", "ClassifierRetraining"]
    trainer, summary = second(tmp_path, finished_run, *retraining)
    assert summary["method"] == "crt"
    assert summary["first_stage"].startswith("digits-lt/ce (")
    first = finished_run[1].method.model.state_dict()
    for name, value in trainer.method.model.state_dict().items():
        # Batch norm's statistics stay too.
        assert torch.equal(value, first[name]) == name.startswith("backbone."), name


def test_tau_normalisation_rescales_and_trains_nothing(tmp_path, finished_run):
    tau = ["--method", "TauNormalization", "--method.tau"]
    trainer, summary = second(tmp_path, finished_run, *tau, "1.0")
    assert summary["method"] == "tau-norm"
    weight = finished_run[1].method.model.classifier.weight
    expected = torch.nn.functional.normalize(weight, dim=1)
    torch.testing.assert_close(trainer.method.model.classifier.weight, expected)
    assert trainer.state.history[0]["test_top1"] == summary["top1"]
    again, repeated = second(tmp_path / "kept", finished_run, *tau, "0")
    assert torch.equal(again.method.model.classifier.weight, weight)
    assert repeated["epochs"] == 0


def test_a_second_stage_without_a_first_is_refused(tmp_path, capsys):
    arguments = [*QUICK, "--output", str(tmp_path / "run"), "--method"]
    assert main([*arguments, "ClassifierRetraining"]) == 2
    said = "init_from: ClassifierRetraining is a second stage"
    assert said in capsys.readouterr().err
    assert main([*arguments, "TauNormalization", "--init_from", str(tmp_path)]) == 2
    assert "has no valid checkpoint" in capsys.readouterr().err


def test_a_first_stage_that_has_seen_what_is_held_out_is_refused(
    tmp_path, finished_run
):
    arguments = ["--method", "TauNormalization", "--data.val_fraction", "0.3"]
    with pytest.raises(CheckpointError, match="expected the same data.val_fraction"):
        second(tmp_path / "all", finished_run, *arguments)
    assert not (tmp_path / "all").exists()
    train(tmp_path / "first", "--epochs", "1", "--data.val_fraction", "0.3")
    first = tmp_path / "first", None
    second(tmp_path / "same", first, *arguments)
    with pytest.raises(CheckpointError, match="and data.split_seed in both"):
        second(tmp_path / "other", first, *arguments, "--data.split_seed", "1")


def test_a_first_run_on_other_classes_is_refused(tmp_path, finished_run):
    card = json.loads((finished_run[0] / "dataset.json").read_text())
    shutil.copytree(finished_run[0], tmp_path / "first")
    card["classes"].reverse()
    (tmp_path / "first" / "dataset.json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match="init_from: expected a run on the class"):
        train(tmp_path / "second", "--init_from", str(tmp_path / "first"))
