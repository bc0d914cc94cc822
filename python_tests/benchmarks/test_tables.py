"""The results tables: which runs make a row, and what the texts say of them."""

import json

import pytest
import yaml

from benchmarks.published import collect, markdown, read_published
from benchmarks.results_table import BEGIN, END, main
from s3h_ext.runs.options import parse_options
from s3h_ext.runs.title import run_title

HEADER = "preset,top1,epoch,paper,read_in\n"


def make_run(folder, name, *arguments, preset="cifar100-lt/ce", **summary):
    run = folder / name
    run.mkdir(parents=True)
    record = parse_options(["--preset", preset, *arguments])[0].dump()
    (run / "config.yaml").write_text(yaml.safe_dump(record))
    summary = {"preset": preset, "seed": record["seed"], **summary}
    groups = {"many": 60.0, "medium": 40.0, "few": None}
    best = {"best_top1": 41.0, "best_split": "test"}
    (run / "summary.json").write_text(json.dumps({**groups, **best, **summary}))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "published.csv").write_text(
        HEADER + "cifar100-lt/hybrid-sc,46.72,not stated,Hybrid,not checked\n"
        "cifar100-lt/ce,38.3,best,LDAM,a table\n"
    )
    make_run(tmp_path, "a", "--seed", "0", top1=37.0)
    make_run(tmp_path, "b", "--seed", "1", "--data.root", "/elsewhere", top1=39.0)
    make_run(tmp_path, "c", "--epochs", "40", "--method.weight_beta", "0.9", top1=30.0)
    (tmp_path / "unfinished").mkdir()
    return tmp_path


def test_a_row_is_the_mean_over_seeds_of_unchanged_presets(folder):
    missing, ours, changed = collect(folder, read_published(folder / "published.csv"))
    assert missing.preset == "cifar100-lt/hybrid-sc"
    assert missing.runs == ()
    assert [run.folder.name for run in ours.runs] == ["a", "b"]
    assert ours.mean("top1") == pytest.approx((38.0, 2**0.5))
    assert ours.difference == pytest.approx(-0.3)
    assert ours.mean("few") is None
    assert changed.changes == ("epochs 40", "method.weight_beta 0.9")
    assert changed.published.top1 == 38.3


def test_the_table_says_what_was_run_and_what_was_not(folder):
    rows = collect(folder, read_published(folder / "published.csv"))
    lines = markdown(rows).splitlines()[2:]
    assert lines == [
        "| `cifar100-lt/hybrid-sc` | 46.72† (not stated) | not run |  |  |  |  |  |  |",
        "| `cifar100-lt/ce` | 38.30 (best) | 38.00 ± 1.41 | 2 | -0.30 | 60.00 ± 0.00 | "
        "40.00 ± 0.00 |  | 41.00 ± 0.00 |",
        "| `cifar100-lt/ce`, epochs 40, method.weight_beta 0.9 | 38.30 (best) | 30.00 "
        "| 1 | -8.30 | 60.00 | 40.00 |  | 41.00 |",
    ]
    assert "not run" not in markdown(rows, not_run=False)


@pytest.mark.parametrize(
    "option",
    [
        *("model.weights a.pth", "init_from runs/a", "data.size 64"),
        *("data.imbalance null", "data.val_fraction 0.1", "batch_size 64"),
        *("optim.lr 0.3", "optim.weight_decay 0.1", "epochs 30"),
    ],
)
def test_options_that_change_a_run_make_a_row_of_their_own(tmp_path, option):
    make_run(tmp_path, "a", top1=37.0)
    name, value = option.split()
    make_run(tmp_path, "b", f"--{name}", value, top1=90.0)
    ours, changed = collect(tmp_path, [])
    assert [run.folder.name for run in ours.runs] == ["a"]
    assert changed.changes == (option,)


def test_the_first_stage_of_a_second_one_makes_no_row(tmp_path):
    for seed in ("0", "1"):
        first = ("--init_from", f"runs/{seed}", "--seed", seed)
        make_run(tmp_path, seed, *first, preset="cifar100-lt/crt", top1=40.0)
    (row,) = collect(tmp_path, [])  # of runs that do not say what theirs was
    assert (row.changes, len(row.runs)) == (("init_from unknown",), 2)


@pytest.mark.parametrize("second", ["crt", "tau-norm"])
def test_a_second_stage_on_another_first_makes_a_row_of_its_own(tmp_path, second):
    for first in ("ce", "ldam-drw", "ce (epochs 40)"):
        said = {
            "preset": f"cifar100-lt/{second}",
            "first_stage": f"cifar100-lt/{first}",
        }
        make_run(tmp_path, first, "--init_from", "runs/first", top1=40.0, **said)
    others = ["cifar100-lt/ce (epochs 40)", "cifar100-lt/ldam-drw"]
    changes = [row.changes for row in collect(tmp_path, [])]
    assert changes == [(), *((f"init_from {other}",) for other in others)]


