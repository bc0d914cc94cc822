"""Whole trainings, small: the built-in digits and a small network."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

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
    assert summary["top1"] > 30


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


CWS = (
    "--method ClasswiseSplitting --method.inner Baseline "
    "--method.inner.weight_beta 0.9999 --method.split_from 0.2 --method.momentum 0.9"
).split()


S3H = "--method S3H --method.recipe crop --method.projection_hidden 16".split()


@pytest.mark.parametrize(
    "method",
    [
        pytest.param([], id="ce", marks=pytest.mark.slow),
        pytest.param(CWS, id="cws"),
        pytest.param(S3H, id="s3h", marks=pytest.mark.slow),
    ],
)
def test_resume_gives_the_bits_of_the_run_that_was_not_stopped(
    tmp_path, monkeypatch, method
):
    arguments = ["--epochs", "3", *method]
    whole, whole_summary = train(tmp_path / "whole", *arguments)

    config, _ = parse_options([*QUICK, *arguments])
    stopped = Trainer(config, tmp_path / "parts")
    evaluate = stopped._evaluate_epoch

    def stop_in_the_third_epoch(**options):
        if stopped.state.epochs_done == 2:
            raise KeyboardInterrupt
        return evaluate(**options)

    monkeypatch.setattr(stopped, "_evaluate_epoch", stop_in_the_third_epoch)
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    resumed, summary = train(tmp_path / "parts", *arguments, resume=True)
    assert_same_bits(resumed.method.state_dict(), whole.method.state_dict())
    assert summary["top1"] == whole_summary["top1"]
    strip = ["epoch", "loss", "test_top1"]
    assert [{k: r[k] for k in strip} for r in resumed.state.history] == [
        {k: r[k] for k in strip} for r in whole.state.history
    ]


EPOCHS = 4
SCRIPT = [sys.executable, "-m", "python_tests.small_digits"]
SCRIPT += [*QUICK, "--epochs", str(EPOCHS)]


def undisturbed_run(folder, epochs):
    """Returns the final weights of a run that nothing stopped."""
    options = ["--epochs", str(epochs), "--output", str(folder)]
    subprocess.run([*SCRIPT, *options], check=True, capture_output=True)
    return final_weights(folder, epochs)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return undisturbed_run(tmp_path_factory.mktemp("undisturbed") / "run", EPOCHS)


def final_weights(folder, epochs=EPOCHS):
    state = load_checkpoint(checkpoint_paths(RunFolder(folder))[0])
    assert state["epochs_done"] == epochs
    assert state["unfinished_epoch"] is None
    return state["method"]


def assert_same_bits(weights, expected):
    for name, value in expected.items():
        torch.testing.assert_close(
            weights[name], value, rtol=0, atol=0, equal_nan=True, msg=name
        )


def start(folder, *arguments):
    return subprocess.Popen(
        [*SCRIPT, "--output", str(folder), "--resume", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_checkpoint(process, folder):
    deadline = time.monotonic() + 120
    while not checkpoint_paths(RunFolder(folder)):
        assert process.poll() is None, "the run ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.01)


# Everything is imported once; each attempt is a fork that kills itself at a moment
# somewhere in the next epoch and a half, evaluation and checkpoint included.
KILLED = """
import os, random, signal, sys, threading
times = int(sys.argv.pop(1))
import python_tests.small_digits
from s3h_ext.methods import Baseline
from s3h_ext.methods import Hybrid
from s3h_ext.train import main

rng = random.Random(0)

def attempt(last_step, delay):
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    done = []
    def after_step(method):
        done.append(1)
        if len(done) == last_step:
            timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL))
            timer.start()
    Baseline.after_step = after_step
    os._exit(main([*sys.argv[1:], "--resume"]))

for _ in range(times):
    status = attempt(rng.randint(1, 9), rng.uniform(0.0, 0.5))
    if not os.WIFSIGNALED(status):
        sys.exit("the run was over before it was killed as often")
