"""Writes a finished run's outputs."""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from s3h_ext import __version__
from s3h_ext.data import Batch, LongTailDataset
from s3h_ext.data.load import DATASETS
from s3h_ext.data.train_list import list_hash
from s3h_ext.report.analysis import try_analysis
from s3h_ext.report.evaluation_files import write_evaluation
from s3h_ext.report.metrics import GROUP_SIZES, GROUPS, Evaluation
from s3h_ext.report.page import try_report
from s3h_ext.runs.config import TrainConfig
from s3h_ext.runs.folder import RunFolder
from s3h_ext.runs.precision import device_name
from s3h_ext.training.state import RunState

__all__ = ["results_table", "run_summary", "selection_split", "write_outputs"]


def selection_split(dataset: LongTailDataset) -> str:
    """Return the split used to compare epochs: held-out images, if any."""
    return "val" if dataset.val is not None else "test"


def run_summary(
    config: TrainConfig,
    dataset: LongTailDataset,
    state: RunState,
    test: Evaluation,
    *,
    epochs: int,
    precision: str,
    device: torch.device,
    processes: int,
    dataset_given: bool,
) -> dict[str, Any]:
    """Return the contents of ``summary.json`` for a finished run.

    ``epochs``, ``precision``, ``device`` and ``processes`` are those of the training.
    ``dataset_given``: the data set is not the one named by the options.
    """
    counts = dataset.class_counts
    error = test.calibration.error
    # The imbalance factor of the cut, or the data set's own.
    imbalance = None
    if not dataset_given:
        imbalance = config.data.imbalance or DATASETS[dataset.name]
    summary: dict[str, Any] = {
        "preset": config.preset,
        "dataset": dataset.name,
        "imbalance": imbalance or float(counts.max() / counts.min()),
        "method": config.method.label,
        "seed": config.seed,
        "epochs": epochs,
        "top1": test.top1,
        "many": test.many,
        "medium": test.medium,
        "few": test.few,
        "best_top1": state.best_top1,
        "best_split": selection_split(dataset),
        "macro_f1": test.macro_f1,
        "worst_class": test.worst_class,
        # NaN if a confidence is NaN, and JSON has no NaN.
        "calibration_error": error if math.isfinite(error) else None,
        "train_images": int(counts.sum()),
        "parameters": sum(p.numel() for p in config.method.model.parameters()),
        "seconds": state.run_seconds,
        "images_per_second": state.images_trained / max(state.train_seconds, 1e-9),
        "device": device_name(device),
        "precision": precision,
        "threads": torch.get_num_threads(),
        "processes": processes,
        "versions": {
            "s3h_ext": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "cuda": torch.version.cuda if device.type == "cuda" else None,
        },
    }
    if drawn := list_hash(dataset):
        summary["train_list_sha256"] = drawn
    if config.optim.ema_decay is not None:
        summary["ema_decay"] = config.optim.ema_decay
    if state.first_stage is not None:
        summary["first_stage"] = state.first_stage
    if state.left_out:
        summary["unreadable_images"] = len(state.left_out)
    if dataset.val is not None:
        for name in ("val_top1", "val_many", "val_medium", "val_few"):
            summary[name] = state.history[-1][name]
    return summary


def write_outputs(
    folder: RunFolder,
    config: TrainConfig,
    dataset: LongTailDataset,
    summary: Mapping[str, Any],
    test: Evaluation,
    train_batches: Iterable[Batch],
    *,
    precision: str,
    device: torch.device,
) -> None:
    """Write the summary, the underlying evaluation and the report; print the result.

    ``test`` is the evaluation on the test split; ``train_batches`` are the training
    images in order, without augmentation. ``config`` holds the trained method.
    """
    # First of all: if anything fails after this, the numbers are safe.
    folder.write_summary(summary)
    write_evaluation(folder, test, dataset.class_names, dataset.class_counts)
    print(results_table(summary))
    if config.report:
        try_analysis(
            folder,
            config.method,
            train_batches,
            dataset,
            precision=precision,
            device=device,
        )
        try_report(folder)


def _empty_groups(summary: Mapping[str, Any]) -> list[str]:
    """Return why groups of classes have no accuracy."""
    groups = zip(GROUPS, GROUP_SIZES, strict=True)
    empty = [f"{sizes} ({name})" for name, sizes in groups if summary[name] is None]
    if not empty:
        return []
    return [f"no test class has {' or '.join(empty)} training images"]


def results_table(summary: Mapping[str, Any]) -> str:
    """Return the final table of a run as text."""

    def percent(value: float | None) -> str:
        return "no class" if value is None else f"{value:.2f}"

    names = ("top1", "many", "medium", "few")
    best = f"best ({summary['best_split']})"
    header = [*names, best]
    values = [
        *(percent(summary[name]) for name in names),
        percent(summary["best_top1"]),
    ]
    widths = [max(len(h), len(v)) for h, v in zip(header, values, strict=True)]
    lines = [
        f"{summary['dataset']} (imbalance {summary['imbalance']:g}), "
        f"{summary['method']}, {summary['epochs']} epochs, seed {summary['seed']}: "
        f"accuracy in percent on the test split, last epoch",
        "  ".join(h.rjust(w) for h, w in zip(header, widths, strict=True)),
        "  ".join(v.rjust(w) for v, w in zip(values, widths, strict=True)),
        *_empty_groups(summary),
        f"{summary['seconds']:.0f} s, {summary['images_per_second']:.0f} images/s in "
        f"training, {summary['precision']} on {summary['device']}",
    ]
    return "\n".join(lines)
