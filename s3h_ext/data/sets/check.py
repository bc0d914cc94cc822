"""Looks at data on the disk: complete, official, and what is in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from s3h_ext.data.longtail import class_profile, sorted_profile
from s3h_ext.data.sets.archives import ArchiveError, read_archive
from s3h_ext.data.sets.check_photographs import Findings, look_at_photographs
from s3h_ext.data.sets.lists import LISTED
from s3h_ext.data.sets.npz import OCT_CLASSES, SPLITS, read_octmnist_split
from s3h_ext.data.sets.photographs import PHOTOGRAPHS
from s3h_ext.data.sets.registry import OCTMNIST_SIZES, Source, find_source, md5_of

__all__ = ["CheckReport", "check", "feasible"]

FACTORS = (1, 10, 20, 50, 100, 200)


@dataclass
class CheckReport:
    """What was found.

    Attributes:
        lines: The findings, to be read by a person.
        problems: What keeps the data from being used, each with its remedy.
        official: Whether the checksums are the official ones; ``None`` where nothing
            could be compared.
        class_counts: Training images per class; empty where they could not be read.
    """

    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    official: bool | None = None
    class_counts: list[int] = field(default_factory=list)

    def text(self) -> str:
        """Returns the report, problems last."""
        verdict = [f"wrong: {problem}" for problem in self.problems]
        if not verdict:
            doubtful = any(line.startswith("warning: ") for line in self.lines)
            verdict = [
                "nothing is wrong, but see the warning" if doubtful else "all is well"
            ]
        return "\n".join([*self.lines, *verdict])


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
        The report; it does not raise for what it finds on the disk.

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
        found = look_at_photographs(
            name, Path(root), None if lists is None else Path(lists), decode=decode
        )
        return _of_photographs(name, report, found, imbalance, profile)
    source = find_source(name, size)
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
        return report
    except ArchiveError as error:
        report.problems.append(f"{error}. Move it away and fetch it again: {get}")
        return report
    except OSError as error:
        report.problems.append(f"{error}. See whether the files may be read")
        return report
    report.class_counts = counts.tolist()
    _report_factors(report, counts, imbalance, profile, by_size=name == "octmnist")
    return report


def feasible(
    counts: NDArray[np.int64],
    imbalance: float,
    *,
    profile: str = "exp",
    by_size: bool = False,
) -> bool:
    """Tells whether a long tail of this factor can be cut without repeating images.

    Args:
        counts: Images per class, int64 ``[C]``; the first class is to be the largest.
        imbalance: Largest over smallest class.
        profile: ``"exp"`` or ``"step"``.
        by_size: The classes differ in size by nature, so the tail is cut along their
            order of size, and a class with fewer images than its place asks for keeps
            all of them.

    Example:
        >>> counts = np.array([500, 160, 50])
        >>> feasible(counts, 10), feasible(counts, 5)
        (True, False)
    """
    try:
        if by_size:
            sorted_profile(counts, imbalance=imbalance, profile=profile)
            return True
        wanted = class_profile(
            len(counts),
            largest=int(counts.max()),
            imbalance=imbalance,
            profile=profile,
        )
    except ValueError:
        return False
    return bool((wanted <= counts).all())


def _of_photographs(
    name: str,
    report: CheckReport,
    found: Findings,
    imbalance: Sequence[float],
    profile: str,
) -> CheckReport:
    report.lines, report.problems = found.lines, found.problems
    report.official, report.class_counts = found.official, found.class_counts
    if not found.class_counts or found.problems:
        return report
    counts = np.array(found.class_counts, np.int64)
    if name in LISTED:
        report.lines.append(f"own imbalance {counts.max() / counts.min():.3g}")
    else:
        _report_factors(report, counts, imbalance, profile, by_size=True)
    return report


def _check_cifar(source: Source, root: Path, report: CheckReport) -> NDArray[np.int64]:
    archive = read_archive(source.name, root)
    assert source.folder is not None
    folder = root / source.folder
    if not any((folder / member).is_file() for member in source.members):
        folder = root
    foreign = [m for m, md5 in source.members.items() if md5_of(folder / m) != md5]
    report.lines.append(f"{source.name} in {folder}: all files are there")
    _report_official(report, foreign)
    classes = len(archive.class_names)
    _report_split(report, "train", archive.train_labels, archive.class_names)
    _report_split(report, "test", archive.test_labels, archive.class_names)
    histograms = _histograms(archive.train_images)
    values = np.arange(256) / 255
    means = [float(h @ values / h.sum()) for h in histograms]
    stds = [
        float((h @ (values - mean) ** 2 / h.sum()) ** 0.5)
        for h, mean in zip(histograms, means, strict=True)
    ]
    _report_statistics(report, means, stds)
    return np.bincount(archive.train_labels, minlength=classes).astype(np.int64)


def _histograms(images: NDArray[np.uint8]) -> list[NDArray[np.int64]]:
    """Counts the values 0 .. 255 of each channel of ``[N, H, W, C]``."""
    totals = [np.zeros(256, np.int64) for _ in range(images.shape[-1])]
    # bincount widens what it counts to eight bytes a pixel, so a part at a time.
    for start in range(0, len(images), 1024):
        pixels = images[start : start + 1024].reshape(-1, len(totals))
        for channel, total in enumerate(totals):
            total += np.bincount(pixels[:, channel], minlength=256)
    return totals


def _check_octmnist(
    source: Source, root: Path, report: CheckReport, size: int | None
) -> NDArray[np.int64]:
    path = root / source.file
    if not path.is_file():
        others = [
            str(side)
            for side in OCTMNIST_SIZES
            if (root / find_source("octmnist", side).file).is_file()
        ]
        hint = f"; there is --size {', '.join(others)}" if others else ""
        raise FileNotFoundError(f"{path}: no such file{hint}")
    splits = {
        split: read_octmnist_split(path, split, size=size or OCTMNIST_SIZES[0])
        for split in SPLITS
    }
    report.lines.append(f"octmnist in {path}: all arrays are there")
    _report_official(report, [path.name] if md5_of(path) != source.md5 else [])
    for split, part in splits.items():
        _report_split(report, split, part.labels, OCT_CLASSES)
    train = splits["train"]
    _report_statistics(report, [train.mean], [train.std])
    counts = np.bincount(train.labels, minlength=len(OCT_CLASSES)).astype(np.int64)
    return np.sort(counts)[::-1].copy()


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
) -> None:
    counts = np.bincount(labels, minlength=len(names))
    report.lines.append(
        f"{split}: {counts.sum()} images, "
        + (
            f"{counts[0]} of each of {len(counts)} classes"
            if counts.min() == counts.max()
            else f"{counts.max()} to {counts.min()} a class: "
            f"{' '.join(map(str, counts))}"
        )
    )
    empty = [
        f"{label} ({names[label]})" for label in range(len(names)) if not counts[label]
    ]
    if empty:
        report.problems.append(
            f"{split}: no image of class {', '.join(empty)}. Use a more complete "
            "archive"
        )


def _report_statistics(
    report: CheckReport, means: Sequence[float], stds: Sequence[float]
) -> None:
    report.lines.append(
        f"train pixels in [0, 1]: mean {' '.join(f'{m:.4f}' for m in means)}, "
        f"std {' '.join(f'{s:.4f}' for s in stds)}"
    )


def _report_factors(
    report: CheckReport,
    counts: NDArray[np.int64],
    imbalance: Sequence[float],
    profile: str,
    *,
    by_size: bool,
) -> None:
    if counts.min() == 0:
        return
    own = f"own imbalance {counts.max() / counts.min():.3g}"
    if by_size:
        report.lines.append(own)
    else:
        asked = sorted({*map(float, FACTORS), *map(float, imbalance)})
        possible = [f for f in asked if feasible(counts, f, profile=profile)]
        report.lines.append(
            f"{own}; of the factors {', '.join(f'{f:g}' for f in asked)}, profile "
            f"{profile}, can be cut: {', '.join(f'{f:g}' for f in possible) or 'none'}"
        )
    more = "" if by_size else "more images than are there, or "
    for factor in imbalance:
        if not feasible(counts, factor, profile=profile, by_size=by_size):
            report.problems.append(
                f"imbalance {factor:g} cannot be cut with profile {profile}: a class "
                f"would have {more}none. Use another factor, or a more complete archive"
            )
        elif by_size:
            report.lines.append(_cut_by_size(counts, factor, profile))


def _cut_by_size(counts: NDArray[np.int64], imbalance: float, profile: str) -> str:
    kept = sorted_profile(counts, imbalance=imbalance, profile=profile)
    return (
        f"cut to imbalance {imbalance:g}, profile {profile}: {kept.sum()} images, "
        f"{kept.max()} to {kept.min()} a class; {(kept == counts).sum()} of "
        f"{len(counts)} classes keep all their images"
    )
