"""The weights of runs in ``results/``: small, whole, and worth what the table says."""

import json
from pathlib import Path

import pytest
import torch

from python_tests.small_runs import assert_same_weights
from s3h_ext.evaluate import main as evaluate
from s3h_ext.runs.checkpoint import load_checkpoint
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
    whole, weights = (load_run(f, device="cpu") for f in (digits_run, kept.path))
    assert_same_weights(weights.method.state_dict(), whole.method.state_dict())
    kept.summary.unlink()
    options = ["--config", str(kept.config), "--output", str(kept), "--resume"]
    assert train(options) == 2
    assert "got weights alone" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="expected a finished run"):
        keep(kept, RunFolder(tmp_path / "again"))
