"""The long-tailed data sets by name."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s3h_ext.checks import SEED, check, check_choice, number_in
from s3h_ext.data.dataset import ImageFiles, ImageSet, LongTailDataset
from s3h_ext.data.longtail import (
    PROFILES,
    class_profile,
    hold_out,
    pick_subset,
    sorted_profile,
)
from s3h_ext.data.sets.archive import Archive, histograms, statistics
from s3h_ext.data.sets.cifar import read_archive
from s3h_ext.data.sets.digits import read_digits
from s3h_ext.data.sets.folders import read_image_folder
from s3h_ext.data.sets.lists import LISTED, read_listed
from s3h_ext.data.sets.medmnist import MEDMNIST, read_medmnist
from s3h_ext.data.sets.naming import check_classes
from s3h_ext.data.sets.npz import read_arrays
from s3h_ext.data.sets.registry import download_command

__all__ = ["BY_SIZE", "DATASETS", "PHOTOGRAPHS", "load_dataset", "unused_images"]

#: Data sets of image files on disk.
PHOTOGRAPHS = (*LISTED, "folder")

#: Name -> default imbalance factor; ``None`` keeps the original class sizes.
DATASETS: dict[str, float | None] = {
    "digits-lt": 20.0,
    "cifar10-lt": 100.0,
    "cifar100-lt": 100.0,
    "octmnist-lt": 100.0,
    **dict.fromkeys(MEDMNIST),
    "arrays": None,
    **dict.fromkeys(PHOTOGRAPHS),
}

#: Archives with unequal classes, which the profile takes in order of size.
BY_SIZE = ("octmnist-lt", *MEDMNIST, "arrays")

# Both CIFARs use CIFAR-10's statistics, as in all published baselines.
_CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
_CIFAR_STD = (0.2023, 0.1994, 0.2010)


def load_dataset(
    name: str,
    *,
    root: str | Path | None = None,
    lists: str | Path | None = None,
    imbalance: float | None = None,
    size: int | None = None,
    profile: str = "exp",
    val_fraction: float = 0.0,
    test_fraction: float | None = None,
    label_pattern: str | None = None,
    seed: int = 0,
) -> LongTailDataset:
    """Load a data set and subsample its training split to a long tail.

    The subset is fixed (the published draw, :func:`~.longtail.pick_subset`); ``seed``
    only chooses the validation part.

    Args:
        name: ``"digits-lt"`` (built in), ``"cifar10-lt"``, ``"cifar100-lt"``,
            ``"octmnist-lt"``; ``"octmnist"`` and the other sets of MedMNIST
            (:data:`~.sets.medmnist.MEDMNIST`); ``"arrays"``, your own ``.npz`` file;
            ``"imagenet-lt"``, ``"inat18"``, ``"places-lt"`` by their lists; or
            ``"folder"``, any image files.
        root: Folder of the unpacked CIFAR folder, of ``octmnist.npz`` or of the
            photographs, or the file of ``"arrays"``. ``None``: the environment variable
            ``S3H_DATA_ROOT``. Not used for the digits.
        lists: Folder of the list files; ``None`` for ``root``, and for data sets
            without lists. For ``"folder"`` see :func:`~.sets.own_lists.read_own_lists`.
        imbalance: Largest class size divided by the smallest. ``None``: 20 for the
            digits, 100 for CIFAR and ``"octmnist-lt"``; the others keep their sizes.
        size: Image side in pixels: for MedMNIST 28 (``None``), 64, 128 or 224; for
            views of photographs 224 (``None``) or any other. ``None`` for the others,
            which have one size.
        profile: ``"exp"`` or ``"step"``.
        val_fraction: Fraction of each training class to hold out, in [0, 1).
        test_fraction: Fraction of each class, in (0, 1), to hold out for testing if a
            folder has no test split; always the same images. ``None``: 0.2, or unused
            if there is one. Only for ``"folder"``.
        label_pattern: For ``"folder"``, a regular expression whose group matches the
            class in the path of an image below its split.
        seed: Seed of the hold-out, in [0, 2**32).

    Returns:
        The data set.

    Raises:
        ValueError: an argument is out of range, the data are unusable, or a class has
            fewer images than the profile needs.
        FileNotFoundError: ``root`` does not hold the data.
        ImportError: scikit-learn, which includes the digits, is missing.

    Example:
        >>> load_dataset("digits-lt").class_counts.tolist()
        [144, 103, 74, 53, 38, 27, 19, 14, 10, 7]
    """
    check_choice("name", name, DATASETS)
    check_choice("profile", profile, PROFILES)
    check(SEED, seed=seed)
    if lists is not None and name not in PHOTOGRAPHS:
        raise ValueError(f"lists: {name} has no lists; expected None, got {lists}")
    if label_pattern is not None and (name != "folder" or lists is not None):
        raise ValueError(
            f"label_pattern: {'its lists give' if lists else name + ' has'} the labels "
            f"already; expected None, got {label_pattern!r}"
        )
    if test_fraction is not None and name != "folder":
        raise ValueError(
            f"test_fraction: {name} has its own test split; expected None, got "
            f"{test_fraction}"
        )
    check(number_in("(0, 1)", "a share"), test_fraction=test_fraction)
    if name not in PHOTOGRAPHS:
        if size is not None and name.removesuffix("-lt") not in MEDMNIST:
            raise ValueError(
                f"size: {name} comes in one size; expected None, got {size}"
            )
        return _cut_archive(name, root, imbalance, size, profile, val_fraction, seed)
    folder = _root(name, root)
    if name == "folder":
        dataset = read_image_folder(
            folder,
            imbalance,
            profile,
            test_fraction,
            lists=None if lists is None else Path(lists),
            pattern=label_pattern,
        )
    elif imbalance is None:
        dataset = read_listed(name, folder, folder if lists is None else Path(lists))
    else:
        raise ValueError(
            f"imbalance: {name} is long-tailed by its list; expected None, got "
            f"{imbalance:g}"
        )
    train, val = dataset.train, dataset.val
    if val_fraction != 0:
        if val is not None:
            raise _own_split(name, val_fraction)
        kept, held = hold_out(train.labels, fraction=val_fraction, seed=seed)
        train, val = train.subset(kept), train.subset(held)
    side = 224 if size is None else size
    splits = {"train": train, "val": val, "test": dataset.test}
    sized: Any = {
        split: replace(files, side=side)
        for split, files in splits.items()
        if isinstance(files, ImageFiles)
    }
    return replace(dataset, **sized)


def _cut_archive(
    name: str,
    root: str | Path | None,
    imbalance: float | None,
    size: int | None,
    profile: str,
    val_fraction: float,
    seed: int,
) -> LongTailDataset:
    archive = _read(name, root, size)
    if archive.val is not None and val_fraction != 0:
        raise _own_split(name, val_fraction)
    kept, held = _long_tail(name, archive, imbalance, profile, val_fraction, seed)
    train = archive.train.subset(kept)
    mean: tuple[float, ...] = _CIFAR_MEAN
    std: tuple[float, ...] = _CIFAR_STD
    if not name.startswith("cifar"):
        # Four decimals, like published constants: independent of summation order.
        mean, std = (
            tuple(round(value, 4) for value in values)
            for values in statistics(histograms(train.images))
        )
    return LongTailDataset(
        name=name,
        train=train,
        val=archive.train.subset(held) if len(held) else archive.val,
        test=archive.test,
        class_names=archive.class_names,
        mean=mean,
        std=std,
        indices=kept,
    )


def _own_split(name: str, val_fraction: float) -> ValueError:
    return ValueError(
        f"val_fraction: {name} has its own validation split; expected 0, got "
        f"{val_fraction}"
    )


def unused_images(
    name: str,
    *,
    root: str | Path | None = None,
    imbalance: float | None = None,
    size: int | None = None,
    profile: str = "exp",
    val_fraction: float = 0.0,
    seed: int = 0,
) -> ImageSet:
    """Return the training images of an archive that :func:`load_dataset` leaves out.

    These are the images removed by subsampling (many of each rare class) and the
    held-out ones (the only ones of the most frequent class). Together they cover every
    class without using test images. Published protocols do not use such images, so
    report it if you base a choice on them. The arguments are those of
    :func:`load_dataset`.

    Raises:
        ValueError: an argument is out of range, or the data set consists of
            photographs.
        FileNotFoundError: ``root`` does not hold the data.

    Example:
        >>> len(unused_images("digits-lt", val_fraction=0.1))
        1056
    """
    check_choice("name", name, [n for n in DATASETS if n not in PHOTOGRAPHS])
    archive = _read(name, root, size)
    kept, _ = _long_tail(name, archive, imbalance, profile, val_fraction, seed)
    unused = np.setdiff1d(np.arange(len(archive.train)), kept)
    return archive.train.subset(unused)


def _long_tail(
    name: str,
    archive: Archive,
    imbalance: float | None,
    profile: str,
    val_fraction: float,
    seed: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return which training images of an archive to train on, and which to hold out."""
    labels, num_classes = archive.train.labels, len(archive.class_names)
    available = np.bincount(labels, minlength=num_classes)
    # The digits' classes differ in size by chance, so the smallest one sets the scale;
    # elsewhere it is the largest, so that an archive that is already long-tailed works
    # too.
    largest = available.min() if name == "digits-lt" else available.max()
    imbalance = DATASETS[name] if imbalance is None else imbalance
    if imbalance is None:
        check_classes(labels, archive.class_names)
        used = np.arange(len(labels))
    elif name in BY_SIZE:
        counts = sorted_profile(available, imbalance=imbalance, profile=profile)
        used = pick_subset(labels, counts)
    else:
        counts = class_profile(
            num_classes, largest=int(largest), imbalance=imbalance, profile=profile
        )
        used = pick_subset(labels, counts)
    kept, held = hold_out(labels[used], fraction=val_fraction, seed=seed)
    return used[kept], used[held]


