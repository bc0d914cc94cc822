"""Averaged weights: what they are, where they serve, and that training is the same."""

import json

import pytest
import torch

from python_tests.small_runs import assert_same_weights
from python_tests.training.test_recording import QUICK, Tape, build, few_images
from s3h_ext.methods import Baseline
from s3h_ext.models import build_model
from s3h_ext.runs.checkpoint import (
    CheckpointError,
    checkpoint_paths,
    encode_checkpoint,
    load_checkpoint,
)
from s3h_ext.runs.folder import RunFolder
from s3h_ext.runs.loading import load_run
from s3h_ext.runs.options import OptionError, parse_options
from s3h_ext.training import run as run_module
from s3h_ext.training.runlog import SilentLog
from s3h_ext.training.trainer import Trainer

DECAY = 0.8
EMA = ["--optim.ema_decay", str(DECAY)]
MIXED = "--method.mixing.kind cutmix --method.mixing.probability 0.7".split()
S3H = "--method S3H --method.recipe crop --method.projection_hidden 16".split()
CWS = (
    "--method ClasswiseSplitting --method.inner Baseline --method.images_per_row 4 "
    "--method.split_from 0.3"
).split()


def network(trainer):
    return {k: v.clone() for k, v in trainer.method.model.state_dict().items()}


def average_of(history):
    """The definition, in float64; counts are those of the last step."""
    weights = [DECAY**k for k in range(len(history))][::-1]
    steps = list(zip(weights, history, strict=True))
    return {
        name: sum(w * each[name].double() for w, each in steps) / sum(weights)
        if value.is_floating_point()
        else value
        for name, value in history[-1].items()
    }


def assert_close(found, right):
    for name, value in right.items():
        torch.testing.assert_close(
            found[name].double(), value.double(), rtol=1e-5, atol=1e-6, msg=name
        )


def watched(trainer):
    """Trains two epochs; returns the weights after every step."""
    history, step = [], trainer._step

    def noting(*arguments):
        terms = step(*arguments)
        history.append(network(trainer))
        return terms

    trainer._step = noting
    for epoch in range(2):
        trainer.train_epoch(epoch, SilentLog())
    return history


class OnItsOwnNetwork(Baseline):
    def build(self, model, dataset):
        super().build(build_model("resnet20", dataset.num_classes), dataset)


def test_the_average_is_of_the_network_that_the_method_brings(tmp_path):
    config, _ = parse_options([*QUICK, *EMA])
    config.method = OnItsOwnNetwork()
    trainer = Trainer(config, tmp_path / "run", dataset=few_images())
    history = watched(trainer)
    with trainer.average.in_place():
        assert_close(network(trainer), average_of(history))


@pytest.mark.parametrize("method", [[], S3H, CWS], ids=["ce", "s3h", "cws"])
@pytest.mark.parametrize("recorded", [False, True])
def test_the_average_is_its_definition_and_training_does_not_know_it(
    tmp_path, monkeypatch, method, recorded
):
    if recorded:
        monkeypatch.setattr(run_module, "choose_recorder", lambda *_: Tape())
    trainer = build(tmp_path / "averaged", *method, *EMA)
    history = watched(trainer)
    assert len(history) == 2 * trainer.source.steps_per_epoch
    last = network(trainer)
    with trainer.average.in_place():
        assert_close(network(trainer), average_of(history))
    plain = build(tmp_path / "plain", *method)
    watched(plain)
    for found in (last, trainer.method.model.state_dict()):
        assert_same_weights(found, network(plain))


def test_evaluation_is_that_of_the_average(tmp_path):
    trainer = build(tmp_path / "run", *EMA)
    history = watched(trainer)
    found = trainer.evaluate("test")
    alone = build(tmp_path / "alone")
    alone.method.model.load_state_dict(average_of(history))
    right = alone.evaluate("test")
    assert found.top1 == right.top1
    assert found.calibration.error == pytest.approx(right.calibration.error, rel=1e-4)


def test_before_the_first_step_the_network_is_what_it_is(tmp_path):
    trainer = build(tmp_path / "run", *EMA)
    right = network(trainer)
    with trainer.average.in_place():
        assert_same_weights(network(trainer), right)


def fit(folder, *arguments):
    trainer = build(folder, *arguments, "--epochs", "2")
    return trainer, trainer.fit()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    trainer, summary = fit(folder, *EMA)
    return folder, trainer, summary


