"""Every preset trains: one epoch on a few small images, in the channels of its own."""

import math

import numpy as np
import pytest

from python_tests.small_runs import DIGITS, SMALL, train
from s3h_ext.data import ImageSet, LongTailDataset
from s3h_ext.presets import preset_names
from s3h_ext.runs.options import parse_options
from s3h_ext.training.trainer import Trainer

# Photographs get by with a few classes here; so many alone would take their time.
CLASSES = {"cifar100-lt": 100, "octmnist-lt": 4}
# The factor changes the data alone, which are made up here.
PRESETS = [name for name in preset_names() if "-if" not in name]


def small(name, classes):
    rng = np.random.default_rng(0)
    labels = np.concatenate((np.arange(classes), np.zeros(20, np.int64)))
    shape = (8, 8, 1) if name == "octmnist-lt" else (8, 8, 3)
    images = rng.integers(0, 256, (len(labels), *shape), dtype=np.uint8)
    split = ImageSet(images, labels)
    names = tuple(map(str, range(classes)))
    scale = ((0.5,) * shape[2], (0.25,) * shape[2])
    return LongTailDataset(name, split, None, split, names, *scale)


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_trains(tmp_path, preset):
    config, _ = parse_options([*SMALL, "--epochs", "1", "--preset", preset])
    dataset = small(config.data.name, CLASSES.get(config.data.name, 10))
    if config.method.needs_first_stage:
        first = {"quick": [*DIGITS, "--epochs", "1"], "dataset": dataset}
        train(tmp_path / "first", **first)
        config.init_from = str(tmp_path / "first")
    summary = Trainer(config, tmp_path / "run", dataset=dataset).fit()
    assert summary["preset"] == preset
    # The label is the preset's name, so a table row finds its way to its preset.
    assert summary["method"] == preset.partition("/")[2].removesuffix("-400epochs")
    assert math.isfinite(summary["top1"])
