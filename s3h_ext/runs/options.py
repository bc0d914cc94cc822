"""From the command line and YAML to a checked configuration."""

from __future__ import annotations

import argparse
import importlib
import re
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib.resources import files
from pathlib import Path

import jsonargparse
import yaml

from s3h_ext import methods
from s3h_ext.methods.base import ClassifierMethod
from s3h_ext.runs import classes, plain_yaml
from s3h_ext.runs.config import OptimConfig, TrainConfig
from s3h_ext.runs.option_names import (
    as_typed,
    method_options,
    nearest,
    nearest_option,
    underscored,
)

DEFAULT_PRESET = "digits-lt/hybrid-psc"
OTHER_FACTORS = (50, 10)
# The data sets that are cut to a factor; others come as they are.
CUT = ("cifar", "octmnist")
METHOD = "s3h_ext.methods.Baseline"
_GROUPS = [f.name for f in fields(TrainConfig) if is_dataclass(f.default_factory)]

# When a class changes, the parser keeps the options that the new one has too, such as
# the temperature of Hybrid for S3H. With this one between them it keeps none.
_NoOptions = type(
    "_NoOptions",
    (ClassifierMethod,),
    {"__module__": __name__, **dict.fromkeys(ClassifierMethod.__abstractmethods__)},
)


class _HelpFormatter(jsonargparse.DefaultHelpFormatter):
    """Keeps the lines of what stands behind the options."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(
            line for part in text.splitlines() for line in textwrap.wrap(part, width)
        )


class OptionError(ValueError):
    """An option is unknown or has a bad value; the message says what was expected."""


def _preset_root() -> Path:
    return Path(str(files("s3h_ext") / "presets"))


def preset_names() -> list[str]:
    """Return the names of all presets, as in ``"cifar100-lt/hybrid-psc"``.

    Those of CIFAR and OCTMNIST are there at three imbalance factors: 100 under their
    plain names, 50 and 10 as in ``"cifar100-lt/hybrid-psc-if10"``.
    """
    root = _preset_root()
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
    arguments = ["--config", str(_preset_root() / f"{file}.yaml")]
    return [*arguments, "--data.imbalance", factor] if factor else arguments


def _presets_by_data_set() -> dict[str, list[str]]:
    """Return the methods of each data set's presets, without the factors."""
    found: dict[str, list[str]] = {}
    for name in preset_names():
        data_set, _, method = name.partition("/")
        if "-if" not in method:
            found.setdefault(data_set, []).append(method)
    return found


def _preset_list() -> str:
    lines = [
        f"{data_set}/: {', '.join(found)}"
        + (" (each also as NAME-if50, NAME-if10)" if data_set.startswith(CUT) else "")
        for data_set, found in _presets_by_data_set().items()
    ]
    return "\n".join(lines)


def _no_preset(name: str) -> str:
    """Return what to say of a preset that does not exist: those it could have been."""
    data_set, _, method = name.partition("/")
    there = _presets_by_data_set()
    if data_set not in there:
        guess = nearest(name, preset_names())
        return f"--preset: {name!r} does not exist{guess}\n{_preset_list()}"
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


def make_parser() -> jsonargparse.ArgumentParser:
    """Return the parser of ``python -m s3h_ext.train``."""
    parser = jsonargparse.ArgumentParser(
        prog="python -m s3h_ext.train",
        description="Train an image classifier on long-tailed data.",
        epilog=f"presets:\n{_preset_list()}",
        formatter_class=_HelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
        parser_mode=plain_yaml.MODE,
    )
    parser.add_argument(
        "--config",
        action="config",
        help="YAML file of options, as in a run's config.yaml",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the newest sound checkpoint in --output",
    )
    parser.add_class_arguments(TrainConfig, None, as_group=False)
    # The parser keeps the method as a class name and its options, so they can be saved.
    parser.set_defaults(method={"class_path": METHOD})
    return parser


