import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from python_tests.small_runs import train
from s3h_ext.data import Feed, load_dataset
from s3h_ext.data.sets.digits import read_digits
from s3h_ext.data.source.decode import UnreadableImageError
from s3h_ext.evaluate import main
from s3h_ext.models import CosineClassifier
from s3h_ext.report.evaluation_files import read_results
from s3h_ext.runs.card import DatasetCard
from s3h_ext.runs.folder import RunFolder
from s3h_ext.runs.loading import load_run, open_dataset, split_images
from s3h_ext.training.evaluation import evaluate_method
from s3h_ext.training.posthoc import TAUS, make_classifier


def test_the_test_split_gives_the_numbers_of_the_summary(digits_run, tmp_path, capsys):
    assert main([str(digits_run), "--device", "cpu", "--output", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "metrics.json").read_text())
    summary = json.loads((digits_run / "summary.json").read_text())
    for name in ("top1", "many", "medium", "few", "macro_f1", "worst_class"):
        assert found[name] == summary[name], name
    error = pytest.approx(summary["calibration_error"], abs=1e-4)
    assert found["calibration_error"] == error
    assert found["images"] == 300
    assert found["run"] == "digits run ü"
    for name in ("confusion.csv", "calibration.csv"):
        assert (tmp_path / name).read_text() == (digits_run / name).read_text()
    assert f"macro_f1          {found['macro_f1']:.2f}" in capsys.readouterr().out


@pytest.mark.parametrize("split", ["train", "val"])
def test_other_splits(digits_run, tmp_path, split):
    options = [str(digits_run), "--split", split, "--output", str(tmp_path)]
    assert main([*options, "--batch-size", "50", "--device", "cpu"]) == 0
    found = json.loads((tmp_path / "metrics.json").read_text())
    dataset = load_dataset("digits-lt", val_fraction=0.2)
    labels = getattr(dataset, split).labels
    assert found["images"] == len(labels)
    rows = list(csv.DictReader((tmp_path / "per_class.csv").open()))
    counts = np.bincount(labels, minlength=10)
    assert [int(row["evaluated_images"]) for row in rows] == counts.tolist()
    assert [int(r["train_images"]) for r in rows] == dataset.class_counts.tolist()
    if split == "val":
        # The run's last row was measured on these images with these weights.
        history = read_results(RunFolder(digits_run)).history
        assert found["top1"] == pytest.approx(history[-1]["val_top1"])


def test_images_that_the_run_has_not_seen(digits_run, tmp_path):
    options = [str(digits_run), "--split", "unused", "--output", str(tmp_path)]
    assert main([*options, "--device", "cpu"]) == 0
    found = json.loads((tmp_path / "metrics.json").read_text())
    seen = load_dataset("digits-lt", val_fraction=0.2).train
    assert found["images"] == len(read_digits().train) - len(seen)


@pytest.mark.parametrize("name", [".", "summary.json"])
def test_results_of_the_training_are_not_overwritten(digits_run, name, capsys):
    before = (digits_run / "per_class.csv").read_bytes()
    with pytest.raises(SystemExit) as status:
        main([str(digits_run), "--split", "val", "--output", str(digits_run / name)])
    assert status.value.code == 2
    assert "error: --output: expected " in capsys.readouterr().err
    assert (digits_run / "per_class.csv").read_bytes() == before


def test_a_folder_of_results_that_is_a_link_is_not_followed(
    digits_run, tmp_path, capsys
):
    run = tmp_path / "run"
    shutil.copytree(digits_run, run)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (run / "evaluation-test").symlink_to(elsewhere)
    with pytest.raises(SystemExit) as status:
        main([str(run)])
    assert status.value.code == 2
    assert "is a link" in capsys.readouterr().err
    assert not any(elsewhere.iterdir())


def test_no_image_in_a_batch_and_no_run(digits_run, tmp_path, capsys):
    arguments = [str(digits_run), "--batch-size", "0", "--output", str(tmp_path / "x")]
    assert main(arguments) == 2
    assert "batch_size: expected a whole number >= 1, got 0" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    assert main([str(tmp_path)]) == 2
    assert "error: run: expected the folder of a run" in capsys.readouterr().err


def test_a_split_that_was_not_held_out(tmp_path, capsys):
    train(tmp_path, "--epochs", "1")
    assert main([str(tmp_path), "--split", "val"]) == 2
    assert "holds out no validation images" in capsys.readouterr().err


