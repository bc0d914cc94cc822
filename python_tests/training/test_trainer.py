"""Whole trainings, small: the built-in digits and a small network."""

import csv
import json
from dataclasses import replace

import pytest
import torch
import yaml

from s3h_ext.data import load_dataset
from s3h_ext.data.views.recipes import RECIPES, Recipe
from s3h_ext.methods import Hybrid
from s3h_ext.ops.view_constraints import RandomResizedCrop
from s3h_ext.report.analysis import try_analysis
from s3h_ext.runs.checkpoint import (
    CheckpointError,
    checkpoint_paths,
    load_checkpoint,
)
from s3h_ext.runs.folder import RunFolder
from s3h_ext.runs.options import parse_options
from s3h_ext.train import main
from s3h_ext.training.finite import DivergedError
from s3h_ext.training.optimizer import learning_rate
from s3h_ext.training.runlog import SilentLog
from s3h_ext.training.trainer import Trainer

QUICK = (
    "--preset digits-lt/ce --model.backbone resnet20 --data.imbalance 100 "
    "--batch_size 64 --epochs 2 --device cpu --precision fp32 --report false"
).split()

SUMMARY_KEYS = (
    "preset dataset imbalance method seed epochs top1 many medium few best_top1 "
    "seconds images_per_second device precision versions"
).split()


def train(folder, *arguments, resume=False):
    config, _ = parse_options([*QUICK, *arguments])
    trainer = Trainer(config, folder, resume=resume)
    return trainer, trainer.fit()


@pytest.mark.parametrize("preset", ["ce", "hybrid-sc", "hybrid-psc"])
def test_a_run_leaves_everything_about_it(tmp_path, capsys, preset):
    folder = tmp_path / "run"
    epochs = 2 if preset == "ce" else 1
    options = ["--preset", f"digits-lt/{preset}", "--epochs", str(epochs)]
    assert main([*QUICK, *options, "--output", str(folder)]) == 0
    table = capsys.readouterr().out
    assert "many  medium" in table
    summary = json.loads((folder / "summary.json").read_text())
    assert set(SUMMARY_KEYS) <= set(summary)
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
    for name, value in first.method.state_dict().items():
        assert torch.equal(value, second.method.state_dict()[name]), name
    weight = "model.backbone.conv1.weight"
    assert not torch.equal(
        first.method.state_dict()[weight], other.method.state_dict()[weight]
    )


def test_crops_that_met_no_constraint_are_reported_at_the_end(tmp_path, monkeypatch):
    never = RandomResizedCrop(scale=(0.9, 1.0), ratio=(5.0, 10.0), tries=1)
    monkeypatch.setitem(RECIPES, "never", Recipe(crop=never))
    train(tmp_path / "a", "--method.recipe", "never", "--epochs", "1")
    log = (tmp_path / "a" / "train.log").read_text()
    assert "354 of 354 crops drawn for 'train' since step 0" in log
    train(tmp_path / "b", "--epochs", "1")
    assert "crops" not in (tmp_path / "b" / "train.log").read_text()


def test_a_method_without_analysis_costs_no_copy_of_the_images(tmp_path, monkeypatch):
    config, _ = parse_options(QUICK)
    trainer = Trainer(config, tmp_path)
    monkeypatch.setattr(trainer.feed, "evaluation", None)
    batches = trainer.train_batches()
    try_analysis(
        trainer.folder,
        trainer.method,
        batches,
        trainer.dataset,
        precision=trainer.precision,
        device=trainer.device,
    )
    with pytest.raises(TypeError):  # only now
        next(batches)


def test_a_folder_with_a_run_is_not_overwritten(tmp_path, capsys):
    assert main([*QUICK, "--epochs", "1", "--output", str(tmp_path)]) == 0
    before = (tmp_path / "summary.json").read_text()
    assert main([*QUICK, "--epochs", "1", "--output", str(tmp_path)]) == 2
    assert "already holds a run; add --resume" in capsys.readouterr().err
    assert (tmp_path / "summary.json").read_text() == before


