import pytest
import yaml

from s3h_ext.methods import Baseline, Hybrid
from s3h_ext.training.options import OptionError, parse_options, preset_names


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_parses_and_names_its_data_set(name):
    config, record, _ = parse_options(["--preset", name])
    assert config.preset == name
    assert config.data.name == name.partition("/")[0]
    assert record["preset"] == name


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