def test_photographs_have_no_unused_images(digits_run, monkeypatch):
    run = load_run(digits_run, device="cpu")
    monkeypatch.setattr(run.config.data, "name", "folder")
    with pytest.raises(ValueError, match="split: folder does not come from an arch"):
        split_images(run, "unused")


def test_no_image_that_can_be_read(digits_run):
    run = load_run(digits_run, device="cpu")
    counts = np.array(run.card.train_images)
    with pytest.raises(UnreadableImageError, match="no image of the split"):
        evaluate_method(run.method, [], counts, precision="fp32", device=run.device)


def test_lists_may_have_moved(digits_run, monkeypatch):
    run = load_run(digits_run, device="cpu")
    opened = []

    def note(data):
        opened.append((data.root, data.lists))
        raise FileNotFoundError

    monkeypatch.setattr("s3h_ext.runs.loading.open_dataset", note)
    with pytest.raises(FileNotFoundError):
        split_images(run, "test", "images", "lists")
    assert opened == [("images", "lists")]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        ({"classes": ("a", "c", "b")}, ["classes in a different order"]),
        ({"classes": ("a", "b", "x")}, ["other classes, without c and with x"]),
        ({"classes": ("a", "b"), "train_images": (9, 4)}, ["other classes, without c"]),
        (
            {"train_images": (9, 5, 1)},
            ["different numbers of training images: b 4 -> 5"],
        ),
        ({"mean": (0.25,) * 3}, [f"pixels' mean {(0.5,) * 3} -> {(0.25,) * 3}"]),
        (
            {"image_shape": (64, 64, 3), "recipe": "evaluation"},
            ["image_shape (32, 32, 3) -> (64, 64, 3)", "recipe none -> evaluation"],
        ),
    ],
)
def test_what_differs_in_the_data_is_named(changes, said):
    pixels = ((32, 32, 3), (0.5,) * 3, (0.25,) * 3)
    card = DatasetCard("set", ("a", "b", "c"), (9, 4, 1), *pixels)
    assert card.differences(replace(card, **changes)) == said


def test_other_data_than_the_runs_are_refused_with_what_differs(
    digits_run, monkeypatch, capsys
):
    def cut(data):
        found = open_dataset(data)
        return replace(found, train=found.train.subset(np.arange(1, len(found.train))))

    monkeypatch.setattr("s3h_ext.runs.loading.open_dataset", cut)
    assert main([str(digits_run), "--device", "cpu"]) == 2
    message = capsys.readouterr().err
    assert "error: --data.root: digits-lt differs from the data of" in message
    assert "different numbers of training images: " in message
    assert message.count("->") == 1


def evaluated(run, folder, *options):
    """What ``metrics.json`` says of an evaluation."""
    arguments = [str(run), "--device", "cpu", "--output", str(folder), *options]
    assert main(arguments) == 0
    return json.loads((folder / "metrics.json").read_text())


@pytest.fixture
def test_logits(digits_run):
    """Logits and features of the test images, their labels, and the run."""
    run = load_run(digits_run, device="cpu")
    data = split_images(run, "test")
    batches = Feed().evaluation(data.test, data, batch_size=300)
    images = next(iter(batches)).images[0]
    with torch.inference_mode():
        features = run.method.model.backbone(images)
        logits = run.method.predict(images)
    return logits, features, torch.from_numpy(data.test.labels), run


def accuracy(logits, labels):
    right = logits.argmax(1) == labels
    classes = [100.0 * right[labels == c].double().mean().item() for c in range(10)]
    return 100.0 * right.double().mean().item(), sum(classes) / 10


def test_logit_adjustment_after_training(digits_run, tmp_path, test_logits):
    logits, _, labels, run = test_logits
    counts = torch.tensor(run.card.train_images).double()
    for options, tau in (([], 1.0), (["--tau", "0.5"], 0.5)):
        options = ("--classifier", "logit-adjusted", *options)
        found = evaluated(digits_run, tmp_path, *options)
        adjusted = logits - tau * (counts / counts.sum()).log()
        assert found["tau"] == tau
        expected = accuracy(adjusted, labels)
        assert (found["top1"], found["balanced_accuracy"]) == pytest.approx(expected)
    assert found["classifier"] == "logit-adjusted"


