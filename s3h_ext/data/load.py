"""The long-tailed data sets by name."""

from __future__ import annotations

import difflib
import os
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from s3h_ext.data.dataset import ImageSet, LongTailDataset
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
from s3h_ext.data.sets.lists import LISTED
from s3h_ext.data.sets.octmnist import read_octmnist
from s3h_ext.data.sets.photographs import PHOTOGRAPHS, read_photographs

__all__ = ["DATASETS", "load_dataset", "unused_images"]

#: Name -> default imbalance factor; ``None``: the classes are as large as they are.
DATASETS: dict[str, float | None] = {
    "digits-lt": 20.0,
    "cifar10-lt": 100.0,
    "cifar100-lt": 100.0,
    "octmnist-lt": 100.0,
    **dict.fromkeys(PHOTOGRAPHS),
}

# Both CIFARs are normalised by CIFAR-10's statistics, as every published baseline does.
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
    seed: int = 0,
) -> LongTailDataset:
    """Loads a data set and cuts its training half to a long tail.

    Which images stay is fixed (the published draw, :func:`~.longtail.pick_subset`) and
    does not depend on ``seed``; ``seed`` chooses the validation part alone.

    Args:
        name: ``"digits-lt"`` (built in), ``"cifar10-lt"``, ``"cifar100-lt"``,
            ``"octmnist-lt"``; ``"imagenet-lt"``, ``"inat18"``, ``"places-lt"`` by their
            lists; or ``"folder"``, any image folder.
        root: Where the unpacked CIFAR folder, ``octmnist.npz`` or the photographs are;
            if ``None``, the environment variable ``S3H_DATA_ROOT``. Not used for the
            digits.
        lists: Folder of the list files; ``None`` for ``root``, and for data sets that
            have none.
        imbalance: Largest over smallest class; ``None`` for the data set's default (20
            for the digits, 100 for the others; photographs are left as they are).
        size: Side of OCTMNIST's images: 28 (``None``), 64, 128 or 224; for photographs
            the side of their views, 224 (``None``) or any other; ``None`` for the
            others, which come in one size.
        profile: ``"exp"`` or ``"step"``.
        val_fraction: Share of each training class to hold out, in [0, 1).
        test_fraction: Share of each class that becomes the test split of a folder that
            has none, in (0, 1); always the same images. ``None`` for 0.2, for a folder
            that has one, and for data sets other than ``"folder"``.
        seed: Of the hold-out, in [0, 2**32).

    Returns:
        The data set.

    Raises:
        ValueError: an argument is out of range, the data are unusable, or a class has
            fewer images than the profile asks for.
        FileNotFoundError: ``root`` does not hold the data.
        ImportError: the digits are wanted and scikit-learn is missing.

    Example:
        >>> load_dataset("digits-lt").class_counts.tolist()
        [144, 103, 74, 53, 38, 27, 19, 14, 10, 7]
    """
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"name: expected one of {', '.join(DATASETS)}, got {name!r}; "
            f"did you mean {near!r}?"
        )
    if profile not in PROFILES:
        raise ValueError(f"profile: expected one of {PROFILES}, got {profile!r}")
    if not 0 <= seed < 1 << 32:
        raise ValueError(f"seed: expected 0 <= seed < 2**32, got {seed}")
    if lists is not None and name not in LISTED:
        raise ValueError(f"lists: {name} has no lists; expected None, got {lists}")
    if test_fraction is not None:
        if name != "folder":
            raise ValueError(
                f"test_fraction: {name} has a test split of its own; expected None, "
                f"got {test_fraction}"
            )
        if not 0 < test_fraction < 1:
            raise ValueError(
                f"test_fraction: expected 0 < test_fraction < 1, got {test_fraction}"
            )
    if name in PHOTOGRAPHS:
        dataset = read_photographs(
            name,
            _root(name, root),
            lists=None if lists is None else Path(lists),
            imbalance=imbalance,
            profile=profile,
            test_fraction=test_fraction,
            side=224 if size is None else size,
        )
        return _hold_out(dataset, val_fraction, seed)
    if size is not None and name != "octmnist-lt":
        raise ValueError(f"size: {name} comes in one size; expected None, got {size}")
    whole = _read(name, root, size)
    images = ImageSet(whole.train_images, whole.train_labels)
    used, val = _long_tail(name, whole, imbalance, profile), None
    if val_fraction != 0:
        kept, held = hold_out(images.labels[used], fraction=val_fraction, seed=seed)
        val = images.subset(used[held])
        used = used[kept]
    train = images.subset(used)
    mean: tuple[float, ...] = _CIFAR_MEAN
    std: tuple[float, ...] = _CIFAR_STD
    if not name.startswith("cifar"):
        # Four decimals, as published constants have: stable against summation order.
        mean, std = (
            tuple(round(value, 4) for value in values)
            for values in statistics(histograms(train.images))
        )
    return LongTailDataset(
        name=name,
        train=train,
        val=val,
        test=ImageSet(whole.test_images, whole.test_labels),
        class_names=whole.class_names,
        mean=mean,
        std=std,
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
    """Returns what :func:`load_dataset` leaves of an archive's training images.

    These are what the long-tailed cut leaves over, which is much of the rare classes,
    and what is held out, which alone there is of the most frequent one: together a
    measure for every class that needs no test image. The published protocols have no
    such images to choose by, so say so where a choice rests on them.

    Args:
        name: Of a data set that is cut from an archive; this and the others are as for
            :func:`load_dataset`.
        root: Folder of the data.
        imbalance: Largest over smallest class.
        size: Side of OCTMNIST's images.
        profile: ``"exp"`` or ``"step"``.
        val_fraction: Share of each class that is held out.
        seed: Of the hold-out.

    Raises:
        ValueError: an argument is out of range, or the data set is of photographs.
        FileNotFoundError: ``root`` does not hold the data.

    Example:
        >>> len(unused_images("digits-lt", val_fraction=0.1))
        1056
    """
    if name not in DATASETS or name in PHOTOGRAPHS:
        archives = ", ".join(known for known in DATASETS if known not in PHOTOGRAPHS)
        raise ValueError(f"name: expected one of {archives}, got {name!r}")
    whole = _read(name, root, size)
    used = _long_tail(name, whole, imbalance, profile)
    used = used[hold_out(whole.train_labels[used], fraction=val_fraction, seed=seed)[0]]
    unused = np.setdiff1d(np.arange(len(whole.train_labels)), used)
    return ImageSet(whole.train_images, whole.train_labels).subset(unused)


def _long_tail(
    name: str, whole: Archive, imbalance: float | None, profile: str
) -> NDArray[np.int64]:
    """Returns which training images of an archive stay."""
    num_classes = len(whole.class_names)
    available = np.bincount(whole.train_labels, minlength=num_classes)
    # The digits' classes differ in size by chance, so the smallest one sets the scale;
    # elsewhere it is the largest, so that an archive cut to a long tail serves as well.
    largest = available.min() if name == "digits-lt" else available.max()
    imbalance = DATASETS[name] if imbalance is None else imbalance
    assert imbalance is not None  # only photographs have no factor of their own
    if name == "octmnist-lt":
        counts = sorted_profile(available, imbalance=imbalance, profile=profile)
    else:
        counts = class_profile(
            num_classes, largest=int(largest), imbalance=imbalance, profile=profile
        )
    return pick_subset(whole.train_labels, counts)


def _hold_out(dataset: LongTailDataset, fraction: float, seed: int) -> LongTailDataset:
    """Holds out a part of the training images where a data set has no val split."""
    if fraction == 0:
        return dataset
    if dataset.val is not None:
        raise ValueError(
            f"val_fraction: {dataset.name} has a validation split of its own; expected "
            f"0, got {fraction}"
        )
    kept, held = hold_out(dataset.train.labels, fraction=fraction, seed=seed)
    return replace(
        dataset, train=dataset.train.subset(kept), val=dataset.train.subset(held)
    )


def _root(name: str, root: str | Path | None) -> Path:
    root = root or os.environ.get("S3H_DATA_ROOT")
    if root is None:
        raise ValueError(
            f"root: expected the folder that holds the files of {name}, got "
            "None, and the environment variable S3H_DATA_ROOT is not set"
            f"{_remedy(name, 'DIR')}"
        )
    return Path(root)


def _remedy(name: str, root: str | Path) -> str:
    """Returns what to do about data that are not there."""
    if name == "folder":
        return ""
    if name in PHOTOGRAPHS:
        return "; docs/photographs.md says where they come from"
    source = name.removesuffix("-lt")
    command = (
        f"python -m s3h_ext.data download {source} --root {shlex.quote(str(root))}"
    )
    return f"; to fetch them: {command}"


def _read(name: str, root: str | Path | None, size: int | None) -> Archive:
    if name == "digits-lt":
        return read_digits()
    folder = _root(name, root)
    try:
        if name == "octmnist-lt":
            return read_octmnist(folder, size)
        return read_archive(name.removesuffix("-lt"), folder)
    except FileNotFoundError as error:
        size_option = "" if size is None else f" --size {size}"
        raise FileNotFoundError(
            f"{error}{_remedy(name, folder)}{size_option}"
        ) from None
