"""The presets: their names, their files, their warm-up in short runs."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from s3h_ext.runs import plain_yaml
from s3h_ext.runs.config import OptimConfig, TrainConfig
from s3h_ext.runs.option_names import OptionError, nearest

DEFAULT_PRESET = "digits-lt/hybrid-psc"
OTHER_FACTORS = (50, 10)
# The data sets that are cut to a factor; others come as they are.
CUT = ("cifar", "octmnist")


def _root() -> Path:
    return Path(str(files("s3h_ext") / "presets"))


def preset_names() -> list[str]:
    """Return the names of all presets, as in ``"cifar100-lt/hybrid-psc"``.

    Those of CIFAR and OCTMNIST exist at three imbalance factors: 100 under their plain
    names, 50 and 10 as in ``"cifar100-lt/hybrid-psc-if10"``.
    """
    root = _root()
    names = [
        p.relative_to(root).with_suffix("").as_posix() for p in root.rglob("*.yaml")
    ]
    names += [
        f"{name}-if{factor}"
        for name in names
        if name.startswith(CUT)
        for factor in OTHER_FACTORS
    ]
    return sorted(names)


def preset_arguments(name: str) -> list[str]:
    """Return the arguments that a preset stands for.

    Raises:
        OptionError: there is no preset of that name.
    """
    if name not in preset_names():
        raise OptionError(_no_preset(name))
    file, _, factor = name.partition("-if")
    arguments = ["--config", str(_root() / f"{file}.yaml")]
    return [*arguments, "--data.imbalance", factor] if factor else arguments


def _by_data_set() -> dict[str, list[str]]:
    """Return the methods of each data set's presets, without the factors."""
    found: dict[str, list[str]] = {}
    for name in preset_names():
        data_set, _, method = name.partition("/")
        if "-if" not in method:
            found.setdefault(data_set, []).append(method)
    return found


def preset_list() -> str:
    """Return all presets, one line for each data set."""
    lines = [
        f"{data_set}/: {', '.join(found)}"
        + (" (each also as NAME-if50, NAME-if10)" if data_set.startswith(CUT) else "")
        for data_set, found in _by_data_set().items()
    ]
    return "\n".join(lines)


def _no_preset(name: str) -> str:
    """Return an error that lists what the preset could have been."""
    data_set, _, method = name.partition("/")
    there = _by_data_set()
    if data_set not in there:
        guess = nearest(name, preset_names())
        return f"--preset: {name!r} does not exist{guess}\n{preset_list()}"
    own = [preset for preset in preset_names() if preset.startswith(f"{data_set}/")]
    others = [other for other, found in there.items() if method in found]
    guess = "" if others else nearest(name, own)
    text = (
        f"--preset: {name!r} does not exist{guess}\n{data_set}/ has "
        f"{', '.join(there[data_set])}"
    )
    if others:
        text += (
            f"\n{method} is a preset of {', '.join(others)}; docs/photographs.md and "
            "--method.help say which options make it on other data"
        )
    return text


def preset_warmup(preset: str) -> tuple[float, int]:
    """Return a preset's own epochs of warm-up and of training."""
    text = Path(preset_arguments(preset)[1]).read_text(encoding="utf-8")
    content = plain_yaml.load_yaml(text)
    optim = content.get("optim", {})
    return (
        float(optim.get("warmup_epochs", OptimConfig.warmup_epochs)),
        int(content.get("epochs", TrainConfig.epochs)),
    )


def short_warmup(whole: float, length: int, epochs: int) -> float:
    """Return a preset's epochs of warm-up in a run of ``epochs``.

    A run that ends within its warm-up never reaches its learning rate, and a trial of a
    few epochs would say nothing about its preset. There the warm-up keeps its share:
    the preset has ``whole`` epochs of it in ``length``.
    """
    if epochs > whole or whole >= length:
        return whole
    return round(whole * epochs / length, 3)
