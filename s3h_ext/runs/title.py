"""Names a run by its preset and the options that differ from it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from s3h_ext import methods
from s3h_ext.presets import preset_names
from s3h_ext.runs.checkpoint import with_defaults
from s3h_ext.runs.options import preset_options

__all__ = ["option_changes", "run_title"]

#: Options that do not affect the result of a run, only where and how it is made.
_INCIDENTAL = {
    *("preset", "seed", "output", "report", "device", "precision"),
    *("data.root", "checkpoint_every", "eval_every", "eval_batch_size"),
    *("data.lists", "data.source", "data.workers"),
    *("graphs", "distributed.timeout"),
}


def option_changes(
    record: Mapping[str, Any], first_stage: str | None = None
) -> tuple[str, ...]:
    """Return the options of a run that differ from its preset.

    ``first_stage`` is the title of the run that it starts from, if known.
    """
    preset = record["preset"]
    ours, theirs = with_defaults(record), preset_options(preset)
    if first_stage is not None:
        ours["init_from"] = first_stage
    name = str(ours.get("method.class_path")).rpartition(".")[2]
    if getattr(getattr(methods, name, None), "needs_first_stage", False):
        # The presets of second stages start from cross-entropy. Older runs do not
        # record their first stage, and its folder differs between seeds.
        usual = first_stage == re.sub("/(crt|tau-norm)", "/ce", preset)
        ours["init_from"] = None if usual else first_stage or "unknown"
    return tuple(
        f"{name} {'null' if value is None else value}"
        for name, value in sorted(ours.items())
        if name not in _INCIDENTAL and (name not in theirs or value != theirs[name])
    )


def run_title(
    record: Mapping[str, Any],
    first_stage: str | None = None,
    *,
    beside: Mapping[str, Any] | None = None,
) -> str | None:
    """Return a run's name as the first stage of another; None without a preset.

    Args:
        record: options of the run.
        first_stage: title of the run that it started from itself.
        beside: options of the run that starts from it. Data and network options that
            both share are left out, as the other run's title has them.

    Example:
        >>> from s3h_ext.runs.options import parse_options
        >>> options = ["--preset", "cifar100-lt/ce", "--epochs", "100"]
        >>> run_title(parse_options(options)[0].dump())
        'cifar100-lt/ce (epochs 100)'
    """
    preset = record.get("preset")
    if preset not in preset_names():
        return None
    shared: tuple[str, ...] = ()
    if beside is not None and beside.get("preset") in preset_names():
        shared = option_changes(beside)
    changes = ", ".join(
        change
        for change in option_changes(record, first_stage)
        if not (change.startswith(("data.", "model.")) and change in shared)
    )
    return f"{preset} ({changes})" if changes else str(preset)