def test_a_run_is_what_its_average_is(finished):
    folder, trainer, summary = finished
    assert summary["ema_decay"] == DECAY
    assert json.loads((folder / "summary.json").read_text())["ema_decay"] == DECAY
    log = (folder / "train.log").read_text()
    assert "with the last weights, without averaging" in log
    run = load_run(folder, device="cpu")
    with trainer.average.in_place():
        right = network(trainer)
    assert_same_weights(run.method.model.state_dict(), right)
    last = load_run(folder, device="cpu", weights="last").method.model.state_dict()
    assert_same_weights(last, network(trainer))
    images = next(iter(trainer.evaluation["test"])).images[0]
    with trainer.average.in_place(), torch.inference_mode():
        trainer.method.eval()
        expected = trainer.method.predict(images)
    with torch.inference_mode():
        assert torch.equal(run.method.predict(images), expected)


def test_a_second_stage_starts_from_the_average(finished, tmp_path):
    folder, trainer, _ = finished
    options = ("--method", "ClassifierRetraining", "--init_from", str(folder))
    second = build(tmp_path / "second", *options)
    with trainer.average.in_place():
        right = {k: v for k, v in network(trainer).items() if k.startswith("backbone")}
    assert_same_weights(network(second), right)


@pytest.mark.parametrize("method", [[], S3H], ids=["ce", "s3h"])
def test_resume_inside_an_epoch_gives_the_same_bits(tmp_path, method):
    arguments = [*method, *MIXED, *EMA]
    whole, summary = fit(tmp_path / "whole", *arguments)
    stopped = build(tmp_path / "parts", *arguments, "--epochs", "2")
    step, steps = stopped._step, []

    class Stop:
        @property
        def requested(self):
            return len(steps) == stopped.source.steps_per_epoch + 2

    def counted(*given):
        terms = step(*given)
        steps.append(1)
        return terms

    stopped._step = counted
    stopped._epoch(0, SilentLog(), Stop())
    with pytest.raises(KeyboardInterrupt):
        stopped._epoch(1, SilentLog(), Stop())
    resumed = build(tmp_path / "parts", *arguments, "--epochs", "2", resume=True)
    assert resumed.state.unfinished_epoch["steps"] == 2
    again = resumed.fit()
    for name in ("top1", "macro_f1", "calibration_error", "best_top1"):
        assert again[name] == summary[name]
    for one, other in (
        (whole.method.state_dict(), resumed.method.state_dict()),
        (whole.average.state_dict()["sums"], resumed.average.state_dict()["sums"]),
    ):
        assert one.keys() == other.keys()
        assert_same_weights(other, one)


def test_a_run_without_average_does_not_go_on_with_one(tmp_path):
    fit(tmp_path / "run")
    with pytest.raises(CheckpointError, match="optim.ema_decay was None, is 0.8"):
        build(tmp_path / "run", "--epochs", "2", *EMA, resume=True)


@pytest.mark.parametrize(
    "average",
    [
        7,
        {"share": 1.0, "sums": {}},
        {"share": torch.ones(()), "sums": {"backbone.conv1.weight": torch.ones(2)}},
        {"share": torch.ones(()), "sums": {"unknown": torch.ones(2)}},
        {"share": torch.ones(3), "sums": {}},
    ],
    ids=str,
)
def test_averages_that_do_not_fit_are_refused(finished, tmp_path, average):
    folder, *_ = finished
    other = tmp_path / "run"
    (other / "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "dataset.json"):
        (other / name).write_bytes((folder / name).read_bytes())
    path = checkpoint_paths(RunFolder(folder))[0]
    content = encode_checkpoint({**load_checkpoint(path), "average": average})
    (other / "checkpoints" / path.name).write_bytes(content)
    with pytest.raises(CheckpointError, match="does not fit this run"):
        load_run(other, device="cpu")
    config, _ = parse_options(["--config", str(other / "config.yaml")])
    with pytest.raises(CheckpointError, match="does not fit this run"):
        Trainer(config, other, resume=True, dataset=few_images())


@pytest.mark.parametrize("decay", ["0", "1", "-0.1", ".nan"])
def test_decays_out_of_range(decay):
    with pytest.raises(OptionError, match=r"optim.ema_decay: expected a number in \(0"):
        parse_options(["--preset", "digits-lt/ce", "--optim.ema_decay", decay])
