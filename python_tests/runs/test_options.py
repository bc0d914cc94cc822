import functools
import inspect
import os
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from python_tests.processes import python
from s3h_ext import methods
from s3h_ext.methods import Baseline, Hybrid
from s3h_ext.presets import preset_names
from s3h_ext.runs.options import OptionError, parse_options
from s3h_ext.runs.presets import preset_arguments


def whole(method):
    """A method's options as a file names them, over the defaults of its class."""
    name = method["class_path"]
    parameters = inspect.signature(getattr(methods, name)).parameters.values()
    options = {p.name: p.default for p in parameters if p.default is not p.empty}
    for key, value in method.get("init_args", {}).items():
        options[key] = whole(value) if isinstance(value, dict) else value
    return {"class_path": f"s3h_ext.methods.{name}", "init_args": options}


@functools.cache
def parsed(name):
    """What a preset gives, which no test changes."""
    return parse_options(["--preset", name])


def method_of(*arguments):
    return parse_options(arguments)[0].dump()["method"]


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_parses_and_names_its_data_set(name):
    config, _ = parsed(name)
    assert config.preset == name
    assert config.data.name == name.partition("/")[0]
    assert config.dump()["preset"] == name


@pytest.mark.parametrize("name", preset_names())
def test_a_presets_method_has_the_defaults_of_its_class(name):
    content = yaml.safe_load(Path(preset_arguments(name)[1]).read_text())
    assert parsed(name)[0].dump()["method"] == whole(content["method"])


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
    options = "--preset digits-lt/cws --method.inner S3H --method.inner.heads 1"
    changed = method_of(*options.split())
    assert changed["init_args"]["inner"] == whole(inner)
    assert changed["init_args"]["momentum"] == 0.9  # of the preset
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({"method": {"init_args": {"inner": inner}}}))
    assert method_of("--preset", "digits-lt/cws", "--config", str(path)) == changed
    options = "--preset digits-lt/s3h --method ClasswiseSplitting --method.inner S3H"
    around = {"inner": {"class_path": "S3H"}}
    expected = whole({"class_path": "ClasswiseSplitting", "init_args": around})
    assert method_of(*options.split()) == expected


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
    config, _ = parse_options(["--preset", f"cifar10-lt/ldam-drw{suffix}"])
    assert config.data.imbalance == factor
    assert config.preset == f"cifar10-lt/ldam-drw{suffix}"
    assert config.method.label == "ldam-drw"


def test_without_arguments_it_is_the_built_in_job():
    config, resume = parse_options([])
    assert config.preset == "digits-lt/hybrid-psc"
    assert isinstance(config.method, Hybrid)
    assert not resume


def test_dotted_options_override_the_preset():
    config, resume = parse_options(
        "--preset cifar100-lt/hybrid-sc --data.root somewhere --data.imbalance 50 "
        "--data.val_fraction 0.1 --epochs 3 --seed 7 --device cpu --output out "
        "--resume --checkpoint_every 2 --method.temperature 0.5 --optim.lr 0.25".split()
    )
    data = config.data
    assert (data.root, data.imbalance, data.val_fraction) == ("somewhere", 50.0, 0.1)
    assert (config.epochs, config.seed) == (3, 7)
    assert (config.device, config.output) == ("cpu", "out")
    assert (config.checkpoint_every, config.optim.lr) == (2, 0.25)
    assert resume
    options = config.dump()["method"]["init_args"]
    assert options["temperature"] == 0.5
    # The rest of the preset stays.
    assert config.batch_size == 512
    assert options["views"] == 2


def test_the_record_gives_the_same_configuration_back(tmp_path):
    arguments = ["--preset", "cifar10-lt/hybrid-psc", "--epochs", "5"]
    record = parse_options(arguments)[0].dump()
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(record))
    again = parse_options(["--config", str(path)])[0].dump()
    assert again == record


