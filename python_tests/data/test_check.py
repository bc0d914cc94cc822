import io
import zipfile

import numpy as np
import pytest

from s3h_ext.data import load_dataset
from s3h_ext.data.__main__ import main
from s3h_ext.data.sets import check as module
from s3h_ext.data.sets.archive import ArchiveError, statistics
from s3h_ext.data.sets.check import check, cut_counts
from s3h_ext.data.sets.cifar import read_archive
from s3h_ext.data.sets.medmnist import read_medmnist_split
from s3h_ext.data.sets.registry import OfficialFile, md5_of

from .test_medmnist import arrays_of

TRAIN = (12, 4, 3, 20)


def oct_arrays(shape=(28, 28)):
    return arrays_of(TRAIN, shape)


def test_a_cut_archive_is_said_to_be_one_and_is_no_problem(tiny_cifar):
    tiny_cifar.cifar10(counts=(60, 40, 30, 20, 14, 9, 6, 4, 3, 2))
    report = check("cifar10", tiny_cifar.root, imbalance=[40])
    assert report.problems == []
    assert report.official is False
    assert report.class_counts == [60, 40, 30, 20, 14, 9, 6, 4, 3, 2]
    text = report.text()
    assert "not the official files" in text
    assert "train: 188 images, 60 to 2 a class, 10 classes (0 many, 4 medium, " in text
    sizes = [f"'thing{c}' {n}" for c, n in enumerate(report.class_counts)]
    assert f"6 few): {', '.join(sizes)}\n" in text
    assert "test: 30 images, 3 of each of 10 classes" in text
    assert "of 1, 10, 20, 40, 50, 100, 200: " in text
    assert text.endswith("all is well")


def test_the_official_files_are_recognised(tiny_cifar, monkeypatch):
    folder = tiny_cifar.cifar100()
    names = ("train", "test", "meta")
    members = {name: md5_of(folder / name) for name in names}
    place = ("cifar100", "https://host/file", "file", "0" * 32)
    source = OfficialFile(*place, folder=folder.name, members=members)
    monkeypatch.setattr(module, "find_official", lambda *arguments: source)
    for root in (tiny_cifar.root, folder):
        report = check("cifar100", root)
        assert report.official is True
        assert "the official files (checksums match)" in report.text()


def test_statistics_are_those_of_the_pixels(tiny_cifar):
    tiny_cifar.cifar10()
    line = next(x for x in check("cifar10", tiny_cifar.root).lines if "mean" in x)
    pixels = read_archive("cifar10", tiny_cifar.root).train.images / 255.0
    mean = " ".join(f"{value:.4f}" for value in pixels.mean(axis=(0, 1, 2)))
    std = " ".join(f"{value:.4f}" for value in pixels.std(axis=(0, 1, 2)))
    assert f"mean {mean}, std {std}" in line


def test_what_cannot_be_cut_is_a_problem(tiny_cifar):
    tiny_cifar.cifar10(counts=(40, 10, 10, 10, 10, 10, 10, 10, 10, 4))
    report = check("cifar10", tiny_cifar.root, imbalance=[10.0])
    assert len(report.problems) == 1
    assert "imbalance 10 is impossible" in report.problems[0]
    # Factor 100 would leave less than one image.
    report = check("cifar10", tiny_cifar.root, imbalance=[100.0])
    assert "or be empty" in report.problems[0]
    with pytest.raises(ValueError, match="imbalance: expected a finite factor >= 1"):
        check("cifar10", tiny_cifar.root, imbalance=[0.5])
    with pytest.raises(ValueError, match="profile: expected one of"):
        check("cifar10", tiny_cifar.root, profile="linear")


def test_what_is_possible_is_what_load_dataset_cuts(tiny_cifar):
    tiny_cifar.cifar10(counts=(40, 26, 18, 12, 8, 6, 4, 3, 2, 1))
    counts = np.array(check("cifar10", tiny_cifar.root).class_counts)
    outcomes = set()
    for factor in (1, 5, 20, 30, 40, 41, 100):
        possible = cut_counts(counts, factor) is not None
        outcomes.add(possible)
        if possible:
            load_dataset("cifar10-lt", root=tiny_cifar.root, imbalance=factor)
        else:
            with pytest.raises(ValueError, match=r"labels|imbalance"):
                load_dataset("cifar10-lt", root=tiny_cifar.root, imbalance=factor)
    assert outcomes == {True, False}


@pytest.mark.parametrize("profile", ["exp", "step"])
def test_what_octmnist_is_cut_to_is_what_load_dataset_cuts(tmp_path, profile):
    np.savez(tmp_path / "octmnist.npz", **oct_arrays())
    factors = [1, 1.5, 3, 10, 20]
    report = check("octmnist", tmp_path, imbalance=factors, profile=profile)
    assert report.problems == []
    for factor in factors:
        cut = {"imbalance": factor, "profile": profile}
        data = load_dataset("octmnist-lt", root=tmp_path, **cut)
        whole = sum(data.class_counts == TRAIN)
        found = data.class_counts
        assert (
            f"cut to imbalance {factor:g}, profile {profile}: {found.sum()} images, "
            f"{found.max()} to {found.min()} a class; {whole} of 4 classes keep all"
        ) in report.text()
    assert check("octmnist", tmp_path, imbalance=[21], profile=profile).problems
    with pytest.raises(ValueError, match="imbalance: 21 leaves no image"):
        load_dataset("octmnist-lt", root=tmp_path, imbalance=21, profile=profile)


def test_an_empty_class_is_a_problem(tiny_cifar):
    tiny_cifar.cifar10(counts=(40, 0, *[5] * 8))
    report = check("cifar10", tiny_cifar.root)
    said = "train: no image of 'thing1'. Use a more complete archive"
    assert report.problems == [said]


