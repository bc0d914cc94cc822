import shlex

import numpy as np
import pytest
from PIL import Image

from s3h_ext.data.sets.check import check
from s3h_ext.data.sets.suggest import suggest
from s3h_ext.runs.options import parse_options


@pytest.mark.parametrize(
    ("counts", "preset", "loss", "batch", "epochs"),
    [
        ([50, 50], "folder/ce", "cross-entropy", 16, 200),
        ([500, 120, 101], "folder/ce", "cross-entropy", 32, 200),
        ([1000, 400, 100], "folder/ce", "logit-adjusted", 64, 200),
        ([5000, 3000, 260], "folder/ce", "logit-adjusted", 128, 200),
        ([10**6, 10**3], "folder/s3h", None, 128, 30),
        ([30000, 9000, 1000], "folder/s3h", None, 128, 55),
    ],
)
def test_the_command_parses_to_what_the_counts_ask_for(
    counts, preset, loss, batch, epochs
):
    counts = np.array(counts)
    command, *reasons = suggest(counts, "my photos")
    _, _, _, *arguments = shlex.split(command)
    config, _ = parse_options(arguments)
    assert config.preset == preset
    assert config.data.root == "my photos"
    assert config.method.init_args.get("loss") == loss
    assert (config.batch_size, config.epochs) == (batch, epochs)
    assert config.optim.lr == pytest.approx(0.05 * batch / 128)
    assert reasons[0].startswith(preset)
    assert not any("fewer than 5" in reason for reason in reasons)


@pytest.mark.parametrize(
    ("side", "size", "backbone"),
    [
        *[(8, 32, "resnet32"), (32, 32, "resnet32"), (70, 64, "resnet32")],
        *[(100, 96, "resnet50"), (112, None, "resnet50"), (3000, None, "resnet50")],
    ],
)
def test_small_images_get_small_views_and_a_small_network(side, size, backbone):
    command, *_ = suggest(np.array([400, 90]), "photos", side)
    config, _ = parse_options(shlex.split(command)[3:])
    assert (config.data.size, config.model.backbone) == (size, backbone)


def test_classes_of_which_nothing_can_be_measured_are_counted():
    *_, last = suggest(np.array([400, 4, 1]), "photos")
    assert last.startswith("2 of 3 classes have fewer than 5 images")


def test_the_check_of_a_folder_ends_with_the_command(tmp_path):
    for name, number in (("cat", 12), ("dog", 3)):
        for split in ("train", "test"):
            (tmp_path / split / name).mkdir(parents=True)
            for place in range(number):
                image = Image.new("RGB", (8, 8), (place, 0, 0))
                image.save(tmp_path / split / name / f"{place}.png")
    report = check("folder", tmp_path)
    command, *reasons = suggest(np.array([12, 3]), str(tmp_path), side=8)
    end = report.lines[-1 - len(reasons) :]
    assert end == [f"to begin with: {command}", *(f"  {each}" for each in reasons)]
