"""What has to hold before a run begins, or goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from s3h_ext.data import LongTailDataset
from s3h_ext.runs.card import DatasetCard, read_card
from s3h_ext.runs.checkpoint import CheckpointError
from s3h_ext.runs.folder import RunFolder
from s3h_ext.training.distributed import World

__all__ = ["check_card", "check_together"]


def check_card(folder: RunFolder, dataset: LongTailDataset) -> None:
    """Refuse to go on with other data than the run began with.

    Raises:
        CheckpointError: ``dataset`` is not what the run in ``folder`` was begun on.
    """
    old, new = read_card(folder), DatasetCard.of(dataset)
    if old is not None and (different := old.differences(new)):
        raise CheckpointError(
            f"data.root: expected the data of {folder.card}, got others: "
            f"{'; '.join(different)}"
        )


def check_together(
    world: World, state: Mapping[str, Any] | None, folder: RunFolder
) -> None:
    """Refuse processes that go on from different places.

    Args:
        world: the processes of the run.
        state: this process's checkpoint, if it found one.
        folder: of the run.

    Raises:
        CheckpointError: some process is elsewhere.
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
