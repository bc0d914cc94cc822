import inspect
import shlex
from pathlib import Path

import pytest
import yaml

from s3h_ext import methods
from s3h_ext.methods import Baseline, Hybrid
from s3h_ext.training.options import (
    OptionError,
    parse_options,
    preset_arguments,
    preset_names,
)


def whole(method):
    """A method's options as a file names them, over the defaults of its class."""
    name = method["class_path"]
    parameters = inspect.signature(getattr(methods, name)).parameters.values()
    # A record leaves out what is None.
    options = {
        p.name: p.default for p in parameters if p.default not in (p.empty, None)
    }
    for key, value in method.get("init_args", {}).items():
        options[key] = whole(value) if isinstance(value, dict) else value
    return {"class_path": f"s3h_ext.methods.{name}", "init_args": options}


def method_of(*arguments):
    return parse_options(arguments)[1]["method"]


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_parses_and_names_its_data_set(name):
    config, record, _ = parse_options(["--preset", name])
    assert config.preset == name
    assert config.data.name == name.partition("/")[0]
    assert record["preset"] == name


@pytest.mark.parametrize("name", preset_names())
def test_a_presets_method_has_the_defaults_of_its_class(name):
    content = yaml.safe_load(Path(preset_arguments(name)[1]).read_text())
    assert method_of("--preset", name) == whole(content["method"])


@pytest.mark.parametrize("name", ["imagenet-lt", "inat18", "folder"])
def test_cws_on_photographs_has_the_constants_of_cifar100(name):
    measured = method_of("--preset", "cifar100-lt/cws")
    ours = method_of("--preset", f"{name}/cws")
    for method in (measured, ours):
        del method["init_args"]["inner"]["init_args"]["recipe"]
    assert ours == measured


@pytest.mark.parametrize(
    "arguments",
    [
        "--preset cifar100-lt/ce --method TauNormalization",
        "--preset cifar100-lt/ce --method=s3h_ext.methods.TauNormalization",
        "--preset cifar100-lt/ce --method.class_path TauNormalization",
        "--preset cifar100-lt/ce --method '{class_path: TauNormalization}'",
        "--preset digits-lt/hybrid-psc --method.views 3 --method TauNormalization",
        "--preset cifar100-lt/ce --config '{method: TauNormalization}'",
        "--method BCL --method.tau 0.1 --method TauNormalization",
    ],
)
def test_another_class_of_method_starts_from_its_own_defaults(arguments):
    found = method_of(*shlex.split(arguments))
    assert found == whole({"class_path": "TauNormalization"})


def test_a_file_with_another_class_starts_from_the_defaults_of_that(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("method: {class_path: S3H, init_args: {views: 1}}\n")
    expected = whole({"class_path": "S3H", "init_args": {"views": 1, "heads": 3}})
    for start in (["--preset", "digits-lt/hybrid-psc"], ["--method", "BCL"]):
        arguments = [*start, "--config", str(path), "--method.heads", "3"]
        assert method_of(*arguments) == expected


def test_another_class_inside_a_method_starts_from_its_own_defaults(tmp_path):
    inner = {"class_path": "S3H", "init_args": {"heads": 1}}
    changed = method_of(
        *"--preset digits-lt/cws --method.inner S3H --method.inner.heads 1".split()
    )
    assert changed["init_args"]["inner"] == whole(inner)
    assert changed["init_args"]["momentum"] == 0.9  # of the preset
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({"method": {"init_args": {"inner": inner}}}))
    assert method_of("--preset", "digits-lt/cws", "--config", str(path)) == changed
    around = method_of(
        *"--preset digits-lt/s3h --method ClasswiseSplitting --method.inner S3H".split()
    )
    inner = {"class_path": "S3H"}
    assert around == whole(
        {"class_path": "ClasswiseSplitting", "init_args": {"inner": inner}}
    )


def test_the_same_class_keeps_its_options(tmp_path):
    preset = method_of("--preset", "digits-lt/cws")
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({"method": preset}))
    for again in (["--method", "ClasswiseSplitting"], ["--method.inner", "Baseline"]):
        assert method_of("--preset", "digits-lt/cws", *again) == preset
        assert method_of("--config", str(path), *again) == preset