def parse_options(
    arguments: Sequence[str] = (),
) -> tuple[TrainConfig, bool]:
    """Turn command-line arguments into a checked configuration.

    A preset comes first, then ``--config`` files and dotted options in the order given.
    A preset's warm-up that would outlast the run keeps its share of it.
    Another class of method starts from its own defaults. Without ``--preset`` and
    ``--config`` it is the built-in job, ``digits-lt/hybrid-psc``.

    A file runs no code: it may name the methods of ``s3h_ext`` and those of modules
    that are imported already. A class after ``--method`` is imported.

    Args:
        arguments: as on the command line, without the program's name.

    Returns:
        The configuration, and whether ``--resume`` was given.

    Raises:
        OptionError: an unknown option or preset, or a value that does not fit.

    Example:
        >>> arguments = ["--preset", "digits-lt/ce", "--seed", "3"]
        >>> config, resume = parse_options(arguments)
        >>> config.seed, config.data.name, resume
        (3, 'digits-lt', False)
    """
    parser = make_parser()
    arguments = underscored(arguments, parser.get_defaults().keys())
    first = argparse.ArgumentParser(
        add_help=False, allow_abbrev=False, exit_on_error=False
    )
    first.add_argument("--preset")
    first.add_argument("--config", action="append")
    try:
        chosen, _ = first.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise OptionError(str(error)) from error
    if chosen.preset is None and chosen.config is None:
        chosen.preset = DEFAULT_PRESET
        arguments = ["--preset", DEFAULT_PRESET, *arguments]
    if chosen.preset is not None:
        arguments = [*preset_arguments(chosen.preset), *arguments]

    _import_classes(arguments)
    method = None
    try:
        with classes.known_classes_only():
            namespace = parser.parse_args(_with_fresh_methods(arguments))
            method = namespace.method.as_dict()
            _refuse_null(method)
            parts = vars(parser.instantiate(namespace))
        parts = {k: v for k, v in parts.items() if k not in ("config", "resume")}
        config = TrainConfig(**parts)
    except argparse.ArgumentError as error:
        raise OptionError(_explain(_cut(str(error)), parser)) from error
    except (ValueError, TypeError) as error:
        raise OptionError(as_typed(_cut(str(error)), method)) from error
    if chosen.preset is not None:
        whole, length = _preset_warmup(chosen.preset)
        if config.optim.warmup_epochs == whole:
            config.optim.warmup_epochs = short_warmup(whole, length, config.epochs)
    return config, bool(namespace.resume)


def short_warmup(whole: float, length: int, epochs: int) -> float:
    """Return a preset's epochs of warm-up in a run of ``epochs``.

    A run that does not outlast its warm-up never reaches its learning rate, and a trial
    of a few epochs would say nothing about its preset. There the warm-up keeps its
    share.

    Args:
        whole: the preset's epochs of warm-up.
        length: the preset's epochs.
        epochs: of the run.
    """
    if epochs > whole or whole >= length:
        return whole
    return round(whole * epochs / length, 3)


def _preset_warmup(preset: str) -> tuple[float, int]:
    """Return a preset's own epochs of warm-up and of training."""
    text = Path(preset_arguments(preset)[1]).read_text(encoding="utf-8")
    content = plain_yaml.load_yaml(text)
    optim = content.get("optim", {})
    return (
        float(optim.get("warmup_epochs", OptimConfig.warmup_epochs)),
        int(content.get("epochs", TrainConfig.epochs)),
    )


def _refuse_null(method: object, prefix: str = "method") -> None:
    """Refuse null where an option of a method takes none, which the parser lets pass.

    Raises:
        ValueError: there is one.
    """
    if not isinstance(method, Mapping):
        return
    owner = getattr(methods, str(method.get("class_path")).rpartition(".")[2], None)
    types = typing.get_type_hints(owner.__init__) if owner else {}
    for name, value in (method.get("init_args") or {}).items():
        if value is None and name in types:
            if type(None) not in typing.get_args(types[name]):
                kind = getattr(types[name], "__name__", "a value")
                raise ValueError(f"{prefix}.{name}: expected {kind}, got null")
        else:
            _refuse_null(value, f"{prefix}.{name}")


