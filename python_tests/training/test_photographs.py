"""Whole trainings on image folders, by the public command."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from s3h_ext.train import main
from s3h_ext.training.checkpoint import checkpoint_paths, load_checkpoint
from s3h_ext.training.subclasses import read_subclasses

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from photographs import grow, grow_bad, grow_odd

TINY = (
    "--data.name folder --data.imbalance null --data.size 32 --data.workers 2 "
    "--model.backbone resnet20 --batch_size 8 --eval_batch_size 5 --epochs 2 "
    "--device cpu --precision fp32"
).split()


def final_weights(folder):
    return load_checkpoint(checkpoint_paths(folder / "checkpoints")[0])["method"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = grow(tmp_path_factory.mktemp("photographs"), (16, 9, 5), size=(40, 56))
    grow_odd(root)
    grow(root, (2, 2, 2), split="test", size=(40, 56))
    return root


def test_a_run_says_what_it_was_fed_and_what_it_left_out(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("s3h_ext.training.trainer.try_report", lambda folder: None)
    bad = grow_bad(grow(tmp_path / "set", (30, 11)))
    folder = tmp_path / "run"
    cws = (
        "--method ClasswiseSplitting --method.inner Baseline --method.split_from 0.5 "
        "--method.inner.recipe resized-crop-flip"
    ).split()
    arguments = [*TINY, *cws, "--data.root", str(tmp_path / "set"), "--output"]
    assert main([*arguments, str(folder)]) == 1
    assert "class 0/" in capsys.readouterr().err
    folder = tmp_path / "other"
    arguments += [str(folder), "--data.unreadable", "skip"]
    assert main(arguments) == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["unreadable_images"] == len(bad)
    # (35 + 11) * 0.8, of each class
    assert summary["train_images"] == 28 + 9
    assert summary["imbalance"] == pytest.approx(28 / 9)
    log = (folder / "train.log").read_text()
    assert "has no test split: 9 images, 0.2 of each class" in log
    assert all(f"/{name}: " in log for name in bad)
    assert log.count("left out: ") == len(bad)
    found = read_subclasses(folder)
    assert found.images.shape[2:] == (64, 64, 3)
    assert found.images.max() > 100
    # The examples of class 0 are of class 0: their pictures are nowhere among others.
    assert np.ptp(found.images[0, 0].reshape(-1, 3), axis=0).min() > 50


KILLED = """
import os, signal, sys
from s3h_ext.methods import Hybrid
from s3h_ext.train import main

def attempt(folder, last_step):
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    done = []
    def after_step(method):
        done.append(1)
        if len(done) == last_step:
            os.kill(os.getpid(), signal.SIGKILL)
    Hybrid.after_step = after_step
    os._exit(main([*sys.argv[2:], "--output", sys.argv[1] + folder, "--resume"]))

assert attempt("/whole", 0) == 0
assert os.WTERMSIG(attempt("/parts", 7)) == signal.SIGKILL
assert attempt("/parts", 0) == 0
"""


@pytest.mark.parametrize("source", ["pil", "dali"])
def test_killed_and_resumed_it_has_the_bits_of_an_undisturbed_run(
    root, tmp_path, source
):
    if source == "dali":
        pytest.importorskip("nvidia.dali")
    arguments = [*TINY, "--preset", "folder/hybrid-psc", "--data.root", str(root)]
    arguments += ["--data.source", source, "--report", "false"]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), *arguments],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    expected = final_weights(tmp_path / "whole")
    weights = final_weights(tmp_path / "parts")
    for name, value in expected.items():
        assert torch.equal(value, weights[name]), name


def test_sources_that_do_not_fit_the_data_are_refused(root, tmp_path, capsys):
    arguments = [*TINY, "--data.root", str(root), "--output", str(tmp_path / "run")]
    assert main([*arguments, "--data.source", "resident"]) == 2
    assert "the images of folder need pil or dali" in capsys.readouterr().err
    assert main([*arguments, "--data.root", str(tmp_path / "none")]) == 2
    assert "root: expected a folder of images" in capsys.readouterr().err
    assert main([*arguments, "--data.workers", "-1"]) == 2
    assert "data.workers: expected a whole number >= 0" in capsys.readouterr().err
