"""Reports of small trainings and of made-up results with many classes."""

import base64
import csv
import io
import json
import re
import sys
from html.parser import HTMLParser
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from python_tests.small_runs import DIGITS, train, trainer_of
from s3h_ext.report import figures
from s3h_ext.report.__main__ import main
from s3h_ext.report.evaluation_files import read_results, write_evaluation
from s3h_ext.report.figures import FIGURES, group_outcomes
from s3h_ext.report.metrics import evaluate_predictions
from s3h_ext.report.page import write_report
from s3h_ext.report.subclasses import FIGURES as SUBCLASS_FIGURES
from s3h_ext.report.subclasses import Subclasses, read_subclasses
from s3h_ext.runs.folder import RunFolder
from s3h_ext.runs.options import parse_options
from s3h_ext.training.trainer import Trainer

QUICK = [*DIGITS, "--epochs", "1", "--report", "true"]

TABLES = ("metrics.csv", "per_class.csv", "confusion.csv", "calibration.csv")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "run"
    return train(folder, quick=QUICK)[0]


def made_up(folder, classes, *, names=None, history=None, seed=0):
    """Writes what a finished run leaves, with invented predictions."""
    rng = np.random.default_rng(seed)
    counts = np.geomspace(500, 2, classes).astype(int)
    truth = np.repeat(np.arange(classes), 4)
    predicted = np.where(
        rng.random(len(truth)) < 0.6, truth, rng.integers(0, classes, len(truth))
    )
    evaluation = evaluate_predictions(truth, predicted, rng.random(len(truth)), counts)
    folder.mkdir(parents=True, exist_ok=True)
    names = names or [f"class {number}" for number in range(classes)]
    write_evaluation(RunFolder(folder), evaluation, names, counts)
    (folder / "metrics.csv").write_text(history or "epoch,lr,loss\n1,0.1,2.5\n")
    summary = {
        name: getattr(evaluation, name)
        for name in ("top1", "many", "medium", "few", "macro_f1", "worst_class")
    }
    summary["calibration_error"] = evaluation.calibration.error
    summary |= {"best_top1": evaluation.top1, "best_split": "val", "preset": None}
    summary |= {"dataset": "made-up", "imbalance": 250.0, "method": "none <&>"}
    summary |= {"seed": 0, "epochs": 1, "train_images": int(counts.sum())}
    summary |= {"parameters": 10, "seconds": 7384.0, "images_per_second": 1.0}
    summary |= {"device": "cpu", "precision": "fp32", "threads": 1}
    summary["versions"] = {"s3h_ext": "0"}
    (folder / "summary.json").write_text(json.dumps(summary))
    return evaluation


def parsed(page):
    """The page as a tree; it is written to be XML too, so nothing may be left open."""
    return ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))


