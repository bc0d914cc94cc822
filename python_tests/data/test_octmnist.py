"""OCTMNIST from files made here in the official format, for want of the real one."""

import numpy as np
import pytest
import torch

from s3h_ext.data import Feed, Stream, load_dataset
from s3h_ext.data.longtail import sorted_profile
from s3h_ext.data.sets.medmnist import MEDMNIST
from s3h_ext.models import build_model

TRAIN = [33484, 10213, 7754, 46026]  # the official counts
VAL = [3721, 1135, 862, 5114]
FILES = {28: "octmnist.npz", 64: "octmnist_64.npz", 128: "octmnist_128.npz"}
FILES[224] = "octmnist_224.npz"


def write_octmnist(root, size=28, train=TRAIN, val=VAL, test=250):
    """Writes arrays of MedMNIST's names, types and shapes; one pixel is the label."""
    arrays = {}
    random = np.random.RandomState(0)
    for split, counts in (("train", train), ("val", val), ("test", [test] * 4)):
        labels = random.permutation(np.repeat(np.arange(4, dtype=np.uint8), counts))
        images = np.zeros((len(labels), size, size), np.uint8)
        images[:, 0, 0] = labels
        images[:, 1, :8] = random.randint(0, 256, (len(labels), 8))
        arrays[f"{split}_images"] = images
        arrays[f"{split}_labels"] = labels[:, None]
    np.savez_compressed(root / FILES[size], **arrays)
    return arrays


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    root = tmp_path_factory.mktemp("octmnist")
    return root, write_octmnist(root)


@pytest.mark.parametrize(
    ("factor", "counts"),
    [
        (10, [21363, 9916, 4602, 46026]),
        (50, [12493, 3391, 920, 46026]),
        (100, [9916, 2136, 460, 46026]),
    ],
)
def test_a_file_of_the_official_size_is_cut_to_our_definition(full, factor, counts):
    root, arrays = full
    data = load_dataset("octmnist-lt", root=root, imbalance=factor)
    assert data.class_counts.tolist() == counts
    assert data.image_shape == (28, 28, 1)
    assert data.class_names == MEDMNIST["octmnist"]
    assert len(data.test) == 1000
    # Images and labels belong together, and no image is there twice.
    assert np.array_equal(data.train.images[:, 0, 0, 0], data.train.labels)
    assert np.array_equal(data.test.images[..., 0], arrays["test_images"])
    assert data.train.images.nbytes == len(data.train) * 28 * 28
    pixels = data.train.images / 255
    assert np.allclose(data.mean, pixels.mean(), atol=1e-4)
    assert np.allclose(data.std, pixels.std(), atol=1e-4)


def test_higher_factors_keep_a_part_of_lower_ones(full):
    root, _ = full
    low, high = (load_dataset("octmnist-lt", root=root, imbalance=f) for f in (50, 100))
    kept, fewer = ({i.tobytes() for i in d.train.images[:, 1, :8]} for d in (low, high))
    assert fewer < kept


@pytest.mark.parametrize("size", [28, 64, 128, 224])
def test_one_channel_goes_through_to_the_network(tmp_path, size):
    write_octmnist(tmp_path, size, [60, 40, 30, 90], [2, 2, 2, 2], 3)
    cut = {"imbalance": 9, "size": size, "val_fraction": 0.2}
    data = load_dataset("octmnist-lt", root=tmp_path, **cut)
    assert data.image_shape == (size, size, 1)
    # 90, 43, 20 and 10 by size, a fifth of each held out.
    assert data.class_counts.tolist() == [34, 16, 8, 72]
    streams = {"train": Stream()}
    source = Feed().training(data, streams, batch_size=8, epochs=1, seed=0)
    batch = next(iter(source.epoch(0)))["train"]
    count = len(batch.labels)
    assert batch.images.shape == (1, count, 1, size, size)
    model = build_model("resnet20", 4, in_channels=1)
    assert model(batch.images[0]).shape == (count, 4)
    tested = next(iter(Feed().evaluation(data.test, data, batch_size=8)))
    back = tested.images[0, :, 0] * data.std[0] + data.mean[0]
    expected = torch.tensor(data.test.images[:8, ..., 0] / 255, dtype=torch.float32)
    torch.testing.assert_close(back, expected, atol=1e-5, rtol=0)


def test_a_class_that_is_too_small_keeps_all_it_has():
    counts = sorted_profile(np.array([5, 100, 7]), imbalance=10)
    assert counts.tolist() == [5, 100, 7]
    with pytest.raises(ValueError, match="class 0 has no image"):
        sorted_profile(np.array([0, 100]), imbalance=10)


def test_bad_sizes_and_missing_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="octmnist comes in .* pixels, got 32"):
        load_dataset("octmnist-lt", root=tmp_path, size=32)
    with pytest.raises(FileNotFoundError, match=r"octmnist_64\.npz: no such file"):
        load_dataset("octmnist-lt", root=tmp_path, size=64)
    with pytest.raises(ValueError, match="size: digits-lt comes in one size"):
        load_dataset("digits-lt", size=28)
