import os
import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from s3h_ext.data.sets.archive import ArchiveError
from s3h_ext.data.sets.cifar import read_archive, read_pickle


def test_cifar10_reads_batches_in_order(tiny_cifar):
    folder = tiny_cifar.cifar10()
    archive = read_archive("cifar10", tiny_cifar.root)
    rows, labels = [], []
    for number in range(1, 6):
        part = read_pickle(folder / f"data_batch_{number}")
        rows.append(part["data"])
        labels += part["labels"]
    assert archive.train.images.shape == (400, 32, 32, 3)
    assert archive.train.images.dtype == np.uint8
    assert archive.train.images.flags.c_contiguous
    assert archive.train.labels.dtype == np.int64
    assert archive.train.labels.tolist() == labels
    # Row r of the file holds the red plane, then green, then blue.
    planes = np.concatenate(rows).reshape(-1, 3, 32, 32)
    for channel in range(3):
        assert np.array_equal(archive.train.images[..., channel], planes[:, channel])
    assert np.array_equal(archive.train.images[:, 3, 7, 0], archive.train.labels)
    assert archive.test.images.shape == (30, 32, 32, 3)
    assert archive.class_names[9] == "thing9"


def test_cifar100_reads_fine_labels(tiny_cifar):
    tiny_cifar.cifar100()
    archive = read_archive("cifar100", tiny_cifar.root)
    assert np.bincount(archive.train.labels).tolist() == [6] * 100
    assert archive.class_names[42] == "fine42"


def test_root_may_be_the_folder_itself(tiny_cifar):
    folder = tiny_cifar.cifar100()
    direct = read_archive("cifar100", str(folder))
    assert np.array_equal(
        direct.train.images, read_archive("cifar100", tiny_cifar.root).train.images
    )


@pytest.mark.parametrize("protocol", [3, 4])
def test_python3_pickles_with_str_or_bytes_keys(tmp_path, protocol):
    array = np.arange(12, dtype=np.uint8).reshape(3, 4)
    path = tmp_path / "file"
    path.write_bytes(pickle.dumps({"data": array, b"labels": [1, 2]}, protocol))
    content = read_pickle(path)
    assert content.keys() == {"data", "labels"}
    assert np.array_equal(content["data"], array)


def test_fortran_order_is_kept(tmp_path):
    array = np.asfortranarray(np.arange(12, dtype=np.uint8).reshape(3, 4))
    path = tmp_path / "file"
    path.write_bytes(pickle.dumps({"data": array}, 4))
    assert np.array_equal(read_pickle(path)["data"], array)


class Call:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (Call(os.system, "touch executed"), "system"),
        (Call(eval, "open('executed', 'w')"), "eval"),
        (Call(np.load, "file"), "load"),
        ({"data": Call(os.mkdir, "executed")}, "mkdir"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_runs_code_is_refused(
    tmp_path, monkeypatch, content, name, protocol
):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "train"
    path.write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(ArchiveError, match=name) as caught:
        read_pickle(path)
    assert str(path) in str(caught.value)
    assert "the pickle imports" in str(caught.value)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(b"cnumpy\ndtype\n}U\x01xK\x01sb.", id="state on a stand-in"),
        pytest.param(b"cnumpy\nndarray\n(tR.", id="call of the array type"),
        pytest.param(b"cnumpy\nndarray\n)\x81.", id="new array"),
        pytest.param(b"cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R.", id="object dtype"),
        pytest.param(b"Ppersistent\n.", id="persistent id"),
        pytest.param(b"(" * 200_000 + b"t" * 200_000 + b".", id="deep nesting"),
        pytest.param(b"\x8e" + b"\xff" * 7 + b"\x7f" + b"x.", id="huge length"),
        pytest.param(b"](K\x01e.", id="a list"),
        pytest.param(b"", id="empty"),
        pytest.param(b"\x1f\x8b\x08\x00 gzip", id="packed archive"),
        pytest.param(b"<!DOCTYPE html><html>", id="web page"),
    ],
)
def test_hostile_or_foreign_files_are_refused(tmp_path, code):
    path = tmp_path / "train"
    path.write_bytes(code)
    with pytest.raises(ArchiveError) as caught:
        read_pickle(path)
    assert str(path) in str(caught.value)


def test_array_state_must_fit_its_bytes(tmp_path, python2_pickle):
    good = python2_pickle({"data": np.zeros((2, 3), np.uint8)})
    shape = b"(J\x02\x00\x00\x00J\x03\x00\x00\x00t"
    path = tmp_path / "train"
    for bad in (
        b"(J\xff\xff\xff\xffJ\x06\x00\x00\x00t",
        b"(J\xff\xff\xff\x7fJ\xff\xff\xff\x7ft",
        b"(U\x012J\x03\x00\x00\x00t",
        b"(t",
    ):
        assert shape in good
        path.write_bytes(good.replace(shape, bad))
        with pytest.raises(ArchiveError, match="array"):
            read_pickle(path)


