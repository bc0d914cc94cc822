"""A packed cut: the data set that is cut from it is the one cut from the whole."""

import lzma
import tarfile

import numpy as np
import pytest

from s3h_ext.data import load_dataset
from s3h_ext.data.sets.cifar import read_archive
from tools.pack import main, pack


def carried(root, tmp_path, name, imbalance, profile="exp"):
    """Packs and unpacks; returns where it is now."""
    file, there = tmp_path / "carried.tar.xz", tmp_path / "there"
    arguments = [name, "--root", str(root), "--to", str(file), "--profile", profile]
    assert main(["pack", *arguments, "--imbalance", str(imbalance)]) == 0
    assert main(["unpack", name, str(file), "--root", str(there)]) == 0
    return there


def assert_same(one, other):
    for split in ("train", "val", "test"):
        a, b = getattr(one, split), getattr(other, split)
        assert (a is None) == (b is None)
        if a is not None:
            assert np.array_equal(a.labels, b.labels)
            assert np.array_equal(a.images, b.images)
    assert one.class_names == other.class_names


@pytest.mark.parametrize("profile", ["exp", "step"])
def test_cifar10_is_the_same_at_this_factor_and_at_higher_ones(
    tiny_cifar, tmp_path, profile
):
    tiny_cifar.cifar10()
    there = carried(tiny_cifar.root, tmp_path, "cifar10", 4, profile)
    for imbalance in (4, 8, 40):
        options = {"imbalance": imbalance, "profile": profile, "val_fraction": 0.25}
        assert_same(
            load_dataset("cifar10-lt", root=tiny_cifar.root, **options),
            load_dataset("cifar10-lt", root=there, **options),
        )
    with pytest.raises(ValueError, match="images, the profile needs"):
        load_dataset("cifar10-lt", root=there, imbalance=2, profile=profile)


def test_it_holds_what_the_cut_keeps_and_nothing_else(tiny_cifar, tmp_path):
    tiny_cifar.cifar100()
    there = carried(tiny_cifar.root, tmp_path, "cifar100", 6)
    assert_same(
        load_dataset("cifar100-lt", root=tiny_cifar.root, imbalance=6),
        load_dataset("cifar100-lt", root=there, imbalance=6),
    )
    kept = read_archive("cifar100", there)
    assert np.bincount(kept.train.labels)[[0, 50, 99]].tolist() == [6, 2, 1]
    assert len(kept.test.labels) == 100


def test_the_same_cut_is_the_same_file(tiny_cifar, tmp_path):
    tiny_cifar.cifar100()
    files = [pack("cifar100", tmp_path, tmp_path / n, imbalance=6) for n in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()
    with tarfile.open(files[0]) as tar:
        assert {(m.mtime, m.uid, m.mode) for m in tar} == {(0, 0, 0o644)}


def test_what_is_there_is_not_written_over(tiny_cifar, tmp_path, capsys):
    tiny_cifar.cifar100()
    arguments = ["cifar100", "--root", str(tmp_path), "--to", str(tmp_path / "file")]
    arguments += ["--imbalance", "6"]
    assert main(["pack", *arguments]) == 0
    before = (tmp_path / "file").read_bytes()
    assert main(["pack", *arguments]) == 1
    assert "is there already" in capsys.readouterr().err
    file = str(tmp_path / "file")
    assert main(["unpack", "cifar100", file, "--root", str(tmp_path)]) == 1
    assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "file").read_bytes() == before


def test_nothing_is_left_of_a_file_that_could_not_be_written(
    tiny_cifar, tmp_path, monkeypatch
):
    tiny_cifar.cifar100()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "addfile", full)
    with pytest.raises(OSError, match="No space left"):
        pack("cifar100", tmp_path, tmp_path / "file", imbalance=6)
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-100-python"]


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_file_unpacks_to_nothing(tiny_cifar, tmp_path, capsys, damage):
    tiny_cifar.cifar100()
    file = pack("cifar100", tmp_path, tmp_path / "file", imbalance=6)
    content = bytearray(file.read_bytes())
    if damage == "cut":
        del content[-2000:]
    else:
        content[len(content) // 2] ^= 1
    file.write_bytes(content)
    there = tmp_path / "there"
    assert main(["unpack", "cifar100", str(file), "--root", str(there)]) == 1
    assert f"error: {file}" in capsys.readouterr().err
    assert not list(there.iterdir())


def test_the_real_cut_is_the_same(data_root, tmp_path, monkeypatch):
    # Its compression takes a minute.
    monkeypatch.setattr(lzma, "open", lambda path, mode, **options: path.open(mode))
    there = carried(data_root, tmp_path, "cifar100", 100)
    for imbalance in (100, 200):
        assert_same(
            load_dataset("cifar100-lt", root=data_root, imbalance=imbalance),
            load_dataset("cifar100-lt", root=there, imbalance=imbalance),
        )
