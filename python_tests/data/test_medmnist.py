"""MedMNIST's sets and arrays of one's own, from files made here."""

import numpy as np
import pytest

from s3h_ext.data import load_dataset, unused_images
from s3h_ext.data.load import DATASETS
from s3h_ext.data.sets.archive import ArchiveError
from s3h_ext.data.sets.check import check
from s3h_ext.data.sets.medmnist import MEDMNIST
from s3h_ext.data.sets.registry import MEDMNIST_SIZES, OFFICIAL_FILES, find_official

COLOURED = {"pathmnist", "dermamnist", "retinamnist", "bloodmnist"}


def arrays_of(counts, shape, *, dtype=np.uint8, column=True):
    """Arrays of three splits; the first byte of an image is its label."""
    random, arrays = np.random.RandomState(0), {}
    for split, share in (("train", 1), ("val", 3), ("test", 2)):
        kept = [max(1, n // share) for n in counts]
        labels = random.permutation(np.repeat(np.arange(len(counts)), kept))
        images = random.randint(0, 256, (len(labels), *shape)).astype(np.uint8)
        images.reshape(len(labels), -1)[:, 0] = labels
        arrays[f"{split}_images"] = images
        labels = labels.astype(dtype)
        arrays[f"{split}_labels"] = labels[:, None] if column else labels
    return arrays


@pytest.mark.parametrize("name", MEDMNIST)
def test_a_set_keeps_its_own_splits_and_counts(name, tmp_path):
    classes = len(MEDMNIST[name])
    shape = (28, 28, 3) if name in COLOURED else (28, 28)
    counts = [3 * (c + 2) for c in range(classes)]
    arrays = arrays_of(counts, shape)
    np.savez(tmp_path / f"{name}.npz", **arrays)
    data = load_dataset(name, root=tmp_path)
    assert data.class_names == MEDMNIST[name]
    assert data.class_counts.tolist() == counts
    assert data.image_shape == (28, 28, 3 if name in COLOURED else 1)
    for split in ("train", "val", "test"):
        held = getattr(data, split)
        expected = arrays[f"{split}_images"].reshape(held.images.shape)
        assert np.array_equal(held.images, expected), split
        assert np.array_equal(held.images[:, 0, 0, 0], held.labels)
    assert "all arrays present" in check(name, tmp_path).text()


def test_a_set_is_cut_from_its_largest_class_on(tmp_path):
    arrays = arrays_of([20, 100, 60, 5, 80, 90, 70], (28, 28, 3))
    np.savez(tmp_path / "dermamnist.npz", **arrays)
    data = load_dataset("dermamnist", root=tmp_path, imbalance=100)
    assert data.class_counts.tolist() == [2, 100, 4, 1, 21, 46, 10]
    assert np.array_equal(arrays["train_images"][data.indices], data.train.images)
    assert len(data.val) == len(arrays["val_labels"])
    left = unused_images("dermamnist", root=tmp_path, imbalance=100)
    assert len(left) == len(arrays["train_labels"]) - len(data.train)
    with pytest.raises(ValueError, match="val_fraction: dermamnist has its own"):
        load_dataset("dermamnist", root=tmp_path, val_fraction=0.1)


def test_every_set_has_official_files_in_all_sizes():
    assert set(MEDMNIST) <= set(DATASETS)
    for name in MEDMNIST:
        for size in MEDMNIST_SIZES:
            source = find_official(name, size)
            suffix = "" if size == 28 else f"_{size}"
            assert source.file == f"{name}{suffix}.npz"
            assert source.url.endswith(f"/{source.file}?download=1")
    sums = {source.md5 for source in OFFICIAL_FILES.values()}
    assert len(sums) == 2 + 4 * len(MEDMNIST)
    assert all(len(md5) == 32 and int(md5, 16) for md5 in sums)


@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 1), (8, 8, 3)])
@pytest.mark.parametrize("named", [True, False])
def test_arrays_of_ones_own(tmp_path, shape, named):
    arrays = arrays_of([40, 10, 20], shape, dtype=np.int32, column=named)
    if named:
        arrays["class_names"] = np.array(["cat", "dög", "owl"])
    path = tmp_path / "mine.npz"
    np.savez_compressed(path, **arrays)
    data = load_dataset("arrays", root=path)
    assert data.class_names == (("cat", "dög", "owl") if named else ("0", "1", "2"))
    assert data.image_shape == (*shape, 1)[:3]
    assert data.class_counts.tolist() == [40, 10, 20]
    cut = load_dataset("arrays", root=path, imbalance=20)
    assert cut.class_counts.tolist() == [40, 2, 8]
    assert np.array_equal(cut.train.images[:, 0, 0, 0], cut.train.labels)
    assert check("arrays", path, imbalance=[20]).problems == []
    for key in ("val_images", "val_labels"):
        del arrays[key]
    np.savez(path, **arrays)
    held = load_dataset("arrays", root=path, val_fraction=0.2)
    assert len(held.val) == 14


def broken(**changes):
    arrays = arrays_of([4, 4], (8, 8))
    arrays.update(changes)
    return {name: value for name, value in arrays.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"test_images": None}, "expected the arrays test_images in it"),
        ({"train_images": np.zeros((8, 8, 8))}, "train_images: expected uint8"),
        ({"train_images": np.zeros((8, 8, 8, 4), np.uint8)}, r"got uint8 \(8, 8, 8, 4"),
        ({"train_images": np.zeros((7, 8, 8), np.uint8)}, r"got uint8 \(7, 8, 8\)"),
        ({"test_images": np.zeros((4, 9, 8), np.uint8)}, r"expected uint8 \(4, 8, 8"),
        ({"train_labels": np.zeros(8)}, "train_labels: expected whole numbers"),
        ({"train_labels": np.zeros((8, 14), int)}, r"got int64 \(8, 14\)"),
        ({"train_labels": np.full(8, -1)}, "got -1 to -1"),
        ({"test_labels": np.array([0, 1, 2, 0])}, r"labels 0 .. 1, got 0 to 2"),
        ({"train_labels": np.zeros(8, int)}, "expected two classes or more"),
        ({"class_names": np.array(["a"])}, "expected labels 0 .. 0, got 0 to 1"),
        ({"class_names": np.array(["a", "a"])}, "expected names that differ"),
        ({"class_names": np.array([1, 2])}, "class_names: expected text"),
        ({"class_names": np.array(["a", None], object)}, "class_names: expected text"),
        ({"train_labels": np.array([0] * 8, object)}, "expected whole numbers"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, changes, said):
    np.savez(tmp_path / "mine.npz", **broken(**changes))
    with pytest.raises(ArchiveError, match=said):
        load_dataset("arrays", root=tmp_path / "mine.npz")


def test_arrays_without_a_file(tmp_path, monkeypatch):
    monkeypatch.delenv("S3H_DATA_ROOT", raising=False)
    with pytest.raises(ValueError, match=r"root: expected an \.npz file of arrays"):
        load_dataset("arrays")
    with pytest.raises(FileNotFoundError, match="none.npz: no such file$"):
        load_dataset("arrays", root=tmp_path / "none.npz")
    np.savez(tmp_path / "mine.npz", **broken(train_labels=np.array([0, 0, 0, 2] * 2)))
    with pytest.raises(ValueError, match="found none of '1'"):
        load_dataset("arrays", root=tmp_path / "mine.npz")
