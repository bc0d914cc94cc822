"""A run's folder and a file of options run no code and write to no other place."""

import importlib
import io
import itertools
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import jsonargparse
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from benchmarks import results_table
from python_tests.processes import python
from python_tests.small_runs import SMALL
from s3h_ext import evaluate, export, predict, train
from s3h_ext.files import write_text
from s3h_ext.methods import Baseline
from s3h_ext.report import __main__ as report
from s3h_ext.runs import classes
from s3h_ext.runs.checkpoint import encode_checkpoint, load_checkpoint
from s3h_ext.runs.loading import load_run
from s3h_ext.runs.options import OptionError, parse_options

# The folder is in the one that commands are given in, and can be imported there. Each
# test has another name for it, for a class outlives the test that imports it.
FOREIGN = "STRANGER.code"
CODE = """
from pathlib import Path
from s3h_ext.methods import Baseline
Path("EXECUTED").touch()
class Foreign(Baseline):
    "Baseline by another name."
def make() -> Baseline:
    return Baseline()
"""
TOUCH = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "EXECUTED"]}}
WRAPPER = "ClasswiseSplitting"


def wrapped(inner):
    return {"class_path": WRAPPER, "init_args": {"inner": inner}}


CONFIGS = {
    "name": {"method": f"{FOREIGN}.Foreign"},
    "no method": {"method": f"{FOREIGN}.Path"},
    "class path": {"method": {"class_path": f"{FOREIGN}.Foreign"}},
    "function": {"method": f"{FOREIGN}.make"},
    "function of another module": {"method": "os.getcwd"},
    "dotted": {"method.class_path": f"{FOREIGN}.Foreign"},
    "YAML in YAML": {"method": f"{{class_path: {FOREIGN}.Foreign}}"},
    "inner name": {"method": wrapped(f"{FOREIGN}.Foreign")},
    "inner class path": {"method": wrapped({"class_path": f"{FOREIGN}.Foreign"})},
    "dotted inner": {"method": {"class_path": WRAPPER, "inner": f"{FOREIGN}.Foreign"}},
    "innermost": {"method": wrapped(wrapped(TOUCH))},
    "other keywords": {
        "method": {"class_path": "Baseline", "dict_kwargs": {"loss": TOUCH}}
    },
    "program": {"method": TOUCH},
    "program as an option": {"seed": TOUCH, "data": {"root": TOUCH}},
    "another file": {"config": "STRANGER/other.yaml"},
    "another file of a group": {"data": "STRANGER/other.yaml"},
    "another file of the method": {"method": "STRANGER/other.yaml"},
}
TEXTS = {name: yaml.safe_dump(content) for name, content in CONFIGS.items()}
TEXTS["tag"] = "seed: !!python/object/apply:os.system ['touch EXECUTED']\n"
TEXTS["tag of the method"] = f"method: !!python/name:{FOREIGN}.Foreign\n"


NUMBERS = itertools.count()


class Stranger:
    """A finished run from somebody else, with code in its folder."""

    def __init__(self, run, place):
        self.folder = shutil.copytree(run, place / f"stranger{next(NUMBERS)}")
        self.name = self.folder.name
        self.module = self.fill(FOREIGN)
        self.executed = place / "executed"
        self.write("code.py", CODE)
        self.write("other.yaml", f"method: {FOREIGN}.Foreign\n")

    def fill(self, text):
        executed = str(self.folder.parent / "executed")
        return text.replace("STRANGER", self.name).replace("EXECUTED", executed)

    def write(self, name, text):
        (self.folder / name).write_text(self.fill(text))


@pytest.fixture
def stranger(digits_run, tmp_path, monkeypatch):
    (tmp_path / "x.png").write_bytes(picture())
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # as python -m does
    return Stranger(digits_run, tmp_path)


def picture():
    content = io.BytesIO()
    Image.new("RGB", (32, 32)).save(content, "PNG")
    return content.getvalue()


QUICK = [*SMALL, "--batch_size", "489", "--epochs", "1"]


def train_again(run, *options, before=()):
    return train.main([*before, f"--config={run}/config.yaml", *options])