def tables(tree):
    return [
        [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")]
        for table in tree.iter("table")
    ]


def key_numbers(tree):
    """The names and the values at the head of the page."""
    return [[each.text for each in tree.iter(tag)] for tag in ("dt", "dd")]


def pictures(tree):
    sources = [image.get("src") for image in tree.iter("img")]
    prefix = "data:image/png;base64,"
    assert all(source.startswith(prefix) for source in sources)
    return [base64.b64decode(s.removeprefix(prefix), validate=True) for s in sources]


def test_a_run_ends_with_a_report_of_its_own_numbers(trained):
    folder = trained.folder.path
    tree = parsed((folder / "report.html").read_text())
    summary = json.loads((folder / "summary.json").read_text())
    header, values = key_numbers(tree)
    assert header == [
        *("top-1", "many", "medium", "few", "macro-F1", "worst class"),
        "calibration error",
    ]
    names = "top1 many medium few macro_f1 worst_class calibration_error".split()
    assert values == [f"{summary[name]:.2f}" for name in names]
    embedded = pictures(tree)
    assert sorted(embedded) == sorted((folder / n).read_bytes() for n in FIGURES)
    for png in embedded:
        image = Image.open(io.BytesIO(png))
        image.load()
        assert image.format == "PNG"
        assert min(image.size) > 400
        # Not an empty canvas, and on white.
        assert len(set(image.convert("L").resize((64, 64)).tobytes())) > 10
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    assert "preset: digits-lt/ce" in "".join(tree.itertext())


def test_the_page_needs_nothing_from_elsewhere(trained):
    page = (trained.folder.path / "report.html").read_text()
    assert not re.search(r"https?:|<script|<link|@import|url\(", page)
    opened = []

    class Check(HTMLParser):
        def handle_starttag(self, tag, attrs):
            opened.append(tag)

        def handle_endtag(self, tag):
            assert opened.pop() == tag

        def handle_startendtag(self, tag, attrs):
            pass

    Check().feed(page)
    assert opened == []


def test_the_files_hold_the_evaluation(trained):
    predictions, sums = [], [0.0, 0.0]
    trained.method.eval()
    with torch.no_grad():
        for batch in trained.evaluation["test"]:
            shares = trained.method.predict(batch.images[0]).double().softmax(1)
            probability, predicted = shares.max(1)
            predictions += zip(batch.labels.tolist(), predicted.tolist(), strict=True)
            sums[0] += probability.sum().item()
            sums[1] += (predicted == batch.labels).sum().item()
    results = read_results(trained.folder)
    cells = {(t, p): n for t, p, n in results.confusion.tolist()}
    assert cells == {pair: predictions.count(pair) for pair in set(predictions)}
    bins = results.calibration
    filled = bins.images > 0
    said, right = bins.images * bins.confidence, bins.images * bins.accuracy
    assert said[filled].sum() == pytest.approx(100 * sums[0], rel=1e-5)
    assert right[filled].sum() == pytest.approx(100 * sums[1])
    summary = results.summary
    assert summary["calibration_error"] == bins.error
    for name in ("top1", "many", "medium", "few", "macro_f1", "worst_class"):
        assert summary[name] == getattr(results.metrics, name)
    with (trained.folder.path / "per_class.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    dataset = trained.dataset
    assert [row["name"] for row in rows] == list(dataset.class_names)
    assert [int(row["train_images"]) for row in rows] == dataset.class_counts.tolist()
    tested = np.bincount(dataset.test.labels).tolist()
    assert [int(row["test_images"]) for row in rows] == tested
    accuracy = pytest.approx(results.metrics.per_class, abs=1e-4)
    assert [float(row["accuracy"]) for row in rows] == accuracy


def test_drawn_again_from_the_folder_alone_it_is_the_same(trained, tmp_path, capsys):
    for name in (*TABLES, "summary.json", "config.yaml"):
        (tmp_path / name).write_bytes((trained.folder.path / name).read_bytes())
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    for name in ("report.html", *FIGURES):
        before = (trained.folder.path / name).read_bytes()
        assert (tmp_path / name).read_bytes() == before


def test_without_matplotlib_the_run_is_kept_and_the_reason_said(
    trained, tmp_path, monkeypatch, capsys
):
    for name in [n for n in sys.modules if n.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    trained_output = trained.folder.path
    monkeypatch.setattr(trained, "folder", RunFolder(tmp_path))
    summary = trained.fit()  # all epochs are done: evaluates and writes
    said = capsys.readouterr()
    assert "warning: no report: ImportError: a report needs matplotlib" in said.err
    assert f"python -m s3h_ext.report {tmp_path}" in said.err
    assert "many  medium" in said.out
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert not (tmp_path / "report.html").exists()
    monkeypatch.undo()
    assert main([str(tmp_path)]) == 0
    for name in FIGURES:
        assert (tmp_path / name).read_bytes() == (trained_output / name).read_bytes()


def test_the_summary_is_written_before_anything_else_can_fail(
    trained, tmp_path, monkeypatch
):
    monkeypatch.setattr(trained, "folder", RunFolder(tmp_path))
    (tmp_path / "per_class.csv.partial").mkdir()  # so it cannot be written
    with pytest.raises(OSError, match=r"per_class\.csv"):
        trained.fit()
    assert "calibration_error" in json.loads((tmp_path / "summary.json").read_text())


@pytest.mark.parametrize(
    ("classes", "listed"), [(2, 2), (200, 200), (201, 200), (1200, 200)]
)
def test_any_number_of_classes(tmp_path, classes, listed):
    evaluation = made_up(tmp_path, classes)
    tree = parsed(write_report(RunFolder(tmp_path)).read_text())
    assert "none <&> on made-up" in "".join(tree.itertext())
    assert len(pictures(tree)) == 4
    header, *rows = next(t for t in tables(tree) if t[0][0] == "class")
    assert len(rows) == listed
    accuracy = [float(row[header.index("accuracy")]) for row in rows]
    if classes > 200:
        lowest = np.sort(evaluation.per_class)[:200]
        assert accuracy == pytest.approx(lowest, abs=0.01)
    else:
        assert accuracy == pytest.approx(evaluation.per_class, abs=0.01)
    for png in FIGURES:
        assert max(Image.open(tmp_path / png).size) < 2500


def test_what_a_class_is_mistaken_for_and_its_precision(tmp_path):
    counts = np.array([300, 50, 5])
    truth = np.array([0, 0, 1, 1, 1, 1, 2, 2])
    predicted = np.array([0, 0, 1, 0, 0, 2, 0, 1])
    made_up(tmp_path, 3)
    evaluation = evaluate_predictions(truth, predicted, np.full(8, 0.5), counts)
    write_evaluation(RunFolder(tmp_path), evaluation, ["a", "b", "c"], counts)
    tree = parsed(write_report(RunFolder(tmp_path)).read_text())
    *_, classes, _run = tables(tree)
    assert classes[1:] == [
        ["a", "", "300", "2", "100.00", "40.00"],
        ["b", "a (50 %)", "50", "4", "25.00", "50.00"],
        # A tie: the class with the lower number is named.
        ["c", "a (50 %)", "5", "2", "0.00", "0.00"],
    ]
    names, outcomes = group_outcomes(read_results(RunFolder(tmp_path)))
    assert names == ["many", "medium", "few"]
    assert outcomes.tolist() == [[100, 0, 0, 0], [25, 50, 0, 25], [0, 50, 50, 0]]


def test_awkward_class_names_and_gaps_in_the_history(tmp_path):
    names = ['a, "b"', "<script>alert(1)</script>", "$x_{", "line\nbreak", "wörld"]
    history = "epoch,lr,loss,test_top1,test_few\n1,0.1,3,,\n2,0.01,2,50.0,\n3,0.0,1,,\n"
    made_up(tmp_path, 5, names=names, history=history)
    page = write_report(RunFolder(tmp_path)).read_text()
    assert "<script>" not in page
    results = read_results(RunFolder(tmp_path))
    assert results.class_names == tuple(names)
    assert results.history[0] == {"epoch": 1, "lr": 0.1, "loss": 3}


def test_an_analysis_that_fails_costs_its_part_of_the_report_alone(
    tmp_path, monkeypatch, capsys
):
    cws = ["--method=ClasswiseSplitting", "--method.inner=Baseline"]
    trainer = trainer_of(tmp_path, *cws, quick=QUICK)

    def fail(batches):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(trainer.method, "analyse", fail)
    trainer.fit()
    said = capsys.readouterr().err
    assert "the report has no section on cws-ce: OutOfMemoryError: no room" in said
    assert (tmp_path / "report.html").is_file()


def test_ranks_of_the_pictures_are_in_the_table_of_many_classes(tmp_path):
    made_up(tmp_path, 40)
    *_, classes, _run = tables(parsed(write_report(RunFolder(tmp_path)).read_text()))
    assert classes[0][2] == "rank"
    assert [row[2] for row in classes[1:]] == [str(rank) for rank in range(1, 41)]
    counts = [int(row[3]) for row in classes[1:]]
    assert counts == sorted(counts, reverse=True)


def test_long_names_that_begin_or_end_alike_stay_apart():
    names = [f"some long class name {n}" for n in range(30)]
    names += [f"{n} of the same long kind" for n in range(30)]
    short = [figures._short(name) for name in names]
    assert len(set(short)) == len(names)
    assert max(map(len, short)) == 18


def test_terms_of_a_loss_look_different():
    history = [{"epoch": 1.0, "lr": 0.1} | {f"term{n}": n + 1.0 for n in range(8)}]
    figure = Figure()
    figures._draw_curves(figure, SimpleNamespace(history=history))
    lines = figure.axes[0].lines
    assert len({(line.get_linestyle(), line.get_color()) for line in lines}) == 8


def test_a_small_share_is_not_written_as_none():
    axes = Figure().subplots()
    figures._annotate(axes, np.array([[0.1, 99.9], [0.0, 100.0]]), 6)
    assert [text.get_text() for text in axes.texts] == ["<1", "100", "100"]


def test_a_run_that_trained_nothing_has_a_report(tmp_path):
    made_up(tmp_path, 5, history="epoch,test_top1\n0,40.0\n")
    assert len(pictures(parsed(write_report(RunFolder(tmp_path)).read_text()))) == 4


def test_classes_without_test_images_and_undefined_calibration(tmp_path):
    made_up(tmp_path, 4)
    counts = np.array([300, 50, 5, 0])
    outcome = (np.array([0, 1]), np.array([0, 0]), np.array([0.5, np.nan]))
    evaluation = evaluate_predictions(*outcome, counts)
    write_evaluation(RunFolder(tmp_path), evaluation, list("abcd"), counts)
    summary = json.loads((tmp_path / "summary.json").read_text())
    summary |= {"few": None, "calibration_error": None}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    tree = parsed(write_report(RunFolder(tmp_path)).read_text())
    _, values = key_numbers(tree)
    assert (values[3], values[6]) == ("-", "-")
    *_, classes, _run = tables(tree)
    assert classes[3] == ["c", "", "5", "0", "-", "-"]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("summary.json", None, "expected the folder of a finished run"),
        ("summary.json", "{", "summary.json: not JSON"),
        ("summary.json", '{"method": "ce"}', "summary.json: a value is missing"),
        ("confusion.csv", None, "has no confusion.csv"),
        ("confusion.csv", "class,predicted,images\n0,0,x\n", "line 2: invalid literal"),
        ("confusion.csv", "class,predicted,images\n0,9,1\n", r"classes in \[0, 5\)"),
        ("confusion.csv", "class,predicted,images\n0,0,1\n", "do not sum"),
        ("confusion.csv", "class,images\n0,1\n", "none called predicted"),
        ("calibration.csv", "above,to,images,accuracy,confidence\n", "do not sum"),
        ("metrics.csv", "epoch,loss\n1\n", "line 2: zip"),
        ("per_class.csv", "", "line 1: expected the columns class, name"),
        ("per_class.csv", b"\xff", "per_class.csv: not UTF-8"),
    ],
)
def test_damaged_folders_are_named(tmp_path, capsys, file, content, message):
    made_up(tmp_path, 5)
    path = tmp_path / file
    if content is None:
        path.unlink()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        write_report(RunFolder(tmp_path))
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "report.html").exists()


