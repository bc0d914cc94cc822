"""Whole trainings on image folders, by the public command."""

import csv
import json
import os
import shutil
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from python_tests.data.photographs import grow, grow_bad, grow_odd, noise, save
from python_tests.processes import python
from python_tests.small_runs import (
    after_step,
    assert_same_weights,
    newest_state,
    summary_of,
    trainer_of,
)
from s3h_ext import evaluate
from s3h_ext.data.source.decode import UnreadableImageError
from s3h_ext.report.subclasses import read_subclasses
from s3h_ext.runs.card import read_card
from s3h_ext.runs.folder import RunFolder
from s3h_ext.train import main

TINY = (
    "--data.name folder --data.imbalance null --data.size 16 --data.workers 2 "
    "--model.backbone resnet20 --batch_size 8 --eval_batch_size 5 --epochs 2 "
    "--device cpu --precision fp32"
).split()


def folder_options(root, *more):
    """A short run without a report on an image folder."""
    return [*TINY, "--data.root", str(root), "--report", "false", *more]


SKIP = ("--data.unreadable", "skip")


def assert_same_run(folder, other):
    assert_same_weights(newest_state(folder)["method"], newest_state(other)["method"])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = grow(tmp_path_factory.mktemp("photographs"), (16, 9, 5), size=(40, 56))
    grow_odd(root)
    grow(root, (2, 2, 2), split="test", size=(40, 56))
    return root


