"""The ablation: what its rows switch off, what it reads, skips and writes."""

import csv
import json
import shutil

import pytest

from benchmarks import ablation
from benchmarks.ablation import ADDED, COLUMNS, OFF, ROWS, main, row_options, scores
from s3h_ext.data import unused_images
from s3h_ext.methods import BCL
from s3h_ext.runs.folder import RunFolder
from s3h_ext.runs.options import parse_options

QUICK = (
    "--preset digits-lt/s3h --rows bcl --epochs 1 --holdout 0.2 --model.backbone "
    "resnet20 --batch_size 64 --data.imbalance 100 --device cpu --precision fp32"
).split()


def places(tmp_path):
    return ["--output", str(tmp_path / "out"), "--runs", str(tmp_path / "runs")]


def test_rows_are_all_combinations_of_the_parts():
    assert sorted(ROWS.values()) == sorted(
        tuple(part for n, part in enumerate(OFF) if number >> n & 1)
        for number in range(2 ** len(OFF))
    )


def test_a_row_switches_off_what_it_lacks():
    preset = ["--preset", "cifar100-lt/s3h"]
    for row, parts in {**ROWS, **dict.fromkeys(ADDED, ROWS["full"])}.items():
        options = parse_options([*preset, *row_options(row, False)])[0]
        method = options.method
        assert (method.contrast_recipe == "montage-2x2") == ("sampling" in parts)
        assert (method.heads == 2) == ("network" in parts)
        assert (options.model.classifier == "cosine") == ("network" in parts)
        assert (method.partner != "none") == ("task" in parts)
        assert (method.mixing is not None) == row.startswith("mixing")
        averaged = row.endswith("average") or row in ("full", "mixing")
        assert (options.optim.ema_decay is not None) == averaged
        if row == "bcl":
            assert method.streams() == BCL().streams()
    assert "crop" in row_options("bcl", True)


def test_photographs_are_measured_on_what_is_held_out():
    assert (
        ablation.left_out("imagenet-lt/s3h") == ablation.left_out("folder/s3h") == "val"
    )
    assert ablation.left_out("cifar10-lt/s3h") == "unused"


def finished(folder, counts, **accuracies):
    folder.mkdir(parents=True)
    summary = {"top1": 99.0, "seconds": 120.0}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "evaluation-unused").mkdir()
    measured = folder / "evaluation-unused" / "metrics.json"
    measured.write_text(json.dumps({"images": 7, **accuracies}))
    lines = ["class,train_images", *(f"{c},{n}" for c, n in enumerate(counts))]
    (folder / "per_class.csv").write_text("\n".join(lines))


def test_the_score_is_the_mean_over_classes(tmp_path):
    finished(tmp_path / "a", [500, 101, 100, 19], many=80.0, medium=50.0, few=10.0)
    assert ablation.group_sizes(tmp_path / "a") == {"many": 2, "medium": 1, "few": 1}
    found = scores(tmp_path / "a", "unused", "bcl")
    assert found["balanced"] == pytest.approx((2 * 80 + 50 + 10) / 4)
    assert found["minutes"] == 2
    finished(tmp_path / "b", [500, 101], many=80.0, medium=None, few=None)
    assert scores(tmp_path / "b", "unused", "bcl")["balanced"] == 80


def test_a_run_becomes_a_line_and_a_finished_one_is_left_alone(tmp_path, capfd):
    folders = places(tmp_path)
    assert main([*QUICK, *folders]) == 0
    run = tmp_path / "runs" / "digits-lt-s3h-1epochs-bcl-seed0"
    summary = (run / "summary.json").read_bytes()
    second = run.with_name("digits-lt-s3h-1epochs-bcl-seed1")
    finished(second, [300] * 10, many=1e3, medium=None, few=None)
    config = (run / "config.yaml").read_text()
    (second / "config.yaml").write_text(config.replace("\nseed: 0", "\nseed: 1"))
    assert main([*QUICK, *folders, "--seeds", "0", "1"]) == 0
    assert (run / "summary.json").read_bytes() == summary
    with (tmp_path / "out" / "ablation.csv").open() as file:
        (line,) = csv.DictReader(file)
    assert (line["row"], line["seeds"], line["holdout"]) == ("bcl", "2", "0.2")
    assert (line["sampling"], line["network"], line["task"]) == ("off",) * 3
    unseen = unused_images("digits-lt", imbalance=100, val_fraction=0.2)
    assert (line["split"], line["images"]) == ("unused", str(len(unseen)))
    expected = (scores(run, "unused", "bcl")["balanced"] + 1000) / 2
    assert float(line["balanced"]) == pytest.approx(expected, abs=0.01)
    assert (tmp_path / "out" / "ablation.png").stat().st_size > 1000
    table = (tmp_path / "out" / "ablation.csv").read_bytes()
    asked = ["--holdout", "0.5", "--batch_size", "32"]
    assert main([*QUICK, *folders, *asked]) == 1
    error = capfd.readouterr().err
    assert f"{run}: finished with other options: batch_size was 64, is 32; " in error
    assert "data.val_fraction was 0.2, is 0.5" in error
    assert (tmp_path / "out" / "ablation.csv").read_bytes() == table