def test_sub_classes_have_their_part(tmp_path):
    config, _ = parse_options(
        "--preset digits-lt/cws --model.backbone resnet20 --epochs 2 --device cpu "
        "--precision fp32 --method.split_from 0.5".split()
    )
    trainer = Trainer(config, tmp_path)
    trainer.fit()
    page = (tmp_path / "report.html").read_text()
    assert "<h2>Sub-classes</h2>" in page
    found = read_subclasses(RunFolder(tmp_path))
    # 144, 103, 74 and 53 images: four rows each, as the preset's limit says.
    assert found.classes.tolist() == [0, 1, 2, 3]
    assert [found.sizes[-1, found.rows(c)].sum() for c in range(4)] == [
        144,
        103,
        74,
        53,
    ]
    assert found.images.shape == (16, 10, 8, 8, 3)
    assert found.moments.tolist() == [0.5, 1.0]
    sizes = found.sizes[-1, found.rows(0)] / 144
    used = np.exp(-sum(p * np.log(p) for p in sizes if p > 0))
    assert found.perplexity()[0] == pytest.approx(used)
    assert f"<td>{used:.1f} of 4</td>" in page
    assert "sub-classes in use" in page
    for name in SUBCLASS_FIGURES:
        with Image.open(tmp_path / name) as picture:
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 50
    (tmp_path / "subclasses.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(ValueError, match=r"subclasses\.npz: BadZipFile"):
        write_report(RunFolder(tmp_path))


def test_runs_without_sub_classes_have_no_such_part(trained):
    page = (trained.folder.path / "report.html").read_text()
    assert "Sub-classes" not in page
    assert "sub-classes" not in page


def test_the_effective_number_of_sub_classes():
    nothing = np.empty(0)
    sizes = np.array([[1.0, 1, 1, 1, 1, 1, 1], [30, 30, 30, 50, 0, 0, 0]])
    offsets, moments = np.array([0, 3, 5, 6, 7]), np.array([0.5, 1])
    found = Subclasses(offsets, moments, sizes, *[nothing] * 6)
    np.testing.assert_allclose(found.perplexity(), [3, 1, 1, 1])