def test_default_output_folders_do_not_collide(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main([*QUICK, "--epochs", "1"]) == 0
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == [
        "digits-lt-ce-seed0",
        "digits-lt-ce-seed0-2",
    ]


def test_resume_with_other_options_is_refused(tmp_path, capsys):
    assert main([*QUICK, "--epochs", "1", "--output", str(tmp_path)]) == 0
    status = main(
        [*QUICK, "--epochs", "1", "--output", str(tmp_path), "--resume", "--seed", "5"]
    )
    assert status == 2
    assert "seed was 0, is 5" in capsys.readouterr().err


def test_resume_with_other_data_is_refused_and_leaves_the_run_as_it_was(tmp_path):
    config, _ = parse_options([*QUICK, "--epochs", "1"])
    dataset = load_dataset("digits-lt", imbalance=100)
    Trainer(config, tmp_path, dataset=dataset).fit()
    before = {path: path.read_bytes() for path in tmp_path.glob("*.*")}
    other = replace(dataset, mean=(0.5, 0.5, 0.5))
    message = r"data\.root: expected the data of .*dataset\.json, got .*: pixels' mean "
    with pytest.raises(CheckpointError, match=message):
        Trainer(config, tmp_path, dataset=other, resume=True)
    assert {path: path.read_bytes() for path in tmp_path.glob("*.*")} == before
    # Older runs left no card.
    (tmp_path / "dataset.json").unlink()
    Trainer(config, tmp_path, dataset=other, resume=True)


@pytest.mark.parametrize("name", ["own", "digits-lt"])
def test_a_data_set_of_ones_own_has_the_factor_of_its_counts(tmp_path, name):
    config, _ = parse_options([*QUICK, "--epochs", "1"])
    dataset = replace(load_dataset("digits-lt", imbalance=50), name=name)
    summary = Trainer(config, tmp_path, dataset=dataset).fit()
    counts = dataset.class_counts
    assert summary["dataset"] == name
    assert summary["imbalance"] == counts.max() / counts.min() != 100


def test_held_out_images_are_what_epochs_are_compared_on(tmp_path):
    trainer, summary = train(tmp_path, "--data.val_fraction", "0.2")
    assert summary["best_split"] == "val"
    assert summary["val_top1"] == trainer.state.history[-1]["val_top1"]
    assert not any(
        name.startswith("test_") for row in trainer.state.history for name in row
    )
    assert summary["best_top1"] == max(row["val_top1"] for row in trainer.state.history)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path):
    config, _ = parse_options(QUICK)
    trainer = Trainer(config, tmp_path)
    loss, steps = trainer.method.loss, []

    def spoiled(batch):
        steps.append(1)
        terms = loss(batch)
        return {"loss": terms["loss"] * float("nan")} if len(steps) == 9 else terms

    trainer.method.loss = spoiled
    with pytest.raises(DivergedError, match="loss is nan at step 3 of epoch 2"):
        trainer.fit()
    kept = checkpoint_paths(trainer.folder)[0]
    state = load_checkpoint(kept)
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
    kept = checkpoint_paths(RunFolder(folder))[0]
    assert load_checkpoint(kept)["epochs_done"] == 1


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
            "device: expected 'auto', 'cpu', 'cuda' or 'cuda:N', got 'tpu'",
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
    config, _ = parse_options([*QUICK, "--optim.decay_norm_and_bias", "false"])
    trainer = Trainer(config, tmp_path)
    decayed, exempt = trainer.optimizer.param_groups
    assert all(p.ndim >= 2 for p in decayed["params"])
    assert all(p.ndim < 2 for p in exempt["params"])
    assert exempt["weight_decay"] == 0
    assert sum(len(g["params"]) for g in (decayed, exempt)) == len(
        list(trainer.method.parameters())
    )


@pytest.mark.cuda
def test_training_on_a_gpu(tmp_path):
    status = main(
        ["--epochs", "2", "--device", "cuda", "--output", str(tmp_path / "run")]
    )
    assert status == 0


def test_the_optimiser_is_that_of_the_options(tmp_path):
    chosen = {"weight_decay": 0.003, "momentum": 0.7, "nesterov": True}
    options = [f"--optim.{name}={str(value).lower()}" for name, value in chosen.items()]
    config, _ = parse_options([*QUICK, *options])
    (group,) = Trainer(config, tmp_path).optimizer.param_groups
    assert {name: group[name] for name in chosen} == chosen


def test_every_step_has_its_rate(tmp_path):
    config, _ = parse_options([*QUICK, "--optim.warmup_epochs", "1.5"])
    trainer = Trainer(config, tmp_path)
    seen = []
    trainer.optimizer.register_step_pre_hook(
        lambda optimizer, *_: seen.append(float(optimizer.param_groups[0]["lr"]))
    )
    for epoch in range(2):
        trainer.train_epoch(epoch, SilentLog())
    steps = trainer.source.steps_per_epoch
    expected = [
        learning_rate(config.optim, (k + 1) / steps, config.epochs)
        for k in range(2 * steps)
    ]
    assert seen == pytest.approx(expected)
    assert len(set(seen)) > steps  # a ramp
