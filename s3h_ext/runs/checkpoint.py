"""Checkpoints: the state of a run in a file that is either complete or absent.

A checkpoint is a safetensors file: tensors, and everything else as JSON in the header.
Neither can execute code or take more memory than the size of the file.
"""

from __future__ import annotations

import json
import os
import shlex
import warnings
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from s3h_ext.command_line import CommandError
from s3h_ext.files import write_bytes
from s3h_ext.runs.config import TrainConfig, flatten
from s3h_ext.runs.folder import RunFolder
from s3h_ext.text import describe_value

FORMAT = "s3h_ext-checkpoint-2"
KEEP = 2
_SUFFIX = ".safetensors"
_MORE = "_and_more"

# Options that may change when a run is resumed.
FREE_KEYS = frozenset(
    {
        "output",
        "data.root",
        "data.lists",
        # On the CPU, all sources give the same pixels.
        "data.source",
        "data.workers",
        "data.unreadable",
        "checkpoint_every",
        "eval_every",
        "eval_batch_size",
        "graphs",
        "preset",
        "report",
        # Free like the number of processes, which it belongs to.
        "distributed.gather",
        "distributed.sync_batch_norm",
        "distributed.timeout",
    }
)


class CheckpointError(CommandError):
    """A checkpoint cannot be used; the message says which one and why."""


def differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Return the options that keep a run from resuming from ``saved``.

    An option added after ``saved`` was written counts as its default.
    """
    old, new = with_defaults(saved), with_defaults(current)
    return [
        f"{name} was {old.get(name)!r}, is {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if name not in FREE_KEYS and old.get(name) != new.get(name)
    ]


def with_defaults(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return flat options, with defaults for those missing outside the method."""
    defaults = TrainConfig().dump()
    del defaults["method"]
    return {**flatten(defaults), **flatten(record)}


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def checkpoint_paths(run: RunFolder) -> list[Path]:
    """Return the checkpoints of a run, newest first.

    ``epoch_00002.safetensors`` is the state after epoch 2;
    ``epoch_00002_and_more.safetensors`` is a later one, before epoch 3 is complete.
    """
    return sorted(run.checkpoints.glob(f"epoch_*{_SUFFIX}"), reverse=True)


def save_checkpoint(run: RunFolder, epochs_done: int, state: Mapping[str, Any]) -> Path:
    """Write ``state`` as ``checkpoints/epoch_NNNNN`` and keep the last two.

    A state inside an epoch (``unfinished_epoch``) has another name, and is kept beside
    the two until the next epoch is saved. A file gets its name only when it is
    completely on disk, so a reader never sees a partial one, even if the process or the
    machine stops. ``state`` holds tensors, numbers, text and None in mappings and
    lists.

    Raises:
        OSError: the disk is full or the folder not writable; existing files remain.
    """
    folder = run.checkpoints
    folder.mkdir(parents=True, exist_ok=True)
    more = _MORE if state.get("unfinished_epoch") else ""
    path = folder / f"epoch_{epochs_done:05d}{more}{_SUFFIX}"
    write_bytes(path, encode_checkpoint({"epochs_done": epochs_done, **state}))
    _sync_folder(folder)
    begun = set(folder.glob(f"epoch_*{_MORE}{_SUFFIX}"))
    whole = [old for old in checkpoint_paths(run) if old not in begun]
    # Older checkpoints, and files left half-written by a killed process.
    for old in [*whole[KEEP:], *begun - {path}, *folder.glob("epoch_*.partial")]:
        old.unlink()
    return path


