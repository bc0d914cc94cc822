"""Image files with user-defined labels: from a list, or from the file names."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from pathlib import Path

from s3h_ext.data.dataset import SPLITS, ImageFiles
from s3h_ext.data.sets.lists import check_below, list_rows, shared_names
from s3h_ext.data.sets.naming import some
from s3h_ext.table_files import plain_text

__all__ = ["label_by_pattern", "read_own_lists"]

_COLUMNS = ("path", "label")
#: Paths and labels of a split.
_Labelled = tuple[list[str], list[str]]


def read_own_lists(
    root: Path, lists: Path
) -> tuple[dict[str, ImageFiles], tuple[str, ...]]:
    """Read lists of image files; opens no image but checks the first of each list.

    ``NAME.csv`` has the columns ``path`` and ``label``, and possibly others. In any
    other file, each line is a path, a space and a label. Classes are the labels of the
    training images, sorted; numerically if all are numbers. Paths are relative to
    ``root``. ``lists`` is a list of training images, or a folder with a required
    ``train`` and optional ``test`` and ``val``, each ``.csv`` or ``.txt``.

    Returns:
        The files of each split, and the names of the classes.

    Raises:
        FileNotFoundError: a list or an image does not exist.
        ValueError: a list is unusable, or an image is listed twice; the message has
            file and line.
    """
    places = _places(lists)
    found = {split: _read_list(path) for split, path in places.items()}
    files, names = _numbered(root, found, {s: str(p) for s, p in places.items()})
    for first, second in combinations(files, 2):
        if shared := shared_names(files[first], files[second]):
            raise ValueError(
                f"{places[second]}: expected no image of {places[first]}, got "
                f"{len(shared)}, such as {os.fsdecode(min(shared))}"
            )
    for split, images in files.items():
        if not images.path(0).is_file():
            raise FileNotFoundError(
                f"{places[split]}: expected the image {images.path(0)}, its first; "
                "paths are relative to data.root"
            )
    return files, names


def label_by_pattern(
    root: Path, names: Mapping[str, tuple[str, Iterable[str]]], pattern: str
) -> tuple[dict[str, ImageFiles], tuple[str, ...]]:
    """Label image files by a regular expression that matches their paths.

    ``names`` holds, for each split, its location in the root and its paths below that.
    The label is the group ``label`` of the pattern, or its first group.

    Raises:
        ValueError: the pattern is invalid, has no group, or does not match an image.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"label_pattern: expected a regular expression, got {pattern!r}: {error}"
        ) from None
    if not compiled.groups:
        raise ValueError(
            "label_pattern: expected a group in parentheses that finds the label, got "
            f"{pattern!r}"
        )
    group = "label" if "label" in compiled.groupindex else 1
    found: dict[str, _Labelled] = {}
    for split, (prefix, paths) in names.items():
        every = sorted(paths)
        labels = [(m := compiled.search(path)) and m[group] for path in every]
        if unfit := [p for p, label in zip(every, labels, strict=True) if not label]:
            raise ValueError(
                f"label_pattern: {pattern!r} finds no label in {len(unfit)} of "
                f"{len(every)} images: {some(unfit)}"
            )
        if not every:
            raise FileNotFoundError(f"root: expected images in {root}, found none")
        found[split] = [prefix + path for path in every], [*map(str, labels)]
    return _numbered(root, found, {split: split for split in found})


def _places(lists: Path) -> dict[str, Path]:
    if lists.is_file():
        return {"train": lists}
    places: dict[str, Path] = {}
    for split in SPLITS:
        there = [p for e in ("csv", "txt") if (p := lists / f"{split}.{e}").is_file()]
        if len(there) > 1:
            raise ValueError(f"lists: expected one of {some([*map(str, there)])}")
        places |= dict.fromkeys([split] if there else [], *there)
    if "train" not in places:
        raise FileNotFoundError(
            f"lists: expected a list, or a folder with train.csv or train.txt in it, "
            f"got {lists}"
        )
    return places


def _read_list(path: Path) -> _Labelled:
    # Names that are not UTF-8 pass through as bytes.
    text = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    lines = text.decode("utf-8", "surrogateescape")
    rows = _csv_rows(path, lines) if path.suffix == ".csv" else list_rows(path, lines)
    names: dict[str, int] = {}
    labels = []
    for number, name, label in rows:
        if not name or not label:
            raise ValueError(f"{path}, line {number}: expected a path and a label")
        check_below(path, number, name)
        if name in names:
            raise ValueError(
                f"{path}, line {number}: {name!r} is in line {names[name]} already"
            )
        names[name] = number
        labels.append(label)
    if not labels:
        raise ValueError(f"{path}: expected images, got an empty list")
    return [*names], labels


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, str, str]]:
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [cell.strip() for cell in next(rows, [])]
        if missing := [name for name in _COLUMNS if name not in header]:
            raise ValueError(
                f"expected the columns {', '.join(_COLUMNS)}, got none called "
                f"{', '.join(missing)}, but {', '.join(header)[:200]}"
            )
        name, label = map(header.index, _COLUMNS)
        for row in rows:
            if not row:
                continue
            if len(row) != len(header):
                raise ValueError(f"expected {len(header)} cells, got {len(row)}")
            yield rows.line_num, plain_text(row[name]), plain_text(row[label]).strip()
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{path}, line {max(rows.line_num, 1)}: {error}") from None


def _numbered(
    root: Path, found: Mapping[str, _Labelled], places: Mapping[str, str]
) -> tuple[dict[str, ImageFiles], tuple[str, ...]]:
    """Return the files, with labels as indices into the sorted names."""
    known = set(found["train"][1])
    numbers = all(label.isascii() and label.isdigit() for label in known)
    names = sorted(known, key=(lambda label: (int(label), label)) if numbers else None)
    if len(names) < 2:
        raise ValueError(
            f"{places['train']}: expected two classes or more, got {some(names)} alone"
        )
    place = {name: label for label, name in enumerate(names)}
    files = {}
    for split, (paths, labels) in found.items():
        if unknown := sorted(set(labels) - known):
            raise ValueError(
                f"{places[split]}: expected the classes of the training images, got "
                f"{some(unknown)} as well"
            )
        files[split] = ImageFiles.of(root, paths, [place[label] for label in labels])
    return files, tuple(names)