COMMANDS = {
    "predict": lambda run: predict.main([run, "x.png", "--device", "cpu"]),
    "evaluate": lambda run: evaluate.main([run, "--device", "cpu"]),
    "export": lambda run: export.main([run, "--format", "pt2", "--images", "x.png"]),
    "train": lambda run: train_again(run, "--output=o"),
    "train after a preset": lambda run: train_again(
        run, "--output=o", before=["--preset=digits-lt/ce"]
    ),
    "resume": lambda run: train_again(run, f"--output={run}", "--resume"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("config", TEXTS)
def test_options_of_a_stranger_run_no_code(stranger, command, config, capsys):
    stranger.write("config.yaml", TEXTS[config])
    assert COMMANDS[command](stranger.name) == 2
    assert "error: " in capsys.readouterr().err
    assert not stranger.executed.exists()
    assert stranger.module not in sys.modules


def test_what_reads_options_as_text_runs_no_code(stranger, capsys):
    stranger.write("config.yaml", "\n".join(TEXTS.values()))
    shutil.copytree(stranger.folder, "runs/one")
    assert report.main([stranger.name]) == 0
    assert results_table.main(["runs"]) in (0, 2)
    arguments = ["--preset", "digits-lt/ce", *QUICK, "--data.val_fraction", "0.2"]
    first = ["--init_from", stranger.name, "--output", "second"]
    assert train.main([*arguments, *first]) == 0
    assert not stranger.executed.exists()


def test_a_python_program_beside_the_run_is_not_found_either(stranger):
    stranger.write("config.yaml", TEXTS["name"])
    done = python("-m", "s3h_ext.predict", stranger.name, "x.png", status=2)
    assert "Its module was not imported" in done.stderr
    assert not stranger.executed.exists()


class Payload:
    def __init__(self, executed):
        self.executed = executed

    def __reduce__(self):
        return (open, (str(self.executed), "w"))


def spoil_checkpoint(stranger):
    state = {"epochs_done": 2, "config": Payload(stranger.executed)}
    for path in (stranger.folder / "checkpoints").glob("*.safetensors"):
        torch.save(state, path)


def spoil_pickle(stranger):
    for path in (stranger.folder / "checkpoints").glob("*.safetensors"):
        path.write_bytes(pickle.dumps(Payload(stranger.executed)))


def spoil_subclasses(stranger):
    array = np.array([Payload(stranger.executed)], object)
    np.savez(stranger.folder / "subclasses.npz", offsets=array)


def spoil_card(stranger):
    stranger.write("dataset.json", json.dumps({"__class__": TOUCH}))


SPOILT = [spoil_checkpoint, spoil_pickle, spoil_subclasses, spoil_card]


@pytest.mark.parametrize("spoil", SPOILT)
@pytest.mark.filterwarnings("ignore:skipped")
def test_no_other_file_of_a_run_runs_code(stranger, spoil, capsys):
    spoil(stranger)
    status = {
        name: run(stranger.name) for name, run in COMMANDS.items() if name[0] != "t"
    }
    assert set(status.values()) <= {0, 2}
    assert status["predict"] == (0 if spoil is spoil_subclasses else 2)
    assert report.main([stranger.name]) == (2 if spoil is spoil_subclasses else 0)
    first = ["--preset", "digits-lt/ce", *QUICK, "--init_from", stranger.name]
    train.main([*first, "--output", "second"])
    assert not stranger.executed.exists()


# What a user may do with methods of their own.


def with_method(stranger, name):
    """Make it a run of a method of its own."""
    config = yaml.safe_load((stranger.folder / "config.yaml").read_text())
    config["method"]["class_path"] = name
    stranger.write("config.yaml", yaml.safe_dump(config))
    for path in (stranger.folder / "checkpoints").glob("*.safetensors"):
        state = load_checkpoint(path)
        state["config"]["method"]["class_path"] = name
        path.write_bytes(encode_checkpoint(state))


@pytest.mark.parametrize("command", ["predict", "evaluate", "export"])
def test_a_method_of_ones_own_is_imported_where_one_asks_for_it(
    stranger, command, capsys
):
    with_method(stranger, f"{stranger.module}.Foreign")
    assert COMMANDS[command](stranger.name) == 2
    assert f"--import {stranger.module}" in capsys.readouterr().err
    main = {"predict": predict, "evaluate": evaluate, "export": export}[command].main
    options = {"predict": ["x.png"], "export": ["--format", "pt2"]}.get(command, [])
    assert main([stranger.name, *options, "--import", stranger.module]) == 0
    assert stranger.executed.exists()


def test_a_module_that_is_not_there_is_named(stranger, capsys):
    with pytest.raises(SystemExit):
        predict.main([stranger.name, "x.png", "--import", "nothing.there"])
    assert "cannot import nothing.there: Module" in capsys.readouterr().err


def test_what_is_imported_may_be_named(stranger):
    with_method(stranger, f"{stranger.module}.Foreign")
    with pytest.raises(OptionError, match="Its module was not imported"):
        load_run(stranger.folder)
    module = importlib.import_module(stranger.module)
    assert isinstance(load_run(stranger.folder).method, module.Foreign)
    said = r"make is not a subclass of s3h_ext\.methods"
    with pytest.raises(OptionError, match=said):
        parse_options(["--config", f"{{method: {stranger.module}.make}}"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--method", f"{FOREIGN}.Foreign"],
        [f"--method.class_path={FOREIGN}.Foreign"],
        ["--method", f"{{class_path: {FOREIGN}.Foreign}}"],
        ["--method", WRAPPER, "--method.inner", f"{FOREIGN}.Foreign"],
    ],
)
def test_a_class_on_the_command_line_is_imported(stranger, arguments):
    arguments = [stranger.fill(argument) for argument in arguments]
    record = parse_options(["--preset", "digits-lt/ce", *arguments])[0].dump()
    assert f"{stranger.module}.Foreign" in str(record["method"])
    Path("own.yaml").write_text(yaml.safe_dump(record))
    assert parse_options(["--config", "own.yaml"])[0].dump() == record


def test_a_class_that_cannot_be_imported_is_named(stranger):
    stranger.write("broken.py", "import nothing_of_that_name")
    for name, reason in (
        (f"{stranger.name}.broken.X", "No module named 'nothing_of_that_name'"),
        (f"{stranger.name}.missing.X", f"No module named '{stranger.name}.missing'"),
    ):
        with pytest.raises(OptionError, match=f"method: {name} cannot be.*{reason}"):
            parse_options(["--method", name])


class Passed(Baseline):
    """A method with options of any kind.

    Args:
        anything: an option.
        called: another one.
    """

    def __init__(self, anything=None, called: "type | None" = None) -> None:
        super().__init__()
        self.anything = anything


def test_options_that_are_a_data_class_come_back_from_a_file(tmp_path):
    arguments = ["--preset", "cifar100-lt/s3h", "--method.mixing.kind", "mixup"]
    config, _ = parse_options(arguments)
    assert config.method.mixing.kind == "mixup"
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config.dump()))
    again, _ = parse_options(["--config", str(file)])
    assert again.method.mixing == config.method.mixing
    assert again.dump() == config.dump()