def test_a_method_can_be_named_by_its_class():
    options = "--method Baseline --method.loss logit-adjusted --method.tau 1.5"
    config, _ = parse_options(options.split())
    assert isinstance(config.method, Baseline)
    assert config.method.label == "logit-adjusted-1.5"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--preset cifar100-lt/hybrid-pcs", "did you mean 'cifar100-lt/hybrid-psc'"),
        ("--preset octmnist-lt/s3h", "octmnist-lt/ has cb-ce, ce, cws\ns3h is a pr"),
        ("--preset folders/ce", "mean 'folder/ce'.*\ncifar10-lt/: bal.*\ncifar"),
        ("--optim.weight_decoy 1", "did you mean '--optim.weight_decay'"),
        ("--epoch 3", "^--epoch: no such option; did you mean '--epochs'"),
        ("--data-root somewhere", "--data-root.*did you mean '--data.root'"),
        ("--lr 0.1", "did you mean '--optim.lr'"),
        ("--tau 1", "did you mean '--method.tau'"),
        ("--momentum 0", "'--optim.momentum' or '--method.momentum'"),
        ("--method.temprature 1", "Hybrid has no such.*'--method.temperature"),
        ("--data.name cifar100", "did you mean 'cifar100-lt'"),
        ("--method Hibrid", "did you mean 'Hybrid'"),
        ("--epochs many", "int"),
        ("--epochs 0", "^--epochs: expected a whole number >= 1, got 0"),
        ("--batch-size 0", "^--batch_size: expected a whole number >= 1, got 0"),
        ("--data.split_seed -1", "^--data.split_seed: expected a whole number in"),
        ("--seed -1", "seed: expected a whole number in"),
        ("--data.imbalance 0.5", "data.imbalance: expected a finite .* >= 1, got 0.5"),
        ("--data.val_fraction 1", "data.val_fraction: expected a share"),
        ("--optim.lr .nan", "optim.lr: expected a finite number > 0"),
        ("--optim.milestones [0.9,0.8]", "optim.milestones: expected rising shares"),
        (
            "--optim.nesterov true --optim.momentum 0",
            "optim.nesterov: expected false where optim.momentum is 0, got True",
        ),
        ("--method.temperature -1", "^--method.temperature: expected a finite"),
        ("--method.views 0", "^--method.views: expected a whole number >= 1, got 0"),
        ("--method.views null", "^--method.views: expected int, got null"),
        (
            "--preset digits-lt/cws --method.inner.weight_beta 2",
            "^--method.inner.weight_beta: expected a number in",
        ),
        ("--method ClasswiseSplitting", "^--method.inner: ClasswiseSplitting needs it"),
        (
            "--method ClasswiseSplitting --method.inner ClasswiseSplitting",
            "^--method.inner: expected a ClassifierMethod, got ClasswiseSplitting$",
        ),
    ],
)
def test_bad_options_are_refused_with_the_nearest_name(arguments, message):
    with pytest.raises(OptionError, match=message):
        parse_options(arguments.split())


def test_a_group_of_options_is_given_inline_or_as_a_file(tmp_path):
    path = tmp_path / "optim.yaml"
    path.write_text("{lr: 0.3, gamma: 0.5}")
    for given in (str(path), "{lr: 0.3, gamma: 0.5}"):
        config, _ = parse_options(["--preset", "digits-lt/ce", "--optim", given])
        assert (config.optim.lr, config.optim.gamma) == (0.3, 0.5)
        assert config.optim.schedule == "cosine"  # of the preset
    with pytest.raises(OptionError, match="optim: expected options"):
        parse_options(["--config", f"{{optim: {path}}}"])


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ("--method.mixing.kind cutmix", "cutmix"),
        ("--method.mixing {kind:\xa0cutmix}", "cutmix"),
        ("--method.mixing null --method.mixing.kind cutmix", "cutmix"),
        ("--method.mixing.kind cutmix --method.mixing null", None),
        (
            "--config {method:\xa0{init_args:\xa0{mixing:\xa0{kind:\xa0cutmix}}}}",
            "cutmix",
        ),
    ],
)
def test_an_option_of_an_option_is_given_in_any_way(given, kind):
    words = [word.replace("\xa0", " ") for word in given.split(" ")]
    config, _ = parse_options(["--preset", "digits-lt/ce", *words])
    assert (config.method.mixing and config.method.mixing.kind) == kind


def test_help_of_a_method_lists_its_options(capsys):
    with pytest.raises(SystemExit):
        parse_options(["--method.help", "Hybrid"])
    assert "--method.temperature" in capsys.readouterr().out