def test_missing_and_broken_files_come_with_a_remedy(tiny_cifar, capsys):
    root = tiny_cifar.root
    arguments = ["check", "cifar100", "--root", str(root)]
    assert main(arguments) == 1
    assert f"download cifar100 --root {root}" in capsys.readouterr().out
    folder = tiny_cifar.cifar100()
    assert main([*arguments, "--imbalance", "2", "6"]) == 0
    assert "all is well" in capsys.readouterr().out
    whole = (folder / "train").read_bytes()
    (folder / "train").write_bytes(whole[:-100])
    assert main(arguments) == 1
    assert "wrong: " in (said := capsys.readouterr().out)
    assert "truncated" in said
    assert "fetch it again" in said
    (folder / "train").unlink()
    assert main(arguments) == 1
    assert "missing train" in capsys.readouterr().out


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("size", [28, 64])
def test_octmnist(tmp_path, monkeypatch, compressed, size):
    arrays = oct_arrays((size, size))
    path = tmp_path / ("octmnist.npz" if size == 28 else "octmnist_64.npz")
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    report = check("octmnist", tmp_path, size=size, imbalance=[10])
    assert report.problems == []
    assert report.official is False
    assert report.class_counts == [12, 4, 3, 20]
    assert "train: 39 images, 20 to 3 a class, 4 classes" in report.text()
    assert "'normal' 20, 'choroidal neovascularization' 12, " in report.text()
    split = read_medmnist_split("octmnist", path, "train", size=size)
    assert split.labels.tolist() == arrays["train_labels"].ravel().tolist()
    pixels = arrays["train_images"] / 255
    ((mean,), (std,)) = statistics(split.histogram)
    assert np.allclose((mean, std), (pixels.mean(), pixels.std()))


def test_octmnist_of_another_size_is_named(tmp_path):
    np.savez(tmp_path / "octmnist_64.npz", **oct_arrays((64, 64)))
    report = check("octmnist", tmp_path)
    assert "there is --size 64" in report.problems[0]
    assert report.problems[0].endswith(f"download octmnist --root {tmp_path}")


@pytest.mark.parametrize("content", [None, b"broken"])
def test_the_remedy_has_the_size_that_was_asked_for(tmp_path, content):
    if content is not None:
        (tmp_path / "octmnist_128.npz").write_bytes(content)
    (problem,) = check("octmnist", tmp_path, size=128).problems
    assert problem.endswith(f"download octmnist --root {tmp_path} --size 128")


BAD = oct_arrays()
LABELS, IMAGES = BAD["train_labels"], BAD["train_images"]
WITHOUT = {name: array for name, array in BAD.items() if name != "train_labels"}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (WITHOUT, "expected the arrays train_labels"),
        ({**BAD, "train_labels": LABELS + 4}, r"labels 0 \.\. 3, .* to 7"),
        ({**BAD, "train_labels": LABELS.T}, r"\[N, 1\]"),
        ({**BAD, "train_labels": LABELS[:5]}, r"expected uint8 \(5, 28"),
        ({**BAD, "train_labels": LABELS[:0]}, r"\[N, 1\]"),
        ({**BAD, "train_labels": LABELS / 1}, "got float64"),
        ({**BAD, "train_images": IMAGES[:, :27]}, r"28, 28\), got"),
        ({**BAD, "train_images": IMAGES / 255}, "got float64"),
        ({**BAD, "train_images": np.asfortranarray(IMAGES)}, "C order, got"),
    ],
)
def test_a_wrong_octmnist_is_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "octmnist.npz", **arrays)
    with pytest.raises(ArchiveError, match=message):
        read_medmnist_split("octmnist", tmp_path / "octmnist.npz", "train", size=28)
    assert check("octmnist", tmp_path).problems


class Payload:
    def __reduce__(self):
        return (open, ("executed", "w"))


def test_a_pickle_inside_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arrays = {**BAD, "train_labels": np.array([[Payload()]], dtype=object)}
    np.savez(tmp_path / "octmnist.npz", **arrays)
    with pytest.raises(ArchiveError, match="got object"):
        read_medmnist_split("octmnist", tmp_path / "octmnist.npz", "train", size=28)
    assert not (tmp_path / "executed").exists()


def test_a_claimed_size_is_not_believed(tmp_path):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "|u1", "fortran_order": False, "shape": (1 << 40, 1)}
    )
    with zipfile.ZipFile(tmp_path / "octmnist.npz", "w") as archive:
        for split in ("train", "val", "test"):
            for kind in ("images", "labels"):
                archive.writestr(f"{split}_{kind}.npy", file.getvalue())
    with pytest.raises(ArchiveError, match=r"\[N, 1\]"):
        read_medmnist_split("octmnist", tmp_path / "octmnist.npz", "train", size=28)


def test_a_damaged_octmnist_is_refused(tmp_path):
    path = tmp_path / "octmnist.npz"
    np.savez(path, **BAD)
    whole = path.read_bytes()
    for length in range(0, len(whole), 997):
        path.write_bytes(whole[:length])
        with pytest.raises(ArchiveError, match="damaged"):
            read_medmnist_split("octmnist", path, "train", size=28)
    place = whole.index(b"train_images") + 2000
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(ArchiveError, match="CRC"):
        read_medmnist_split("octmnist", path, "train", size=28)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_real_files(data_root, name):
    report = check(name, data_root, imbalance=[100])
    assert report.problems == []
    assert report.official is not None
    assert max(report.class_counts) == {"cifar10": 5000, "cifar100": 500}[name]
