"""A run that diverges ends so, and leaves what can be used."""

import json
import signal
from math import nan

import pytest
import torch
from PIL import Image

from python_tests.small_runs import QUICK, newest_state, summary_of
from s3h_ext.evaluate import main as evaluate
from s3h_ext.methods import Baseline, Method
from s3h_ext.predict import main as predict
from s3h_ext.runs.checkpoint import (
    checkpoint_paths,
    encode_checkpoint,
    load_checkpoint,
)
from s3h_ext.runs.folder import RunFolder
from s3h_ext.runs.loading import load_run
from s3h_ext.train import main
from s3h_ext.training.finite import check_finite, spoiled

STEPS = 2


def run(folder, *arguments):
    short = ["--batch_size", "200", "--epochs", "3", "--output", str(folder)]
    return main([*QUICK, *short, *arguments])


def evaluation_of(folder):
    assert evaluate([str(folder), "--device", "cpu"]) == 0
    return json.loads((folder / "evaluation-test" / "metrics.json").read_text())


def names(folder):
    return [path.name for path in checkpoint_paths(RunFolder(folder))]


@pytest.fixture
def after_step(monkeypatch):
    """Lets a test do something to the method behind the update of a step."""

    def set_to(step, change):
        done = []

        def spoil(method):
            done.append(1)
            if len(done) == step:
                with torch.no_grad():
                    change(method)

        monkeypatch.setattr(Baseline, "after_step", spoil)

    return set_to


def spoil_weight(method):
    next(method.model.classifier.parameters())[0, 0] = torch.nan


def spoil_statistics(method):
    buffer = dict(method.model.named_buffers())
    next(b for n, b in buffer.items() if n.endswith("running_var"))[0] = torch.inf


def spoil_logits(method):  # with finite weights
    for parameter in method.model.classifier.parameters():
        parameter.fill_(3e38)


# The last step of an epoch, and the last of all.
@pytest.mark.parametrize(
    ("spoil", "step", "every"),
    [
        (spoil_weight, 2 * STEPS, "1"),
        (spoil_statistics, 3 * STEPS, "1"),
        (spoil_logits, 3 * STEPS, "1"),
        (spoil_weight, 2 * STEPS, "2"),
    ],
)
def test_the_last_update_of_an_epoch_spoils_no_checkpoint(
    tmp_path, capsys, after_step, spoil, step, every
):
    after_step(step, spoil)
    assert run(tmp_path, "--checkpoint_every", every) == 1
    error = capsys.readouterr().err
    assert "finite" in error
    # From the last one everything is finite.
    kept = checkpoint_paths(RunFolder(tmp_path))
    for path in kept:
        state = load_checkpoint(path)
        assert not list(spoiled({k: state[k] for k in ("method", "optimizer")}))
        assert not state["unfinished_epoch"]
    assert ("--resume would diverge again" in error) == bool(kept)
    assert not (tmp_path / "summary.json").exists()
    if every == "1":
        assert kept[0].name == f"epoch_{step // STEPS - 1:05d}.safetensors"
        assert load_run(tmp_path, device="cpu").epochs_done == step // STEPS - 1
        after_step(0, spoil)  # as on another machine
        assert run(tmp_path, "--resume") == 0
        assert summary_of(tmp_path)["epochs"] == 3


def test_a_last_step_that_diverges_leaves_no_results(tmp_path, capsys):
    arguments = "--epochs 1 --optim.lr 1e30 --optim.warmup_epochs 0".split()
    arguments += ["--optim.schedule", "constant"]
    assert run(tmp_path, "--batch_size", "1000", *arguments) == 1
    assert "finite" in capsys.readouterr().err
    assert not (tmp_path / "summary.json").exists()


def test_a_checkpoint_of_before_survives_an_evaluation_that_diverges(
    tmp_path, after_step
):
    every = ["--checkpoint_every", "3"]
    after_step(1, lambda method: signal.raise_signal(signal.SIGINT))
    assert run(tmp_path, *every) == 130
    assert names(tmp_path) == ["epoch_00000_and_more.safetensors"]
    after_step(1, spoil_logits)
    assert run(tmp_path, *every, "--resume") == 1
    assert names(tmp_path) == ["epoch_00000_and_more.safetensors"]


def test_an_answer_of_a_network_that_diverged_is_an_error(
    tmp_path, monkeypatch, capsys
):
    assert run(tmp_path / "run", "--epochs", "1") == 0
    Image.new("RGB", (32, 32)).save(tmp_path / "grey.png")
    monkeypatch.setattr(
        Method, "predict", lambda self, images: images.new_full((len(images), 10), nan)
    )
    asked = [str(tmp_path / "run"), str(tmp_path / "grey.png"), "--device", "cpu"]
    assert predict(asked) == 2
    assert "logits are not finite" in capsys.readouterr().err


def test_older_epochs_survive(tmp_path):
    """The two that are kept are of different epochs, whatever is saved between them."""
    assert run(tmp_path) == 0
    assert names(tmp_path) == ["epoch_00003.safetensors", "epoch_00002.safetensors"]
    new, old = (
        load_checkpoint(path)["method"]["model.classifier.weight"]
        for path in checkpoint_paths(RunFolder(tmp_path))
    )
    assert not torch.equal(new, old)


def test_an_evaluation_says_how_far_its_weights_are(tmp_path, monkeypatch, capsys):
    predict, done = Baseline.predict, []

    def fail(method, images):
        done.append(1)
        if len(done) == 2:
            raise OSError("no image")
        return predict(method, images)

    monkeypatch.setattr(Baseline, "predict", fail)
    arguments = ["--data.val_fraction", "0.2", "--eval_batch_size", "1000"]
    assert run(tmp_path, *arguments) == 1
    begun, whole = "epoch_00001_and_more.safetensors", "epoch_00001.safetensors"
    assert names(tmp_path) == [begun, whole]
    assert evaluation_of(tmp_path)["epochs_done"] == 2
    path = checkpoint_paths(RunFolder(tmp_path))[0]
    state = load_checkpoint(path)
    state["unfinished_epoch"]["steps"] = 1  # stopped inside of it
    path.write_bytes(encode_checkpoint(state))
    found = evaluation_of(tmp_path)
    assert (found["epochs_done"], found["steps_done"]) == (1, 1)
    path.unlink()
    found = evaluation_of(tmp_path)
    assert found["epochs_done"] == 1
    assert "steps_done" not in found


def test_an_old_run_with_spoiled_weights_is_evaluated_as_such(tmp_path, capsys):
    assert run(tmp_path, "--epochs", "1") == 0
    for path in checkpoint_paths(RunFolder(tmp_path)):
        state = load_checkpoint(path)
        state["method"]["model.classifier.weight"][0, 0] = torch.nan
        path.write_bytes(encode_checkpoint(state))
    assert evaluate([str(tmp_path), "--device", "cpu"]) == 2
    assert "logits of" in capsys.readouterr().err
    assert not (tmp_path / "evaluation-test").exists()


def test_what_is_unset_at_first_is_no_divergence(tmp_path):
    state = {"a": torch.tensor([torch.nan]), "b": torch.zeros(1)}
    check_finite(state, "here", frozenset({"a"}))
    with pytest.raises(RuntimeError, match="a is not finite here"):
        check_finite(state, "here")
    cws = "--preset digits-lt/cws --epochs 1".split()
    assert run(tmp_path, *cws) == 0  # whose history has no number yet
    assert list(spoiled(newest_state(tmp_path)))
