"""A run in a line, and the summary of a finished one."""

from __future__ import annotations

import math
import platform
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from s3h_ext import __version__
from s3h_ext.data.load import DATASETS
from s3h_ext.report.metrics import Evaluation
from s3h_ext.runs.precision import device_name

if TYPE_CHECKING:
    from s3h_ext.training.trainer import Trainer

__all__ = ["run_line", "run_summary"]


def run_line(trainer: Trainer) -> str:
    """Return what runs, and on what, in a line."""
    config, dataset, size = trainer.config, trainer.dataset, trainer.world.size
    processes = f", {size} processes" if size > 1 else ""
    return (
        f"{config.preset or 'custom'}: {trainer.method.label} on {dataset.name}, "
        f"{len(dataset.train)} images, seed {config.seed}, {trainer.epochs} epochs; "
        f"{trainer.precision} on {trainer.device}{processes}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )


def run_summary(trainer: Trainer, test: Evaluation) -> dict[str, Any]:
    """Return what ``summary.json`` says about a run that is over.

    Args:
        trainer: after its last epoch.
        test: its evaluation on the test split.
    """
    config, dataset = trainer.config, trainer.dataset
    counts = dataset.class_counts
    error = test.calibration.error
    # What the data set was cut by, or is by nature.
    imbalance = None
    if not trainer.dataset_given:
        imbalance = config.data.imbalance or DATASETS[dataset.name]
    summary: dict[str, Any] = {
        "preset": config.preset,
        "dataset": dataset.name,
        "imbalance": imbalance or float(counts.max() / counts.min()),
        "method": trainer.method.label,
        "seed": config.seed,
        "epochs": trainer.epochs,
        "top1": test.top1,
        "many": test.many,
        "medium": test.medium,
        "few": test.few,
        "best_top1": trainer.best_top1,
        "best_split": trainer.selection_split,
        "macro_f1": test.macro_f1,
        "worst_class": test.worst_class,
        # Not a number where a confidence is none, and JSON knows no NaN.
        "calibration_error": error if math.isfinite(error) else None,
        "train_images": int(counts.sum()),
        "parameters": sum(p.numel() for p in trainer.method.model.parameters()),
        "seconds": trainer.run_seconds,
        "images_per_second": trainer.images_trained / max(trainer.train_seconds, 1e-9),
        "device": device_name(trainer.device),
        "precision": trainer.precision,
        "threads": torch.get_num_threads(),
        "processes": trainer.world.size,
        "versions": {
            "s3h_ext": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "cuda": torch.version.cuda if trainer.device.type == "cuda" else None,
        },
    }
    if trainer.average is not None:
        summary["ema_decay"] = config.optim.ema_decay
    if trainer.first_stage is not None:
        summary["first_stage"] = trainer.first_stage
    if trainer.left_out:
        summary["unreadable_images"] = len(trainer.left_out)
    if dataset.val is not None:
        last = trainer.history[-1]
        summary.update(
            {
                name: last[name]
                for name in ("val_top1", "val_many", "val_medium", "val_few")
            }
        )
    return summary