def test_every_truncation_is_refused(tmp_path, python2_pickle):
    whole = python2_pickle(
        {"labels": [1, 2], "data": np.zeros((2, 9), np.uint8), "name": "x"}
    )
    path = tmp_path / "train"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ArchiveError, match="truncated"):
            read_pickle(path)


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(changes=st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=4))))
def test_mutations_give_a_dictionary_or_a_clear_error(
    tmp_path, python2_pickle, changes
):
    data = bytearray(
        python2_pickle({"labels": [1, 2], "data": np.ones((2, 9), np.uint8)})
    )
    for place, replacement in changes:
        data[place : place + len(replacement)] = replacement
    path = tmp_path / "train"
    path.write_bytes(bytes(data))
    outcome: object
    try:
        outcome = read_pickle(path)
    except ArchiveError as error:
        outcome = str(error)
    # Anything else that is raised fails the test by itself.
    assert isinstance(outcome, dict) or str(path) in str(outcome)


def test_missing_things_are_named(tiny_cifar):
    with pytest.raises(FileNotFoundError, match="cifar-10-batches-py"):
        read_archive("cifar10", tiny_cifar.root)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_archive("cifar10", tiny_cifar.root / "nowhere")
    (tiny_cifar.root / "cifar-10-python.tar.gz").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"cifar-10-python\.tar\.gz.*unpack"):
        read_archive("cifar10", tiny_cifar.root)
    folder = tiny_cifar.cifar10()
    (folder / "data_batch_4").unlink()
    with pytest.raises(FileNotFoundError, match="missing data_batch_4"):
        read_archive("cifar10", tiny_cifar.root)
    with pytest.raises(FileNotFoundError, match="cifar-100-python"):
        read_archive("cifar100", folder)
    with pytest.raises(ValueError, match="kind"):
        read_archive("mnist", folder)


ROWS = np.zeros((3, 3072), np.uint8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"data": ROWS}, "fine_labels"),
        ({"fine_labels": [0, 1, 2]}, "data"),
        ({"labels": [0, 1, 2], "data": ROWS}, "expected the keys data and fine_labels"),
        ({"fine_labels": [0, 1, 100], "data": ROWS}, r"0 \.\. 99.*got 100"),
        ({"fine_labels": [0, -1, 2], "data": ROWS}, "got -1"),
        ({"fine_labels": [0, 1], "data": ROWS}, "expected 3 labels.*got 2"),
        ({"fine_labels": ["a", "b", "c"], "data": ROWS}, "list of integers"),
        ({"fine_labels": "abc", "data": ROWS}, "list of integers"),
        ({"fine_labels": [], "data": ROWS[:0]}, "at least one image"),
        ({"fine_labels": [0, 1, 2], "data": ROWS[:, :784]}, r"\[N, 3072\].*784"),
        ({"fine_labels": [0, 1, 2], "data": ROWS.reshape(3, 3, 32, 32)}, "3072"),
        ({"fine_labels": [0, 1, 2], "data": [1, 2, 3]}, "list"),
        ({"fine_labels": [0, 1, 2], "data": ROWS.astype(np.int64)}, "uint8"),
    ],
)
def test_inconsistent_content_is_refused(tiny_cifar, python2_pickle, content, message):
    path = tiny_cifar.cifar100() / "train"
    path.write_bytes(python2_pickle(content))
    with pytest.raises(ArchiveError, match=message) as caught:
        read_archive("cifar100", tiny_cifar.root)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("names", [["one"], "text", [1] * 100])
def test_wrong_class_names_are_refused(tiny_cifar, python2_pickle, names):
    path = tiny_cifar.cifar100() / "meta"
    path.write_bytes(python2_pickle({"fine_label_names": names}))
    with pytest.raises(ArchiveError, match="list of 100 names"):
        read_archive("cifar100", tiny_cifar.root)


@pytest.mark.parametrize(("kind", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_real_files(data_root, kind, classes):
    archive = read_archive(kind, data_root)
    assert len(archive.test.images) == 10_000
    counts = np.bincount(archive.test.labels, minlength=classes)
    assert counts.tolist() == [10_000 // classes] * classes
    # Published channel means of the two data sets agree to two digits.
    mean = archive.test.images.mean(axis=(0, 1, 2)) / 255
    assert np.allclose(mean, (0.50, 0.485, 0.445), atol=0.02)