def drop_unfinished(run: RunFolder) -> None:
    """Delete the checkpoint inside an epoch, if there is one."""
    for path in run.checkpoints.glob(f"epoch_*{_MORE}{_SUFFIX}"):
        path.unlink()


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read one checkpoint into CPU memory.

    Raises:
        CheckpointError: the file is damaged, or not a checkpoint of this package.
    """
    try:
        content = path.read_bytes()
        tensors = safetensors.torch.load(content)  # also checks the header
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length]).get("__metadata__", {})
        if (found := header.get("format")) == FORMAT:
            if int(header["checksum"]) != _checksum(header["state"], tensors):
                raise ValueError("checksum mismatch")
            state = {
                # Options are plain values.
                name: _unpack(part, {} if name == "config" else tensors)
                for name, part in json.loads(header["state"]).items()
            }
    except Exception as error:  # a damaged file can fail anywhere in the reader
        raise CheckpointError(
            f"{path}: damaged or not a checkpoint ({type(error).__name__}: {error})"
        ) from error
    if found != FORMAT:
        raise CheckpointError(
            f"{path}: expected format {FORMAT!r}, got {describe_value(found)}"
        )
    epochs_done = state.get("epochs_done")
    if type(epochs_done) is not int or epochs_done < 0:
        raise CheckpointError(
            f"{path}: epochs_done: expected a whole number, got "
            f"{describe_value(epochs_done)}"
        )
    for name, expected in (("config", "nested options"), ("method", "named tensors")):
        if not isinstance(state.get(name), dict):
            raise CheckpointError(f"{path}: {name}: expected {expected}")
    return state


def encode_checkpoint(state: Mapping[str, Any]) -> bytes:
    """Return the contents of a checkpoint file."""
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_pack(state, "", tensors, {}))
    checksum = str(_checksum(text, tensors))
    header = {"format": FORMAT, "state": text, "checksum": checksum}
    return safetensors.torch.save(tensors, header)


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> int:
    checksum = zlib.crc32(text.encode())
    for name, tensor in sorted(tensors.items()):
        head = f"{name} {tensor.dtype} {tuple(tensor.shape)}"
        checksum = zlib.crc32(head.encode(), checksum)
        plain = tensor.reshape(-1).view(torch.uint8).numpy()
        checksum = zlib.crc32(plain.data, checksum)
    return checksum


def _pack(
    value: Any, name: str, tensors: dict[str, Tensor], names: dict[Any, str]
) -> Any:
    """Convert a part of a state to JSON values, with references instead of tensors.

    The tensors are added to ``tensors``, on the CPU and contiguous, under ``name``,
    such as ``"method.model.fc.weight"``; ``names`` identifies one that occurs more than
    once.
    """
    if isinstance(value, Tensor):
        key = (value.data_ptr(), value.dtype, value.shape, value.stride())
        # Momenta of channels-last weights are channels-last too; a fused optimiser
        # relies on it.
        order = sorted(range(value.ndim), key=lambda axis: -value.stride()[axis])
        if names.setdefault(key, name) == name:
            tensors[name] = (
                value.detach()
                .permute(order)
                .to("cpu", copy=True, memory_format=torch.contiguous_format)
            )
        return {"$tensor": names[key], "$order": order}
    if isinstance(value, Mapping):
        pairs = [
            (key, _pack(part, f"{name}.{key}" if name else str(key), tensors, names))
            for key, part in value.items()
        ]
        return (
            dict(pairs) if all(isinstance(k, str) for k in value) else {"$items": pairs}
        )
    if isinstance(value, (list, tuple)):
        return [
            _pack(part, f"{name}.{i}", tensors, names) for i, part in enumerate(value)
        ]
    return value


def _unpack(value: Any, tensors: Mapping[str, Tensor], depth: int = 0) -> Any:
    """Invert :func:`_pack`; tuples come back as lists."""
    if depth > 20:
        raise ValueError("nested too deep")
    if isinstance(value, list):
        return [_unpack(part, tensors, depth + 1) for part in value]
    if not isinstance(value, dict):
        return value
    if "$tensor" in value:
        tensor, order = tensors[value["$tensor"]], value["$order"]
        return tensor.permute([order.index(axis) for axis in range(tensor.ndim)])
    pairs = value["$items"] if "$items" in value else value.items()
    return {key: _unpack(part, tensors, depth + 1) for key, part in pairs}


def sound_checkpoints(run: RunFolder) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the readable checkpoints, newest first; warn about the others."""
    for path in checkpoint_paths(run):
        try:
            yield path, load_checkpoint(path)
        except CheckpointError as error:
            warnings.warn(f"skipped {error}", stacklevel=2)


def latest_checkpoint(
    run: RunFolder, record: Mapping[str, Any], precision: str | None = None
) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest readable checkpoint of a run; ``None`` if there is none.

    ``record`` holds the options of the run that resumes, in ``precision``; if that is
    not set, precision does not matter.

    Raises:
        CheckpointError: there are checkpoints and all are damaged, or the newest
            readable one belongs to a run with other options.
    """
    for path, state in sound_checkpoints(run):
        default = {"precision": TrainConfig.precision}
        saved, current = {**default, **state["config"]}, {**default, **record}
        if precision is None:
            current["precision"] = saved["precision"]
        elif "precision" in state:  # "auto" depends on the machine
            saved["precision"], current["precision"] = state["precision"], precision
        wrong = differences(saved, current)
        if wrong:
            longer = any(name.startswith("epochs was") for name in wrong)
            raise CheckpointError(
                f"{path}: written by a run with different options: {'; '.join(wrong)}. "
                "Give the same options or another --output"
                + longer
                * f". To train its network for longer, finish it and start a new run "
                f"from it: --init_from {shlex.quote(str(run))}"
            )
        if precision is not None and "optimizer" not in state:
            raise CheckpointError(
                f"{path}: expected the state of a training, got weights alone. To "
                "train them further, start a new run: --init_from "
                + shlex.quote(str(run))
            )
        return path, state
    if paths := checkpoint_paths(run):
        raise CheckpointError(
            f"{run.checkpoints}: no valid checkpoint among "
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
    """Restore what :func:`rng_state` returned."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
