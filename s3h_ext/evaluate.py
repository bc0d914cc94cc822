"""``python -m s3h_ext.evaluate RUN``: measure a run's network on a split."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from s3h_ext.command_line import FAILURES, check_classifier, evaluate_parser

if __name__ == "__main__":
    evaluate_parser().parse_args()  # before PyTorch is imported

import numpy as np

from s3h_ext.data import EvaluationBatches, Feed
from s3h_ext.data.load import PHOTOGRAPHS
from s3h_ext.files import write_text
from s3h_ext.ops._library import CPU
from s3h_ext.report.evaluation_files import write_evaluation
from s3h_ext.report.metrics import Evaluation
from s3h_ext.runs.folder import RunFolder
from s3h_ext.runs.loading import Run, load_run, split_images
from s3h_ext.runs.precision import device_name
from s3h_ext.text import printable
from s3h_ext.training.evaluation import Predict, evaluate_method
from s3h_ext.training.posthoc import make_classifier

_MEASURES = (
    *("top1", "balanced_accuracy", "many", "medium", "few", "macro_f1"),
    "worst_class",
)
_WHERE = ("root", "lists", "batch_size")


def evaluate_run(
    run: Run,
    split: str,
    *,
    root: str | None = None,
    lists: str | None = None,
    batch_size: int | None = None,
    feed: Feed | None = None,
    predict: Predict | None = None,
    auc: bool = False,
) -> Evaluation:
    """Return the metrics of a run's network on a split of its data set.

    Args:
        run: run loaded by :func:`~s3h_ext.runs.loading.load_run`.
        split: ``"test"``, ``"val"``, ``"train"`` without augmentation, or ``"unused"``:
            the archive's training images that the run does not train on.
        root: folder of the data, if it differs from the run's.
        lists: folder of the list files, if it differs.
        batch_size: images per batch, if it differs from the run's.
        feed: reads the images and records unreadable ones; by default as in the run.
        predict: replaces the run's own classifier, see
            :func:`~s3h_ext.training.posthoc.make_classifier`.
        auc: compute the area under the ROC curve too.

    Raises:
        ValueError: the run has no such split, or the data differ from the run's.
        FileNotFoundError: the data do not exist.
    """
    batches = _batches(run, split, root, lists, batch_size, feed or _feed(run))
    return evaluate_method(
        run.method,
        batches,
        np.array(run.card.train_images),
        precision=run.precision,
        device=run.device,
        predict=predict,
        auc=auc,
    )


def _batches(
    run: Run,
    split: str,
    root: str | None,
    lists: str | None,
    batch_size: int | None,
    feed: Feed,
    argument: str = "split",
) -> EvaluationBatches:
    dataset = split_images(run, split, root, lists, argument=argument)
    return feed.evaluation(
        dataset.test,
        dataset,
        batch_size=run.config.eval_batch_size if batch_size is None else batch_size,
        device=run.device,
    )


def _feed(run: Run) -> Feed:
    data = run.config.data
    return Feed(data.source, data.workers, data.unreadable)


def _summary(
    run: Run, split: str, found: Evaluation, left_out: Mapping[str, str]
) -> dict[str, Any]:
    error = found.calibration.error
    files = run.config.data.name in PHOTOGRAPHS
    return {
        "run": run.name,
        "dataset": run.card.name,
        "split": split,
        "images": int(found.confusion[:, 2].sum()),
        **({"unreadable_images": len(left_out)} if files else {}),
        "epochs_done": run.epochs_done,
        **({"steps_done": run.steps_done} if run.steps_done else {}),
        **{name: getattr(found, name) for name in _MEASURES},
        **({} if found.auc is None else {"auc": found.auc}),
        # NaN if a confidence is NaN, and JSON has no NaN.
        "calibration_error": error if math.isfinite(error) else None,
        "precision": run.precision,
        "device": device_name(run.device),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = evaluate_parser()
    options = parser.parse_args(arguments)
    check_classifier(parser, options)
    folder = options.output or RunFolder(options.run).evaluation(
        options.split, options.classifier, options.weights
    )
    if folder.exists() and not folder.is_dir():
        parser.error(f"--output: expected a folder, got the file {printable(folder)}")
    if folder.resolve() == options.run.resolve():
        parser.error(
            "--output: expected a folder other than the run's own, which holds the "
            f"results of its training; got {printable(folder)}"
        )
    if options.output is None and folder.is_symlink():
        parser.error(
            f"--output: {printable(folder)} is a link, and links are not followed; "
            "name the folder itself"
        )
    try:
        CPU.require()
        run = load_run(options.run, device=options.device, weights=options.weights)
        feed = _feed(run)
        where = {name: getattr(options, name) for name in _WHERE}
        others = _feed(run)  # its unreadable images are not the split's
        classifier = make_classifier(
            run,
            options.classifier,
            lambda split: _batches(
                run, split, **where, feed=others, argument="choose_on"
            ),
            tau=options.tau,
            choose_on=options.choose_on or "val",
            neighbours=20 if options.neighbours is None else options.neighbours,
        )
        found = evaluate_run(
            run,
            options.split,
            **where,
            feed=feed,
            predict=classifier.predict,
            auc=options.auc,
        )
        left_out = dict(feed.unreadable.errors)
        if options.split == "train":
            left_out |= dict.fromkeys(run.card.unreadable, "left out of training")
        summary = _summary(run, options.split, found, left_out) | classifier.facts
        if run.config.optim.ema_decay is not None:
            summary["weights"] = options.weights
        folder.mkdir(parents=True, exist_ok=True)
        write_evaluation(
            RunFolder(folder),
            found,
            run.card.classes,
            np.array(run.card.train_images),
            images_column="evaluated_images",
        )
        write_text(folder / "metrics.json", json.dumps(summary, indent=2) + "\n")
    except FAILURES as error:
        return parser.failed(error)
    for path, reason in sorted(left_out.items()):
        print(f"left out: {printable(path)}: {reason}", file=sys.stderr)
    for name, value in summary.items():
        if isinstance(value, dict):
            continue  # written to the file only
        shown = f"{value:.2f}" if isinstance(value, float) else printable(value)
        print(f"{name:18}{'-' if value is None else shown}")
    print(printable(folder))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
