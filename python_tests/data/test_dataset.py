import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from python_tests.processes import python
from s3h_ext.data.dataset import ImageSet
from s3h_ext.data.load import load_dataset, unused_images
from s3h_ext.data.sets.cifar import read_archive
from s3h_ext.data.sets.digits import read_digits


def image_keys(images):
    return [image.tobytes() for image in images]


def test_digits_are_cut_to_factor_20(full_size_digits):
    data = load_dataset("digits-lt")
    assert data.class_counts.tolist() == [144, 103, 74, 53, 38, 27, 19, 14, 10, 7]
    assert data.val is None
    assert np.bincount(data.test.labels).tolist() == [30] * 10
    assert data.image_shape == (32, 32, 3)
    assert data.num_classes == 10
    assert data.class_names == tuple("0123456789")
    pixels = data.train.images.reshape(-1, 3) / 255
    assert np.allclose(data.mean, pixels.mean(axis=0), atol=1e-4)
    assert np.allclose(data.std, pixels.std(axis=0), atol=1e-4)


def test_digits_are_the_real_ones_enlarged(full_size_digits):
    datasets = pytest.importorskip("sklearn.datasets")
    whole = read_digits()
    assert len(whole.train.labels) + len(whole.test.labels) == 1797
    bunch = datasets.load_digits()
    grey = torch.from_numpy(bunch.images)[:, None] / 16
    expected = F.interpolate(grey, scale_factor=4, mode="bilinear") * 255
    known = {}
    expected = expected.round().to(torch.uint8)
    for image, label in zip(expected, bunch.target, strict=True):
        known[image[0].numpy().tobytes()] = label
    images = np.concatenate([whole.train.images, whole.test.images])
    labels = np.concatenate([whole.train.labels, whole.test.labels])
    for image, label in zip(images, labels, strict=True):
        assert known[image[..., 0].tobytes()] == label
        assert (image == image[..., :1]).all()
    assert images.max() == 255
    assert images.min() == 0


def test_digits_test_images_are_always_the_same_and_not_trained_on():
    first, second = (
        load_dataset("digits-lt", imbalance=factor, val_fraction=0.2, seed=seed)
        for factor, seed in ((20, 0), (5, 7))
    )
    assert np.array_equal(first.test.images, second.test.images)
    tested = set(image_keys(first.test.images))
    for part in (first.train, first.val, second.train, second.val):
        assert tested.isdisjoint(image_keys(part.images))


def test_cifar10_subset_on_a_generated_archive(tiny_cifar):
    tiny_cifar.cifar10()
    data = load_dataset("cifar10-lt", root=tiny_cifar.root, imbalance=10)
    expected = [int(40 * 0.1 ** (label / 9)) for label in range(10)]
    assert data.class_counts.tolist() == expected
    # The red plane of these images is their label.
    assert np.array_equal(data.train.images[:, 0, 0, 0], data.train.labels)
    assert np.array_equal(data.test.images[:, 0, 0, 0], data.test.labels)
    assert len(data.test) == 30
    assert data.name == "cifar10-lt"
    assert data.mean == (0.4914, 0.4822, 0.4465)
    assert data.std == (0.2023, 0.1994, 0.2010)


def test_a_cut_archive_gives_every_higher_factor(tiny_cifar):
    tail = [int(40 * 0.1 ** (label / 9)) for label in range(10)]
    tiny_cifar.cifar10(counts=tail)
    same = load_dataset("cifar10-lt", root=tiny_cifar.root, imbalance=10)
    assert same.class_counts.tolist() == tail
    steeper = load_dataset("cifar10-lt", root=tiny_cifar.root, imbalance=40)
    assert steeper.class_counts[0] == 40
    assert steeper.class_counts[-1] == 1
    with pytest.raises(ValueError, match=r"class 1 has 30 images.*needs 33"):
        load_dataset("cifar10-lt", root=tiny_cifar.root, imbalance=5)
    with pytest.raises(ValueError, match=r"class 1 has 30 images.*needs 40"):
        load_dataset("cifar10-lt", root=tiny_cifar.root, imbalance=10, profile="step")


def test_step_profile_and_default_factor(tiny_cifar):
    tiny_cifar.cifar100(per_class=6)
    cut = {"imbalance": 3, "profile": "step"}
    data = load_dataset("cifar100-lt", root=tiny_cifar.root, **cut)
    assert data.class_counts.tolist() == [6] * 50 + [2] * 50
    with pytest.raises(ValueError, match="100 leaves no image"):
        load_dataset("cifar100-lt", root=tiny_cifar.root)


def test_validation_comes_out_of_the_training_subset(tiny_cifar):
    tiny_cifar.cifar10()
    arguments = {"root": tiny_cifar.root, "imbalance": 10}
    whole = load_dataset("cifar10-lt", **arguments)
    first = load_dataset("cifar10-lt", **arguments, val_fraction=0.25, seed=1)
    second = load_dataset("cifar10-lt", **arguments, val_fraction=0.25, seed=2)
    for data in (first, second):
        parts = image_keys(data.train.images) + image_keys(data.val.images)
        assert sorted(parts) == sorted(image_keys(whole.train.images))
        assert np.array_equal(data.test.images, whole.test.images)
        held = np.bincount(data.val.labels, minlength=10)
        assert (held == np.floor(0.25 * whole.class_counts + 0.5)).all()
        assert (data.class_counts + held == whole.class_counts).all()
        assert data.class_counts.min() >= 1
    assert image_keys(first.val.images) != image_keys(second.val.images)


