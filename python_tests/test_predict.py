import csv
import io
import json
import os
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from python_tests.processes import python
from s3h_ext.data import Feed, load_dataset
from s3h_ext.predict import main, predict
from s3h_ext.runs.loading import load_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve test images as files, some with odd names."""
    folder = tmp_path_factory.mktemp("images to name")
    images = load_dataset("digits-lt").test.images[:12]
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:02d} ü,\"'.png")
    return folder


@pytest.fixture(scope="module")
def expected(digits_run):
    run = load_run(digits_run, device="cpu")
    data = load_dataset("digits-lt", val_fraction=0.2)
    batches = Feed().evaluation(data.test, data, batch_size=300)
    with torch.inference_mode():
        logits = run.method.predict(next(iter(batches)).images[0][:12])
    return logits.softmax(1).numpy()


def test_csv_has_the_networks_probabilities(digits_run, folder, expected, capsys):
    options = [str(digits_run), str(folder), "--device", "cpu"]
    assert main([*options, "--top", "3", "--batch-size", "5"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["path"] for row in rows] == [str(p) for p in sorted(folder.iterdir())]
    for row, probabilities in zip(rows, expected, strict=True):
        assert row["error"] == ""
        order = np.argsort(-probabilities)[:3]
        assert [int(row[f"class_{k}"]) for k in (1, 2, 3)] == order.tolist()
        assert [row[f"name_{k}"] for k in (1, 2, 3)] == [str(c) for c in order]
        found = [float(row[f"probability_{k}"]) for k in (1, 2, 3)]
        np.testing.assert_allclose(found, probabilities[order], atol=1e-5)


def test_bad_images_are_reported_and_the_rest_is_done(
    digits_run, folder, tmp_path, capsys
):
    good = sorted(folder.iterdir())[0]
    broken = tmp_path / "broken ß.png"
    broken.write_bytes(good.read_bytes()[:60])
    missing = tmp_path / "missing.png"
    output = tmp_path / "answers.json"
    images = [str(broken), str(good), str(missing), str(good)]
    options = ["--output", str(output), "--device", "cpu"]
    assert main([str(digits_run), *images, *options]) == 1
    answers = json.loads(output.read_text())
    assert [answer["path"] for answer in answers] == images
    assert ["error" in answer for answer in answers] == [True, False, True, False]
    assert answers[2]["error"] == "no such file"
    assert len(answers[1]["predictions"]) == 5
    assert answers[1]["predictions"] == answers[3]["predictions"]
    total = [p["probability"] for p in answers[1]["predictions"]]
    assert total == sorted(total, reverse=True)
    messages = capsys.readouterr().err
    assert f"{broken}: cannot be read as an image" in messages
    assert f"{missing}: no such file" in messages
    assert "2 of the images could not be read" in messages


def test_one_picture_at_a_time_is_held_at_its_own_size(digits_run, monkeypatch):
    pictures, held = [], []

    def read(path, channels):
        picture = np.zeros((90, 80, channels), np.uint8)
        pictures.append(weakref.ref(picture))
        held.append(sum(each() is not None for each in pictures))
        return picture

    monkeypatch.setattr("s3h_ext.predict.read_picture", read)
    answers = list(predict(load_run(digits_run, device="cpu"), [Path("a.png")] * 9))
    assert [error for _, error, _ in answers] == [None] * 9
    assert max(held) <= 2


def test_a_list_on_stdin_with_a_name_that_is_no_text(digits_run, folder, tmp_path):
    odd = os.fsencode(tmp_path) + b"/\xff odd.png"
    with open(odd, "wb") as file:
        file.write(sorted(folder.iterdir())[3].read_bytes())
    plain = os.fsencode(sorted(folder.iterdir())[3])
    command = ["-m", "s3h_ext.predict", digits_run, "-", "--top=1", "--device=cpu"]
    listed = odd + b"\n" + plain + b"\n" + b"nowhere\xfe.png\n"
    result = python(*command, status=1, input=listed, text=False)
    lines = result.stdout.splitlines()
    assert lines[1].startswith(odd + b",,")
    assert b"nowhere\xfe.png,no such file" in lines[3]
    assert lines[1].split(b",")[-3:] == lines[2].split(b",")[-3:]


def test_what_is_done_before_an_error_is_kept(
    digits_run, folder, tmp_path, monkeypatch
):
    paths = sorted(folder.iterdir())

    def interrupted(places):
        yield from paths[:4]
        raise KeyboardInterrupt

    monkeypatch.setattr("s3h_ext.predict.find_pictures", interrupted)
    output = tmp_path / "found.csv"
    options = [str(digits_run), str(folder), "--device", "cpu", "--output", str(output)]
    with pytest.raises(KeyboardInterrupt):
        main([*options, "--batch-size", "2"])
    assert not output.exists()
    lines = (tmp_path / "found.csv.partial").read_text().splitlines()
    assert len(lines) == 5


def test_nothing_to_do(digits_run, tmp_path, capsys):
    assert main([str(digits_run), str(tmp_path)]) == 2
    assert f"images: none in {tmp_path}" in capsys.readouterr().err
    assert main([str(tmp_path), "x.png"]) == 2
    assert "expected the folder of a run" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(digits_run), "x.png", "--top", "0"])