def test_a_run_from_another_s_network_names_it(tmp_path):
    first = {"first_stage": "cifar100-lt/bcl"}
    make_run(tmp_path, "a", "--init_from", "runs/bcl", top1=40.0, **first)
    (row,) = collect(tmp_path, [])
    assert row.changes == ("init_from cifar100-lt/bcl",)


def test_a_title_has_what_the_run_does_not_share_with_the_one_after_it():
    def options(method, *arguments):
        preset = ["--preset", f"cifar100-lt/{method}"]
        return parse_options([*preset, *arguments])[0].dump()

    held_out = ("--data.val_fraction", "0.1")
    crt = options("crt", *held_out, "--epochs", "50")
    assert run_title(options("ce", *held_out), beside=crt) == "cifar100-lt/ce"
    first = options("ce", *held_out, "--epochs", "50", "--model.classifier", "cosine")
    title = "cifar100-lt/ce (epochs 50, model.classifier cosine)"
    assert run_title(first, beside=crt) == title
    title = "cifar100-lt/crt (data.val_fraction 0.1, epochs 50, init_from a)"
    assert run_title(crt, "a") == title
    assert run_title({"preset": "no-such/preset"}) is None


def test_how_a_run_is_made_makes_no_row(tmp_path):
    make_run(tmp_path, "a", "--graphs", "off", "--distributed.timeout", "9", top1=40.0)
    assert [row.changes for row in collect(tmp_path, [])] == [()]


def test_another_method_makes_a_row_with_all_its_options(tmp_path):
    make_run(tmp_path, "a", top1=37.0)
    for views in ("1", "2"):
        arguments = ("--method", "Hybrid", "--method.views", views)
        make_run(tmp_path, f"hybrid-{views}", *arguments, top1=45.0)
    ours, one, two = collect(tmp_path, [])
    assert ours.changes == ()
    assert one.changes[0] == "method.class_path s3h_ext.methods.Hybrid"
    assert "method.temperature 0.1" in one.changes
    assert set(one.changes) ^ set(two.changes) == {"method.views 1", "method.views 2"}


def test_the_best_epoch_is_shown_where_it_is_that_of_test_images(tmp_path):
    make_run(tmp_path, "a", "--seed", "0", top1=37.0)
    assert "41.00" in markdown(collect(tmp_path, []))
    make_run(tmp_path, "b", "--seed", "1", top1=37.0, best_split="val")
    (line,) = markdown(collect(tmp_path, [])).splitlines()[2:]
    assert line.endswith("| 40.00 ± 0.00 |  |  |")


@pytest.mark.parametrize("missing", ["top1", "seed", "best_split"])
def test_an_incomplete_summary_is_named(folder, capsys, missing):
    path = folder / "b" / "summary.json"
    summary = json.loads(path.read_text())
    del summary[missing]
    path.write_text(json.dumps(summary))
    assert main([str(folder)]) == 2
    assert f"summary.json has no {missing}" in capsys.readouterr().err


def test_two_runs_of_one_seed_are_refused(folder):
    make_run(folder, "d", "--seed", "1", top1=50.0)
    with pytest.raises(ValueError, match="d and .*b are runs of the same options and"):
        collect(folder, read_published(folder / "published.csv"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("preset,top1\n", "expected the columns"),
        (HEADER + "cifar100-lt/cf,38.3,best,LDAM,x\n", "line 2: preset: there is no"),
        (HEADER + "cifar100-lt/ce,383,best,LDAM,x\n", "line 2: top1: expected percent"),
    ],
)
def test_a_bad_table_of_published_numbers_is_refused(tmp_path, text, message):
    (tmp_path / "published.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_published(tmp_path / "published.csv")


def test_the_command_writes_the_same_bytes_again_and_checks_them(folder, capsys):
    readme = folder / "README-of-project.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    arguments = [str(folder), "--readme", str(readme)]
    assert main([*arguments, "--check"]) == 1
    assert "README.md is not what the runs give" in capsys.readouterr().err
    assert "old" in readme.read_text()
    assert main(arguments) == 0
    files = ("README.md", "results.png", "README-of-project.md")
    written = [(folder / name).read_bytes() for name in files]
    assert "38.00 ± 1.41" in readme.read_text()
    assert readme.read_text().startswith("before\n")
    assert readme.read_text().endswith(f"{END}\nafter\n")
    assert main(arguments) == 0
    assert [(folder / name).read_bytes() for name in files] == written
    assert main([*arguments, "--check"]) == 0


def test_a_readme_without_the_marks_is_left_alone(folder, capsys):
    readme = folder / "other.md"
    readme.write_text("text\n")
    assert main([str(folder), "--readme", str(readme)]) == 2
    assert "expected the lines" in capsys.readouterr().err
    assert not (folder / "README.md").exists()


def test_a_folder_that_is_not_there_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit) as status:
        main([str(tmp_path / "none")])
    assert status.value.code == 2
    assert "folder: expected a folder of runs" in capsys.readouterr().err