def _pairs(arguments: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Yield each argument, and the option and value that it begins, if it does."""
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = argument.partition("=")
        yield argument, name, value if equals else following


def _import_classes(arguments: Sequence[str]) -> None:
    """Import the classes after ``--method``; refuse files that name other files.

    Raises:
        OptionError: a class cannot be imported, or such a file.
    """
    for _, name, value in _pairs(arguments):
        if name == "--config":
            _check_groups(value)
            continue
        for option, class_path in _named_classes(name, value):
            module = class_path.rpartition(".")[0]
            try:
                importlib.import_module(module)
            except Exception as error:  # a module may raise anything
                missing = isinstance(error, ModuleNotFoundError) and error.name
                if option != "method" and f"{module}.".startswith(f"{missing}."):
                    continue  # any value with a dot in it
                raise OptionError(
                    f"{option}: {class_path} cannot be imported: "
                    f"{type(error).__name__}: {error}"
                ) from error


def _check_groups(value: str) -> None:
    """Refuse a file that names another one where its options are to be."""
    try:
        content = _content(value)
    except (OSError, ValueError, yaml.YAMLError):
        return  # the parser says why
    if not isinstance(content, Mapping):
        return
    for name, part in content.items():
        if name == "config" or (name in _GROUPS and not isinstance(part, Mapping)):
            raise OptionError(
                f"{name}: expected the options themselves, got {part!r}; a file of "
                "options names no other one"
            )


def _content(value: str) -> object:
    """Return what ``--config`` is given: the content of a file, or of the value."""
    path = Path(value)
    text = path.read_text(encoding="utf-8") if path.is_file() else value
    return plain_yaml.load_yaml(text)


def _with_fresh_methods(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with a method's old options dropped where its class changes.

    The same goes for a method inside of another.
    """
    result: list[str] = []
    chosen = {"method": METHOD}
    for argument, name, value in _pairs(arguments):
        for option, class_path in _named_classes(name, value):
            if chosen.get(option, class_path) != class_path:
                result += [f"--{option}", f"{__name__}.{_NoOptions.__name__}"]
                inside = [key for key in chosen if key.startswith(f"{option}.")]
                for key in inside:
                    del chosen[key]
            chosen[option] = class_path
        result.append(argument)
    return result


def _named_classes(name: str, value: str) -> Iterator[tuple[str, str]]:
    """Yield the options of methods that an argument sets, and their classes."""
    try:
        if name == "--config":
            content = _content(value)
            if isinstance(content, Mapping):
                yield from _classes_in("method", content.get("method"))
        elif name.split(".")[0] == "--method":
            option = name[2:].replace(".init_args", "").removesuffix(".class_path")
            yield from _classes_in(option, plain_yaml.load_yaml(value))
    except (OSError, ValueError, yaml.YAMLError):
        return  # the parser says why


def _classes_in(option: str, value: object) -> Iterator[tuple[str, str]]:
    """Yield the classes of a method and of those inside, the outer one first."""
    if isinstance(value, str):
        value = {"class_path": value}
    if not isinstance(value, Mapping):
        return
    name = str(value.get("class_path"))
    if name in methods.__all__:
        yield option, f"{methods.__name__}.{name}"
    elif re.fullmatch(r"\w+(\.\w+)+", name):
        yield option, name
    inside = value.get("init_args")
    for key, each in inside.items() if isinstance(inside, Mapping) else ():
        yield from _classes_in(f"{option}.{key}", each)


def _cut(message: str, limit: int = 2000) -> str:
    """Shorten a message that repeats a whole file; the end says what was wrong."""
    if len(message) <= limit:
        return message
    return f"{message[: limit // 2]} [...] {message[-limit // 2 :]}"


def _explain(message: str, parser: jsonargparse.ArgumentParser) -> str:
    """Add the nearest valid name to a message of the parser."""
    if denied := classes.explain(message):
        return denied
    options = [
        key for key, _ in parser.get_defaults().items() if not key.startswith("method.")
    ]
    leaves = [*options, *(f"method.{name}" for name in method_options())]
    if found := re.search(
        r"unrecognized arguments: --([\w.-]+)", message, re.IGNORECASE
    ):
        return message + nearest_option(found[1], leaves)
    if found := re.search(r"Group '([\w.]+)' does not accept option '(\w+)'", message):
        inside = [o.rpartition(".")[2] for o in options if o.startswith(f"{found[1]}.")]
        return message + nearest(found[2], inside)
    if found := re.search(
        r"class_path '([\w.]+)'.*Option '(\w+)' is not", message, re.DOTALL
    ):
        return message + nearest(found[2], method_options(found[1]))
    if found := re.search(r"Option '([\w.]+)' is not accepted", message):
        return message + nearest_option(found[1], leaves)
    if found := re.search(r"Literal\[(.*)\]. Got value: (.*)", message):
        return message + nearest(found[2], re.findall(r"'([^']*)'", found[1]))
    if found := re.search(r"dot import path string: (\w+)", message):
        return message + nearest(
            found[1], [n for n in methods.__all__ if n != "Method"]
        )
    return message
