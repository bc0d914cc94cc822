"""Checks photographs on the disk: which lists, how many images, what is missing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from s3h_ext.data.image_files import ImageFiles
from s3h_ext.data.sets.check_report import CheckReport
from s3h_ext.data.sets.lists import LISTED, blob_hash
from s3h_ext.data.sets.naming import classes_by_size, empty_classes, some
from s3h_ext.data.sets.photographs import read_photographs
from s3h_ext.data.sets.readable import find_unreadable
from s3h_ext.data.source.decode import Unreadable

__all__ = ["HOW_TO_GET", "check_photographs"]

#: How to get the data, by data set.
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
    "ROOT/{train,val,test}/CLASS/IMAGE",
}


def check_photographs(
    name: str,
    root: Path,
    report: CheckReport,
    lists: Path | None = None,
    *,
    decode: bool = False,
) -> None:
    """Checks a data set of photographs.

    Args:
        name: One of :data:`~.photographs.PHOTOGRAPHS`.
        root: Folder of the images.
        report: Takes the findings; what is wrong with the data raises nothing.
        lists: Folder of the list files; ``None`` for ``root``.
        decode: Decode every file of every split, with a progress bar; if not, every
            file must be there, and none is opened.
    """
    if name in LISTED:
        _check_lists(name, lists or root, report)
    try:
        data = read_photographs(name, root, lists=lists)
    except (ValueError, OSError) as error:
        report.problems.append(f"{error}. {HOW_TO_GET[name]}")
        return
    report.lines += data.notes
    for split in ("train", "val", "test"):
        files = getattr(data, split)
        if files is None:
            continue
        _count(split, files, data.class_names, report)
        if decode:
            _decode(split, files, data.class_names, report)
        else:
            _check_files(split, files, report)
    report.class_counts = data.class_counts.tolist()


def _check_lists(name: str, folder: Path, report: CheckReport) -> None:
    verdicts = []
    for split, standard in LISTED[name].lists.items():
        path = folder / standard.file
        if not path.is_file():
            report.lines.append(f"{split}: there is no {path}")
            continue
        try:
            same = blob_hash(path.read_bytes()) == standard.blob
        except OSError:  # reading the data set says why
            same = False
        verdicts.append(same)
        if standard.blob is None:
            verdict = f"its hash is not known here; {standard.images} lines expected"
            verdicts.pop()
        else:
            verdict = "the standard list" if same else "not the standard list"
        report.lines.append(f"{split}: {path}: {verdict}")
    report.official = all(verdicts) if verdicts else None


def _count(
    title: str, files: ImageFiles, names: Sequence[str], report: CheckReport
) -> None:
    """Adds a split's images and classes, and more of one that is called train."""
    classes = len(names)
    counts = np.bincount(files.labels, minlength=classes)
    shape = (
        f"{counts[0]} of each of {classes} classes"
        if counts.min() == counts.max()
        else f"{counts.max()} to {counts.min()} a class, {classes} classes"
    )
    if title.startswith("train"):
        many, few = int((counts > 100).sum()), int((counts < 20).sum())
        shape += f" ({many} many, {classes - many - few} medium, {few} few)"
        shape += f": {classes_by_size(counts, names)}"
    if empty := empty_classes(files.labels, names):
        shape += f"; none of {some(empty)}"
    report.lines.append(f"{title}: {len(files)} images, {shape}")


def _check_files(split: str, files: ImageFiles, report: CheckReport) -> None:
    missing = [i for i in range(len(files)) if not os.path.isfile(files.path(i))]
    if missing:
        report.problems.append(
            f"{split}: {len(missing)} of {len(files)} images are not there, the first "
            f"is {files.path(missing[0])}"
        )


def _decode(
    split: str, files: ImageFiles, names: Sequence[str], report: CheckReport
) -> None:
    """Adds every file that cannot be read, and what the split is without them."""
    unreadable = Unreadable("skip")
    bad = find_unreadable(files, unreadable, title=f"reading {split}")
    if not len(bad):
        report.lines.append(f"{split}: all images can be read")
        return
    report.problems += [
        f"{path}: {reason}" for path, reason in sorted(unreadable.errors.items())
    ]
    report.problems.append(
        f"{split}: {len(bad)} of {len(files)} images cannot be read. Mend or remove "
        "them, or train without them: --data.unreadable skip"
    )
    rest = files.subset(np.delete(np.arange(len(files)), bad))
    _count(f"{split} without what cannot be read", rest, names, report)
    lost = np.setdiff1d(files.labels, rest.labels)
    if len(lost):
        report.problems.append(
            f"{split}: no image can be read of {some([names[i] for i in lost])}"
        )
