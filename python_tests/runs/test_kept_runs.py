"""The weights of runs in ``results/``: small, whole, and worth what the table says."""

import json
from pathlib import Path

import pytest
import torch

from python_tests.small_runs import SMALL
from s3h_ext.evaluate import main as evaluate
from s3h_ext.runs.checkpoint import (
    CheckpointError,
    encode_checkpoint,
    load_checkpoint,
)
from s3h_ext.runs.folder import RunFolder
from s3h_ext.runs.loading import load_run
from s3h_ext.train import main as train
from tools.keep_run import keep

RESULTS = Path(__file__).parents[2] / "results"
KEPT = sorted(path.parents[1] for path in RESULTS.glob("*/checkpoints/*.safetensors"))


def test_there_are_some():
    assert KEPT


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)
def test_weights_are_small_and_load_without_the_images(folder):
    (checkpoint,) = RunFolder(folder).checkpoints.iterdir()
    assert checkpoint.stat().st_size <= 2_000_000
    assert load_checkpoint(checkpoint).keys() == {"epochs_done", "method", "config"}
    run = load_run(folder, device="cpu")
    summary = json.loads(RunFolder(folder).summary.read_text())
    assert run.epochs_done == summary["epochs"]
    assert run.method.predict(torch.zeros(2, 3, 32, 32)).shape == (2, 100)


def test_they_are_as_accurate_as_the_table_says(data_root, tmp_path, capsys):
    folder = RESULTS / "cifar100-lt-balanced-softmax-seed0"
    where = ["--data.root", str(data_root), "--output", str(tmp_path)]
    assert evaluate([str(folder), *where, "--device", "cpu"]) == 0
    found = json.loads((tmp_path / "metrics.json").read_text())
    recorded = json.loads(RunFolder(folder).summary.read_text())
    for name in ("top1", "many", "medium", "few"):
        # Another CPU may evaluate in float32.
        assert found[name] == pytest.approx(recorded[name], abs=0.3), name


def test_what_is_kept_names_no_folder_and_cannot_go_on(digits_run, tmp_path, capsys):
    kept = RunFolder(tmp_path / "kept")
    keep(RunFolder(digits_run), kept)
    for path in kept.path.rglob("*"):
        if path.is_file():
            assert str(digits_run.parent).encode() not in path.read_bytes(), path
    kept.summary.unlink()
    options = ["--config", str(kept.config), "--output", str(kept), "--resume"]
    assert train(options) == 2
    assert "got weights alone" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="expected a finished run"):
        keep(kept, RunFolder(tmp_path / "again"))


@pytest.mark.parametrize(
    "options",
    [
        "--preset digits-lt/hybrid-psc",
        "--preset digits-lt/cws --method.split_from 0",
        "--preset digits-lt/s3h --optim.ema_decay 0.9",
    ],
    ids=lambda options: options.split()[1],
)
def test_it_predicts_like_the_whole_run_without_what_only_training_uses(
    options, tmp_path
):
    source, kept = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "kept")
    arguments = [*options.split(), *SMALL, "--epochs", "1", "--output", str(source)]
    assert train(arguments) == 0
    checkpoint = load_checkpoint(keep(source, kept))
    assert all(name.startswith("model.") for name in checkpoint["method"])
    whole, weights = (load_run(f.path, device="cpu") for f in (source, kept))
    assert checkpoint["method"].keys() < whole.method.state_dict().keys()
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = whole.method.predict(images)
        torch.testing.assert_close(
            weights.method.predict(images), expected, rtol=0, atol=0
        )
    # A whole run lacks nothing.
    (path,) = source.checkpoints.iterdir()
    state = load_checkpoint(path)
    state["method"].popitem()
    path.write_bytes(encode_checkpoint(state))
    with pytest.raises(CheckpointError, match="Missing key"):
        load_run(source.path, device="cpu")
