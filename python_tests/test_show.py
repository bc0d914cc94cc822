import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from python_tests.data.photographs import grow_bad, load
from python_tests.data.test_octmnist import write_octmnist
from s3h_ext.data import Feed
from s3h_ext.data.dataset import ImageSet, LongTailDataset
from s3h_ext.data.source.decode import decode_image
from s3h_ext.data.streams import Stream
from s3h_ext.data.views.mixing import Mixing
from s3h_ext.ops import Patches, render_views
from s3h_ext.show import draw_views, main, view_figure

STREAMS = {
    "one": Stream(recipe="crop-flip", views=2),
    "two": Stream(recipe="montage-2x2", follows="one"),
}
WHERE = {"images": 3, "seed": 0, "epoch": 1, "step": 7}


@pytest.fixture(scope="module")
def dataset():
    random = np.random.RandomState(0)
    images = random.randint(0, 256, (40, 16, 16, 3)).astype(np.uint8)
    split = ImageSet(images, random.permutation(np.repeat(np.arange(4), 10)))
    names = ("ant", "bee", "a_very_long_name", "$x_1$")
    return LongTailDataset("tiny", split, None, split, names, (0.5,) * 3, (0.2,) * 3)


def rectangles(axes):
    return [
        [*reversed(patch.get_xy()), patch.get_height(), patch.get_width()]
        for patch in axes.patches
    ]


def test_originals_have_their_boxes_and_montages_their_labels(dataset):
    figure = view_figure(dataset, STREAMS, **WHERE)
    source = Feed().training(dataset, STREAMS, batch_size=3, epochs=2, seed=0)
    titles = [text.get_text() for text in figure.texts]
    assert titles == ["one: crop-flip", "two: montage-2x2"]
    # 40 images in 14 steps: the seventh has two images, so the next one is shown.
    crops = source.crops(1, 8)
    step = next(source.epoch(1, 8))
    assert len(step["one"].labels) == 3
    axes = iter(figure.axes)
    for name, stream in STREAMS.items():
        batch = step[name]
        for row in range(3):
            label = dataset.class_names[int(batch.labels[row])]
            original = next(axes)
            assert original.get_title(loc="left") == f"{'ABC'[row]}  {label}"
            shown = original.images[0].get_array()
            assert np.array_equal(shown, dataset.train.images[batch.indices[row]])
            boxes = crops[name].box[:, row].double()
            boxes[:, :2] -= 0.5
            assert np.allclose(rectangles(original), boxes)
            for view in range(stream.views):
                picture = next(axes)
                if batch.quadrants is None:
                    mirrored = bool(crops[name].flip[view, row])
                    assert picture.get_title(loc="left") == "mirrored" * mirrored
                    continue
                labels = [text.get_text() for text in picture.texts]
                shown = batch.quadrants.indices[view, row].tolist()
                classes = batch.quadrants.labels[view, row].tolist()
                rows = batch.indices.tolist()
                for text, index, c in zip(labels, shown, classes, strict=True):
                    letter, _, words = text.partition(" ")
                    assert letter == "ABC"[rows.index(index)]
                    assert dataset.class_names[c].startswith(words.rstrip("…"))
    assert next(axes, None) is None


def test_picture_is_a_png_of_the_views(dataset):
    picture = draw_views(dataset, STREAMS, dpi=100, **WHERE)
    image = Image.open(io.BytesIO(picture))
    assert image.format == "PNG"
    # Five columns and a gap, of 1.25 inches each.
    assert image.size[0] == int(5.35 * 125)
    assert draw_views(dataset, STREAMS, dpi=100, **WHERE) == picture


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        *(({"images": 0}, "images"), ({"step": 14}, "step"), ({"step": -1}, "step")),
        *(({"epoch": -1}, "epoch"), ({"epochs": 1}, "epoch")),
    ],
)
def test_wrong_arguments(dataset, changes, name):
    with pytest.raises(ValueError, match=f"{name}: expected"):
        view_figure(dataset, STREAMS, **(WHERE | changes))


def test_progressive_streams_follow_the_whole_training(dataset):
    few = dataset.train.subset(np.argsort(dataset.train.labels)[:15])
    data = replace(dataset, train=few)  # ten and five of two classes
    streams = {"one": Stream(sampler="progressive", recipe="none")}
    shown = []
    for epochs in (3, 100):
        where = {"images": 15, "seed": 0, "epoch": 2, "epochs": epochs, "step": 0}
        figure = view_figure(data, streams, **where)
        titles = [axes.get_title(loc="left") for axes in figure.axes[::2]]
        source = Feed().training(data, streams, batch_size=15, epochs=epochs, seed=0)
        labels = next(source.epoch(2))["one"].labels.tolist()
        names = [data.class_names[label] for label in labels]
        assert [title.partition("  ")[2] for title in titles] == names
        shown.append(names)
    assert shown[0] != shown[1]