sys.exit(os.waitstatus_to_exitcode(attempt(0, 0.0)))
"""


def run_script(code, folder, *arguments, epochs=EPOCHS):
    options = [*SCRIPT[3:], "--epochs", str(epochs), "--output", str(folder)]
    return subprocess.run(
        [sys.executable, "-c", code, *arguments, *options], capture_output=True
    )


@pytest.mark.parametrize(
    ("times", "epochs"), [(1, 2), pytest.param(10, 12, marks=pytest.mark.slow)]
)
def test_sigkill_at_random_moments_changes_no_bit(tmp_path, times, epochs):
    folder = tmp_path / "killed"
    result = run_script(KILLED, folder, str(times), epochs=epochs)
    assert result.returncode == 0, result.stderr.decode()[-2000:]
    expected = undisturbed_run(tmp_path / "undisturbed", epochs)
    assert_same_bits(final_weights(folder, epochs), expected)
    assert not list((folder / "checkpoints").glob("*.partial"))


KILLED_WHILE_WRITING = """
import os, pathlib, signal, sys
import python_tests.small_digits
from s3h_ext.methods import Hybrid
from s3h_ext.train import main
replace = os.replace
def killed(source, target):
    path = pathlib.Path(source)
    if path.name == "epoch_00003.safetensors.partial":
        path.write_bytes(path.read_bytes()[:-1000])
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(source, target)
os.replace = killed
main(sys.argv[1:])
"""


def test_sigkill_while_a_checkpoint_is_written_changes_no_bit(tmp_path, undisturbed):
    killed = run_script(KILLED_WHILE_WRITING, tmp_path)
    assert killed.returncode == -signal.SIGKILL
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == [
        "epoch_00001.safetensors",
        "epoch_00002.safetensors",
        "epoch_00002_and_more.safetensors",
        "epoch_00003.safetensors.partial",
    ]
    process = start(tmp_path)
    process.communicate()
    assert process.returncode == 0
    assert_same_bits(final_weights(tmp_path), undisturbed)


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM]
)
def test_a_polite_stop_saves_inside_the_epoch(tmp_path, undisturbed, number):
    process = start(tmp_path)
    wait_for_checkpoint(process, tmp_path)
    process.send_signal(number)
    _, messages = process.communicate()
    assert process.returncode == 130
    assert f"run the same command with --output {tmp_path} --resume" in messages
    state = load_checkpoint(checkpoint_paths(RunFolder(tmp_path))[0])
    assert state["epochs_done"] < EPOCHS
    process = start(tmp_path)
    _, messages = process.communicate()
    assert process.returncode == 0
    assert_same_bits(final_weights(tmp_path), undisturbed)


def test_stopping_inside_an_epoch_keeps_its_numbers(tmp_path, monkeypatch):
    whole, _ = train(tmp_path / "whole")
    config, _ = parse_options(QUICK)
    stopped = Trainer(config, tmp_path / "parts")
    after_step, steps = stopped.method.after_step, []

    def stop_in_the_third_step():
        after_step()
        steps.append(1)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(stopped.method, "after_step", stop_in_the_third_step)
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    state = load_checkpoint(checkpoint_paths(stopped.folder)[0])
    assert (state["epochs_done"], state["unfinished_epoch"]["steps"]) == (0, 3)
    resumed, _ = train(tmp_path / "parts", resume=True)
    assert_same_bits(resumed.method.state_dict(), whole.method.state_dict())
    assert [row["loss"] for row in resumed.state.history] == [
        row["loss"] for row in whole.state.history
    ]
    assert resumed.state.images_trained == whole.state.images_trained
    log = (tmp_path / "parts" / "train.log").read_text()
    lines = [line.split("  ", 1)[1] for line in log.splitlines()]
    assert [line.rsplit(", ", 1)[-1] for line in lines if "from step" in line] == [
        "from step 0 of 12",
        "from step 3 of 12",
    ]
    told = [line for line in lines if re.match("stopped|epoch |finished", line)]
    assert told[0] == "stopped in epoch 1: KeyboardInterrupt()"
    assert [line.split(",")[0] for line in told[1:3]] == ["epoch 1", "epoch 2"]
    assert told[3].startswith("finished: top1 ")


class StopAt:
    """A wish to stop that comes between two questions for it."""

    def __init__(self, question):
        self._left = question

    @property
    def requested(self):
        self._left -= 1
        return self._left <= 0

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


# One question after each of six steps, one after the epoch.
@pytest.mark.parametrize(("question", "steps"), [(6, 6), (7, 6), (8, 7)])
def test_a_stop_at_the_end_of_an_epoch_saves_it(tmp_path, monkeypatch, question, steps):
    monkeypatch.setattr(
        "s3h_ext.training.trainer.StopRequest", lambda: StopAt(question)
    )
    config, _ = parse_options([*QUICK, "--checkpoint_every", "5"])
    trainer = Trainer(config, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    (path,) = checkpoint_paths(trainer.folder)
    state = load_checkpoint(path)
    unfinished = state["unfinished_epoch"] or {"steps": 0}
    assert 6 * state["epochs_done"] + unfinished["steps"] == steps


def test_a_resumed_run_keeps_the_curves_of_all_epochs(tmp_path):
    config, _ = parse_options([*QUICK, "--epochs", "3"])
    stopped = Trainer(config, tmp_path)
    evaluate = stopped._evaluate_epoch

    def stop_in_the_third_epoch(**options):
        if stopped.state.epochs_done == 2:
            raise KeyboardInterrupt
        return evaluate(**options)

    stopped._evaluate_epoch = stop_in_the_third_epoch
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    train(tmp_path, "--epochs", "3", resume=True)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name in events.Tags()["scalars"]:
        assert [event.step for event in events.Scalars(name)] == [1, 2, 3], name


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


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first")
    trainer, _ = train(folder, "--epochs", "1")
    return folder, trainer


def second(folder, finished_run, *arguments):
    return train(folder, "--init_from", str(finished_run[0]), *arguments)


def test_crt_trains_a_new_classifier_on_the_first_runs_backbone(tmp_path, finished_run):
    trainer, summary = second(
        tmp_path, finished_run, "--method", "ClassifierRetraining"
    )
    assert summary["method"] == "crt"
    assert summary["first_stage"].startswith("digits-lt/ce (")
    first = finished_run[1].method.model.state_dict()
    for name, value in trainer.method.model.state_dict().items():
        # Batch norm's statistics stay too.
        assert torch.equal(value, first[name]) == name.startswith("backbone."), name


def test_tau_normalisation_rescales_and_trains_nothing(tmp_path, finished_run):
    trainer, summary = second(
        tmp_path, finished_run, "--method", "TauNormalization", "--method.tau", "1.0"
    )
    assert summary["method"] == "tau-norm"
    weight = finished_run[1].method.model.classifier.weight
    expected = torch.nn.functional.normalize(weight, dim=1)
    torch.testing.assert_close(trainer.method.model.classifier.weight, expected)
    assert trainer.state.history[0]["test_top1"] == summary["top1"]
    again, repeated = second(
        tmp_path / "kept",
        finished_run,
        "--method",
        "TauNormalization",
        "--method.tau",
        "0",
    )
    assert torch.equal(again.method.model.classifier.weight, weight)
    assert repeated["epochs"] == 0


def test_a_second_stage_without_a_first_is_refused(tmp_path, capsys):
    arguments = [*QUICK, "--output", str(tmp_path / "run"), "--method"]
    assert main([*arguments, "ClassifierRetraining"]) == 2
    assert (
        "init_from: ClassifierRetraining is a second stage" in capsys.readouterr().err
    )
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
