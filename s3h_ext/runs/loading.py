"""Builds networks from options or from a run's folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from s3h_ext.data import LongTailDataset, load_dataset, unused_images
from s3h_ext.data.load import PHOTOGRAPHS
from s3h_ext.data.sets.folders import TEST_FRACTION
from s3h_ext.data.sets.readable import without_unreadable
from s3h_ext.methods import Method
from s3h_ext.models import ImageClassifier, build_model
from s3h_ext.models.average import averaged_state
from s3h_ext.runs.card import DatasetCard, read_card
from s3h_ext.runs.checkpoint import (
    CheckpointError,
    latest_checkpoint,
    sound_checkpoints,
)
from s3h_ext.runs.config import DataConfig, TrainConfig
from s3h_ext.runs.folder import RunFolder
from s3h_ext.runs.options import parse_options
from s3h_ext.runs.precision import resolve_device, resolve_precision
from s3h_ext.runs.title import run_title
from s3h_ext.runs.weights import load_weights

__all__ = [
    "Run",
    "build_network",
    "load_run",
    "open_dataset",
    "split_images",
    "take_weights",
]


def open_dataset(data: DataConfig) -> LongTailDataset:
    """Load the data set of a configuration; errors are those of `load_dataset`."""
    return load_dataset(
        data.name,
        lists=data.lists,
        test_fraction=data.test_fraction,
        label_pattern=data.label_pattern,
        **_cut(data),
    )


def _cut(data: DataConfig) -> dict[str, Any]:
    names = ("root", "imbalance", "size", "profile", "val_fraction")
    return {name: getattr(data, name) for name in names} | {"seed": data.split_seed}


def build_network(config: TrainConfig, dataset: LongTailDataset) -> ImageClassifier:
    """Build the configuration's network for a data set, with fresh weights."""
    return build_model(
        config.model.backbone,
        dataset.num_classes,
        classifier=config.model.classifier,
        scale=config.model.scale,
        in_channels=dataset.image_shape[-1],
    )


def _finished_checkpoint(run: RunFolder) -> tuple[Path, Mapping[str, Any]]:
    """Return the newest checkpoint of a finished run."""
    found = next(sound_checkpoints(run), None)
    if found is None:
        raise CheckpointError(f"init_from: {run} has no valid checkpoint")
    path, state = found
    done, epochs = state["epochs_done"], state["config"].get("epochs", 0)
    # A method that trains nothing is finished without an epoch.
    if state.get("unfinished_epoch") or 0 < done < epochs:
        raise CheckpointError(
            f"init_from: expected a finished run, got {run}, which has done {done} of "
            f"{epochs} epochs"
        )
    return path, state


def _load_network(model: ImageClassifier, state: Mapping[str, Any]) -> None:
    """Load the network of a checkpoint into ``model``, without the method's rest.

    Raises:
        RuntimeError: it is another network.
    """
    prefix = "model."
    weights = {
        name.removeprefix(prefix): value
        for name, value in averaged_state(state).items()
        if name.startswith(prefix)
    }
    model.load_state_dict(weights)


def _check_first_run(
    run: RunFolder, saved: Mapping[str, Any], dataset: LongTailDataset, data: DataConfig
) -> None:
    """Reject a first run on other classes, or on images that are held out here.

    ``saved`` are that run's data options; ``dataset`` and ``data`` are this run's.
    """
    card = read_card(run)
    if card is None:  # an older run
        return
    if card.classes != tuple(dataset.class_names):
        raise CheckpointError(
            f"init_from: expected a run on the classes of {dataset.name}, got {run}, "
            f"trained on other classes ({card.name})"
        )
    # For a folder without test images; with a test split, both are None.
    shares = saved.get("test_fraction"), data.test_fraction
    if shares[0] != shares[1] and {None, TEST_FRACTION} != set(shares):
        raise CheckpointError(
            f"init_from: {run} was trained on test images of this run; expected the "
            f"same data.test_fraction in both, got {shares[0]} and {shares[1]}"
        )
    if dataset.val is None:
        return
    same = card.train_images == tuple(dataset.class_counts.tolist())
    if data.val_fraction:
        same = same and saved.get("split_seed", 0) == data.split_seed
    if not same:
        raise CheckpointError(
            f"init_from: {run} was trained on images that this run holds out; expected "
            "the same data.val_fraction and data.split_seed in both"
        )


def take_weights(
    model: ImageClassifier,
    config: TrainConfig,
    dataset: LongTailDataset,
) -> str | None:
    """Load the initial weights that the options name, of a backbone or a first stage.

    Returns:
        Title of the first stage, if there is one: its preset and changed options
        (:func:`~s3h_ext.runs.title.run_title`), or the name of its folder.

    Raises:
        CheckpointError: the first stage is missing, or does not fit this run.
        ValueError: the method needs one and none is named, or a file does not fit.
    """
    if config.model.weights is not None:
        load_weights(model.backbone, Path(config.model.weights))
    if config.init_from is not None:
        first = RunFolder(Path(config.init_from))
        path, state = _finished_checkpoint(first)
        _check_first_run(first, state["config"].get("data", {}), dataset, config.data)
        try:
            _load_network(model, state)
        except RuntimeError as error:
            raise CheckpointError(f"init_from: {path} does not fit: {error}") from error
        title = run_title(
            state["config"], state.get("first_stage"), beside=config.dump()
        )
        return title or first.path.resolve().name
    if config.method.needs_first_stage:
        raise ValueError(
            f"init_from: {type(config.method).__name__} is a second stage; expected "
            "the folder of a finished run, got None"
        )
    return None


