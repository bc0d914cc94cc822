import json
import shutil

import numpy as np
import pytest
import torch

from python_tests.small_runs import assert_same_weights, train
from s3h_ext.data import load_dataset
from s3h_ext.runs.card import DatasetCard, read_card, write_card
from s3h_ext.runs.checkpoint import CheckpointError, checkpoint_paths
from s3h_ext.runs.config import DataConfig
from s3h_ext.runs.folder import RunFolder
from s3h_ext.runs.loading import load_run, open_dataset, split_images


@pytest.fixture
def copy(digits_run, tmp_path):
    return shutil.copytree(digits_run, tmp_path / "copy")


@pytest.mark.parametrize("preset", ["digits-lt/cws", "digits-lt/hybrid-psc"])
def test_a_loaded_run_is_the_trained_network(tmp_path, preset):
    options = ["--preset", preset, "--epochs", "1", "--batch_size", "128"]
    options += ["--method.split_from", "0"] * ("cws" in preset)
    trainer, _ = train(tmp_path, *options)
    run = load_run(tmp_path)
    expected, found = trainer.method.state_dict(), run.method.state_dict()
    assert found.keys() == expected.keys()
    assert_same_weights(found, expected)
    images = torch.randn(3, 3, 32, 32)
    trainer.method.eval()
    assert torch.equal(run.method.predict(images), trainer.method.predict(images))
    assert not run.method.training


def test_no_images_are_needed(copy, monkeypatch):
    monkeypatch.setattr("s3h_ext.runs.loading.load_dataset", None)
    run = load_run(copy)
    assert run.card.classes == tuple("0123456789")
    assert run.name == "copy"
    assert run.epochs_done == 2


def test_a_run_without_a_card_asks_the_data_set(copy):
    card = read_card(RunFolder(copy))
    (copy / "dataset.json").unlink()
    assert load_run(copy).card == card


def test_the_stand_in_has_the_counts_and_no_pixels(tmp_path):
    dataset = load_dataset("digits-lt")
    write_card(RunFolder(tmp_path), dataset)
    card = read_card(RunFolder(tmp_path))
    assert card == DatasetCard.of(dataset)
    stand_in = card.stand_in()
    assert np.array_equal(stand_in.class_counts, dataset.class_counts)
    assert stand_in.image_shape == dataset.image_shape
    assert stand_in.mean == dataset.mean
    assert stand_in.train.images.base.nbytes == 1


def test_folders_that_are_no_runs(tmp_path, copy):
    with pytest.raises(FileNotFoundError, match="expected the folder of a run"):
        load_run(tmp_path)
    (copy / "dataset.json").write_text("{}")
    with pytest.raises(ValueError, match=r"dataset\.json: TypeError"):
        load_run(copy)
    card = {**vars(read_card_of_digits()), "classes": ["a"]}
    (copy / "dataset.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match="do not fit together"):
        load_run(copy)
    card["classes"] = ["\ud800", *map(str, range(1, 10))]
    (copy / "dataset.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match=r"dataset\.json: UnicodeEncodeError"):
        load_run(copy)
    (copy / "dataset.json").unlink()
    for path in checkpoint_paths(RunFolder(copy)):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="has no checkpoint"):
        load_run(copy)


def read_card_of_digits():
    return DatasetCard.of(load_dataset("digits-lt"))


def test_options_that_do_not_fit_the_weights_are_refused(copy):
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace("resnet20", "resnet32"))
    with pytest.raises(CheckpointError, match="backbone was 'resnet20'"):
        load_run(copy)


@pytest.mark.parametrize("option", [{"test_fraction": 0.5}, {"lists": "a"}])
def test_options_of_other_data_sets_are_refused(option):
    with pytest.raises(ValueError, match=f"{next(iter(option))}: digits-lt has"):
        open_dataset(DataConfig(**option))


def test_splits_and_other_data(copy):
    run = load_run(copy)
    held, trained = (split_images(run, split).test for split in ("val", "train"))
    assert len(held) + len(trained) == sum(load_dataset("digits-lt").class_counts)
    card = json.loads((copy / "dataset.json").read_text())
    card["mean"][0] += 0.1
    (copy / "dataset.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match="differs from the data of"):
        split_images(load_run(copy), "test")
