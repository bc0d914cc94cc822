import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from python_tests.processes import python
from python_tests.small_runs import train
from s3h_ext.data import Feed, load_dataset
from s3h_ext.export import check_images, main
from s3h_ext.runs import exporting
from s3h_ext.runs.exporting import ExportError, export_run
from s3h_ext.runs.loading import load_run


@pytest.fixture(scope="module")
def test_split():
    data = load_dataset("digits-lt", val_fraction=0.2)
    batches = Feed().evaluation(data.test, data, batch_size=300)
    return next(iter(batches)).images[0].contiguous()


def logits_of(digits_run, images):
    with torch.inference_mode():
        return load_run(digits_run, device="cpu").method.predict(images).numpy()


def test_onnx_gives_the_networks_logits_and_says_what_it_is(
    digits_run, tmp_path, capsys, test_split
):
    onnxruntime = pytest.importorskip("onnxruntime")
    path = tmp_path / "net ü.onnx"
    assert main([str(digits_run), "--output", str(path)]) == 0
    assert "on 64 images the logits differ by at most" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(path.read_bytes())
    for images in (test_split, test_split[:1]):
        (found,) = session.run(["logits"], {"images": images.numpy()})
        right = logits_of(digits_run, images)
        assert np.abs(found - right).max() <= 1e-4 * np.abs(right).max()
    ends = (*session.get_inputs(), *session.get_outputs())
    assert [end.shape[0] for end in ends] == ["batch", "batch"]
    about = session.get_modelmeta().custom_metadata_map
    check_metadata(about)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def check_metadata(about):
    assert about["run"] == "digits run ü"
    assert about["method"] == "cb-ce"
    assert json.loads(about["classes"]) == list("0123456789")
    steps = json.loads(about["preprocessing"])
    assert steps["orientation"] == "upright by EXIF"
    data = load_dataset("digits-lt", val_fraction=0.2)
    assert steps["mean"] == list(data.mean)
    assert steps["std"] == list(data.std)
    assert (steps["height"], steps["width"], steps["channels"]) == (8, 8, "RGB")


def test_pt2_gives_the_networks_logits_without_us(digits_run, tmp_path, test_split):
    path = tmp_path / "net.pt2"
    assert main([str(digits_run), "--format", "pt2", "--output", str(path)]) == 0
    extra = {"metadata.json": ""}
    program = torch.export.load(path, extra_files=extra)
    check_metadata(json.loads(extra["metadata.json"]))
    for images in (test_split[:7], test_split[:1]):
        found = program.module()(images).detach().numpy()
        right = logits_of(digits_run, images)
        assert np.abs(found - right).max() <= 1e-5 * np.abs(right).max()


def test_images_of_ones_own(digits_run, tmp_path, capsys):
    Image.fromarray(np.full((50, 70, 3), 200, np.uint8)).save(tmp_path / "a.png")
    path = tmp_path / "net.pt2"
    options = [str(digits_run), "--format", "pt2", "--output", str(path)]
    assert main([*options, "--images", str(tmp_path)]) == 0
    assert "on 1 images" in capsys.readouterr().out
    for shade in range(9):
        grey = Image.fromarray(np.full((32, 32, 3), 20 * shade, np.uint8))
        grey.save(tmp_path / f"b{shade}.png")
    run = load_run(digits_run, device="cpu")
    first_and_last = [tmp_path / "a.png", tmp_path / "b8.png"]
    chosen = check_images(run, [tmp_path], limit=2)
    assert torch.equal(chosen, check_images(run, first_and_last))
    (tmp_path / "empty").mkdir()
    assert main([*options, "--images", str(tmp_path / "empty")]) == 2
    assert "images: none in" in capsys.readouterr().err


def test_an_image_that_cannot_be_read_is_named(digits_run, tmp_path, capsys):
    broken, missing = tmp_path / "broken.png", tmp_path / "missing.png"
    broken.write_bytes(b"no image")
    for path in (broken, missing):
        assert main([str(digits_run), "--images", str(path)]) == 2
        assert f"error: --images: {path}: " in capsys.readouterr().err


def test_logits_that_are_not_numbers_are_not_written(digits_run, tmp_path):
    run = load_run(digits_run, device="cpu")
    images = check_images(run, limit=5)
    run.method.model.classifier.weight.data[0] = float("nan")
    with pytest.raises(ExportError, match="logits are not finite"):
        export_run(run, images, tmp_path / "net.pt2", "pt2")
    assert not list(tmp_path.iterdir())


def test_a_network_that_is_not_the_network_is_not_written(
    digits_run, tmp_path, monkeypatch
):
    run = load_run(digits_run, device="cpu")
    images = check_images(run, limit=5)
    make = exporting._pt2

    def spoiled(*arguments):
        content, call = make(*arguments)
        return content, lambda images: call(images) * 1.01

    monkeypatch.setattr(exporting, "_pt2", spoiled)
    with pytest.raises(ExportError, match=r"differ by up to"):
        export_run(run, images, tmp_path / "net.pt2", "pt2")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(digits_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    path = tmp_path / "net.onnx"
    assert main([str(digits_run), "--output", str(path)]) == 2
    message = capsys.readouterr().err
    assert "needs the package onnxruntime" in message
    assert "pip install 's3h_ext[export]'" in message
    assert not path.exists()


@pytest.fixture(scope="module")
def split_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("split") / "run"
    train(folder, *"--preset digits-lt/cws --epochs 1 --method.split_from 0".split())
    return folder


@pytest.mark.parametrize("form", ["onnx", pytest.param("pt2", marks=pytest.mark.slow)])
def test_split_classes_are_exported_as_classes(split_run, form):
    if form == "onnx":
        pytest.importorskip("onnxruntime")
    # A process of its own: after such an export, short names of methods are ambiguous
    # to the parser of options.
    program = (
        "import sys, python_tests.small_digits, s3h_ext.export as export\n"
        "sys.exit(export.main(sys.argv[1:]))"
    )
    python("-c", program, split_run, "--format", form)
    assert (split_run / f"model.{form}").is_file()