def test_command_takes_all_options_of_the_data(tmp_path, capsys):
    write_octmnist(tmp_path, 64, [9, 8, 7, 6], [1] * 4, 1)
    out = tmp_path / "views.png"
    arguments = ["--preset", "octmnist-lt/ce", "--data.root", str(tmp_path)]
    arguments += ["--data.size", "64", "--data.imbalance", "2", "--images", "2"]
    arguments += ["--out", str(out), "--epochs", "3", "--epoch"]
    assert main([*arguments, "2"]) == 0
    assert out.is_file()
    assert main([*arguments, "3"]) == 1
    assert "epoch: expected 0 <= epoch < 3, got 3" in capsys.readouterr().err


def test_command(tmp_path, capsys):
    out = tmp_path / "views.png"
    arguments = ["--preset", "digits-lt/hybrid-sc", "--out", str(out)]
    assert main([*arguments, "--images", "2", "--seed", "1"]) == 0
    assert "contrast, classifier of digits-lt" in capsys.readouterr().out
    first = out.read_bytes()
    recipes = ["--recipe", "autoaugment+cutout", "montage-2x2"]
    assert main([*arguments, "--images", "2", *recipes]) == 0
    assert "autoaugment+cutout, montage-2x2 of" in capsys.readouterr().out
    assert out.read_bytes() != first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "digits-lt/cee"], "preset"),
        (["--recipe", "supcan"], "did you mean 'supcon'"),
        (["--epochz", "3"], "epochz"),
    ],
)
def test_command_says_what_is_wrong(tmp_path, capsys, options, message):
    assert main(["--out", str(tmp_path / "a.png"), *options]) == 1
    assert message in capsys.readouterr().err


def mixed_streams(kind):
    mixing = Mixing(kind, probability=1.0)
    return {"one": Stream(recipe="resized-crop-flip", views=2, mixing=mixing)}


@pytest.mark.parametrize("kind", ["cutmix", "mixup"])
def test_mixed_views_name_what_is_mixed_in(dataset, kind):
    streams = mixed_streams(kind)
    figure = view_figure(dataset, streams, **WHERE)
    source = Feed().training(dataset, streams, batch_size=3, epochs=2, seed=0)
    mixed = next(source.epoch(1, 8))["one"].mixed
    pasted = 0
    for row in range(3):
        for view in range(2):
            axes = figure.axes[3 * row + 1 + view]
            box = mixed.boxes[view, row].tolist()
            if box[2] == 0:
                assert not list(axes.patches)
                continue
            share = 100 - 100 * float(mixed.weights[view, row])
            name = dataset.class_names[int(mixed.labels[view, row])]
            assert axes.get_title(loc="left") == f"{share:.0f} % {name}"
            if kind == "mixup":
                assert not list(axes.patches)
            else:
                box = np.array(box) - [0.5, 0.5, 0, 0]
                assert np.allclose(rectangles(axes), [box])
                pasted += 1
    assert kind == "mixup" or pasted > 2


def test_photographs_are_drawn_with_their_boxes(tmp_path):
    data = load(tmp_path)
    streams = {
        "one": Stream(recipe="resized-crop-flip", mixing=Mixing()),
        "two": Stream(recipe="montage-2x2", follows="one"),
    }
    figure = view_figure(data, streams, images=3, seed=0, epoch=0, step=1)
    source = Feed().training(data, streams, batch_size=3, epochs=1, seed=0)
    batches, crops = next(source.epoch(0, 1)), source.crops(0, 1)
    for name, first in (("one", 0), ("two", 2 * 3)):
        for row in range(3):
            axes = figure.axes[first + 2 * row]
            path = data.train.path(int(batches[name].indices[row]))
            image = decode_image(path.read_bytes())
            assert np.array_equal(axes.images[0].get_array(), image)
            boxes = crops[name].box[:, row].double()
            boxes[:, :2] -= 0.5
            assert np.allclose(rectangles(axes), boxes)
    # The boxes are those that the views were cut by.
    batch, crop = batches["one"], crops["one"]
    for row in torch.nonzero(batch.mixed.weights[0] == 1)[:, 0].tolist():
        index = int(batch.indices[row])
        image = decode_image(data.train.path(index).read_bytes())
        place = (crop.box[:, row], crop.flip[:, row])
        patch = Patches(torch.zeros(1, dtype=torch.int64), *place)
        right = render_views([image], patch, out_size=16, mean=data.mean, std=data.std)
        assert torch.equal(batch.images[0, row], right[0])


def test_a_photograph_that_cannot_be_read_is_named(tmp_path, capsys):
    load(tmp_path, (3, 3), (1, 1))
    grow_bad(tmp_path)
    where = ["--data.root", str(tmp_path), "--images", "11", "--preset", "folder/ce"]
    assert main([*where, "--out", str(tmp_path / "a.png")]) == 1
    assert str(tmp_path / "train" / "class 0") in capsys.readouterr().err
    assert not (tmp_path / "a.png").exists()