@pytest.mark.parametrize("choose_on", ["val", "unused"])
def test_tau_is_chosen_on_held_out_images(
    digits_run, tmp_path, test_logits, choose_on, monkeypatch
):
    read = []

    def note(run, split, *rest, **more):
        read.append(split)
        return split_images(run, split, *rest, **more)

    monkeypatch.setattr("s3h_ext.evaluate.split_images", note)
    options = ("--classifier", "tau-norm", "--choose-on", choose_on)
    found = evaluated(digits_run, tmp_path / "swept", *options)
    assert read == [choose_on, "test"]
    sweep = found["tau_sweep"]
    assert [*map(float, sweep)] == [*TAUS]
    assert found["tau_chosen_on"] == choose_on
    assert sweep[f"{found['tau']:g}"] == max(sweep.values())
    # Each number of the sweep is that of an evaluation with this tau.
    for tau in (0.0, 1.3):
        given = ("--classifier", "tau-norm", "--tau", str(tau))
        held_out = evaluated(digits_run, tmp_path, *given, "--split", choose_on)
        assert held_out["balanced_accuracy"] == pytest.approx(sweep[f"{tau:g}"])
    _, features, labels, run = test_logits
    weight = run.method.model.classifier.weight.detach()
    scaled = weight / weight.norm(dim=1, keepdim=True) ** found["tau"]
    assert found["top1"] == pytest.approx(accuracy(features @ scaled.T, labels)[0])


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        (["nearest-mean"], {}),
        (["knn"], {"neighbours": 20}),
        (["knn", "--neighbours", "3"], {"neighbours": 3}),
    ],
)
def test_classifiers_by_the_training_images(digits_run, tmp_path, options, facts):
    found = evaluated(digits_run, tmp_path, "--classifier", *options)
    assert found.items() >= facts.items()
    assert found["classifier"] == options[0]
    assert found["top1"] > 30  # of ten classes, after two epochs
    assert 0 <= found["calibration_error"] <= 100


def test_a_classifier_has_a_folder_of_its_own(digits_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(digits_run, run)
    assert main([str(run), "--device", "cpu", "--classifier", "nearest-mean"]) == 0
    assert (run / "evaluation-test-nearest-mean" / "metrics.json").is_file()
    assert not (run / "evaluation-test").exists()


def test_the_area_under_the_curve(digits_run, tmp_path, test_logits):
    logits, _, labels, _ = test_logits
    found = evaluated(digits_run, tmp_path, "--auc")
    expected = roc_auc_score(labels, logits.double().softmax(1), multi_class="ovr")
    assert found["auc"] == pytest.approx(100 * expected, abs=1e-3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--tau 1", "--tau: expected it with --classifier logit-adjusted or tau-norm"),
        ("--choose_on val", "--choose_on: expected it with --classifier tau-norm"),
        ("--classifier tau-norm --tau 1 --choose_on val", "--choose_on: expected"),
        ("--classifier nearest-mean --neighbours 2", "--neighbours: expected it with"),
        ("--classifier tau-norm --split val", "--split: tau is chosen on held-out"),
        ("--classifier tau-norm --split unused", "--split: tau is chosen on held-out"),
        ("--classifier knn --split train", "--split: with knn a training image"),
        ("--classifier tau-norm --choose_on test", "argument --choose_on: invalid"),
        ("--classifier tau-norm --tau 2.5", "--tau: expected a number in [0, 2]"),
        ("--classifier logit-adjusted --tau nan", "--tau: expected a finite number"),
        ("--classifier knn --neighbours 0", "--neighbours: expected a whole number in"),
    ],
)
def test_options_that_do_not_go_together(digits_run, tmp_path, options, said, capsys):
    try:
        status = main([str(digits_run), *options.split(), "--output", str(tmp_path)])
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2
    assert f"error: {said}" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_tau_needs_held_out_images_and_a_linear_classifier(digits_run, monkeypatch):
    run = load_run(digits_run, device="cpu")
    monkeypatch.setattr(run.config.data, "val_fraction", 0.0)
    data = load_dataset("digits-lt")
    monkeypatch.setattr("s3h_ext.runs.loading.open_dataset", lambda _: data)
    run = replace(run, card=DatasetCard.of(data))
    with pytest.raises(ValueError, match="choose_on: .* holds out no validation"):
        split_images(run, "val", argument="choose_on")
    run.method.model.classifier = CosineClassifier(64, 10)
    with pytest.raises(ValueError, match="classifier: .* got a CosineClassifier"):
        make_classifier(run, "tau-norm", lambda split: [])
