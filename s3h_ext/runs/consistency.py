"""Options that contradict each other, or have no effect in combination.

Single options are checked where they are declared. This module checks combinations: it
rejects options that a run cannot follow, and reports options without effect, or with
another effect than they seem to have.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

from s3h_ext.data.load import PHOTOGRAPHS
from s3h_ext.data.sets.suggest import fitting
from s3h_ext.methods import (
    S3H,
    Baseline,
    ClasswiseSplitting,
    Hybrid,
    Method,
    TauNormalization,
)
from s3h_ext.methods.base import ClassifierMethod
from s3h_ext.runs.config import TrainConfig, flatten
from s3h_ext.runs.options import preset_options
from s3h_ext.runs.presets import short_warmup

__all__ = ["check_length", "check_options"]


def check_options(config: TrainConfig, processes: int = 1) -> list[str]:
    """Reject options that contradict each other; return warnings about the others.

    An option without effect is named only if it differs from the preset or, without a
    preset, from the default.

    Raises:
        ValueError: the run could not do what its options say.
    """
    trains = not isinstance(config.method, TauNormalization)
    if config.model.weights is not None and config.init_from is not None:
        raise ValueError(
            "model.weights: expected no value with init_from, whose network replaces "
            f"these weights; got {config.model.weights}"
        )
    if trains and config.optim.warmup_epochs >= config.epochs:
        raise ValueError(
            "optim.warmup_epochs: expected fewer than the epochs of the run, "
            f"{config.epochs}, or the rate never reaches optim.lr; got "
            f"{config.optim.warmup_epochs:g}"
        )
    notes = [*_idle(config, processes), *(_late(config) if trains else ())]
    if config.preset is not None and "optim.warmup_epochs" in _given(config):
        usual = preset_options(config.preset)
        whole, length = usual["optim.warmup_epochs"], usual["epochs"]
        warmup = config.optim.warmup_epochs
        if warmup == short_warmup(whole, length, config.epochs):
            notes.append(
                f"optim.warmup_epochs: the preset's {whole:g} of {length} epochs would "
                f"not end within {config.epochs}; the rate rises over {warmup:g}"
            )
    return notes


def check_length(config: TrainConfig, images: int) -> list[str]:
    """Return a warning, with better options, if a folder is small for its batches."""
    batch, epochs = fitting(images)
    if config.data.name != "folder" or config.batch_size <= batch:
        return []
    if isinstance(config.method, TauNormalization):
        return []
    each = math.ceil(images / config.batch_size)
    rate = config.optim.lr * batch / config.batch_size
    return [
        f"batch_size: an epoch of {images} images has only {each} "
        f"step{'s' if each > 1 else ''}, the whole run {each * config.epochs}. These "
        f"options suit the folder better: --batch_size {batch} --optim.lr {rate:g} "
        f"--epochs {epochs}"
    ]


def _late(config: TrainConfig) -> Iterator[str]:
    """Yield the options that take effect only after the end of the run."""
    epochs = config.epochs
    run = f"a run of {epochs} epoch{'s' if epochs > 1 else ''}"
    for name in ("eval_every", "checkpoint_every"):
        if (every := getattr(config, name)) > epochs:
            kind = "evaluated" if name == "eval_every" else "saved"
            yield f"{name}: in {run} only the last epoch is {kind}, got {every}"
    if config.optim.schedule == "step":
        for milestone in config.optim.milestones:
            if math.ceil(milestone * epochs - 1e-9) >= epochs:
                yield (
                    f"optim.milestones: {milestone:g} of {run} is its end, so the rate "
                    "is not lowered there"
                )
    last = (epochs - 1) / epochs  # the progress of the last epoch
    for prefix, method in _nested(config.method):
        mixing = method.mixing if isinstance(method, ClassifierMethod) else None
        if mixing and not any(mixing.active(e / epochs) for e in range(epochs)):
            yield (
                f"{prefix}.mixing: no epoch of {run} begins in [{mixing.start:g}, "
                f"{mixing.end:g}), so nothing is mixed"
            )
        if isinstance(method, Baseline) and method.reweight_from > last:
            yield (
                f"{prefix}.reweight_from: no epoch of {run} begins at "
                f"{method.reweight_from:g} or later, so no class weights are used"
            )
        if isinstance(method, ClasswiseSplitting) and method.split_from > last:
            yield (
                f"{prefix}.split_from: no epoch of {run} begins at "
                f"{method.split_from:g} or later, so classes are never split"
            )
        if epochs > 1:
            continue
        if isinstance(method, Hybrid):
            yield (
                f"epochs: {run} has alpha 1 throughout: the classifier has the weight "
                "0 and is not trained"
            )
        if isinstance(method, S3H) and method.momentum_schedule == "cosine":
            yield f"{prefix}.momentum_schedule: the momentum stays constant in {run}"
    samplers = {stream.sampler for stream in config.method.streams().values()}
    if epochs == 1 and "progressive" in samplers:
        yield f"epochs: in {run} the progressive sampler is the instance-balanced one"


def _nested(method: Method, prefix: str = "method") -> Iterator[tuple[str, Method]]:
    yield prefix, method
    if isinstance(method, ClasswiseSplitting):
        yield from _nested(method.inner, f"{prefix}.inner")


#: Option -> whether it has an effect, and when it has none.
_EFFECTS: dict[str, tuple[Callable[[TrainConfig], bool], str]] = {
    "data.profile": (
        lambda c: c.data.name not in PHOTOGRAPHS or c.data.imbalance is not None,
        "without data.imbalance",
    ),
    "data.split_seed": (
        lambda c: c.data.val_fraction > 0,
        "with data.val_fraction 0",
    ),
    "data.workers": (
        lambda c: c.data.name in PHOTOGRAPHS,
        "for images in memory",
    ),
    "data.unreadable": (
        lambda c: c.data.name in PHOTOGRAPHS,
        "for images in memory",
    ),
    "model.scale": (
        lambda c: c.model.classifier == "cosine",
        "with model.classifier linear",
    ),
    "optim.milestones": (
        lambda c: c.optim.schedule == "step",
        "unless optim.schedule is step",
    ),
    "optim.gamma": (
        lambda c: c.optim.schedule == "step" and len(c.optim.milestones) > 0,
        "without optim.milestones and optim.schedule step",
    ),
    "optim.decay_norm_and_bias": (
        lambda c: c.optim.weight_decay > 0,
        "with optim.weight_decay 0",
    ),
    **{
        option: (
            lambda c: not isinstance(c.method, TauNormalization),
            "with TauNormalization, which trains nothing",
        )
        for option in ("epochs", "optim.lr", "optim.warmup_epochs", "optim.schedule")
    },
}
_ALONE = ("distributed.gather", "distributed.sync_batch_norm", "distributed.timeout")
_OF_THE_COPY = ("cross_weight", "momentum", "momentum_schedule")


def _idle(config: TrainConfig, processes: int) -> Iterator[str]:
    """Yield the given options that have no effect."""
    given = _given(config)
    for option, (works, beside) in _EFFECTS.items():
        if option in given and not works(config):
            yield f"{option}: has no effect {beside}, got {given[option]}"
    for option in _ALONE:
        if processes == 1 and option in given:
            yield f"{option}: has no effect with a single process, got {given[option]}"
    for prefix, method in _nested(config.method):
        if not isinstance(method, S3H) or method.partner == "momentum":
            continue
        for name in _OF_THE_COPY:
            if (option := f"{prefix}.{name}") in given:
                yield (
                    f"{option}: has no effect with {prefix}.partner {method.partner}, "
                    f"got {given[option]}"
                )


def _given(config: TrainConfig) -> dict[str, Any]:
    """Return the options that differ from both preset and default."""
    options, usual = flatten(config.dump()), {**preset_options(config.preset)}
    for prefix, method in _nested(config.method):
        name = f"{prefix}.class_path"
        if options[name] != usual.get(name):
            defaults = inspect.signature(type(method)).parameters.values()
            usual.update({f"{prefix}.{each.name}": each.default for each in defaults})
    return {name: each for name, each in options.items() if each != usual.get(name)}
