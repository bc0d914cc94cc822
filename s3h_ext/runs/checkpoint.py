"""Checkpoints that are either whole or not there."""

from __future__ import annotations

import os
import shlex
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s3h_ext.files import open_new
from s3h_ext.runs.audit import audit_checkpoint, is_plain
from s3h_ext.runs.config import TrainConfig
from s3h_ext.runs.folder import RunFolder
from s3h_ext.text import describe_value

FORMAT = "s3h_ext-checkpoint-1"
KEEP = 2
_MORE = "_and_more"

# What may differ between the run that wrote a checkpoint and the run that goes on.
FREE_KEYS = frozenset(
    {
        "output",
        "data.root",
        "data.lists",
        # On the CPU they give the same pixels.
        "data.source",
        "data.workers",
        "data.unreadable",
        "checkpoint_every",
        "eval_every",
        "eval_batch_size",
        "graphs",
        "preset",
        "report",
        # As the number of processes is, which they come with.
        "distributed.gather",
        "distributed.sync_batch_norm",
        "distributed.timeout",
    }
)


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used; the message says which one and why."""


def flatten(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested options as one level of dotted names.

    Example:
        >>> flatten({"optim": {"lr": 0.1}, "seed": 0})
        {'optim.lr': 0.1, 'seed': 0}
    """
    flat: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Return what keeps a run with options ``current`` from going on from ``saved``.

    An option that is younger than ``saved`` had its default then.
    """
    old = with_defaults(saved)
    new = with_defaults(current)
    return [
        f"{name} was {old.get(name)!r}, is {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if name not in FREE_KEYS and old.get(name) != new.get(name)
    ]


def with_defaults(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return flat options; what is left out outside the method has its default."""
    return {**_defaults(), **flatten(record)}


@cache
def _defaults() -> dict[str, Any]:
    """The defaults of the options outside the method."""
    config = TrainConfig()
    plain = {
        name: asdict(value)
        if is_dataclass(value) and not isinstance(value, type)
        else value
        for name, value in vars(config).items()
        if name != "method"
    }
    return flatten(plain)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def checkpoint_paths(run: RunFolder) -> list[Path]:
    """Return the checkpoints of a run, the newest first.

    ``epoch_00002.pt`` is the state after epoch 2; ``epoch_00002_and_more.pt`` is a
    later one, before epoch 3 has its results.
    """
    return sorted(run.checkpoints.glob("epoch_*.pt"), reverse=True)


def save_checkpoint(run: RunFolder, epochs_done: int, state: Mapping[str, Any]) -> Path:
    """Write ``state`` as ``checkpoints/epoch_NNNNN.pt`` and keep the last two.

    A state behind which there is no whole epoch (``unfinished_epoch``) has a name of
    its own, and is kept beside the two until the epoch after them is whole.

    The file gets its name only when all of it is on the disk, so a reader never sees a
    part of one, whenever the process or the machine stops.

    Raises:
        OSError: the disk is full or the folder not writable; what was there stays.
    """
    folder = run.checkpoints
    folder.mkdir(parents=True, exist_ok=True)
    more = _MORE if state.get("unfinished_epoch") else ""
    path = folder / f"epoch_{epochs_done:05d}{more}.pt"
    partial = path.with_suffix(".partial")
    try:
        with open_new(partial) as file:
            torch.save({"format": FORMAT, "epochs_done": epochs_done, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        cause = _os_error(error) if isinstance(error, Exception) else None
        if cause is None:
            raise
        if cause.filename is None:  # a write that fails does not say where
            cause.filename = str(path)
        raise cause from None
    _sync_folder(folder)
    begun = set(folder.glob(f"epoch_*{_MORE}.pt"))
    whole = [old for old in checkpoint_paths(run) if old not in begun]
    # Older checkpoints, and what a killed process left half-written.
    for old in [*whole[KEEP:], *begun - {path}, *folder.glob("epoch_*.partial")]:
        old.unlink()
    return path


def drop_unfinished(run: RunFolder) -> None:
    """Delete the state behind which there is no whole epoch, if there is one."""
    for path in run.checkpoints.glob(f"epoch_*{_MORE}.pt"):
        path.unlink()


def _os_error(error: BaseException | None) -> OSError | None:
    """Return the error of the system behind another one: PyTorch hides it."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read one checkpoint onto the CPU, without the power to execute code.

    Raises:
        CheckpointError: the file is damaged, or not a checkpoint of this package.
    """
    try:
        audit_checkpoint(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail anywhere in the reader
        raise CheckpointError(
            f"{path}: damaged or not a checkpoint ({type(error).__name__}: {error})"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else state
        raise CheckpointError(
            f"{path}: expected format {FORMAT!r}, got {describe_value(found)}"
        )
    epochs_done = state.get("epochs_done")
    if type(epochs_done) is not int or epochs_done < 0:
        raise CheckpointError(
            f"{path}: epochs_done: expected a whole number, got "
            f"{describe_value(epochs_done)}"
        )
    config = state.get("config")
    if not isinstance(config, dict) or not is_plain(config):
        raise CheckpointError(f"{path}: config: expected nested options")
    if not isinstance(state.get("method"), dict):
        raise CheckpointError(f"{path}: method: expected named tensors")
    return state


def sound_checkpoints(run: RunFolder) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the checkpoints that can be read, newest first; warn about the others."""
    for path in checkpoint_paths(run):
        try:
            yield path, load_checkpoint(path)
        except CheckpointError as error:
            warnings.warn(f"skipped {error}", stacklevel=2)


def latest_checkpoint(
    run: RunFolder, record: Mapping[str, Any], precision: str | None = None
) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest sound checkpoint of a run; ``None`` without any.

    Args:
        run: whose checkpoints they are.
        record: options of the run that takes it.
        precision: that it computes in, ``"fp32"`` or ``"bf16"``, to train on; not set,
            precision does not matter.

    Raises:
        CheckpointError: there are checkpoints and all are damaged, or the newest sound
            one belongs to a run with other options.
    """
    for path, state in sound_checkpoints(run):
        default = {"precision": _defaults()["precision"]}
        saved, current = {**default, **state["config"]}, {**default, **record}
        if precision is None:
            current["precision"] = saved["precision"]
        elif "precision" in state:  # "auto" is not the same everywhere
            saved["precision"], current["precision"] = state["precision"], precision
        wrong = differences(saved, current)
        if wrong:
            longer = any(name.startswith("epochs was") for name in wrong)
            raise CheckpointError(
                f"{path}: written by a run with other options: {'; '.join(wrong)}. "
                "Give the same options, or another --output"
                + longer
                * f". To train longer on its network, begin a new run from it "
                f"when it is finished: --init_from {shlex.quote(str(run))}"
            )
        return path, state
    if paths := checkpoint_paths(run):
        raise CheckpointError(
            f"{run.checkpoints}: no sound checkpoint among "
            f"{', '.join(path.name for path in paths)}"
        )
    return None


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """Return the states of torch's generators that a run draws from."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Set what :func:`rng_state` returned."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
