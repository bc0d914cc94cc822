"""Whole trainings, small: the built-in digits and a small network."""

import csv
from dataclasses import replace

import pytest
import torch
import yaml

from python_tests.small_runs import (
    QUICK,
    assert_same_weights,
    newest_state,
    summary_of,
    train,
    trainer_of,
)
from s3h_ext.data import load_dataset
from s3h_ext.data.views.recipes import RECIPES, Recipe
from s3h_ext.methods import Hybrid
from s3h_ext.ops.view_constraints import RandomResizedCrop
from s3h_ext.report.analysis import try_analysis
from s3h_ext.runs.checkpoint import (
    CheckpointError,
)
from s3h_ext.train import main
from s3h_ext.training.finite import DivergedError
from s3h_ext.training.optimizer import learning_rate
from s3h_ext.training.runlog import SilentLog

SUMMARY_KEYS = {
    *("preset", "dataset", "imbalance", "method", "seed", "epochs", "top1", "many"),
    *("medium", "few", "best_top1", "seconds", "images_per_second", "device"),
    *("precision", "versions"),
}


@pytest.mark.parametrize("preset", ["ce", "hybrid-sc", "hybrid-psc"])
def test_a_run_leaves_everything_about_it(tmp_path, capsys, preset):
    folder = tmp_path / "run"
    epochs = 2 if preset == "ce" else 1
    options = ["--preset", f"digits-lt/{preset}", "--epochs", str(epochs)]
    assert main([*QUICK, *options, "--output", str(folder)]) == 0
    table = capsys.readouterr().out
    assert "many  medium" in table
    summary = summary_of(folder)
    assert summary.keys() >= SUMMARY_KEYS
    assert summary["preset"] == f"digits-lt/{preset}"
    assert summary["method"] == preset
    assert summary["imbalance"] == 100
    for name in ("top1", "many", "medium", "few", "best_top1"):
        assert 0 <= summary[name] <= 100
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"][:epochs]
    assert float(rows[-1]["test_top1"]) == pytest.approx(summary["top1"])
    assert yaml.safe_load((folder / "config.yaml").read_text())["epochs"] == epochs
    assert list((folder / "tensorboard").iterdir())
    assert len((folder / "per_class.csv").read_text().splitlines()) == 11


def test_training_learns(tmp_path):
    _, summary = train(tmp_path, "--data.imbalance", "20", "--epochs", "10")
    # 2 of 10 classes are 'many'; a network that learned nothing is at 10.
    assert summary["many"] > 85
    assert summary["top1"] > 20


def test_the_same_seed_gives_the_same_bits_and_another_does_not(tmp_path):
    first, second, other = (
        train(tmp_path / name, "--epochs", "1", "--seed", seed)[0]
        for name, seed in (("a", "1"), ("b", "1"), ("c", "2"))
    )
    assert_same_weights(second.method.state_dict(), first.method.state_dict())
    weights = (each.method.model.backbone.conv1.weight for each in (first, other))
    assert not torch.equal(*weights)


def test_crops_that_met_no_constraint_are_reported_at_the_end(tmp_path, monkeypatch):
    never = RandomResizedCrop(scale=(0.9, 1.0), ratio=(5.0, 10.0), tries=1)
    monkeypatch.setitem(RECIPES, "never", Recipe(crop=never))
    train(tmp_path / "a", "--method.recipe", "never", "--epochs", "1")
    log = (tmp_path / "a" / "train.log").read_text()
    assert "354 of 354 crops drawn for 'train' since step 0" in log
    train(tmp_path / "b", "--epochs", "1")
    assert "crops" not in (tmp_path / "b" / "train.log").read_text()


def test_a_method_without_analysis_costs_no_copy_of_the_images(tmp_path, monkeypatch):
    trainer = trainer_of(tmp_path)
    monkeypatch.setattr(trainer.feed, "evaluation", None)
    batches = trainer.train_batches()
    how = {"precision": trainer.precision, "device": trainer.device}
    try_analysis(trainer.folder, trainer.method, batches, trainer.dataset, **how)
    with pytest.raises(TypeError):  # only now
        next(batches)


def test_a_folder_with_a_run_is_not_overwritten(tmp_path, capsys):
    run = [*QUICK, "--epochs", "1", "--output", str(tmp_path)]
    assert main(run) == 0
    before = (tmp_path / "summary.json").read_text()
    for more, said in (
        ([], "already holds a run; add --resume"),
        (["--resume", "--seed", "5"], "seed was 0, is 5"),
    ):
        assert main([*run, *more]) == 2
        assert said in capsys.readouterr().err
    assert (tmp_path / "summary.json").read_text() == before