def test_unknown_keys_in_a_file_are_refused(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("optim: {lrate: 0.1}\n")
    with pytest.raises(OptionError, match="lrate"):
        parse_options(["--config", str(path)])


METHODS = [name for name in methods.__all__ if name not in ("Method", "BCL")]


@pytest.mark.parametrize("name", METHODS)
def test_null_is_refused_for_each_option_of_a_method_that_takes_none(name):
    inside = ["--method.inner", "Baseline"] if name == "ClasswiseSplitting" else []
    options = inspect.signature(getattr(methods, name)).parameters.values()
    refused = [o for o in options if "None" not in str(o.annotation)]
    assert refused
    for option in refused:
        arguments = ["--method", name, *inside, f"--method.{option.name}", "null"]
        with pytest.raises(OptionError, match="null|None|required") as error:
            parse_options(arguments)
        assert option.name in str(error.value)
        assert "not supported between" not in str(error.value)


def test_dashes_and_underscores_are_the_same():
    spelt = (
        "--preset digits-lt/cws --method.inner.weight{0}beta 0.5 --batch{0}size 7 "
        "--data.val{0}fraction=0.25 --eval{0}every 2 --output a-b-c"
    )
    first, second = (parse_options(spelt.format(s).split())[0].dump() for s in "-_")
    assert first == second
    assert (first["batch_size"], first["output"]) == (7, "a-b-c")


PRINT_HELP = "from s3h_ext.runs.options import make_parser; make_parser().print_help()"
WITHOUT_TORCH = (
    "import runpy, sys; sys.argv[1:] = sys.argv[1:]\n"
    "try: runpy.run_module('s3h_ext.train', run_name='__main__')\n"
    "finally: assert 'torch' not in sys.modules"
)


def printed_by(code, *arguments):
    return python("-c", code, *arguments, env=os.environ | {"COLUMNS": "88"}).stdout


def test_the_help_that_needs_no_torch_is_that_of_the_parser():
    stored = printed_by(WITHOUT_TORCH, "--help", "all")
    printed = printed_by(PRINT_HELP)
    names = re.compile(r"--[a-z][\w.]*|[\w.-]+/: .*")
    assert {*names.findall(printed)} == {*names.findall(stored)}
    if sys.version_info[:2] == (3, 11):  # others lay it out otherwise
        message = f"COLUMNS=88 python -c '{PRINT_HELP}' > s3h_ext/train_options.txt"
        assert printed == stored, message


def test_the_short_help_fits_a_screen_and_names_options_that_exist():
    short = printed_by(WITHOUT_TORCH, "--help")
    assert short == printed_by(WITHOUT_TORCH, "-h")
    assert len(short.splitlines()) < 50
    known = {*re.findall(r"--[a-z][\w.]*", printed_by(PRINT_HELP))}
    others = {"--list", "--method.NAME", "--nproc_per_node"}
    assert {*re.findall(r"--[a-z][\w.]*", short)} - others <= known
    methods_named = set(re.findall(r"\b[A-Z]\w+", short.partition("--data.root")[0]))
    assert {n for n in methods.__all__ if n != "Method"} <= methods_named
    for preset in re.findall(r"--preset (\S+/\S+)", short):
        assert preset in preset_names()


def test_the_list_has_every_preset_and_its_published_number():
    lines = printed_by(WITHOUT_TORCH, "--list").splitlines()
    listed = {}
    for line in filter(None, lines[3:]):
        if line.partition(" ")[0].endswith("/"):
            data_set = line.split()[0]
        else:
            name, *rest = line.split()
            listed[data_set + name] = rest
    plain = {name for name in preset_names() if "-if" not in name}
    assert {*listed} == plain
    assert listed["cifar100-lt/hybrid-sc"][:3] == ["46.72", "51.87", "63.05"]
    assert listed["cifar100-lt/s3h"] == []


def test_help_lists_every_preset(capsys):
    with pytest.raises(SystemExit) as status:
        parse_options(["--help"])
    assert status.value.code == 0
    _, _, listed = capsys.readouterr().out.partition("\npresets:\n")
    rows = {}
    for words in (line.split() for line in listed.splitlines()):
        if words[0].endswith("/:"):
            row = rows.setdefault(words.pop(0)[:-1], [])
        row += [word.strip(",") for word in words]
    for name in preset_names():
        data_set, _, method = name.partition("/")
        assert method.partition("-if")[0] in rows[f"{data_set}/"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--preset folder/hybrid-psc --epochs 2", 2 * 5 / 90),
        ("--preset folder/hybrid-psc --epochs 5", 5 * 5 / 90),
        ("--preset folder/hybrid-psc --epochs 6", 5),
        ("--preset cifar100-lt/s3h-400epochs --epochs 8", 8 * 10 / 400),
        ("--preset digits-lt/ce", 5),
        ("--preset digits-lt/ce --epochs 3 --optim.warmup_epochs 1", 1),
        ("--preset folder/ce --epochs 1", 0),  # this preset has none
        # Refused later.
        ("--preset digits-lt/ce --epochs 3 --optim.warmup_epochs 4", 4),
    ],
)
def test_a_presets_warmup_keeps_its_share_of_a_short_run(arguments, expected, tmp_path):
    config, _ = parse_options(arguments.split())
    assert config.optim.warmup_epochs == pytest.approx(expected, abs=1e-3)
    record = config.dump()
    assert record["optim"]["warmup_epochs"] == config.optim.warmup_epochs
    # What a run has recorded is read back as it is.
    path = tmp_path / "config.yaml"
    record["optim"]["warmup_epochs"] = 5.0
    path.write_text(yaml.safe_dump(record))
    assert parse_options(["--config", str(path)])[0].dump() == record