def _root(name: str, root: str | Path | None) -> Path:
    root = root or os.environ.get("S3H_DATA_ROOT")
    if root is None:
        what = "an .npz file" if name == "arrays" else "the folder that holds the files"
        raise ValueError(
            f"root: expected {what} of {name}, got "
            "None, and the environment variable S3H_DATA_ROOT is not set"
            f"{_remedy(name, 'DIR', None)}"
        )
    return Path(root)


def _remedy(name: str, root: str | Path, size: int | None) -> str:
    """Return how to get the missing data."""
    if name in ("folder", "arrays"):
        return ""
    if name in PHOTOGRAPHS:
        return "; see docs/photographs.md for where to get them"
    command = download_command(name.removesuffix("-lt"), root, size)
    return f"; to fetch them: {command}"


def _read(name: str, root: str | Path | None, size: int | None) -> Archive:
    if name == "digits-lt":
        return read_digits()
    folder = _root(name, root)
    try:
        if name == "arrays":
            return read_arrays(folder)
        if name == "octmnist-lt":
            # Held-out images must be as long-tailed as the training images.
            return replace(read_medmnist("octmnist", folder, size), val=None)
        if name in MEDMNIST:
            return read_medmnist(name, folder, size)
        return read_archive(name.removesuffix("-lt"), folder)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}{_remedy(name, folder, size)}") from None
