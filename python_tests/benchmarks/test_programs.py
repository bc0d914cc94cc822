"""Every benchmark at least starts; the small one runs."""

import csv
import importlib
import sys
from pathlib import Path

import pytest
import torch
from torch.overrides import _get_current_function_mode

import benchmarks.prototypes
from benchmarks import (
    prototypes_cuda,
    prototypes_quality,
    similarity,
    similarity_cuda,
    tables,
    training,
    two_runs,
    views_cuda,
)
from benchmarks.similarity_peers import Peer

FOLDER = Path(benchmarks.prototypes.__file__).parent
PROGRAMS = sorted(path.stem for path in FOLDER.glob("*.py"))


def run(program, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["it", *map(str, arguments)])
    program.main()


def rows_of(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def peers_of(path):
    return {row["peer"] for row in rows_of(path)}


@pytest.mark.parametrize("name", PROGRAMS)
def test_it_imports_without_its_peers(name):
    assert importlib.import_module(f"benchmarks.{name}").__doc__


def test_prototypes_are_timed_in_turns(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmarks.prototypes, "TARGET", (64, 4, 2, 8))
    monkeypatch.setattr(benchmarks.prototypes.torch, "compile", lambda step: step)
    quick = ("--quick", "--seconds", "0", "--output", tmp_path)
    run(benchmarks.prototypes, monkeypatch, *quick)
    rows = {row["peer"]: row for row in rows_of(tmp_path / "prototypes.csv")}
    assert {"s3h_ext", "s3h_ext, two ops", "eager", "compiled"} <= set(rows)
    assert all(float(row["median_ms"]) > 0 for row in rows.values())
    assert (tmp_path / "prototypes.png").stat().st_size > 0


def test_quality_is_measured_against_kmeans(tmp_path, monkeypatch):
    case = prototypes_quality.Case("isotropic", "euclidean", 4, 3, 100, 50)
    monkeypatch.setattr(prototypes_quality, "cases", lambda: [case])
    run(prototypes_quality, monkeypatch, "--output", tmp_path)
    (row,) = rows_of(tmp_path / "prototypes_quality.csv")
    assert row["births"] == "split"
    assert 2 < float(row["least_perplexity"]) <= float(row["perplexity"]) <= 3
    assert 0.9 < float(row["error_to_kmeans"]) < 1.3


def test_kmeans_finds_planted_clusters():
    centres = 50 * torch.eye(4, 8)
    samples = centres.repeat_interleave(25, dim=0)
    assert prototypes_quality.kmeans(samples, 4, "euclidean") == 0
    # Two pairs, or one alone and three: half of 50^2 in the mean, either way.
    assert prototypes_quality.kmeans(samples, 2, "euclidean") == pytest.approx(1250)
    units = torch.nn.functional.normalize(samples, dim=1)
    assert prototypes_quality.kmeans(units, 4, "cosine") == pytest.approx(0, abs=1e-6)


def test_a_table_of_other_columns_is_left_alone(tmp_path):
    path = tmp_path / "table.csv"
    tables.append(path, [{"a": 1, "b": 2}])
    tables.append(path, [{"a": 3, "b": 4}])
    said = r"table\.csv: expected the columns a,c, got a,b"
    with pytest.raises(ValueError, match=said):
        tables.append(path, [{"a": 5, "c": 6}])
    assert path.read_text() == "a,b\n1,2\n3,4\n"


def test_what_is_compiled_lasts_until_it_is_timed(monkeypatch):
    done = []
    monkeypatch.setattr(similarity, "measure_peak", lambda: similarity.Peak(1, 1, 1))
    monkeypatch.setattr(torch.compiler, "reset", lambda: done.append("reset"))

    def peer(name):
        def function(features, labels):
            done.append(name)
            return features.sum()

        return Peer(name, function, False)

    found = [peer("compiled a"), peer("compiled b")]
    assert list(similarity.measure(similarity.square(8, 4), found, 0.0))
    assert done[0] == "reset"
    assert done.count("reset") == 1


@pytest.mark.parametrize("asked", [[], ["--graphs=on"]])
def test_the_trainer_is_launched_as_the_bare_loop_is(monkeypatch, asked):
    class Parsed(Exception):
        pass

    def parse(arguments):
        raise Parsed(*[word for word in arguments if "graphs" in word])

    monkeypatch.setattr(training, "parse_options", parse)
    with pytest.raises(Parsed) as error:
        run(training, monkeypatch, *asked)
    assert error.value.args == (*(asked or ["--graphs=off"]),)


def test_steps_are_timed_outside_of_the_device_mode(tmp_path, monkeypatch):
    modes = []

    def timings(call, device, budget):
        modes.append(_get_current_function_mode())
        call()
        return [1.0]

    monkeypatch.setattr(prototypes_cuda, "timings", timings)
    monkeypatch.setattr(benchmarks.prototypes.torch, "compile", lambda step: step)
    run(prototypes_cuda, monkeypatch, "--device=cpu", "--output", tmp_path)
    assert len(modes) >= 4
    assert set(modes) == {None}


def test_kornia_is_called_outside_of_the_device_mode():
    def mode(work):
        return _get_current_function_mode

    assert views_cuda.kornia_on(None, torch.device("meta"), mode)() is None


def test_a_wrong_step_is_not_timed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prototypes_cuda, "our_step", lambda *arguments: None)
    monkeypatch.setattr(benchmarks.prototypes.torch, "compile", lambda step: step)
    with pytest.raises(SystemExit, match=r"wrong values: \(64, 10, 2, 16\), s3h_ext$"):
        run(prototypes_cuda, monkeypatch, "--device=cpu", "--output", tmp_path)
    found = peers_of(tmp_path / "prototypes_cuda.csv")
    assert "s3h_ext" not in found
    assert {"s3h_ext, two ops", "eager"} <= found
    assert "not timed, its values are off by 1 of their norm" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [False, True])
