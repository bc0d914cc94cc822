"""Presets as arguments, and their warm-up in short runs."""

from __future__ import annotations

from pathlib import Path

from s3h_ext.presets import ROOT, by_data_set, preset_list, preset_names
from s3h_ext.runs import plain_yaml
from s3h_ext.runs.config import OptimConfig, TrainConfig
from s3h_ext.runs.option_names import OptionError, nearest

DEFAULT_PRESET = "digits-lt/hybrid-psc"


def preset_arguments(name: str) -> list[str]:
    """Return the arguments that a preset stands for.

    Raises:
        OptionError: there is no preset of that name.
    """
    if name not in preset_names():
        raise OptionError(_no_preset(name))
    file, _, factor = name.partition("-if")
    arguments = ["--config", str(ROOT / f"{file}.yaml")]
    return [*arguments, "--data.imbalance", factor] if factor else arguments


def _no_preset(name: str) -> str:
    """Return an error message that lists similar presets."""
    data_set, _, method = name.partition("/")
    there = by_data_set()
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
            "--method.help give its options for other data"
        )
    return text


def preset_warmup(preset: str) -> tuple[float, int]:
    """Return the number of warm-up epochs and of epochs in a preset."""
    text = Path(preset_arguments(preset)[1]).read_text(encoding="utf-8")
    content = plain_yaml.load_yaml(text)
    optim = content.get("optim", {})
    return (
        float(optim.get("warmup_epochs", OptimConfig.warmup_epochs)),
        int(content.get("epochs", TrainConfig.epochs)),
    )


def short_warmup(whole: float, length: int, epochs: int) -> float:
    """Return a preset's warm-up epochs for a run of ``epochs``.

    A run that ends during warm-up never reaches its learning rate, so a short trial
    would say nothing about the preset. In that case the warm-up is scaled down: the
    preset has ``whole`` epochs of it in ``length``.
    """
    if epochs > whole or whole >= length:
        return whole
    return round(whole * epochs / length, 3)