def test_one_run_gives_the_row_of_its_last_and_of_its_averaged_weights(
    tmp_path, monkeypatch
):
    monkeypatch.delenv("S3H_DATA_ROOT", raising=False)
    folders = ["--output", str(tmp_path / "out"), "--runs", str(tmp_path)]
    run = tmp_path / "digits-lt-s3h-1epochs-full-seed0"
    finished(run, [300] * 10, many=60.0, medium=None, few=None)
    options = [*QUICK[:2], *QUICK[8:], *QUICK[4:6], "--data.val_fraction", "0.2"]
    config = parse_options([*options, *row_options("full", True)])[0]
    RunFolder(run).write_config(config.dump())

    def evaluate(arguments):
        assert arguments == [str(run), "--split", "unused", "--weights", "last"]
        metrics = run / "evaluation-unused-last" / "metrics.json"
        metrics.parent.mkdir()
        values = {"images": 7, "many": 50.0, "medium": None, "few": None}
        metrics.write_text(json.dumps(values))

    monkeypatch.setattr(ablation, "evaluate", evaluate)
    assert main([*QUICK, *folders, "--rows", "average", "full"]) == 0
    with (tmp_path / "out" / "ablation.csv").open() as file:
        found = {line["row"]: line["many"] for line in csv.DictReader(file)}
    assert found == {"average": "60.00", "full": "50.00"}


def test_a_table_keeps_the_lines_of_other_calls(tmp_path):
    def line(row, epochs, balanced):
        known = {"preset": "digits-lt/s3h", "row": row, "epochs": epochs}
        values = {**known, "holdout": 0.1, "seeds": 1, "balanced": balanced}
        return {**dict.fromkeys(COLUMNS, ""), **values}

    table = tmp_path / "ablation.csv"
    ablation.write_table([line("full", 1, "1"), line("bcl", 1, "2")], table)
    more = [line("full", 2, "4"), line("full", 1, "3")]
    ablation.write_table(ablation.merged(table, more), table)
    with table.open(newline="") as file:
        found = [(r["row"], r["epochs"], r["balanced"]) for r in csv.DictReader(file)]
    assert found == [("full", "1", "3"), ("bcl", "1", "2"), ("full", "2", "4")]


def test_the_committed_table_stays_as_it_is(tmp_path):
    committed, copy = ablation.RESULTS / "ablation.csv", tmp_path / "ablation.csv"
    shutil.copy(committed, copy)
    ablation.write_table(ablation.merged(copy, []), copy)
    assert copy.read_text().split() == committed.read_text().split()


@pytest.mark.parametrize(("last", "status"), [(None, 1), (ablation.INTERRUPTED, 130)])
def test_a_failure_is_named_where_the_rest_is_not_run(
    tmp_path, monkeypatch, capfd, last, status
):
    statuses = iter([2, last])
    monkeypatch.setattr(ablation, "train", lambda *args, **named: next(statuses))
    folders = places(tmp_path)
    assert main([*QUICK, *folders, "--seeds", "0", "1"]) == status
    assert "digits-lt-s3h-1epochs-bcl-seed0: failed" in capfd.readouterr().err


def test_sigterm_ends_the_run_too(tmp_path, played, terminate_once, capfd):
    played('touch "$2/saved"; exit 130')
    folders = places(tmp_path)
    bcl = tmp_path / "runs" / "digits-lt-s3h-1epochs-bcl-seed0"
    with terminate_once(bcl / "started"):
        assert main([*QUICK, *folders, "--seeds", "0", "1"]) == 0
    assert (bcl / "saved").exists()
    assert "stopped, the budget is spent" in capfd.readouterr().out
    assert not bcl.with_name("digits-lt-s3h-1epochs-bcl-seed1").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--budget", "0", "expected minutes above 0, got 0.0"),
        ("--seed", "1", "expected --seeds, got --seed"),
        ("--holdout", "0", "expected a share in (0, 1), got 0.0"),
    ],
)
def test_options_that_make_no_sense_are_refused(capsys, option, value, said):
    with pytest.raises(SystemExit):
        main([option, value])
    assert f"{option}: {said}" in capsys.readouterr().err