def test_wrong_losses_are_not_timed(tmp_path, monkeypatch, wrong):
    ours = similarity_cuda.supcon_loss
    if wrong:
        monkeypatch.setattr(
            similarity_cuda, "supcon_loss", lambda *a, **named: 1.1 * ours(*a, **named)
        )
    monkeypatch.setattr(similarity_cuda.torch, "compile", lambda function: function)
    arguments = ["--device=cpu", "--output", tmp_path]
    if wrong:
        with pytest.raises(SystemExit, match="wrong values: supcon 64 x 64 x 16 float"):
            run(similarity_cuda, monkeypatch, *arguments)
    else:
        run(similarity_cuda, monkeypatch, *arguments)
    rows = rows_of(tmp_path / "similarity_cuda.csv")
    found = {(row["case"], row["peer"]) for row in rows}
    assert (("supcon", "s3h_ext") in found) != wrong
    assert {("supcon", "eager mask"), ("prototypes", "s3h_ext")} <= found


@pytest.mark.parametrize("wrong", [False, True])
def test_wrong_views_are_not_timed(tmp_path, monkeypatch, wrong):
    ours = views_cuda.ours
    if wrong:
        monkeypatch.setattr(
            views_cuda, "ours", lambda work, dtype: lambda: 1.1 * ours(work, dtype)()
        )
    arguments = ["--device=cpu", "--output", tmp_path, "--case", "cifar"]
    if wrong:
        with pytest.raises(SystemExit, match="cifar, s3h_ext; cifar, s3h_ext bf16"):
            run(views_cuda, monkeypatch, *arguments)
    else:
        run(views_cuda, monkeypatch, *arguments, views_cuda.views_autoaugment.CASE)
    found = peers_of(tmp_path / "views_cuda.csv")
    assert ("s3h_ext" in found) != wrong
    assert ("s3h_ext bf16" in found) != wrong
    assert "plain PyTorch" in found


def test_two_runs_are_held_against_one(tmp_path, monkeypatch):
    (tmp_path / "metrics.csv").write_text("epoch,images_per_second\n1,9\n2,20\n3,60\n")
    assert two_runs.images_per_second(tmp_path) == pytest.approx(30)
    rates = {(1, 2): iter((100.0, 300.0)), (2, 1): iter((150.0, 390.0))}
    asked = []

    def train(runs, threads, options):
        asked.append(options)
        return next(rates[runs, threads])

    monkeypatch.setattr(two_runs, "train", train)
    run(two_runs, monkeypatch, "--rounds", 2, "--seed", 3, "--output", tmp_path)
    with (tmp_path / "two_runs.csv").open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert asked == [["--preset=cifar100-lt/ce", "--epochs=3", "--seed", "3"]] * 4
    assert row["preset"] == "cifar100-lt/ce --seed 3"
    assert float(row["two_runs_images_per_second"]) == 270
    assert float(row["ratio"]) == pytest.approx(1.4)
    with pytest.raises(SystemExit):
        run(two_runs, monkeypatch, "--epochs", 1)
