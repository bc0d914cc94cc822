"""What a run that is over leaves in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from s3h_ext.report.analysis import try_analysis
from s3h_ext.report.evaluation_files import write_evaluation
from s3h_ext.report.metrics import Evaluation
from s3h_ext.report.page import try_report
from s3h_ext.training.runlog import results_table

if TYPE_CHECKING:
    from s3h_ext.training.trainer import Trainer

__all__ = ["leave_results"]


def leave_results(
    trainer: Trainer, summary: Mapping[str, Any], test: Evaluation
) -> None:
    """Write the summary, the evaluation behind it and the report; print the result.

    Args:
        trainer: after its last epoch.
        summary: of its run.
        test: its evaluation on the test split.
    """
    folder, dataset = trainer.folder, trainer.dataset
    # First of all: whatever fails after this, the numbers are safe.
    folder.write_summary(summary)
    write_evaluation(folder, test, dataset.class_names, dataset.class_counts)
    print(results_table(summary))
    if trainer.config.report:
        try_analysis(
            folder,
            trainer.method,
            trainer.train_batches(),
            dataset,
            precision=trainer.precision,
            device=trainer.device,
        )
        try_report(folder)