@pytest.mark.parametrize(
    ("suffix", "factor"), [("", 100), ("-if50", 50), ("-if10", 10)]
)
def test_cifar_presets_are_there_at_the_published_factors(suffix, factor):
    config, _, _ = parse_options(["--preset", f"cifar10-lt/ldam-drw{suffix}"])
    assert config.data.imbalance == factor
    assert config.preset == f"cifar10-lt/ldam-drw{suffix}"
    assert config.method.label == "ldam-drw"


def test_without_arguments_it_is_the_built_in_job():
    config, _, resume = parse_options([])
    assert config.preset == "digits-lt/hybrid-psc"
    assert isinstance(config.method, Hybrid)
    assert not resume


def test_dotted_options_override_the_preset():
    config, record, resume = parse_options(
        "--preset cifar100-lt/hybrid-sc --data.root somewhere --data.imbalance 50 "
        "--data.val_fraction 0.1 --epochs 3 --seed 7 --device cpu --output out "
        "--resume --checkpoint_every 2 --method.temperature 0.5 --optim.lr 0.25".split()
    )
    assert (config.data.root, config.data.imbalance, config.data.val_fraction) == (
        "somewhere",
        50.0,
        0.1,
    )
    assert (config.epochs, config.seed, config.device, config.output) == (
        3,
        7,
        "cpu",
        "out",
    )
    assert (config.checkpoint_every, config.optim.lr) == (2, 0.25)
    assert resume
    assert record["method"]["init_args"]["temperature"] == 0.5
    # The rest of the preset stays.
    assert config.batch_size == 512
    assert record["method"]["init_args"]["views"] == 2


def test_the_record_gives_the_same_configuration_back(tmp_path):
    _, record, _ = parse_options(["--preset", "cifar10-lt/hybrid-psc", "--epochs", "5"])
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(record))
    _, again, _ = parse_options(["--config", str(path)])
    assert again == record


def test_a_method_can_be_named_by_its_class():
    config, _, _ = parse_options(
        [
            "--method",
            "Baseline",
            "--method.loss",
            "logit-adjusted",
            "--method.tau",
            "1.5",
        ]
    )
    assert isinstance(config.method, Baseline)
    assert config.method.label == "logit-adjusted-1.5"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--preset cifar100-lt/hybrid-pcs", "did you mean 'cifar100-lt/hybrid-psc'"),
        ("--optim.weight_decoy 1", "did you mean 'optim.weight_decay'"),
        ("--epoch 3", "did you mean 'epochs'"),
        ("--data-root somewhere", "did you mean 'data.root'"),
        ("--method.temprature 1", "did you mean 'temperature'"),
        ("--data.name cifar100", "did you mean 'cifar100-lt'"),
        ("--method Hibrid", "did you mean 'Hybrid'"),
        ("--epochs many", "int"),
        ("--epochs 0", "epochs: expected a whole number >= 1, got 0"),
        ("--seed -1", "seed: expected a whole number in"),
        (
            "--data.imbalance 0.5",
            "data.imbalance: expected a finite number >= 1, got 0.5",
        ),
        ("--data.val_fraction 1", "data.val_fraction: expected a share"),
        ("--optim.lr .nan", "optim.lr: expected a finite number > 0"),
        ("--optim.milestones [0.9,0.8]", "optim.milestones: expected rising shares"),
        (
            "--optim.nesterov true --optim.momentum 0",
            "optim.nesterov: expected false where optim.momentum is 0, got True",
        ),
        ("--method.temperature -1", "temperature"),
        ("--method.views 0", "views: expected a whole number >= 1, got 0"),
    ],
)
def test_bad_options_are_refused_with_the_nearest_name(arguments, message):
    with pytest.raises(OptionError, match=message):
        parse_options(arguments.split())


def test_unknown_keys_in_a_file_are_refused(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("optim: {lrate: 0.1}\n")
    with pytest.raises(OptionError, match="lrate"):
        parse_options(["--config", str(path)])
