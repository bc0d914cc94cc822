"""Parses the command line and YAML into a checked configuration."""

from __future__ import annotations

import argparse
import functools
import importlib
import re
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from s3h_ext import methods
from s3h_ext.methods import Method
from s3h_ext.presets import preset_list, preset_names
from s3h_ext.runs import classes, plain_yaml
from s3h_ext.runs.config import TrainConfig, flatten
from s3h_ext.runs.option_names import (
    OptionError,
    as_typed,
    method_options,
    nearest,
    nearest_option,
)
from s3h_ext.runs.presets import (
    DEFAULT_PRESET,
    preset_arguments,
    preset_warmup,
    short_warmup,
)

__all__ = ["OptionError", "make_parser", "parse_options", "preset_options"]

METHOD = "s3h_ext.methods.Baseline"
_GROUPS = {f.name for f in fields(TrainConfig) if is_dataclass(f.default_factory)}
_FLAGS = ("help", "print_config", "resume")


class _HelpFormatter(jsonargparse.DefaultHelpFormatter):
    """Keeps the line breaks of the text after the options."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(
            line for part in text.splitlines() for line in textwrap.wrap(part, width)
        )


def make_parser() -> jsonargparse.ArgumentParser:
    """Return the parser of ``python -m s3h_ext.train``."""
    parser = jsonargparse.ArgumentParser(
        prog="python -m s3h_ext.train",
        description="Train an image classifier on long-tailed data.",
        epilog=f"presets:\n{preset_list()}",
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
        help="resume from the newest valid checkpoint in --output",
    )
    parser.add_class_arguments(TrainConfig, None, as_group=False)
    # The parser keeps the method as class name and options, so they can be saved.
    parser.set_defaults(method={"class_path": METHOD})
    return parser


def parse_options(arguments: Sequence[str] = ()) -> tuple[TrainConfig, bool]:
    """Turn command-line arguments into a checked configuration.

    A preset comes first, then ``--config`` files and dotted options in the order given.
    A preset's warm-up shrinks in proportion if the run is too short for it. Naming
    another method class resets its options to their defaults. Without ``--preset`` and
    ``--config``, the preset is ``digits-lt/hybrid-psc``.

    Files cannot run code: they may name the methods of ``s3h_ext`` and those of modules
    that are already imported. A class given by ``--method`` is imported.

    Returns:
        The configuration, and whether ``--resume`` was given.

    Raises:
        OptionError: an unknown option or preset, or an invalid value.

    Example:
        >>> arguments = ["--preset", "digits-lt/ce", "--seed", "3"]
        >>> config, resume = parse_options(arguments)
        >>> config.seed, config.data.name, resume
        (3, 'digits-lt', False)
    """
    parser = make_parser()
    known = [name for name, _ in parser.get_defaults().items() if "method." not in name]
    given = list(_pairs(arguments, known))
    presets = [value for name, value in given if name == "preset"]
    if not presets and not any(name == "config" for name, _ in given):
        presets = [DEFAULT_PRESET]
        given = [("preset", DEFAULT_PRESET), *given]
    if presets:
        given = [*_pairs(preset_arguments(presets[-1]), known), *given]

    helps: list[str] = []
    chosen: dict[str, object] = {"method": METHOD}
    for name, value in given:
        if name == "config":
            for option, part in _content(value).items():
                _choose(chosen, str(option), part)
            continue
        if name.endswith(".help"):
            helps.append(f"--{name}={value}" if value else f"--{name}")
            continue
        loaded = _content(value) if name in _GROUPS else _loaded(value)
        if _is_method(name):
            _import_classes(name, loaded)
        structured = _is_method(name) or isinstance(loaded, Mapping)
        _choose(chosen, name, loaded if structured else value)
    for option, part in chosen.items():
        _check(option, part, chosen, known)
    method: Any = _method(chosen, "method")
    words = [*_words(chosen), f"--method={_dumped(method)}"]

    try:
        with classes.known_classes_only():
            if helps:  # print a method's help, then exit
                parser.parse_args(helps)
            # With another default class, the parser would keep options that both have.
            parser.set_defaults(method={"class_path": method["class_path"]})
            namespace = parser.parse_args(words)
            method = namespace.method.as_dict()
            parts = vars(parser.instantiate(namespace))
        parts = {k: v for k, v in parts.items() if k not in ("config", "resume")}
        config = TrainConfig(**parts)
    except (argparse.ArgumentError, ValueError, TypeError) as error:
        message = _explain(_cut(str(error)))
        raise OptionError(as_typed(message, method)) from error
    if presets:
        whole, length = preset_warmup(presets[-1])
        if config.optim.warmup_epochs == whole:
            config.optim.warmup_epochs = short_warmup(whole, length, config.epochs)
    return config, bool(namespace.resume)


@functools.cache
def preset_options(preset: str | None) -> dict[str, Any]:
    """Return the flat options of a preset, or the defaults without one."""
    known = preset in preset_names()
    arguments = ["--preset", str(preset)] if known else ["--config", "{}"]
    return flatten(parse_options(arguments)[0].dump())


def _is_method(option: str) -> bool:
    return option.partition(".")[0] == "method" and not option.endswith(".help")


def _pairs(arguments: Sequence[str], known: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield options, in standard spelling, and their values.

    Raises:
        OptionError: a word is not an option, or an option has no value.
    """
    words = iter(["--help" if word == "-h" else word for word in arguments])
    for word in words:
        if not word.startswith("--"):
            raise OptionError(f"expected an option, got {word!r}")
        name, equals, value = word[2:].partition("=")
        respelt = name.replace("-", "_")
        if respelt in (*known, *_FLAGS) or _is_method(respelt):
            name = respelt.replace(".init_args", "").removesuffix(".class_path")
        if not equals and name not in _FLAGS:
            value = next(words, "" if name.endswith(".help") else "--")
            if value.startswith("--"):
                raise OptionError(f"--{name}: expected a value")
        yield name, value


