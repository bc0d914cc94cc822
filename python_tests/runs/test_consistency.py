"""Pairs of options: which are refused, which are warned of, and which are not."""

import pytest

from python_tests.small_runs import DIGITS
from s3h_ext.methods import Baseline
from s3h_ext.presets import preset_names
from s3h_ext.runs.config import DataConfig, TrainConfig
from s3h_ext.runs.consistency import _EFFECTS, check_length, check_options
from s3h_ext.runs.options import parse_options
from s3h_ext.train import main
from s3h_ext.training.trainer import Trainer

REFUSED = {
    "--preset digits-lt/ce --epochs 3 --optim.warmup_epochs 3": (
        "optim.warmup_epochs: expected fewer than the epochs of the run, 3"
    ),
    "--method Baseline --config {} --epochs 4": "optim.warmup_epochs: expected fewer",
    "--preset digits-lt/ce --optim.warmup_epochs 100": "optim.warmup_epochs: .*got 100",
    "--preset folder/ce --model.weights a.pth --init_from runs/a": (
        "model.weights: expected no value with init_from"
    ),
}
WARNED = {
    "--preset folder/hybrid-psc --epochs 2": (
        "eval_every: in a run of 2 epochs only the last epoch is evaluated, got 5",
        "optim.warmup_epochs: the preset's 5 of 90 epochs would not end within 2; the "
        "rate rises over 0.111",
    ),
    "--preset digits-lt/ce --checkpoint_every 16": (
        "checkpoint_every: in a run of 15 epochs only the last epoch is saved, got 16",
    ),
    "--preset cifar100-lt/ce --eval_every 1 --epochs 9": (
        "optim.milestones: 0.9 of a run of 9 epochs is its end, so the rate is not "
        "lowered there",
    ),
    "--preset cifar100-lt/ce-drw --eval_every 1 --epochs 6 --optim.milestones [0.5] "
    "--method.reweight_from 0.9": (
        "method.reweight_from: no epoch of a run of 6 epochs begins at 0.9 or later, "
        "so no class weights are used",
    ),
    "--preset digits-lt/cws --epochs 7 --method.split_from 0.9": (
        "method.split_from: no epoch of a run of 7 epochs begins at 0.9 or later, so "
        "classes are never split",
    ),
    "--preset digits-lt/cws --method.inner.reweight_from 0.99": (
        "method.inner.reweight_from: no epoch of a run of 15 epochs begins at 0.99 or "
        "later, so no class weights are used",
    ),
    "--preset digits-lt/hybrid-sc --epochs 1 --optim.warmup_epochs 0": (
        "epochs: a run of 1 epoch has alpha 1 throughout: the classifier has the "
        "weight 0 and is not trained",
    ),
    "--preset digits-lt/cws --epochs 1 --optim.warmup_epochs 0 --method.split_from 0 "
    "--method.inner Hybrid": (
        "epochs: a run of 1 epoch has alpha 1 throughout: the classifier has the "
        "weight 0 and is not trained",
    ),
    "--preset digits-lt/s3h --epochs 1 --optim.warmup_epochs 0 --method.partner "
    "momentum --method.momentum_schedule cosine": (
        "method.momentum_schedule: the momentum stays constant in a run of 1 epoch",
    ),
    "--preset digits-lt/ce --epochs 1 --optim.warmup_epochs 0 --method.sampler "
    "progressive": (
        "epochs: in a run of 1 epoch the progressive sampler is the instance-balanced "
        "one",
    ),
    "--preset digits-lt/ce --epochs 3 --optim.warmup_epochs 0 --method.mixing.kind "
    "cutmix --method.mixing.start 0.9": (
        "method.mixing: no epoch of a run of 3 epochs begins in [0.9, 1), so nothing "
        "is mixed",
    ),
    "--preset folder/ce --data.profile step": (
        "data.profile: has no effect without data.imbalance, got step",
    ),
    "--preset digits-lt/ce --data.split_seed 3": (
        "data.split_seed: has no effect with data.val_fraction 0, got 3",
    ),
    "--preset digits-lt/ce --data.workers 2 --data.unreadable skip": (
        "data.workers: has no effect for images in memory, got 2",
        "data.unreadable: has no effect for images in memory, got skip",
    ),
    "--preset digits-lt/ce --model.scale 20": (
        "model.scale: has no effect with model.classifier linear, got 20.0",
    ),
    "--preset digits-lt/ce --optim.milestones [0.5] --optim.gamma 0.5": (
        "optim.milestones: has no effect unless optim.schedule is step, got [0.5]",
        "optim.gamma: has no effect without optim.milestones and optim.schedule step, "
        "got 0.5",
    ),
    "--preset digits-lt/ce --optim.weight_decay 0 --optim.decay_norm_and_bias false": (
        "optim.decay_norm_and_bias: has no effect with optim.weight_decay 0, got False",
    ),
    "--preset cifar10-lt/tau-norm --epochs 3 --optim.lr 0.3 --optim.schedule constant "
    "--optim.warmup_epochs 9": tuple(
        f"{option}: has no effect with TauNormalization, which trains nothing, got "
        f"{got}"
        for option, got in (
            ("epochs", 3),
            ("optim.lr", 0.3),
            ("optim.warmup_epochs", 9.0),
            ("optim.schedule", "constant"),
        )
    ),
    "--preset digits-lt/ce --distributed.gather false --distributed.sync_batch_norm "
    "true --distributed.timeout 9": (
        "distributed.gather: has no effect with a single process, got False",
        "distributed.sync_batch_norm: has no effect with a single process, got True",
        "distributed.timeout: has no effect with a single process, got 9.0",
    ),
    "--preset digits-lt/s3h --method.partner none --method.cross_weight 0.25 "
    "--method.momentum 0.5 --method.momentum_schedule cosine": tuple(
        f"method.{option}: has no effect with method.partner none, got {got}"
        for option, got in (
            ("cross_weight", 0.25),
            ("momentum", 0.5),
            ("momentum_schedule", "cosine"),
        )
    ),
    "--preset digits-lt/cws --method.inner S3H --method.inner.partner second-head "
    "--method.inner.momentum 0.5": (
        "method.inner.momentum: has no effect with method.inner.partner second-head, "
        "got 0.5",
    ),
}
# What belongs together, or comes from a preset and was not asked for.
SILENT = [
    *(f"--preset {name}" for name in preset_names() if "-if" not in name),
    "--preset folder/s3h --method.partner none",
    "--preset cifar100-lt/hybrid-psc --optim.schedule cosine",
    "--preset cifar100-lt/ldam-drw --method.loss cross-entropy --method.max_margin 0.5 "
    "--model.classifier linear",
    "--preset folder/ce --data.profile step --data.imbalance 10 --data.workers 2",
    "--preset digits-lt/ce --data.val_fraction 0.2 --data.split_seed 3",
    "--preset digits-lt/ce --optim.schedule step --optim.milestones [0.5]",
    "--preset digits-lt/s3h --method.partner momentum --method.momentum 0.5",
    "--preset digits-lt/ce --data.root somewhere",
]