def test_default_output_folders_do_not_collide(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main([*QUICK, "--epochs", "1"]) == 0
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert names == ["digits-lt-ce-seed0", "digits-lt-ce-seed0-2"]


def test_resume_with_other_data_is_refused_and_leaves_the_run_as_it_was(tmp_path):
    dataset = load_dataset("digits-lt", imbalance=100)
    train(tmp_path, "--epochs", "1", dataset=dataset)
    before = {path: path.read_bytes() for path in tmp_path.glob("*.*")}
    other = replace(dataset, mean=(0.5, 0.5, 0.5))
    message = r"data\.root: expected the data of .*dataset\.json, got .*: pixels' mean "
    with pytest.raises(CheckpointError, match=message):
        trainer_of(tmp_path, "--epochs", "1", dataset=other, resume=True)
    assert {path: path.read_bytes() for path in tmp_path.glob("*.*")} == before
    # Older runs left no card.
    (tmp_path / "dataset.json").unlink()
    trainer_of(tmp_path, "--epochs", "1", dataset=other, resume=True)


@pytest.mark.parametrize("name", ["own", "digits-lt"])
def test_a_data_set_of_ones_own_has_the_factor_of_its_counts(tmp_path, name):
    dataset = replace(load_dataset("digits-lt", imbalance=50), name=name)
    _, summary = train(tmp_path, "--epochs", "1", dataset=dataset)
    counts = dataset.class_counts
    assert summary["dataset"] == name
    assert summary["imbalance"] == counts.max() / counts.min() != 100


def test_held_out_images_are_what_epochs_are_compared_on(tmp_path):
    trainer, summary = train(tmp_path, "--data.val_fraction", "0.2")
    history = trainer.state.history
    assert summary["best_split"] == "val"
    assert summary["val_top1"] == history[-1]["val_top1"]
    assert not any(name.startswith("test_") for row in history for name in row)
    assert summary["best_top1"] == max(row["val_top1"] for row in history)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path):
    trainer = trainer_of(tmp_path)
    loss, steps = trainer.method.loss, []

    def spoiled(batch):
        steps.append(1)
        terms = loss(batch)
        return {"loss": terms["loss"] * float("nan")} if len(steps) == 9 else terms

    trainer.method.loss = spoiled
    with pytest.raises(DivergedError, match="loss is nan at step 3 of epoch 2"):
        trainer.fit()
    state = newest_state(tmp_path)
    assert state["epochs_done"] == 1
    assert all(v.isfinite().all() for v in state["method"].values())


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_features_that_are_not_finite_stop_the_run_and_name_the_term(
    tmp_path, capsys, monkeypatch, value
):
    loss, steps = Hybrid.loss, []

    def spoiled(method, batch):
        steps.append(1)
        if len(steps) == 9:
            with torch.no_grad():
                next(method.head.parameters())[0].fill_(value)
        return loss(method, batch)

    monkeypatch.setattr(Hybrid, "loss", spoiled)
    folder = tmp_path / "run"
    arguments = [*QUICK, "--preset", "digits-lt/hybrid-sc", "--output", str(folder)]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "contrastive is nan at step 3 of epoch 2" in error
    assert f"the last checkpoint is in {folder}" in error
    assert newest_state(folder)["epochs_done"] == 1


def test_an_output_that_cannot_be_written_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    folder = tmp_path / "file" / "run"
    assert main([*QUICK, "--output", str(folder)]) == 2
    assert f"output: cannot create the folder {folder}" in (capsys.readouterr().err)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--device", "tpu"],
            "device: expected 'auto', 'cpu', 'cuda' or 'cuda:N', got",
        ),
        (["--method.recipe", "crop-flop"], "did you mean 'crop-flip'"),
        (["--preset", "cifar10-lt/ce", "--data.root", "/nonexistent"], "/nonexistent"),
        (["--data.imbalance", "1000"], "imbalance"),
        (
            ["--method", "S3H", "--model.backbone", "resnet50"],
            "model.backbone: expected maps of at least 2 x 2",
        ),
    ],
)
def test_bad_runs_end_with_a_message_and_leave_nothing(
    tmp_path, capsys, arguments, message
):
    folder = tmp_path / "run"
    assert main([*QUICK, "--output", str(folder), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not folder.exists()


def test_weights_without_decay(tmp_path):
    trainer = trainer_of(tmp_path, "--optim.decay_norm_and_bias", "false")
    decayed, exempt = trainer.optimizer.param_groups
    assert all(p.ndim >= 2 for p in decayed["params"])
    assert all(p.ndim < 2 for p in exempt["params"])
    assert exempt["weight_decay"] == 0
    count = sum(len(group["params"]) for group in (decayed, exempt))
    assert count == len(list(trainer.method.parameters()))


@pytest.mark.cuda
def test_training_on_a_gpu(tmp_path):
    run = ["--epochs", "2", "--device", "cuda", "--output", str(tmp_path / "run")]
    assert main(run) == 0


def test_the_optimiser_is_that_of_the_options(tmp_path):
    chosen = {"weight_decay": 0.003, "momentum": 0.7, "nesterov": True}
    options = [f"--optim.{name}={str(value).lower()}" for name, value in chosen.items()]
    (group,) = trainer_of(tmp_path, *options).optimizer.param_groups
    assert {name: group[name] for name in chosen} == chosen


def test_every_step_has_its_rate(tmp_path):
    trainer = trainer_of(tmp_path, "--optim.warmup_epochs", "1.5")
    seen = []
    trainer.optimizer.register_step_pre_hook(
        lambda optimizer, *_: seen.append(float(optimizer.param_groups[0]["lr"]))
    )
    for epoch in range(2):
        trainer.train_epoch(epoch, SilentLog())
    steps = trainer.source.steps_per_epoch
    places = [(step + 1) / steps for step in range(2 * steps)]
    expected = [learning_rate(trainer.config.optim, place, 2) for place in places]
    assert seen == pytest.approx(expected)
    assert len(set(seen)) > steps  # a ramp
