"""What the commands share: spelling, quick help, and a package that is not built."""

import pytest

from python_tests.processes import python
from s3h_ext import command_line, evaluate, export, predict, show, train
from s3h_ext.data import __main__ as data
from s3h_ext.ops import _library
from s3h_ext.ops._library import NativeLibrary

QUICK = ("evaluate", "predict", "export", "info")


@pytest.mark.parametrize("command", QUICK)
@pytest.mark.parametrize(("option", "status"), [("--help", 0), ("--bogus", 2)])
def test_an_answer_about_options_needs_no_torch(command, option, status):
    code = (
        "import runpy, sys; sys.argv = ['it', sys.argv[2]]\n"
        f"try: runpy.run_module('s3h_ext.{command}', run_name='__main__')\n"
        "except SystemExit as end: code = end.code\n"
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    answer = python("-c", code, "-", option, status=status)
    printed = answer.stderr if status else answer.stdout
    assert f"usage: python -m s3h_ext.{command}" in printed
    if status and command == "info":  # the others miss their run before that
        assert "unrecognized arguments: --bogus" in printed


@pytest.mark.parametrize("command", [*QUICK[:3]])
def test_every_option_may_be_spelt_either_way(command):
    parser = getattr(command_line, f"{command}_parser")()
    spelt = [o for o in parser._option_string_actions if set(o[2:]) & set("-_.")]
    positional = ["run", "image"] if command == "predict" else ["run"]
    assert spelt
    for option in spelt:
        action = parser._option_string_actions[option]
        others = (f"--{option[2:].translate({95: x, 46: x})}" for x in "-_")
        for name in (option, *others):
            value = action.choices[0] if action.choices else "7"
            for arguments in ([name, value], [f"{name}={value}"]):
                found = parser.parse_args([*positional, *arguments])
                assert str(getattr(found, action.dest)) == value
    for action in parser._actions:
        assert action.help, f"{action.dest} has no help"


def test_options_of_a_subcommand_may_be_spelt_either_way():
    for name in ("--keep_archive", "--keep-archive"):
        given = ["download", "cifar10", "--root", "x-y_z", name]
        found = data._parser().parse_args(given)
        assert found.keep_archive
        assert found.root == "x-y_z"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("root: expected", "--data.root: expected"),
        ("data.root: other data", "--data.root: other data"),
        ("lists: none", "--data.lists: none"),
        ("batch_size: expected", "--batch_size: expected"),
        ("split: expected", "--split: expected"),
        ("run: expected", "run: expected"),
        ("runs/a/checkpoints: damaged", "runs/a/checkpoints: damaged"),
    ],
)
def test_an_error_names_the_option_as_typed(message, expected):
    assert command_line.evaluate_parser().as_typed(message) == expected


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        (train, ["--preset", "digits-lt/ce", "--output", "made"]),
        (evaluate, ["run"]),
        (predict, ["run", "image.png"]),
        (export, ["run"]),
        (show, ["--out", "made"]),
    ],
    ids=["train", "evaluate", "predict", "export", "show"],
)
def test_a_package_that_is_not_built_says_so(
    module, arguments, monkeypatch, tmp_path, capsys
):
    missing = NativeLibrary(tmp_path / "_s3h_cpu.so")
    for place in (module, _library):
        monkeypatch.setattr(place, "CPU", missing, raising=False)
    monkeypatch.chdir(tmp_path)
    assert module.main(arguments) in (1, 2)
    printed = capsys.readouterr().err
    assert printed.startswith("error: the native library _s3h_cpu.so is not available")
    assert "pip install --no-build-isolation -e ." in printed
    assert len(printed.splitlines()) == 1
    assert not (tmp_path / "made").exists()


def test_commands_on_data_take_no_training_options(capsys):
    with pytest.raises(SystemExit):
        data.main(["check", "cifar10", "--root", ".", "--seed", "1"])
    assert "unrecognized arguments: --seed 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("preset", "remedy"),
    [
        ("cifar100-lt/ce", "python -m s3h_ext.data download cifar100 --root "),
        ("cifar10-lt/s3h-if10", "python -m s3h_ext.data download cifar10 --root "),
        ("octmnist-lt/ce", "python -m s3h_ext.data download octmnist --root "),
        ("imagenet-lt/ce", "see docs/photographs.md for where to get them"),
    ],
)
def test_data_that_are_not_there_come_with_what_to_do(
    preset, remedy, monkeypatch, tmp_path, capsys
):
    monkeypatch.delenv("S3H_DATA_ROOT", raising=False)
    arguments = ["--preset", preset, "--output", str(tmp_path / "run")]
    assert train.main(arguments) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: --data.root: expected the folder that holds")
    assert remedy in printed
    if "download" in remedy:
        empty = tmp_path / "two words"
        empty.mkdir()
        assert train.main([*arguments, "--data.root", str(empty)]) == 2
        assert f"{remedy}'{empty}'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