def _content(value: str) -> Mapping[Any, Any]:
    """Return the options in the argument of ``--config``: a file, or YAML itself.

    Raises:
        OptionError: they cannot be read, or the file names another file.
    """
    try:
        path = Path(value)
        text = path.read_text(encoding="utf-8") if path.is_file() else value
        content = plain_yaml.load_yaml(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise OptionError(f"--config: {_cut(str(error))}") from error
    if not isinstance(content, Mapping):
        raise OptionError(f"--config: expected a file of options, got {value[:200]!r}")
    if "config" in content:
        raise OptionError(_NO_OTHER.format("config", content["config"]))
    return content


_NO_OTHER = (
    "{}: expected options, got {!r:.200}; an options file cannot include another"
)


def _loaded(value: str) -> object:
    """Parse a value as YAML, or return it as text if it is not."""
    try:
        return plain_yaml.load_yaml(value)
    except (ValueError, yaml.YAMLError):
        return value


def _choose(chosen: dict[str, object], option: str, value: object) -> None:
    """Add an option, or several in a mapping, to those chosen so far.

    Another method class has its own defaults: options of the previous one are dropped.
    """
    if isinstance(value, Mapping) and value:
        inside: object = value
        if "class_path" in value:
            if extra := value.keys() - {"class_path", "init_args"}:
                raise OptionError(
                    f"{option}: expected only class_path and init_args, got "
                    f"{', '.join(map(str, extra)):.200} too"
                )
            _choose(chosen, option, value["class_path"])
            inside = value.get("init_args", {})
        elif list(value) == ["init_args"]:
            inside = value["init_args"]
        if not isinstance(inside, Mapping):
            raise OptionError(f"{option}: expected options, got {inside!r:.60}")
        for name, part in inside.items():
            _choose(chosen, f"{option}.{name}", part)
        return
    if _is_method(option) and isinstance(value, str) and value in methods.__all__:
        value = f"{methods.__name__}.{value}"
    if option not in chosen or chosen[option] != value:
        for other in [name for name in chosen if name.startswith(f"{option}.")]:
            del chosen[other]
    chosen[option] = value


def _method(chosen: Mapping[str, object], option: str) -> object:
    """Return a method, or an option of one, as nested values."""
    start = f"{option}."
    below = [n.removeprefix(start) for n in chosen if n.startswith(start)]
    names = dict.fromkeys(n.partition(".")[0] for n in below)
    inside = {name: _method(chosen, start + name) for name in names}
    value = chosen.get(option)
    if option == "method" or (inside and value is not None):
        return {"class_path": value, "init_args": inside}
    return inside or value


def _words(chosen: Mapping[str, object]) -> Iterator[str]:
    """Yield the options outside the method as arguments for the parser."""
    for name, value in chosen.items():
        if name in _FLAGS:
            if value is not False:
                yield f"--{name}" if value in ("", True) else f"--{name}={value}"
        elif not _is_method(name):
            yield f"--{name}={value if isinstance(value, str) else _dumped(value)}"


def _dumped(value: object) -> str:
    try:
        text = yaml.safe_dump(value, default_flow_style=True, width=10**9)
    except (ValueError, yaml.YAMLError) as error:  # such as a number of 5000 digits
        raise OptionError(str(error)) from error
    return text.removesuffix("...\n").strip()


def _import_classes(option: str, value: object) -> None:
    """Import the classes named on the command line.

    Raises:
        OptionError: one cannot be imported.
    """
    if isinstance(value, Mapping):
        for name, part in value.items():
            inside = (
                option if name in ("class_path", "init_args") else f"{option}.{name}"
            )
            _import_classes(inside, part)
    elif isinstance(value, str) and re.fullmatch(r"\w+(\.\w+)+", value):
        module = value.rpartition(".")[0]
        try:
            importlib.import_module(module)
        except Exception as error:  # a module may raise anything
            missing = isinstance(error, ModuleNotFoundError) and error.name
            if option != "method" and f"{module}.".startswith(f"{missing}."):
                return  # any text may contain a dot
            raise OptionError(
                f"{option}: {value} cannot be imported: {type(error).__name__}: {error}"
            ) from error


def _check(
    option: str,
    value: object,
    chosen: Mapping[str, object],
    known: Sequence[str],
) -> None:
    """Reject options that do not exist, and null where it is not accepted.

    Options of user-defined methods are left to the parser.
    """
    if option in _GROUPS:
        raise OptionError(_NO_OTHER.format(option, value))
    if option in (*known, *_FLAGS):
        return
    owner, _, name = option.rpartition(".")
    if option.partition(".")[0] != "method":
        raise OptionError(f"--{option}: no such option{_guess(option, known)}")
    if option == "method":
        types: dict[str, Any] = {name: Method}
    else:
        short = str(chosen.get(owner)).removeprefix(f"{methods.__name__}.")
        if short not in methods.__all__:
            return
        types = typing.get_type_hints(getattr(methods, short).__init__)
        if name not in types:
            own = [f"{owner}.{each}" for each in method_options(short)]
            raise OptionError(
                f"--{option}: {short} has no such option{_guess(option, own)}"
            )
    kind = types[name]
    if value is None and type(None) not in typing.get_args(kind):
        kind = getattr(kind, "__name__", "a value")
        raise OptionError(f"--{option}: expected {kind}, got null")
    if isinstance(kind, type) and issubclass(kind, Method) and "." not in str(value):
        names = [each for each in methods.__all__ if each != "Method"]
        raise OptionError(
            f"--{option}: expected a method, or its import path, got {value!r}"
            f"{nearest(str(value), names)}"
        )


def _guess(option: str, known: Sequence[str]) -> str:
    return nearest_option(option, [*known, *(f"method.{n}" for n in method_options())])


def _cut(message: str, limit: int = 2000) -> str:
    """Shorten a message that repeats a whole file; the error is at its end."""
    if len(message) <= limit:
        return message
    return f"{message[: limit // 2]} [...] {message[-limit // 2 :]}"


def _explain(message: str) -> str:
    """Make a message of the parser more helpful."""
    if denied := classes.explain(message):
        return denied
    option = "--" + ".".join(re.findall(r'Parser key "([\w.]+)"', message))
    if found := re.search(
        r"(\w+)':\s+the following arguments are required: (\w+)", message
    ):
        return f"{option}.{found[2]}: {found[1]} needs it, got nothing"
    if found := re.search(r"(\w+) does not correspond to a subclass of (\w+)", message):
        return f"{option}: expected a {found[2]}, got {found[1]}"
    if found := re.search(r"Literal\[(.*)\]. Got value: (.*)", message):
        return message + nearest(found[2], re.findall(r"'([^']*)'", found[1]))
    return message