@pytest.mark.parametrize("option", ["anything", "called"])
@pytest.mark.parametrize("value", [TOUCH, json.dumps(TOUCH), f"{FOREIGN}.Path"])
def test_options_of_a_known_method_import_nothing(stranger, option, value):
    content = {"class_path": f"{__name__}.Passed", "init_args": {option: value}}
    Path("own.yaml").write_text(stranger.fill(yaml.safe_dump({"method": content})))
    try:
        config, _ = parse_options(["--config", "own.yaml"])
    except OptionError:
        pass
    else:
        assert not isinstance(config.method.anything, subprocess.Popen)
    assert not stranger.executed.exists()
    assert stranger.module not in sys.modules


def test_parsers_of_the_caller_keep_their_settings(stranger):
    Path("another.py").write_text(stranger.fill(CODE))
    file = ["--config", "{method: another.Foreign}"]
    before = dict(jsonargparse._common.parsing_settings)
    with pytest.raises(OptionError):
        parse_options(file)
    parse_options(["--preset", "digits-lt/ce"])
    assert jsonargparse._common.parsing_settings == before
    jsonargparse.set_parsing_settings(import_path_allowlist=["another"])
    try:
        with pytest.raises(OptionError):
            parse_options(file)
    finally:
        jsonargparse._common.parsing_settings.update(before)
    assert "another" not in sys.modules


def test_a_passed_on_class_has_all_its_names():
    names = set(classes._known_names())
    assert {"s3h_ext.methods.Baseline", "s3h_ext.methods.baseline.Baseline"} <= names
    assert not any(name.startswith("os.") for name in names)


# Links in the folder of somebody else.


def test_a_link_beside_a_file_is_not_followed(tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("mine")
    for name in ("a.json", "a.json.partial"):
        (tmp_path / name).symlink_to(mine)
    write_text(tmp_path / "a.json", "new")
    assert mine.read_text() == "mine"
    assert (tmp_path / "a.json").read_text() == "new"
    assert not (tmp_path / "a.json").is_symlink()


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard"])
def test_a_folder_in_a_run_that_is_a_link_is_refused(stranger, capsys, name):
    mine = Path("mine")
    (stranger.folder / name).rename(mine)
    (stranger.folder / name).symlink_to(mine.resolve())
    before = sorted(mine.iterdir())
    assert COMMANDS["resume"](stranger.name) == 2
    assert f"{name} is a link, and links are not followed" in capsys.readouterr().err
    assert sorted(mine.iterdir()) == before


def test_a_log_that_is_a_link_is_refused(stranger, capsys):
    mine = Path("mine")
    mine.write_text("mine")
    log = stranger.folder / "train.log"
    log.unlink()
    log.symlink_to(mine.resolve())
    assert COMMANDS["resume"](stranger.name) == 1
    assert "train.log" in capsys.readouterr().err
    assert mine.read_text() == "mine"