def notes(arguments, processes=1):
    config, _ = parse_options(arguments.split())
    return check_options(config, processes)


@pytest.mark.parametrize("arguments", REFUSED)
def test_a_contradiction_is_refused_before_anything_is_written(arguments, tmp_path):
    config, _ = parse_options(arguments.split())
    with pytest.raises(ValueError, match=REFUSED[arguments]):
        Trainer(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("arguments", WARNED)
def test_what_has_no_effect_is_said(arguments):
    assert sorted(notes(arguments)) == sorted(WARNED[arguments])


@pytest.mark.parametrize("arguments", SILENT)
def test_what_goes_together_is_not_spoken_of(arguments):
    assert notes(arguments) == []


def test_every_rule_has_a_case():
    said = {text.partition(":")[0] for texts in WARNED.values() for text in texts}
    assert set(_EFFECTS) <= said


def test_options_of_several_processes_have_an_effect_there():
    given = "--preset digits-lt/ce --distributed.sync_batch_norm true"
    assert notes(given, processes=2) == []
    assert len(notes(given)) == 1


def test_a_configuration_without_a_record_is_checked():
    config = TrainConfig(data=DataConfig(), method=Baseline(), epochs=3)
    with pytest.raises(ValueError, match=r"optim\.warmup_epochs"):
        check_options(config)
    config.optim.warmup_epochs = 0.0
    said = [note.partition(":")[0] for note in check_options(config)]
    assert said == ["optim.milestones"] * 2


def test_warnings_are_printed_and_logged(tmp_path, capsys):
    options = "--batch-size 489 --epochs 1 --data.workers 2 --output".split()
    assert main([*DIGITS, *options, str(tmp_path)]) == 0
    printed, log = capsys.readouterr().err, (tmp_path / "train.log").read_text()
    for text in (
        "data.workers: has no effect for images in memory, got 2",
        "optim.warmup_epochs: the preset's 5 of 15 epochs would not end within 1; the "
        "rate rises over 0.333",
    ):
        assert f"warning: {text}" in printed
        assert text in log


@pytest.mark.parametrize("preset", ["folder/ce", "folder/s3h", "digits-lt/ce"])
@pytest.mark.parametrize("images", [2, 60, 1000, 2559, 2560, 10**6])
def test_a_small_folder_is_told_of_options_that_fit(preset, images):
    config, _ = parse_options(["--preset", preset, "--data.root", "photos"])
    found = check_length(config, images)
    assert bool(found) == (preset.startswith("folder/") and images < 2560)
    if not found:
        return
    options = found[0].partition("better: ")[2].split()
    better, _ = parse_options(["--preset", preset, *options])
    assert check_length(better, images) == []
    assert 16 <= better.batch_size < 128
    ratio = better.batch_size / config.batch_size
    assert better.optim.lr == pytest.approx(config.optim.lr * ratio)
    assert better.epochs == 200
