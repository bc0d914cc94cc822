"""Checks data on the disk: whether they are complete, official, and what is in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from s3h_ext.data.longtail import class_profile
from s3h_ext.data.sets.archive import ArchiveError, histograms, statistics
from s3h_ext.data.sets.check_photographs import check_photographs
from s3h_ext.data.sets.check_report import CheckReport
from s3h_ext.data.sets.cifar import read_archive
from s3h_ext.data.sets.lists import LISTED
from s3h_ext.data.sets.octmnist import OCT_CLASSES, SPLITS, read_octmnist_split
from s3h_ext.data.sets.photographs import PHOTOGRAPHS
from s3h_ext.data.sets.registry import (
    OCTMNIST_SIZES,
    OfficialFile,
    find_official,
    md5_of,
)

__all__ = ["CheckReport", "check"]


def check(
    name: str,
    root: str | Path,
    *,
    imbalance: Sequence[float] = (),
    profile: str = "exp",
    size: int | None = None,
    lists: str | Path | None = None,
    decode: bool = False,
) -> CheckReport:
    """Checks a data set in ``root``.

    Data that are only a part of the official ones are fine as long as they are sound:
    that is said, and is no problem.

    Args:
        name: ``"cifar10"``, ``"cifar100"``, ``"octmnist"``, or a data set of
            photographs: ``"imagenet-lt"``, ``"inat18"``, ``"places-lt"``, ``"folder"``.
        root: As for :func:`~s3h_ext.data.load_dataset`.
        imbalance: Factors that must be possible with these data; none for data sets
            that are long-tailed by their lists.
        profile: ``"exp"`` or ``"step"``.
        size: Image side in pixels, for OCTMNIST: 28, 64, 128 or 224.
        lists: Folder of the list files of photographs; ``None`` for ``root``.
        decode: Of photographs, decode every file, with a progress bar on stderr, and
            list those that cannot be read.

    Returns:
        The report; what is wrong with the data is in it and raises nothing.

    Raises:
        ValueError: there is no such data set, size, or profile, a factor is below 1, or
            the data set is not cut to any.
    """
    for factor in (1, *imbalance):
        class_profile(2, largest=1 << 62, imbalance=factor, profile=profile)
    if name in LISTED and imbalance:
        raise ValueError(
            f"imbalance: {name} is long-tailed by its list; expected no factor, got "
            f"{', '.join(f'{factor:g}' for factor in imbalance)}"
        )
    if name in PHOTOGRAPHS and size is not None:
        raise ValueError(f"size: {name} is checked in any; expected None, got {size}")
    if name not in LISTED and lists is not None:
        raise ValueError(f"lists: {name} has no lists; expected None, got {lists}")
    if name not in PHOTOGRAPHS and decode:
        raise ValueError(f"decode: {name} has no image files to decode")
    report = CheckReport()
    if name in PHOTOGRAPHS:
        folder = None if lists is None else Path(lists)
        check_photographs(name, Path(root), report, folder, decode=decode)
        if report.class_counts and not report.problems:
            report.add_factors(imbalance, profile, by_size=True)
        return report
    source = find_official(name, size)
    get = f"python -m s3h_ext.data download {name} --root {root}"
    if size is not None:
        get += f" --size {size}"
    try:
        if name == "octmnist":
            counts = _check_octmnist(source, Path(root), report, size)
        else:
            counts = _check_cifar(source, Path(root), report)
    except FileNotFoundError as error:
        report.problems.append(f"{error}. To get it: {get}")
    except ArchiveError as error:
        report.problems.append(f"{error}. Move it away and fetch it again: {get}")
    except OSError as error:
        report.problems.append(f"{error}. See whether the files may be read")
    else:
        report.class_counts = counts.tolist()
        report.add_factors(imbalance, profile, by_size=name == "octmnist")
    return report


def _check_cifar(
    source: OfficialFile, root: Path, report: CheckReport
) -> NDArray[np.int64]:
    archive = read_archive(source.name, root)
    assert source.folder is not None
    folder = root / source.folder
    if not any((folder / member).is_file() for member in source.members):
        folder = root
    foreign = [m for m, md5 in source.members.items() if md5_of(folder / m) != md5]
    report.lines.append(f"{source.name} in {folder}: all files are there")
    _report_official(report, foreign)
    counts = _report_split(report, "train", archive.train_labels, archive.class_names)
    _report_split(report, "test", archive.test_labels, archive.class_names)
    _report_statistics(report, histograms(archive.train_images))
    return counts


def _check_octmnist(
    source: OfficialFile, root: Path, report: CheckReport, size: int | None
) -> NDArray[np.int64]:
    path = root / source.file
    if not path.is_file():
        others = [
            str(side)
            for side in OCTMNIST_SIZES
            if (root / find_official("octmnist", side).file).is_file()
        ]
        hint = f"; there is --size {', '.join(others)}" if others else ""
        raise FileNotFoundError(f"{path}: no such file{hint}")
    splits = {
        split: read_octmnist_split(path, split, size=size or OCTMNIST_SIZES[0])
        for split in SPLITS
    }
    report.lines.append(f"octmnist in {path}: all arrays are there")
    _report_official(report, [path.name] if md5_of(path) != source.md5 else [])
    counts = [
        _report_split(report, split, part.labels, OCT_CLASSES)
        for split, part in splits.items()
    ]
    _report_statistics(report, splits["train"].histogram)
    return np.sort(counts[0])[::-1].copy()


def _report_official(report: CheckReport, foreign: Sequence[str]) -> None:
    report.official = not foreign
    report.lines.append(
        f"not the official files (other checksums: {', '.join(foreign)}); images drawn "
        "from them need not be those of published results"
        if foreign
        else "the official files, by their checksums"
    )


def _report_split(
    report: CheckReport, split: str, labels: NDArray[np.int64], names: Sequence[str]
) -> NDArray[np.int64]:
    counts = np.bincount(labels, minlength=len(names)).astype(np.int64)
    report.lines.append(
        f"{split}: {counts.sum()} images, "
        + (
            f"{counts[0]} of each of {len(counts)} classes"
            if counts.min() == counts.max()
            else f"{counts.max()} to {counts.min()} a class: "
            f"{' '.join(map(str, counts))}"
        )
    )
    if empty := [f"{i} ({name})" for i, name in enumerate(names) if not counts[i]]:
        report.problems.append(
            f"{split}: no image of class {', '.join(empty)}. Use a more complete "
            "archive"
        )
    return counts


def _report_statistics(report: CheckReport, counts: NDArray[np.int64]) -> None:
    mean, std = (
        " ".join(f"{value:.4f}" for value in values) for values in statistics(counts)
    )
    report.lines.append(f"train pixels in [0, 1]: mean {mean}, std {std}")