@dataclass(frozen=True, eq=False)
class Run:
    """A run loaded from its folder.

    Attributes:
        folder: the run's folder.
        config: its options.
        card: description of its data set.
        method: the method in evaluation mode, with the weights of the newest
            checkpoint, averaged if the run has averages (``optim.ema_decay``). A
            checkpoint of weights alone has those of the network; the rest is fresh.
        epochs_done: complete epochs that produced those weights.
        steps_done: further steps, if the run was stopped inside an epoch.
        device: device of the method.
        precision: ``"fp32"`` or ``"bf16"``.
    """

    folder: RunFolder
    config: TrainConfig
    card: DatasetCard
    method: Method
    epochs_done: int
    steps_done: int
    device: torch.device
    precision: str

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return self.folder.path.resolve().name


def load_run(path: Path, *, device: str = "auto", weights: str = "average") -> Run:
    """Load a run's method and weights from its folder.

    The images are not needed, unless the run is older than ``dataset.json``. No code
    named by the folder is run: import your own methods first.

    Args:
        path: folder of the run, as written by ``python -m s3h_ext.train``.
        device: as in the training options; the run's own may not exist here.
        weights: ``"average"``: the moving average if the run has one
            (``--optim.ema_decay``), otherwise the weights of the last step; ``"last"``:
            always those of the last step.

    Raises:
        FileNotFoundError: this is not a run, or it has no checkpoint.
        CheckpointError: the checkpoints are damaged or do not fit the options.
        ValueError: a file of the run has invalid contents.

    Example:
        >>> from pathlib import Path
        >>> run = load_run(Path("runs/digits-lt-ce-seed0"))  # doctest: +SKIP
        >>> run.method.predict(torch.zeros(1, 3, 32, 32)).shape  # doctest: +SKIP
        torch.Size([1, 10])
    """
    folder = RunFolder(path)
    if not folder.config.is_file():
        raise FileNotFoundError(
            f"run: expected the folder of a run, got {folder}, which has no "
            f"{folder.config.name}"
        )
    config, _ = parse_options(["--config", str(folder.config)])
    found = latest_checkpoint(folder, config.dump())
    if found is None:
        raise FileNotFoundError(f"run: {folder} has no checkpoint")
    checkpoint, state = found
    epochs_done, steps_done = state["epochs_done"], 0
    if unfinished := state.get("unfinished_epoch"):
        whole = unfinished["steps"] == unfinished.get("of")  # trained but not evaluated
        epochs_done += whole
        steps_done = 0 if whole else unfinished["steps"]
    card = read_card(folder) or DatasetCard.of(open_dataset(config.data))
    dataset = card.stand_in()
    method = config.method
    method.build(build_network(config, dataset), dataset)
    try:
        if "optimizer" not in state:  # weights alone, without what only training uses
            _load_network(method.model, state)
        else:
            method.load_state_dict(
                state["method"] if weights == "last" else averaged_state(state)
            )
    except RuntimeError as error:
        raise CheckpointError(
            f"{checkpoint}: does not fit this run: {error}"
        ) from error
    place = resolve_device(device)
    # torch's stubs lack this overload.
    method.to(place, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Run(
        folder=folder,
        config=config,
        card=card,
        method=method.eval(),
        epochs_done=epochs_done,
        steps_done=steps_done,
        device=place,
        precision=resolve_precision(config.precision, place),
    )


def split_images(
    run: Run,
    split: str,
    root: str | None = None,
    lists: str | None = None,
    *,
    argument: str = "split",
) -> LongTailDataset:
    """Return the run's data set, with the given split as its test images.

    Args:
        run: run loaded by :func:`load_run`.
        split: ``"train"``, ``"val"``, ``"test"``, or ``"unused"``
            (:func:`~s3h_ext.data.unused_images`).
        root: folder of the data, if it differs from the run's.
        lists: folder of the list files, if it differs.
        argument: name of ``split`` in error messages.

    Raises:
        ValueError: the run has no such split, or the data differ from the run's.
        FileNotFoundError: the data do not exist.
    """
    data = run.config.data
    data = replace(data, root=root or data.root, lists=lists or data.lists)
    if split == "unused" and data.name in PHOTOGRAPHS:
        raise ValueError(
            f"{argument}: {data.name} does not come from an archive, so it has no "
            "unused images"
        )
    dataset = without_unreadable(open_dataset(data), run.card.unreadable)
    if different := run.card.differences(DatasetCard.of(dataset)):
        raise ValueError(
            f"data.root: {dataset.name} differs from the data of {run.folder}: "
            f"{'; '.join(different)}"
        )
    if split == "unused":
        return replace(dataset, test=unused_images(data.name, **_cut(data)))
    images = getattr(dataset, split)
    if images is None:
        raise ValueError(
            f"{argument}: {run.folder} holds out no validation images "
            "(data.val_fraction 0); archives also have unused images"
        )
    return replace(dataset, test=images)