def test_a_run_says_what_it_was_fed_and_what_it_left_out(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("s3h_ext.training.finish.try_report", lambda folder: None)
    bad = grow_bad(grow(tmp_path / "set", (30, 11)))
    folder = tmp_path / "run"
    cws = (
        "--method ClasswiseSplitting --method.inner Baseline --method.split_from 0.5 "
        "--method.inner.recipe resized-crop-flip --optim.lr 0.01"
    ).split()
    arguments = [*TINY, *cws, "--data.root", str(tmp_path / "set"), "--output"]
    assert main([*arguments, str(folder)]) == 1
    assert "class 0/" in capsys.readouterr().err
    folder = tmp_path / "other"
    arguments += [str(folder), "--data.unreadable", "skip"]
    assert main(arguments) == 0
    summary = summary_of(folder)
    assert summary["unreadable_images"] == len(bad)
    # (35 + 11) * 0.8, of each class, without unreadable images
    unreadable = read_card(RunFolder(folder)).unreadable
    counts = [28 - len([name for name in unreadable if name[-3:] == "jpg"]), 9]
    assert counts[0] < 28
    assert summary["train_images"] == sum(counts)
    assert summary["imbalance"] == pytest.approx(counts[0] / counts[1])
    assert read_card(RunFolder(folder)).train_images == tuple(counts)
    said = capsys.readouterr().err
    assert f"2 classes: 'class 0' {counts[0]}, 'class 1' {counts[1]}\n" in said
    assert "has no test split: 9 images" in said
    assert all(said.count(f"/{name}: ") == 1 for name in bad)
    log = (folder / "train.log").read_text()
    first = log[: log.index("epoch 1,")]
    assert all(f"/{name}: " in first for name in bad)
    assert "has no test split: 9 images, 0.2 of each class" in log
    assert all(f"/{name}: " in log for name in bad)
    assert log.count("left out: ") == len(bad)
    found = read_subclasses(RunFolder(folder))
    assert found.images.shape[2:] == (64, 64, 3)
    assert found.images.max() > 100
    # The examples of class 0 are of class 0: their pictures are nowhere among others.
    assert np.ptp(found.images[0, 0].reshape(-1, 3), axis=0).min() > 50


def test_a_first_stage_that_has_seen_the_test_images_is_refused(tmp_path, capsys):
    root = grow(tmp_path / "set", (15, 10), size=(40, 56))
    run = folder_options(root)
    assert main([*run, "--epochs", "1", "--output", str(tmp_path / "first")]) == 0
    second = [*run, "--method", "TauNormalization", "--init_from", f"{tmp_path}/first"]
    second += ["--data.test_fraction"]
    assert main([*second, "0.2", "--output", str(tmp_path / "second")]) == 0
    assert main([*second, "0.4", "--output", str(tmp_path / "third")]) == 2
    message = "expected the same data.test_fraction in both, got None and 0.4"
    assert message in capsys.readouterr().err


ODD_NAMES = """
import os, sys
from s3h_ext import evaluate, predict, train

run, root = sys.argv[1:3]
assert train.main([*sys.argv[3:], "--data.root", root, "--output", "run"]) == 0
os.rename("run", run)  # TensorBoard would not write there
assert evaluate.main([run, "--device", "cpu"]) == 0
assert predict.main([run, root, "--top", "1", "--device", "cpu"]) == 1
"""


def test_names_that_are_no_text_end_nothing(tmp_path):
    root = grow(tmp_path / "set", (6, 5))
    odd = os.fsencode(root / "train") + b"/caf\xe9"
    os.rename(root / "train" / "class 1", odd)
    with open(odd + b"/caf\xe9.jpg", "wb"):
        pass
    run = Path(os.fsdecode(os.fsencode(tmp_path) + b"/run \xe9"))
    arguments = [*TINY, "--epochs", "1", "--data.unreadable", "skip"]
    # A stream as strict as most are.
    where = {"cwd": tmp_path, "env": os.environ | {"PYTHONIOENCODING": "utf-8:strict"}}
    done = python("-c", ODD_NAMES, run, root, *arguments, text=False, **where)
    assert summary_of(run)["unreadable_images"] == 1
    assert read_card(RunFolder(run)).classes == ("caf\udce9", "class 0")
    log = (run / "train.log").read_text(encoding="utf-8")
    assert "/caf\\udce9/caf\\udce9.jpg: no image" in log
    with (run / "per_class.csv").open(encoding="utf-8") as file:
        names = [row["name"] for row in csv.DictReader(file)]
    assert names == ["caf\\udce9", "class 0"]
    assert "caf\\udce9" in (run / "report.html").read_text(encoding="utf-8")
    assert b"run               run \\udce9\n" in done.stdout
    assert odd + b"/caf\xe9.jpg,cannot be read" in done.stdout


def damaged(root):
    """Writes a set with damaged files: some of class 0, the only one of class 2."""
    grow(root, (9, 6, 1, 3))
    grow(root, (2, 2, 1, 1), split="test")
    bad = sorted((root / "train" / "class 0").iterdir())[:3]
    bad += (root / "train" / "class 2").iterdir()
    bad += (root / "test" / "class 3").iterdir()
    for path in bad:
        path.write_bytes(path.read_bytes()[:200])
    return bad


@pytest.mark.parametrize(
    ("options", "batch"),
    [
        ("--preset folder/hybrid-psc", 1),
        ("--preset folder/s3h", 3),
        ("--method Baseline --method.sampler class-balanced", 1),
        ("--method Baseline --method.loss logit-adjusted", 4),
        ("--method Baseline --method.loss ldam --model.classifier cosine", 4),
        ("--method Baseline --method.weight_beta 0.99", 4),
    ],
)
def test_everything_follows_the_images_that_can_be_read(
    tmp_path, capsys, options, batch
):
    root, run = tmp_path / "set", tmp_path / "run"
    bad = damaged(root)
    short = ("--batch_size", str(batch), "--epochs", "1")
    arguments = [*options.split(), *folder_options(root, *short, *SKIP), "--output"]
    assert main([*arguments, str(run)]) == 0
    said, log = capsys.readouterr().err, (run / "train.log").read_text()
    note = "none of their training images can be read: 'class 2' (and 1 test images)"
    for text in (said, log):
        assert all(text.count(f"left out: {path}: ") == 1 for path in bad)
        assert note in text
        assert "test: no readable image of 'class 3'" in text
        assert "3 classes: 'class 0' 6, 'class 1' 6, 'class 3' 3\n" in text
    card = read_card(RunFolder(run))
    assert card.classes == ("class 0", "class 1", "class 3")
    assert card.train_images == (6, 6, 3)
    assert summary_of(run)["unreadable_images"] == 5
    # What is left is what a set of these files alone is.
    for path in bad[:4]:
        path.unlink()
    for split in ("train", "test"):
        shutil.rmtree(root / split / "class 2")
    clean = tmp_path / "clean"
    assert main([*arguments, str(clean)]) == 0
    assert_same_run(run, clean)


def test_a_file_that_is_lost_on_the_way_is_named_at_once(tmp_path, capsys):
    root = grow(grow(tmp_path / "set", (4, 3)), (2, 2), split="test")
    arguments = folder_options(root, "--batch_size", "1", *SKIP)
    trainer = trainer_of(tmp_path / "run", quick=arguments)
    lost = sorted((root / "train" / "class 1").iterdir())
    for path in lost:
        path.unlink()
    seen = []

    def look(method):
        seen.append((tmp_path / "run" / "train.log").read_text().count("left out: "))

    trainer.method.after_step = look.__get__(trainer.method)
    summary = trainer.fit()
    assert summary["unreadable_images"] == len(lost)
    assert seen[0] < seen[6] == len(lost)  # in the first epoch of seven steps
    said = capsys.readouterr().err
    assert all(said.count(f"left out: {path}: ") == 1 for path in lost)
    # Counted as when the run began.
    assert summary["train_images"] == 7


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("train", "train: none of the 5 images can be read"),
        ("test", "test: none of the 3 images can be read"),
    ],
)
def test_a_run_of_which_nothing_is_left_does_not_begin(
    tmp_path, capsys, split, message
):
    root = grow(grow(tmp_path / "set", (3, 2)), (2, 1), split="test")
    for path in (root / split).rglob("*.jpg"):
        path.write_bytes(b"")
    run = ("--output", str(tmp_path / "run"))
    assert main(folder_options(root, *SKIP, *run)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_stop_while_files_are_read_leaves_nothing(tmp_path, capsys, monkeypatch):
    root = grow(grow(tmp_path / "set", (40, 30)), (2, 1), split="test")
    decoded = []

    def decode(content):
        decoded.append(len(content))
        if len(decoded) == 5:
            raise KeyboardInterrupt
        return torch.zeros(4, 4, 3, dtype=torch.uint8)

    monkeypatch.setattr("s3h_ext.data.source.decode.decode_image", decode)
    run = ("--data.workers", "1", "--output", str(tmp_path / "run"))
    assert main(folder_options(root, *SKIP, *run)) == 130
    assert "stopped before the training began" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert not any(t.name.startswith("s3h-decode") for t in threading.enumerate())


@pytest.mark.parametrize(("steps", "mended"), [(2, True), (4, False)])
def test_a_resumed_run_leaves_out_what_it_left_out_before(tmp_path, steps, mended):
    root = tmp_path / "set"
    bad = damaged(root)
    arguments = folder_options(root, "--epochs", "3", *SKIP)
    trainer_of(tmp_path / "whole", quick=arguments).fit()
    run = tmp_path / "run"
    stopped = trainer_of(run, quick=arguments)
    after_step(stopped.method, steps, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    for number, path in enumerate(bad[:4]):
        if mended:
            save(path, noise(number))
        elif path.parent.name == "class 0":  # class 2 keeps its folder
            path.unlink()
    summary = trainer_of(run, quick=arguments, resume=True).fit()
    assert summary["unreadable_images"] == len(bad)
    lines = (run / "train.log").read_text().splitlines()
    assert all(sum(f"left out: {p}: " in each for each in lines) == 1 for p in bad)
    assert_same_run(run, tmp_path / "whole")


def test_a_run_that_met_an_unreadable_file_goes_on_without_it(tmp_path, capsys):
    root = grow(grow(tmp_path / "set", (8, 4)), (2, 2), split="test")
    run = ("--output", str(tmp_path / "run"))
    arguments = folder_options(root, "--epochs", "3", *run)
    trainer = trainer_of(tmp_path / "run", quick=arguments)
    bad = root / "train" / "class 0" / "000.jpg"

    def spoil(method):
        if trainer.state.epochs_done == 1:
            bad.write_bytes(b"")

    trainer.method.after_step = spoil.__get__(trainer.method)
    with pytest.raises(UnreadableImageError, match="leave such images out with"):
        trainer.fit()
    assert main([*arguments, "--resume", "--data.unreadable", "skip"]) == 0
    assert f"left out: {bad}: " in capsys.readouterr().err
    assert read_card(RunFolder(tmp_path / "run")).train_images == (8, 4)


def test_an_evaluation_says_what_it_left_out(tmp_path, capsys):
    root = grow(tmp_path / "set", (6, 4))
    grow(root, (3, 2), split="test")
    bad = root / "test" / "class 1" / "004.jpg"
    bad.write_text("not an image")
    (root / "train" / "class 0" / "001.jpg").write_bytes(b"")
    run = tmp_path / "run"
    short = ("--epochs", "1", "--output", str(run))
    assert main(folder_options(root, *short, *SKIP)) == 0
    capsys.readouterr()
    for split, images, left_out in (("test", 4, 1), ("train", 9, 1)):
        assert evaluate.main([str(run), "--split", split, "--device", "cpu"]) == 0
        metrics = run / f"evaluation-{split}" / "metrics.json"
        found = json.loads(metrics.read_text())
        assert (found["images"], found["unreadable_images"]) == (images, left_out)
        said = capsys.readouterr()
        assert f"unreadable_images {left_out}\n" in said.out
        name = "train/class 0/001.jpg" if split == "train" else str(bad)
        assert said.err.count("left out: ") == 1
        assert f"left out: {name}: " in said.err


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


@pytest.mark.parametrize(
    "source", ["pil", pytest.param("dali", marks=pytest.mark.slow)]
)
def test_killed_and_resumed_it_has_the_bits_of_an_undisturbed_run(
    root, tmp_path, source
):
    if source == "dali":
        pytest.importorskip("nvidia.dali")
    method = ("--preset", "folder/hybrid-psc", "--data.source", source)
    arguments = folder_options(root, *method)
    python("-c", KILLED, tmp_path, *arguments)
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_sources_that_do_not_fit_the_data_are_refused(root, tmp_path, capsys):
    arguments = [*TINY, "--data.root", str(root), "--output", str(tmp_path / "run")]
    assert main([*arguments, "--data.source", "resident"]) == 2
    assert "the images of folder need pil or dali" in capsys.readouterr().err
    assert main([*arguments, "--data.root", str(tmp_path / "none")]) == 2
    assert "root: expected a folder of images" in capsys.readouterr().err
    assert main([*arguments, "--data.workers", "-1"]) == 2
    assert "data.workers: expected a whole number >= 0" in capsys.readouterr().err
