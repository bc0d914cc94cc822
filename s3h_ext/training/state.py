"""The progress of a run, and the checks before resuming it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from s3h_ext.data import LongTailDataset
from s3h_ext.runs.card import DatasetCard, read_card
from s3h_ext.runs.checkpoint import CheckpointError
from s3h_ext.runs.folder import RunFolder
from s3h_ext.training.distributed import World

__all__ = ["RunState", "check_card", "check_together"]


@dataclass
class RunState:
    """Everything in a checkpoint except tensors and options.

    Attributes:
        epochs_done: number of complete epochs.
        unfinished_epoch: state of an interrupted epoch, from
            :meth:`~s3h_ext.training.meter.EpochMeter.state`.
        history: one row of results per epoch.
        best_top1: highest top-1 accuracy of an epoch.
        train_seconds: time spent in training steps.
        run_seconds: total time, over all parts of an interrupted run.
        images_trained: views that went through the networks of all processes.
        left_out: images that could not be read, and why.
        first_stage: title of the run whose network the training starts from.
    """

    epochs_done: int = 0
    unfinished_epoch: dict[str, Any] | None = None
    history: list[dict[str, float | int | None]] = field(default_factory=list)
    best_top1: float | None = None
    train_seconds: float = 0.0
    run_seconds: float = 0.0
    images_trained: int = 0
    left_out: dict[str, str] = field(default_factory=dict)
    first_stage: str | None = None

    def steps_done(self, per_epoch: int) -> int:
        """Return the number of steps done, including those of an interrupted epoch."""
        steps: int = self.unfinished_epoch["steps"] if self.unfinished_epoch else 0
        return per_epoch * self.epochs_done + steps


def check_together(
    world: World, state: Mapping[str, Any] | None, folder: RunFolder
) -> None:
    """Check that all processes resume from the same point.

    ``state`` is this process's checkpoint, if it found one.

    Raises:
        CheckpointError: they do not.
    """
    unfinished = state and state["unfinished_epoch"]
    places = world.gather(
        (state["epochs_done"] if state else 0, unfinished["steps"] if unfinished else 0)
    )
    if len(set(places)) > 1:
        found = "; ".join(f"epoch {done}, step {step}" for done, step in places)
        raise CheckpointError(
            f"output: expected a folder that all processes can read, got {found} "
            f"as the newest checkpoint in {folder.checkpoints}, by rank"
        )


def check_card(folder: RunFolder, dataset: LongTailDataset) -> None:
    """Check that the run resumes with the data it began with.

    Raises:
        CheckpointError: ``dataset`` differs from the data of the run in ``folder``.
    """
    old, new = read_card(folder), DatasetCard.of(dataset)
    if old is not None and (different := old.differences(new)):
        raise CheckpointError(
            f"data.root: expected the data of {folder.card}, got others: "
            f"{'; '.join(different)}"
        )
