"""``python -m s3h_ext.evaluate RUN``: measure a run's network on a split."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from s3h_ext.data import Feed
from s3h_ext.training.checkpoint import CheckpointError
from s3h_ext.training.evaluation import evaluate_method
from s3h_ext.training.files import write_text
from s3h_ext.training.loading import Run, load_run, split_images
from s3h_ext.training.metrics import Evaluation
from s3h_ext.training.precision import device_name
from s3h_ext.training.results import write_evaluation

SPLITS = ("test", "val", "train", "unused")
_MEASURES = ("top1", "many", "medium", "few", "macro_f1", "worst_class")


def evaluate_run(
    run: Run, split: str, *, root: str | None = None, batch_size: int | None = None
) -> Evaluation:
    """Return the metrics of a run's network on a split of its data set.

    Args:
        run: from :func:`~s3h_ext.training.loading.load_run`.
        split: ``"test"``, ``"val"``, ``"train"`` without augmentation, or ``"unused"``:
            the archive's training images that the run does not train on.
        root: folder of the data, where it is not the run's own.
        batch_size: of the evaluation, where it is not the run's own.

    Raises:
        ValueError: the run has no such split, or these are not its data.
        FileNotFoundError: the data are not there.
    """
    dataset = split_images(run, split, root)
    data = run.config.data
    batches = Feed(data.source, data.workers, data.unreadable).evaluation(
        dataset.test,
        dataset,
        batch_size=batch_size or run.config.eval_batch_size,
        device=run.device,
    )
    return evaluate_method(
        run.method,
        batches,
        dataset.class_counts,
        precision=run.precision,
        device=run.device,
    )


def _summary(run: Run, split: str, found: Evaluation) -> dict[str, Any]:
    error = found.calibration.error
    return {
        "run": run.name,
        "dataset": run.card.name,
        "split": split,
        "images": int(found.confusion[:, 2].sum()),
        "epochs_done": run.epochs_done,
        **{name: getattr(found, name) for name in _MEASURES},
        # Not a number where a confidence is none, and JSON knows no NaN.
        "calibration_error": error if math.isfinite(error) else None,
        "precision": run.precision,
        "device": device_name(run.device),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m s3h_ext.evaluate",
        description="Evaluate a run's newest checkpoint and write metrics.json, "
        "per_class.csv, confusion.csv and calibration.csv.",
    )
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument(
        "--split",
        choices=SPLITS,
        default="test",
        help="unused: all of the archive's training images that the run has not seen",
    )
    parser.add_argument("--data-root", help="where the data are, if they were moved")
    parser.add_argument("--batch-size", type=int, help="the run's own if not set")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    parser.add_argument(
        "--output", type=Path, help="folder; RUN/evaluation-SPLIT if not set"
    )
    options = parser.parse_args(arguments)
    folder = options.output or options.run / f"evaluation-{options.split}"
    try:
        run = load_run(options.run, device=options.device)
        found = evaluate_run(
            run, options.split, root=options.data_root, batch_size=options.batch_size
        )
        summary = _summary(run, options.split, found)
        folder.mkdir(parents=True, exist_ok=True)
        write_evaluation(
            folder,
            found,
            run.card.classes,
            np.array(run.card.train_images),
            images_column="evaluated_images",
        )
        write_text(folder / "metrics.json", json.dumps(summary, indent=2) + "\n")
    except (CheckpointError, ValueError, TypeError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, value in summary.items():
        shown = f"{value:.2f}" if isinstance(value, float) else value
        print(f"{name:18}{'-' if value is None else shown}")
    print(folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