def test_root_may_come_from_the_environment(tiny_cifar, monkeypatch):
    monkeypatch.delenv("S3H_DATA_ROOT", raising=False)
    with pytest.raises(ValueError, match="root"):
        load_dataset("cifar10-lt")
    with pytest.raises(FileNotFoundError, match="root"):
        load_dataset("cifar10-lt", root=tiny_cifar.root)
    tiny_cifar.cifar10()
    monkeypatch.setenv("S3H_DATA_ROOT", str(tiny_cifar.root))
    assert load_dataset("cifar10-lt", imbalance=10).class_counts[0] == 40


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("cifar10", {}, "did you mean 'cifar10-lt'"),
        ("digits-lt", {"imbalance": float("nan")}, "imbalance"),
        ("digits-lt", {"val_fraction": float("nan")}, "val_fraction"),
        ("digits-lt", {"profile": "linear"}, "profile"),
        ("folder", {"profile": "linear"}, "profile: expected one of"),
        ("inat18", {"profile": "linear"}, "profile: expected one of"),
        ("digits-lt", {"seed": -1}, r"seed: expected a whole .* 2\*\*32\), got -1"),
        ("folder", {"seed": 2**32}, "seed: expected .*, got 4294967296"),
        ("digits-lt", {"test_fraction": 0.2}, "test_fraction: digits-lt has its own"),
        ("inat18", {"test_fraction": 0.2}, "test_fraction: inat18 has its own test"),
        ("folder", {"test_fraction": 0.0}, r"expected a share in \(0, 1\), got 0.0"),
        ("folder", {"test_fraction": 1.0}, "test_fraction: expected a .*, got 1.0"),
        ("folder", {"test_fraction": float("nan")}, "test_fraction: .*, got nan"),
        ("cifar10-lt", {"lists": "a"}, "lists: cifar10-lt has no lists"),
    ],
)
def test_what_a_data_set_has_no_use_for_is_refused(tmp_path, name, changes, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(name, root=tmp_path, **changes)


@pytest.mark.parametrize(
    ("images", "labels", "name"),
    [
        (np.zeros((2, 4, 4, 3)), np.zeros(2, np.int64), "images"),
        (np.zeros((2, 4, 4), np.uint8), np.zeros(2, np.int64), "images"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros(3, np.int64), "labels"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2), "labels"),
    ],
)
def test_image_set_checks_its_arrays(images, labels, name):
    with pytest.raises(ValueError, match=name):
        ImageSet(images, labels)


def test_missing_scikit_learn_is_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        load_dataset("digits-lt")


def test_import_is_light():
    code = (
        "import sys, s3h_ext.data;"
        "heavy = {'sklearn', 'matplotlib', 'nvidia.dali', 'jsonargparse'};"
        "sys.exit(', '.join(heavy & set(sys.modules)) or None)"
    )
    python("-c", code)


@pytest.mark.parametrize(
    ("name", "imbalance", "total"),
    [
        ("cifar10-lt", None, 12_406),
        ("cifar10-lt", 50, 13_996),
        ("cifar10-lt", 10, 20_431),
        ("cifar100-lt", None, 10_847),
        ("cifar100-lt", 50, 12_608),
        ("cifar100-lt", 10, 19_573),
    ],
)
def test_real_files_give_the_published_totals(data_root, name, imbalance, total):
    data = load_dataset(name, root=data_root, imbalance=imbalance)
    assert len(data.train) == data.class_counts.sum() == total
    assert len(data.test) == 10_000


def test_real_subset_nests(data_root):
    larger = load_dataset("cifar100-lt", root=data_root, imbalance=10)
    smaller = load_dataset("cifar100-lt", root=data_root, imbalance=100)
    assert set(image_keys(smaller.train.images)) <= set(image_keys(larger.train.images))
    whole = read_archive("cifar100", data_root)
    assert set(image_keys(larger.train.images)) <= set(image_keys(whole.train.images))


@pytest.mark.parametrize("fraction", [0.0, 0.25])
def test_unused_images_are_the_rest_of_the_archive(fraction):
    cut = {"val_fraction": fraction, "imbalance": 50, "seed": 3}
    train = load_dataset("digits-lt", **cut).train
    unused = unused_images("digits-lt", **cut)
    whole = read_digits()
    keys = [*image_keys(train.images), *image_keys(unused.images)]
    assert sorted(keys) == sorted(image_keys(whole.train.images))
    counts = np.bincount(np.concatenate((train.labels, unused.labels)))
    assert counts.tolist() == np.bincount(whole.train.labels).tolist()


def test_photographs_have_no_unused_images(tmp_path):
    with pytest.raises(ValueError, match="name: expected one of .*, got 'inat18'"):
        unused_images("inat18", root=tmp_path)
