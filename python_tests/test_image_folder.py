"""An image folder, from `train` to a report, predictions and ONNX."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from python_tests.small_runs import SMALL
from s3h_ext import evaluate, export, predict, train
from s3h_ext.report import __main__ as report
from s3h_ext.table_files import plain_text

#: Classes and how many images they have: unequal by nature, and names as people give.
CLASSES = {
    "Große Katze": 20,
    "дом": 15,
    "犬": 12,
    "a, b; c": 10,
    "it's": 8,
    'quoted "x"': 7,
    "100% #1": 6,
    " leading space": 5,
    "é (accent apart)": 5,
    "-dash": 4,
    "under_score": 3,
    "z.dot": 3,
}
ODD = ["{} image.png", "ü {}.PNG", "日本 {}.jpg", "{}, '\".jpeg", "a&b;{}$.png"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos of things")
    random = np.random.default_rng(0)
    for label, (name, count) in enumerate(CLASSES.items()):
        (root / name).mkdir()
        for number in range(count):
            size = tuple(random.integers(30, 60, 2))
            pixels = random.integers(0, 90, (*size, 3)) + 12 * label
            path = root / name / ODD[number % len(ODD)].format(number)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return root


def test_from_a_folder_to_a_report_predictions_and_onnx(folder, tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    run = tmp_path / "run of ünits"
    options = [*SMALL, "--preset", "folder/ce", "--report", "true", "--epochs", "2"]
    options += "--data.size 32 --batch_size 32 --data.workers 1".split()
    assert train.main([*options, "--data.root", str(folder), "--output", str(run)]) == 0
    assert (run / "report.html").is_file()
    (run / "report.html").unlink()
    assert report.main([str(run)]) == 0
    assert "Große Katze" in (run / "report.html").read_text(encoding="utf-8")

    assert evaluate.main([str(run), "--device", "cpu"]) == 0
    summary = json.loads((run / "summary.json").read_text())
    found = json.loads((run / "evaluation-test" / "metrics.json").read_text())
    assert found["top1"] == summary["top1"]

    answers = tmp_path / "answers.csv"
    arguments = [str(run), str(folder), "--output", str(answers), "--device", "cpu"]
    assert predict.main([*arguments, "--top", "12"]) == 0
    with answers.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(CLASSES.values())
    files = {str(path) for path in folder.rglob("*") if path.is_file()}
    assert {row["path"] for row in rows} == files
    for row in rows:
        names = {plain_text(row[f"name_{rank}"]) for rank in range(1, 13)}
        assert names == set(CLASSES)
        total = sum(float(row[f"probability_{rank}"]) for rank in range(1, 13))
        assert total == pytest.approx(1, abs=1e-5)

    assert export.main([str(run)]) == 0
    session = onnxruntime.InferenceSession((run / "model.onnx").read_bytes())
    about = session.get_modelmeta().custom_metadata_map
    assert set(json.loads(about["classes"])) == set(CLASSES)
    steps = json.loads(about["preprocessing"])
    assert (steps["height"], steps["crop_share_of_shorter_side"]) == (32, 224 / 256)
    assert capsys.readouterr().err.count("error") == 0
