"""Mixed views: draws, boxes, pixels and label weights against plain transcriptions."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from s3h_ext.data import ImageSet
from s3h_ext.data.source import batches
from s3h_ext.data.streams import Stream
from s3h_ext.data.views import mixing
from s3h_ext.data.views.mixing import Mixing
from s3h_ext.data.views.recipes import get_recipe
from s3h_ext.ops.philox import philox_words

from .sources import COUNTS, MEAN, STD, joined, noisy_images, source_of_arrays

SIZE = (16, 20)
SEED, EPOCHS = 3, 4
# Boxes that are copied, by operations on bytes, and resized.
COPIED = ("crop-flip-jitter-gray", "autoaugment+cutout")
RESIZED = "resized-crop-flip-jitter"


@pytest.fixture(scope="module")
def image_set():
    return noisy_images(*SIZE)


def make(image_set, stream, **changes):
    arguments = {"epochs": EPOCHS, "seed": SEED} | changes
    return source_of_arrays(image_set, {"mixed": stream}, **arguments)


def all_of(source, epoch=1, start_step=0):
    """An epoch's batches joined: images, indices and what is mixed in, by field."""
    steps = [step["mixed"] for step in source.epoch(epoch, start_step)]
    fields = ("labels", "indices", "weights", "boxes")
    return {
        "images": torch.cat([step.images for step in steps], dim=1),
        "labels": torch.cat([step.labels for step in steps]),
        "own": torch.cat([step.indices for step in steps]),
        **{
            field: torch.cat([getattr(step.mixed, field) for step in steps], dim=1)
            for field in fields
        },
    }


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def one_draw(labels, mix, index, view, step, progress, epoch=1, size=SIZE):
    """The module's docstrings for one view, in whole numbers and floats of Python."""

    def words(number, at):
        address = {"seed": SEED, "epoch": epoch, "stream": 192, "draws": 6}
        found = philox_words(index=torch.tensor([number]), view=at, **address)
        return found[0].tolist()

    own = words(index, view)
    shared = own if mix.unit == "image" else words(step, 2**23 + 0)
    counts = np.bincount(labels)
    chances = {
        "class-balanced": np.ones(5),
        "instance-balanced": counts,
        "square-root": counts**0.5,
        "progressive": (1 - progress) * counts / counts.sum() + progress / 5,
    }[mix.sampler]
    ends = np.rint((chances / chances.sum()).cumsum() * 2**32)
    chosen = int((own[0] >= ends[:-1]).sum())
    members = np.flatnonzero(labels == chosen)
    partner = int(members[own[1] * len(members) // 2**32])
    active = mix.start <= progress < mix.end
    if not active or shared[2] >= round(mix.probability * 2**32):
        return index, 1.0, [0, 0, 0, 0]
    weight = shared[3] / 2**32
    if mix.kind == "mixup":
        return partner, weight, [0, 0, *size]
    top, left = (shared[4 + axis] * size[axis] // 2**32 for axis in (0, 1))
    height, width = (int((1 - weight) ** 0.5 * side) for side in size)
    top, left = top - height // 2, left - width // 2
    bottom, right = min(top + height, size[0]), min(left + width, size[1])
    top, left = max(top, 0), max(left, 0)
    area = max(bottom - top, 0) * max(right - left, 0)
    if area == 0:
        return index, 1.0, [0, 0, 0, 0]
    weight = 1 - area / (size[0] * size[1])
    return partner, weight, [top, left, bottom - top, right - left]


@pytest.mark.parametrize(
    "mix",
    [
        Mixing(),
        Mixing("mixup", 1.0, "instance-balanced"),
        Mixing("cutmix", 0.7, "square-root", "batch"),
        Mixing("mixup", 0.3, "progressive", "batch"),
        Mixing(start=0.25, end=0.5),
        Mixing(start=0.5),
        Mixing(end=0.25),
    ],
    ids=str,
)
def test_draws_are_those_of_a_plain_transcription(image_set, mix):
    source = make(image_set, Stream(recipe="crop-flip", mixing=mix))
    steps = [step["mixed"] for step in source.epoch(1)]
    seen = 0
    for number, batch in enumerate(steps):
        mixed = batch.mixed
        for place, index in enumerate(batch.indices.tolist()):
            partner, weight, box = one_draw(
                image_set.labels, mix, index, 0, number, 1 / EPOCHS
            )
            assert int(mixed.indices[0, place]) == partner
            assert mixed.boxes[0, place].tolist() == box
            assert float(mixed.weights[0, place]) == np.float32(weight)
            assert int(mixed.labels[0, place]) == image_set.labels[partner]
            seen += box[2] > 0
    expected = mix.probability * 120 if mix.active(1 / EPOCHS) else 0
    if mix.unit == "image":
        assert abs(seen - expected) <= 4 * np.sqrt(expected)


def boxes_of(weight, top, left, size=SIZE):
    words = torch.tensor([[0, 0, 0, 0, top, left]])
    weights = torch.tensor([weight], dtype=torch.float64)
    return mixing._boxes(words, weights, size)[0].tolist()


def test_boxes_at_the_edges():
    last = 2**32 - 1
    middle = 2**31
    # All of the view, and all but what the odd pixel leaves.
    assert boxes_of(0.0, middle, middle) == [0, 0, 16, 20]
    assert boxes_of(0.0, middle, middle, (15, 15)) == [0, 0, 15, 15]
    # Corners: half of a box lies outside.
    assert boxes_of(0.0, 0, 0) == [0, 0, 8, 10]
    assert boxes_of(0.0, last, last) == [7, 9, 9, 11]
    # One pixel, at both ends of each axis and in a view of one pixel.
    small = 1 - (1.5 / 16) ** 2
    assert boxes_of(small, 0, 0) == [0, 0, 1, 1]
    assert boxes_of(small, last, last) == [15, 19, 1, 1]
    assert boxes_of(0.0, middle, 0, (1, 1)) == [0, 0, 1, 1]
    # None: a side is shorter than a pixel.
    assert boxes_of(1 - 2.0**-32, middle, middle)[2:] == [0, 0]
    assert boxes_of(1 - (1 / 18) ** 2, middle, middle)[2:] == [0, 1]


def planted(monkeypatch, weight, top, left):
    """All views are mixed, with this box."""

    def words(**address):
        found = philox_words(**address)
        if address["stream"] >= 192:
            found[..., 2] = 0
            found[..., 3:] = torch.tensor([weight, top, left])
        return found

    monkeypatch.setattr(mixing, "philox_words", words)


def apart(source, recipe, drawn, size=SIZE):
    """The views that are mixed, each rendered as a whole: own ones and partners."""
    renderer = source.pixels.render
    views = []
    for images, view in ((drawn["own"], 0), (drawn["indices"][0], 2**23)):
        crops = get_recipe(recipe).describe(
            *size, seed=SEED, epoch=1, index=drawn["own"], view=view, stream=0
        )
        views.append(renderer(images, crops, get_recipe(recipe)))
    return views


@pytest.mark.parametrize("recipe", COPIED)
@pytest.mark.parametrize(
    ("box", "area"),
    [
        (None, None),
        ((0, 2**31, 2**31), 320),  # all of the view
        ((0, 0, 0), 80),  # the corner of such a box
        ((round((1 - (1.5 / 16) ** 2) * 2**32), 0, 0), 1),
    ],
)
def test_pasted_pixels_are_those_of_the_other_view(
    image_set, recipe, box, area, monkeypatch
):
    if box is not None:
        planted(monkeypatch, *box)
    source = make(image_set, Stream(recipe=recipe, mixing=Mixing(probability=0.8)))
    drawn = all_of(source)
    own, other = apart(source, recipe, drawn)
    areas = drawn["boxes"][0, :, 2:].prod(-1)
    assert (areas > 0).any()
    assert area is None or areas.unique().tolist() == [area]
    for number, (top, left, height, width) in enumerate(drawn["boxes"][0].tolist()):
        right = own[number].clone()
        bottom, end = top + height, left + width
        right[:, top:bottom, left:end] = other[number][:, top:bottom, left:end]
        assert torch.equal(drawn["images"][0, number], right)
    assert torch.equal(drawn["weights"][0], (1 - areas.double() / 320).float())


def test_of_resized_crops_the_part_is_cut_at_whole_pixels(image_set, monkeypatch):
    source = make(image_set, Stream(recipe="resized-crop-flip", mixing=Mixing()))
    drawn = all_of(source)
    recipe = get_recipe("resized-crop-flip")
    own, _ = apart(source, "resized-crop-flip", drawn)
    crops = recipe.describe(*SIZE, seed=SEED, epoch=1, index=drawn["own"], view=2**23)
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    thin = 0
    for number, (top, left, height, width) in enumerate(drawn["boxes"][0].tolist()):
        right = own[number].clone()
        if height:
            y, x, rows, columns = crops.box[number].tolist()
            left_in = 20 - left - width if crops.flip[number] else left

            def edge(at, pixels, side):
                return int(np.floor(at * pixels / side + 0.5))

            first = min(edge(top, rows, 16), rows - 1)
            last = max(edge(top + height, rows, 16), first + 1)
            near = min(edge(left_in, columns, 20), columns - 1)
            far = max(edge(left_in + width, columns, 20), near + 1)
            thin += last - first == 1 or far - near == 1
            image = torch.tensor(image_set.images[int(drawn["indices"][0, number])])
            part = image[y + first : y + last, x + near : x + far].double()
            part = part.flip(1) if crops.flip[number] else part
            planes = part.permute(2, 0, 1)[None] / 255
            turned = width == 1  # PyTorch 2.13 repeats rows there
            size = (height, width)
            if turned:
                planes, size = planes.mT, (width, height)
            how = {"size": size, "mode": "bilinear", "antialias": True}
            planes = F.interpolate(planes.contiguous(), **how)
            planes = planes.mT if turned else planes
            right[:, top : top + height, left : left + width] = (planes[0] - mean) / std
        found = drawn["images"][0, number]
        torch.testing.assert_close(found, right, rtol=0, atol=2e-3)
        outside = torch.ones(SIZE, dtype=torch.bool)
        outside[top : top + height, left : left + width] = False
        assert torch.equal(found[:, outside], own[number][:, outside])
    assert thin > 0


@pytest.mark.parametrize("recipe", [*COPIED, RESIZED])
def test_mixup_blends_two_views(image_set, recipe):
    stream = Stream(recipe=recipe, mixing=Mixing("mixup", 0.6))
    source = make(image_set, stream)
    drawn = all_of(source)
    own, other = apart(source, recipe, drawn)
    weights = drawn["weights"][0][:, None, None, None]
    right = weights.double() * own + (1 - weights.double()) * other
    mixed = drawn["boxes"][0, :, 2] > 0
    assert 40 < mixed.sum() < 100
    found = drawn["images"][0]
    torch.testing.assert_close(found[mixed].double(), right[mixed], rtol=0, atol=1e-6)
    assert torch.equal(found[~mixed], own[~mixed])


@pytest.mark.parametrize("kind", ["cutmix", "mixup"])
@pytest.mark.parametrize("recipe", [*COPIED, RESIZED])
def test_devices_that_render_all_partners_give_the_same_bits(
    image_set, recipe, kind, monkeypatch
):
    stream = Stream(recipe=recipe, mixing=Mixing(kind))
    right = all_of(make(image_set, stream))
    monkeypatch.setattr(batches, "_rows", lambda mixed: torch.arange(len(mixed)))
    assert_same(all_of(make(image_set, stream)), right)


@pytest.mark.parametrize("kind", ["cutmix", "mixup"])
@pytest.mark.parametrize("views", [1, 3])
def test_batches_resume_and_processes_change_nothing(image_set, kind, views):
    more = {"views": views, "mixing": Mixing(kind)}
    stream = Stream("class-balanced", "autoaugment+cutout", **more)
    whole = make(image_set, stream)
    right = all_of(whole)
    assert_same(all_of(make(image_set, stream, batch_size=17)), right)
    tail = all_of(whole, start_step=2)
    start = len(right["own"]) - len(tail["own"])
    for name, tensor in tail.items():
        cut = right[name] if tensor.dim() == 1 else right[name].transpose(0, 1)
        tensor = tensor if tensor.dim() == 1 else tensor.transpose(0, 1)
        assert torch.equal(tensor, cut[start:])
    parts = [
        list(make(image_set, stream, rank=rank, world_size=2).epoch(1))
        for rank in range(2)
    ]
    for step, *shares in zip(whole.epoch(1), *parts, strict=True):
        found = joined([share["mixed"] for share in shares])
        assert all(map(torch.equal, found, step["mixed"].tensors()))


def test_a_batch_is_mixed_alike_in_all_processes(image_set):
    stream = Stream(recipe="crop-flip", mixing=Mixing(unit="batch"))
    found = []
    for size in (1, 3):
        plan = {"world_size": size}
        sources = [make(image_set, stream, rank=r, **plan) for r in range(size)]
        for parts in zip(*(source.epoch(1) for source in sources), strict=True):
            boxes = torch.cat([part["mixed"].mixed.boxes for part in parts], dim=1)
            assert len(boxes.unique(dim=1)[0]) == 1
            found.append(boxes[0, 0].tolist())
    assert found[:4] == found[4:]
    assert len({tuple(box) for box in found}) > 2
    resumed = next(make(image_set, stream).epoch(1, 2))["mixed"]
    assert resumed.mixed.boxes[0, 0].tolist() == found[2]


@pytest.mark.parametrize("kind", ["cutmix", "mixup"])
def test_without_a_mixed_view_pixels_are_those_without_mixing(image_set, kind):
    mix = Mixing(kind, start=0.5)
    early, plain = (
        make(image_set, Stream("class-balanced", "autoaugment+cutout", mixing=m))
        for m in (mix, None)
    )
    for step, right in zip(early.epoch(1), plain.epoch(1), strict=True):
        assert torch.equal(step["mixed"].images, right["mixed"].images)
        assert (step["mixed"].mixed.weights == 1).all()
        assert torch.equal(step["mixed"].mixed.labels[0], right["mixed"].labels)
        assert right["mixed"].mixed is None
    late = next(early.epoch(2))["mixed"]
    assert (late.mixed.weights < 1).any()
    # Whatever is mixed, all tensors have their shapes: a recorded step goes on.
    same = next(early.epoch(1))["mixed"]
    for one, other in zip(late.tensors(), same.tensors(), strict=True):
        assert one.shape == other.shape


def test_partners_are_balanced_over_classes_or_not(image_set):
    for sampler, chances in (
        ("class-balanced", np.full(5, 0.2)),
        ("instance-balanced", np.array(COUNTS) / 120),
    ):
        stream = Stream(recipe="crop", mixing=Mixing("mixup", 1.0, sampler))
        source = make(image_set, stream, epochs=20)
        drawn = [
            step["mixed"].mixed.labels.flatten()
            for epoch in range(20)
            for step in source.epoch(epoch)
        ]
        counts = np.bincount(torch.cat(drawn), minlength=5)
        expected = chances * 2400
        assert ((counts - expected) ** 2 / expected).sum() < 18.5  # p = 0.001


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "cutmx"}, "mixing.kind: expected one of .*, cutmix, got 'cutmx'; "),
        ({"unit": "step"}, "mixing.unit"),
        ({"sampler": "balanced"}, "did you mean 'class-balanced'"),
        ({"probability": 0.0}, r"mixing.probability: expected a number in \(0, 1\]"),
        ({"probability": float("nan")}, "mixing.probability"),
        ({"start": 0.5, "end": 0.5}, "mixing.start, mixing.end"),
        ({"end": 1.5}, "mixing.start, mixing.end"),
        ({"start": float("nan")}, "mixing.start, mixing.end"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        Mixing(**options)


def test_montages_are_not_mixed():
    with pytest.raises(ValueError, match="mixing: expected None for a montage"):
        Stream(recipe="montage-2x2", mixing=Mixing())


def test_fallbacks_of_partners_count(image_set):
    stream = Stream(recipe=RESIZED, mixing=Mixing(probability=1.0))
    source = make(image_set, stream)
    list(source.epoch(1))
    mixed = int((all_of(make(image_set, stream))["boxes"][..., 2] > 0).sum())
    assert source.fallbacks()["mixed"][1] == 120 + mixed


def test_grey_images_are_mixed(image_set):
    grey = ImageSet(image_set.images[..., :1], image_set.labels)
    stream = Stream(recipe="crop-flip", mixing=Mixing())
    source = make(grey, stream)
    assert next(source.epoch(0))["mixed"].images.shape == (1, 30, 1, *SIZE)
