"""Checks data on disk: completeness, checksums and contents."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from s3h_ext.data.dataset import SPLITS, ImageFiles
from s3h_ext.data.load import BY_SIZE, PHOTOGRAPHS, load_dataset
from s3h_ext.data.longtail import class_profile, sorted_profile
from s3h_ext.data.sets.archive import ArchiveError, histograms, statistics
from s3h_ext.data.sets.cifar import find_folder, read_archive
from s3h_ext.data.sets.lists import LISTED, blob_hash
from s3h_ext.data.sets.medmnist import MEDMNIST, read_medmnist_split
from s3h_ext.data.sets.naming import classes_by_size, empty_classes, some
from s3h_ext.data.sets.npz import read_arrays
from s3h_ext.data.sets.readable import find_unreadable
from s3h_ext.data.sets.registry import (
    MEDMNIST_SIZES,
    OfficialFile,
    download_command,
    find_official,
    md5_of,
)
from s3h_ext.data.sets.suggest import suggest, usual_side
from s3h_ext.data.source.decode import Unreadable

__all__ = ["CheckReport", "check", "cut_counts"]

FACTORS = (1, 10, 20, 50, 100, 200)

#: How to get photographs, by data set.
HOW_TO_GET = {
    "imagenet-lt": "Get ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from "
    "https://image-net.org (an account is needed), unpack them to train/WNID/*.JPEG "
    "and val/WNID/*.JPEG in the root, and put ImageNet_LT_{train,val,test}.txt next to "
    "them; see docs/photographs.md",
    "inat18": "Get train_val2018.tar.gz from "
    "https://github.com/visipedia/inat_comp/tree/master/2018, unpack it to "
    "train_val2018/ in the root, and put iNaturalist18_{train,val}.txt next to it; see "
    "docs/photographs.md",
    "places-lt": "Get Places365-Standard (256 x 256, 'easy directory structure') from "
    "http://places2.csail.mit.edu, unpack it to train/ and val/ in the root, and put "
    "Places_LT_{train,val,test}.txt next to them; see docs/photographs.md",
    "folder": "Lay the images out as ROOT/CLASS/IMAGE, or as "
    "ROOT/{train,val,test}/CLASS/IMAGE; or name --lists or --label_pattern",
}


@dataclass
class CheckReport:
    """Findings of a check.

    Attributes:
        lines: The findings, as text for the user.
        problems: Problems that prevent using the data, each with its remedy.
        official: Whether the checksums are the official ones; ``None`` if there is
            nothing to compare.
        class_counts: Training images per class; empty if they could not be read.
    """

    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    official: bool | None = None
    class_counts: list[int] = field(default_factory=list)

    def text(self) -> str:
        """Return the report, problems last."""
        verdict = [f"wrong: {problem}" for problem in self.problems]
        if not verdict:
            doubtful = any(line.startswith("warning: ") for line in self.lines)
            verdict = ["no errors, but see the warning" if doubtful else "all is well"]
        return "\n".join([*self.lines, *verdict])


def check(
    name: str,
    root: str | Path,
    *,
    imbalance: Sequence[float] = (),
    profile: str = "exp",
    size: int | None = None,
    lists: str | Path | None = None,
    label_pattern: str | None = None,
    decode: bool = False,
) -> CheckReport:
    """Check a data set in ``root``.

    A valid subset of the official data is reported, but not as a problem.

    Args:
        name: ``"cifar10"``, ``"cifar100"``, a set of MedMNIST, ``"arrays"``, or a data
            set of photographs: ``"imagenet-lt"``, ``"inat18"``, ``"places-lt"``,
            ``"folder"``.
        root: As for :func:`~s3h_ext.data.load_dataset`.
        imbalance: Imbalance factors that must be possible with these data; none for
            data sets that are long-tailed by their lists.
        profile: ``"exp"`` or ``"step"``.
        size: Image side in pixels, for MedMNIST: 28, 64, 128 or 224.
        lists: As for :func:`~s3h_ext.data.load_dataset`.
        label_pattern: As for :func:`~s3h_ext.data.load_dataset`.
        decode: For photographs, decode every file, with a progress bar on stderr, and
            list those that cannot be read. If False, every file must exist, and none is
            opened.

    Returns:
        The report, which includes all problems with the data; they raise no error.

    Raises:
        ValueError: there is no such data set, size, or profile, a factor is below 1, or
            the data set is not subsampled by a factor.
    """
    for factor in (1, *imbalance):
        class_profile(2, largest=1 << 62, imbalance=factor, profile=profile)
    if name in LISTED and imbalance:
        raise ValueError(
            f"imbalance: {name} is long-tailed by its list; expected no factor, got "
            f"{', '.join(f'{factor:g}' for factor in imbalance)}"
        )
    if name in PHOTOGRAPHS and size is not None:
        raise ValueError(f"size: {name} has no fixed size; expected None, got {size}")
    if name not in PHOTOGRAPHS and lists is not None:
        raise ValueError(f"lists: {name} has no lists; expected None, got {lists}")
    if name not in PHOTOGRAPHS and decode:
        raise ValueError(f"decode: {name} has no image files to decode")
    report = CheckReport()
    train = None
    if name in PHOTOGRAPHS:
        train = _check_photographs(
            name, Path(root), lists, label_pattern, report, decode
        )
    else:
        _check_archive(name, Path(root), size, report)
    if report.class_counts and not report.problems:
        by_size = name in (*BY_SIZE, *PHOTOGRAPHS)
        _add_factors(report, imbalance, profile, by_size=by_size)
        if name == "folder":
            counts = np.array(report.class_counts)
            side = None if train is None else usual_side(train)
            options = {"lists": lists, "label_pattern": label_pattern}
            given = {name: str(value) for name, value in options.items() if value}
            command, *reasons = suggest(counts, str(root), side, **given)
            report.lines += [f"to begin with: {command}", *(f"  {r}" for r in reasons)]
    return report


def _check_archive(
    name: str, root: Path, size: int | None, report: CheckReport
) -> None:
    if name == "arrays":
        _check_arrays(root, report)
        return
    source = find_official(name, size)
    get = download_command(name, root, size)
    try:
        if name in MEDMNIST:
            _check_medmnist(source, root, report, size)
        else:
            _check_cifar(source, root, report)
    except FileNotFoundError as error:
        report.problems.append(f"{error}. To get it: {get}")
    except ArchiveError as error:
        report.problems.append(f"{error}. Move it away and fetch it again: {get}")
    except OSError as error:
        report.problems.append(f"{error}. Check the files' permissions")


def _check_cifar(source: OfficialFile, root: Path, report: CheckReport) -> None:
    archive = read_archive(source.name, root)
    folder = find_folder(source.name, root)
    foreign = [m for m, md5 in source.members.items() if md5_of(folder / m) != md5]
    report.lines.append(f"{source.name} in {folder}: all files present")
    _add_official(report, foreign)
    for split, part in (("train", archive.train), ("test", archive.test)):
        _add_split(report, split, part.labels, archive.class_names, complete=True)
    _add_statistics(report, histograms(archive.train.images))


def _check_medmnist(
    source: OfficialFile, root: Path, report: CheckReport, size: int | None
) -> None:
    path = root / source.file
    if not path.is_file():
        others = [
            str(side)
            for side in MEDMNIST_SIZES
            if (root / find_official(source.name, side).file).is_file()
        ]
        hint = f"; there is --size {', '.join(others)}" if others else ""
        raise FileNotFoundError(f"{path}: no such file{hint}")
    splits = {
        split: read_medmnist_split(
            source.name, path, split, size=size or MEDMNIST_SIZES[0]
        )
        for split in SPLITS
    }
    report.lines.append(f"{source.name} in {path}: all arrays present")
    _add_official(report, [path.name] if md5_of(path) != source.md5 else [])
    for split, part in splits.items():
        _add_split(report, split, part.labels, MEDMNIST[source.name], complete=True)
    _add_statistics(report, splits["train"].histogram)


def _check_arrays(path: Path, report: CheckReport) -> None:
    try:
        archive = read_arrays(path)
    except (ArchiveError, OSError) as error:
        report.problems.append(f"{error}. docs/data.md says what the file holds")
        return
    report.lines.append(f"arrays in {path}")
    for split in SPLITS:
        if part := getattr(archive, split):
            _add_split(report, split, part.labels, archive.class_names)
    _add_statistics(report, histograms(archive.train.images))


def _check_photographs(
    name: str,
    root: Path,
    lists: str | Path | None,
    label_pattern: str | None,
    report: CheckReport,
    decode: bool,
) -> ImageFiles | None:
    """Add findings to the report; return the training images."""
    if name in LISTED:
        _check_lists(name, Path(lists or root), report)
    try:
        data = load_dataset(name, root=root, lists=lists, label_pattern=label_pattern)
    except (ValueError, OSError) as error:
        report.problems.append(f"{error}. {HOW_TO_GET[name]}")
        return None
    report.lines += data.notes
    for split in SPLITS:
        files: ImageFiles | None = getattr(data, split)
        if files is None:
            continue
        _add_split(report, split, files.labels, data.class_names)
        if decode:
            _decode(split, files, data.class_names, report)
            continue
        paths = map(files.path, range(len(files)))
        if gone := [path for path in paths if not os.path.isfile(path)]:
            report.problems.append(
                f"{split}: {len(gone)} of {len(files)} images are missing, the first "
                f"is {gone[0]}"
            )
    return data.train if isinstance(data.train, ImageFiles) else None


def _check_lists(name: str, folder: Path, report: CheckReport) -> None:
    same = []
    for split, standard in LISTED[name].lists.items():
        path = folder / standard.file
        if not path.is_file():
            report.lines.append(f"{split}: {path} is missing")
            continue
        verdict = f"no known hash; expected {standard.images} lines"
        if standard.blob is not None:
            try:
                same.append(blob_hash(path.read_bytes()) == standard.blob)
            except OSError:  # reading the data set reports why
                same.append(False)
            verdict = "the standard list" if same[-1] else "not the standard list"
        report.lines.append(f"{split}: {path}: {verdict}")
    report.official = all(same) if same else None


def _decode(
    split: str, files: ImageFiles, names: Sequence[str], report: CheckReport
) -> None:
    """Report every unreadable file, and the split without them."""
    unreadable = Unreadable("skip")
    bad = find_unreadable(files, unreadable, title=f"reading {split}")
    if not len(bad):
        report.lines.append(f"{split}: all images can be read")
        return
    report.problems += [
        f"{path}: {reason}" for path, reason in sorted(unreadable.errors.items())
    ]
    report.problems.append(
        f"{split}: {len(bad)} of {len(files)} images cannot be read. Repair or remove "
        "them, or train without them: --data.unreadable skip"
    )
    rest = np.delete(files.labels, bad)
    _add_split(report, f"{split} without unreadable images", rest, names)
    if len(lost := np.setdiff1d(files.labels, rest)):
        report.problems.append(
            f"{split}: no readable image of {some([names[i] for i in lost])}"
        )


def _add_official(report: CheckReport, foreign: Sequence[str]) -> None:
    report.official = not foreign
    report.lines.append(
        f"not the official files (checksums differ: {', '.join(foreign)}); a subset "
        "may differ from that of published results"
        if foreign
        else "the official files (checksums match)"
    )


def _add_split(
    report: CheckReport,
    split: str,
    labels: NDArray[np.int64],
    names: Sequence[str],
    *,
    complete: bool = False,
) -> None:
    """Report a split, in detail for train; ``complete``: has images of every class."""
    classes = len(names)
    counts = np.bincount(labels, minlength=classes)
    shape = (
        f"{counts[0]} of each of {classes} classes"
        if counts.min() == counts.max()
        else f"{counts.max()} to {counts.min()} a class, {classes} classes"
    )
    if split.startswith("train"):
        many, few = int((counts > 100).sum()), int((counts < 20).sum())
        shape += f" ({many} many, {classes - many - few} medium, {few} few)"
    if complete and counts.min() < counts.max():
        shape += f": {classes_by_size(counts, names, limit=classes)}"
    elif not complete and split.startswith("train"):
        shape += f": {classes_by_size(counts, names)}"
    if empty := empty_classes(labels, names):
        shape += f"; none of {some(empty)}"
        if complete:
            report.problems.append(
                f"{split}: no image of {some(empty)}. Use a more complete archive"
            )
    if split == "train":
        report.class_counts = counts.tolist()
    report.lines.append(f"{split}: {len(labels)} images, {shape}")


def _add_statistics(report: CheckReport, counts: NDArray[np.int64]) -> None:
    mean, std = (
        " ".join(f"{value:.4f}" for value in values) for values in statistics(counts)
    )
    report.lines.append(f"train pixels in [0, 1]: mean {mean}, std {std}")


def _add_factors(
    report: CheckReport, imbalance: Sequence[float], profile: str, *, by_size: bool
) -> None:
    """Report which imbalance factors are possible; see :func:`cut_counts`."""
    counts = np.array(report.class_counts, np.int64)
    natural = f"own imbalance {counts.max() / counts.min():.3g}"
    if by_size:
        report.lines.append(natural)
    else:
        asked = sorted({*map(float, FACTORS), *map(float, imbalance)})
        possible = [f for f in asked if cut_counts(counts, f, profile) is not None]
        report.lines.append(
            f"{natural}; possible factors with profile {profile}, of "
            f"{', '.join(f'{f:g}' for f in asked)}: "
            f"{', '.join(f'{f:g}' for f in possible) or 'none'}"
        )
    more = "" if by_size else "need more images than it has, or "
    for factor in imbalance:
        kept = cut_counts(counts, factor, profile, by_size=by_size)
        if kept is None:
            report.problems.append(
                f"imbalance {factor:g} is impossible with profile {profile}: a class "
                f"would {more}be empty. Use another factor or a more complete archive"
            )
        elif by_size:
            report.lines.append(
                f"cut to imbalance {factor:g}, profile {profile}: {kept.sum()} images, "
                f"{kept.max()} to {kept.min()} a class; {(kept == counts).sum()} of "
                f"{len(counts)} classes keep all their images"
            )


def cut_counts(
    counts: NDArray[np.int64],
    imbalance: float,
    profile: str = "exp",
    *,
    by_size: bool = False,
) -> NDArray[np.int64] | None:
    """Return the class sizes after subsampling, or ``None`` without enough images.

    Args:
        counts: Images per class, int64 ``[C]``.
        imbalance: Largest class size divided by the smallest.
        profile: ``"exp"`` or ``"step"``.
        by_size: Apply the profile to the classes sorted by size; a class with fewer
            images than its target keeps all of them.
    """
    try:
        if by_size:
            return sorted_profile(counts, imbalance=imbalance, profile=profile)
        kept = class_profile(
            len(counts), largest=int(counts.max()), imbalance=imbalance, profile=profile
        )
    except ValueError:
        return None
    return kept if (kept <= counts).all() else None
