"""Writes and reads the results of a finished run as files in its folder."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from s3h_ext.files import write_text
from s3h_ext.report.metrics import Calibration, Evaluation, Metrics, metrics_of_cells
from s3h_ext.runs.folder import RunFolder
from s3h_ext.table_files import format_rows, plain_text

__all__ = ["RunResults", "read_results", "write_evaluation"]

_T = TypeVar("_T")

_CLASSES = ("class", "name", "train_images", "test_images", "accuracy")
_CONFUSION = ("class", "predicted", "images")
_CALIBRATION = ("above", "to", "images", "accuracy", "confidence")


@dataclass(frozen=True, eq=False)
class RunResults:
    """The results of a finished run, read from its folder.

    Attributes:
        summary: the content of ``summary.json``.
        history: the rows of ``metrics.csv``, one for each epoch, without values that
            were not measured in that epoch.
        class_names: one name for each class.
        class_counts: int64 ``[C]``, training images of each class.
        test_counts: int64 ``[C]``, test images of each class.
        confusion: int64 ``[K, 3]``, the non-zero cells of the confusion matrix: true
            class, predicted class, images.
        calibration: confidence against accuracy.
    """

    summary: dict[str, Any]
    history: list[dict[str, float]]
    class_names: tuple[str, ...]
    class_counts: np.ndarray
    test_counts: np.ndarray
    confusion: np.ndarray
    calibration: Calibration

    @property
    def metrics(self) -> Metrics:
        """The metrics, recomputed from the confusion matrix."""
        return metrics_of_cells(self.confusion, self.class_counts)


def write_evaluation(
    folder: RunFolder,
    test: Evaluation,
    class_names: Sequence[str],
    class_counts: np.ndarray,
    *,
    images_column: str = "test_images",
) -> None:
    """Write ``per_class.csv``, ``confusion.csv`` and ``calibration.csv``.

    ``images_column`` is the name of the fourth column of ``per_class.csv``; only files
    with ``"test_images"`` can be used for a report.
    """
    true, _, images = test.confusion.T
    test_counts = np.bincount(true, images, len(class_names)).astype(np.int64)
    _write(
        folder.per_class,
        [*_CLASSES[:3], images_column, *_CLASSES[4:]],
        zip(
            range(len(class_names)),
            class_names,
            np.asarray(class_counts).tolist(),
            test_counts.tolist(),
            ["" if value != value else f"{value:.4f}" for value in test.per_class],
            strict=True,
        ),
    )
    _write(folder.confusion, _CONFUSION, test.confusion.tolist())
    bins = test.calibration
    edges = (100.0 * np.arange(len(bins.images) + 1) / len(bins.images)).tolist()
    _write(
        folder.calibration,
        _CALIBRATION,
        zip(
            edges[:-1],
            edges[1:],
            bins.images.tolist(),
            _cells(bins.accuracy),
            _cells(bins.confidence),
            strict=True,
        ),
    )


def read_results(folder: RunFolder) -> RunResults:
    """Read the results of a finished run.

    Raises:
        FileNotFoundError: a file of a finished run is missing.
        ValueError: a file has invalid contents; the message names it.
    """
    summary = folder.read_summary()
    for path in (
        folder.metrics,
        folder.per_class,
        folder.confusion,
        folder.calibration,
    ):
        if not path.is_file():
            raise FileNotFoundError(
                f"run: {folder} has no {path.name}, which a report needs; repeat the "
                "run's command with --resume to write it"
            )
    classes = _read(
        folder.per_class,
        _CLASSES,
        lambda row: (row["name"], int(row["train_images"]), int(row["test_images"])),
    )
    if not classes:
        raise ValueError(f"{folder.per_class}: expected classes, got none")
    names, train_counts, test_counts = zip(*classes, strict=True)

    def cell(row: dict[str, str]) -> tuple[int, ...]:
        true, predicted, images = (int(row[name]) for name in _CONFUSION)
        if not (0 <= true < len(names) and 0 <= predicted < len(names) and images > 0):
            raise ValueError(
                f"expected two classes in [0, {len(names)}) and a count above 0"
            )
        return true, predicted, images

    confusion = np.array(_read(folder.confusion, _CONFUSION, cell), np.int64)
    totals = np.zeros(len(names), np.int64)
    if len(confusion):
        np.add.at(totals, confusion[:, 0], confusion[:, 2])
    if totals.sum() == 0 or totals.tolist() != list(test_counts):
        raise ValueError(
            f"{folder.confusion}: its rows do not sum to the test images "
            "in per_class.csv"
        )
    bins = _read(
        folder.calibration,
        _CALIBRATION,
        lambda row: (
            int(row["images"]),
            _number(row["accuracy"]),
            _number(row["confidence"]),
        ),
    )
    if sum(images for images, _, _ in bins) != totals.sum():
        raise ValueError(
            f"{folder.calibration}: its bins do not sum to the test images "
            "in per_class.csv"
        )
    in_bins, accuracy, confidence = zip(*bins, strict=True)
    return RunResults(
        summary=summary,
        history=_read(
            folder.metrics,
            ("epoch",),
            lambda row: {
                name: float(value) for name, value in row.items() if value != ""
            },
        ),
        class_names=names,
        class_counts=np.array(train_counts, np.int64),
        test_counts=np.array(test_counts, np.int64),
        confusion=confusion,
        calibration=Calibration(
            np.array(in_bins, np.int64), np.array(accuracy), np.array(confidence)
        ),
    )


def _cells(values: np.ndarray) -> list[float | str]:
    """Return the cells to write; empty where there is no value."""
    return ["" if value != value else value for value in values.tolist()]


def _number(text: str) -> float:
    return float(text) if text else float("nan")


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    write_text(path, format_rows([header, *rows]))


def _read(
    path: Path, header: Sequence[str], parse: Callable[[dict[str, str]], _T]
) -> list[_T]:
    """Parse each row with ``parse``; the file must have the columns of ``header``."""
    try:
        text = path.read_bytes().decode()  # unchanged: a name may contain a line break
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text: {error}") from None
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = list(map(plain_text, next(rows, [])))
        missing = [name for name in header if name not in columns]
        if missing:
            raise ValueError(
                f"expected the columns {', '.join(header)}, got none called "
                f"{', '.join(missing)}"
            )
        return [
            parse(dict(zip(columns, map(plain_text, row), strict=True))) for row in rows
        ]
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}: line {max(rows.line_num, 1)}: {error}") from None
