from dataclasses import replace

import numpy as np
import pytest
import torch

from python_tests.settings import no_waiting
from s3h_ext.data.dataset import ImageSet
from s3h_ext.data.samplers import SAMPLERS
from s3h_ext.data.source import source as module
from s3h_ext.data.source.pixels import ResidentPixels
from s3h_ext.data.streams import Stream
from s3h_ext.data.views.recipes import RECIPES, Recipe
from s3h_ext.ops.view_constraints import RandomResizedCrop

from . import sources
from .sources import MEAN, STD, describe, source_of_arrays

STREAMS = {
    "contrast": Stream("instance-balanced", "supcon", views=2),
    "classifier": Stream("class-balanced", "crop-flip-gray"),
    "root": Stream("square-root", "crop-flip"),
    "moving": Stream("progressive", "crop-flip-jitter-gray", views=3),
    "policy": Stream("instance-balanced", "autoaugment+cutout"),
}


def resident(image_set):
    return ResidentPixels(image_set, mean=MEAN, std=STD)


def make(image_set, streams=STREAMS, **changes):
    return source_of_arrays(image_set, streams, **changes)


def joined(steps, name):
    """All the draws of a stream in order: images [V, N, ...], labels, indices."""
    return sources.joined([step[name] for step in steps])


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def test_shapes_and_memory(image_set):
    source = make(image_set)
    steps = list(source.epoch(0))
    assert len(steps) == source.steps_per_epoch == 4
    for step in steps:
        assert step.keys() == STREAMS.keys()
        for name, batch in step.items():
            views = STREAMS[name].views
            assert batch.images.shape == (views, 30, 3, 16, 16)
            assert batch.images.dtype == torch.float32
            assert batch.images.permute(0, 1, 3, 4, 2).is_contiguous()
            assert batch.images[0].is_contiguous(memory_format=torch.channels_last)
            flat = batch.images.flatten(0, 1)
            assert flat.data_ptr() == batch.images.data_ptr()
            assert flat.is_contiguous(memory_format=torch.channels_last)
            assert batch.labels.dtype == batch.indices.dtype == torch.int64
            assert batch.labels.shape == batch.indices.shape == (30,)
            assert np.array_equal(batch.labels, image_set.labels[batch.indices])


@pytest.mark.parametrize("batch_size", [1, 7, 32, 119, 120, 121, 1000])
def test_batch_sizes_differ_by_one_at_most(image_set, batch_size):
    source = make(image_set, {"a": Stream(), "b": Stream()}, batch_size=batch_size)
    sizes = []
    for step in source.epoch(0):
        assert len(step["a"].labels) == len(step["b"].labels)
        sizes.append(len(step["a"].labels))
    assert len(sizes) == source.steps_per_epoch == -(-120 // batch_size)
    assert sum(sizes) == 120
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


def test_instance_balanced_epoch_shows_every_image_once(image_set):
    source = make(image_set)
    for epoch in range(2):
        _, _, indices = joined(source.epoch(epoch), "contrast")
        assert torch.equal(indices.sort().values, torch.arange(120))


@pytest.mark.parametrize("name", STREAMS)
def test_batch_size_changes_nothing(image_set, name):
    alone = {name: STREAMS[name]}
    whole = joined(make(image_set, alone, batch_size=120).epoch(1), name)
    for batch_size in (1, 13):
        source = make(image_set, alone, batch_size=batch_size)
        assert_same(whole, joined(source.epoch(1), name))


@pytest.mark.parametrize("name", STREAMS)
def test_resuming_gives_the_tail_of_the_epoch(image_set, name):
    source = make(image_set, {name: STREAMS[name]}, batch_size=11)
    steps = list(source.epoch(2))
    for start in (1, 4, len(steps) - 1):
        tail = make(image_set, {name: STREAMS[name]}, batch_size=11)
        tail = tail.epoch(2, start_step=start)
        assert_same(joined(steps[start:], name), joined(tail, name))
    assert list(source.epoch(2, start_step=len(steps))) == []


def test_stretches_described_ahead_do_not_show(image_set, monkeypatch):
    whole = {name: joined(make(image_set).epoch(0), name) for name in STREAMS}
    monkeypatch.setattr(module, "_DRAWN_AT_ONCE", 50)
    for name, expected in whole.items():
        assert_same(expected, joined(make(image_set).epoch(0), name))


def test_epochs_may_be_entered_in_any_order_and_together(image_set):
    source = make(image_set)
    later, earlier = source.epoch(1), source.epoch(0)
    mixed = [(next(later), next(earlier)) for _ in range(source.steps_per_epoch)]
    fresh = make(image_set)
    for epoch, column in ((1, 0), (0, 1)):
        assert_same(
            joined([pair[column] for pair in mixed], "moving"),
            joined(fresh.epoch(epoch), "moving"),
        )


def test_global_generators_do_not_matter(image_set):
    torch.manual_seed(1)
    first = joined(make(image_set).epoch(0), "contrast")
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert_same(first, joined(make(image_set).epoch(0), "contrast"))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", STREAMS)
def test_epochs_and_seeds_draw_differently(image_set, name):
    base = joined(make(image_set).epoch(0), name)
    for other in (make(image_set).epoch(1), make(image_set, seed=1).epoch(0)):
        images, _, indices = joined(other, name)
        assert not torch.equal(base[2], indices)
        # The same image in the other epoch is another view of it.
        common = sorted(set(base[2].tolist()) & set(indices.tolist()))
        same = 0
        for index in common:
            a = base[0][0, (base[2] == index).nonzero()[0, 0]]
            b = images[0, (indices == index).nonzero()[0, 0]]
            same += torch.equal(a, b)
        # Two crop-flips of the 162 coincide now and then.
        assert same <= len(common) // 8


def test_streams_draw_differently(image_set):
    twins = {"a": Stream(views=1), "b": Stream(views=1)}
    source = make(image_set, twins, batch_size=120)
    step = next(source.epoch(0))
    assert not torch.equal(step["a"].indices, step["b"].indices)
    a, b = (step[name].images[0][step[name].indices.argsort()] for name in "ab")
    equal = (a == b).flatten(1).all(dim=1)
    assert equal.float().mean() < 0.1


def test_views_of_an_image_differ(image_set):
    source = make(image_set, {"a": Stream(recipe="supcon", views=4)}, batch_size=120)
    images = next(source.epoch(0))["a"].images
    for first in range(4):
        for second in range(first):
            same = (images[first] == images[second]).flatten(1).all(dim=1)
            assert same.float().mean() < 0.1


def test_more_views_do_not_change_the_first_draw(image_set):
    one, two = (
        next(make(image_set, {"a": Stream(views=n)}).epoch(0))["a"] for n in (1, 2)
    )
    assert torch.equal(one.images[0], two.images[0])


def test_repeats_get_fresh_views(image_set):
    source = make(image_set, {"a": Stream("class-balanced", "supcon", views=2)})
    images, labels, indices = joined(source.epoch(0), "a")
    rare = indices[labels == 4]
    assert len(rare) > 2 * len(rare.unique())
    for index in rare.unique():
        views = images[:, indices == index].flatten(0, 1).flatten(1)
        assert len(torch.unique(views, dim=0)) == len(views)


def test_progressive_stream_moves_to_the_tail(image_set):
    source = make(image_set, {"a": Stream("progressive")}, epochs=100)
    shares = []
    for epochs in (range(20), range(80, 100)):
        tail = 0
        for epoch in epochs:
            tail += (joined(source.epoch(epoch), "a")[1] >= 3).sum().item()
        shares.append(tail / 20 / 120)
    # From 8 of 120 at the start to two classes of five at the end.
    assert shares[0] < 0.17
    assert shares[1] > 0.3


def test_none_recipe_is_the_normalised_image(image_set):
    source = make(image_set, {"a": Stream(recipe="none")})
    images, _, indices = joined(source.epoch(0), "a")
    pixels = torch.from_numpy(image_set.images)[indices].permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (MEAN, STD))
    assert torch.allclose(images[0], (pixels - mean) / std, atol=1e-5)


def test_a_stream_may_follow_another(image_set):
    streams = {
        "classify": Stream("class-balanced", "autoaugment+cutout"),
        "montage": Stream(recipe="montage-2x2", views=2, follows="classify"),
        "again": Stream(recipe="autoaugment+cutout", follows="classify"),
    }
    alone = make(image_set, {"classify": streams["classify"]})
    for step, single in zip(
        make(image_set, streams).epoch(0), alone.epoch(0), strict=True
    ):
        assert torch.equal(step["classify"].images, single["classify"].images)
        for name in ("montage", "again"):
            assert torch.equal(step[name].indices, step["classify"].indices)
            assert torch.equal(step[name].labels, step["classify"].labels)
        # The same images, and draws of its own.
        assert not torch.equal(step["again"].images, step["classify"].images)
        shown = step["montage"].quadrants.indices
        assert torch.equal(shown.unique(), step["classify"].indices.unique())


def test_crops_of_a_step(image_set):
    source = make(image_set, {"a": Stream(recipe="montage-2x2", views=2)})
    crops = source.crops(1, 2)["a"]
    assert crops.box.shape == (8, 30, 4)
    batch = list(source.epoch(1))[2]["a"]
    address = {"epoch": 1, "index": batch.indices, "view": torch.arange(8)[:, None]}
    drawn = describe("montage-2x2", size=(16, 16), **address)
    assert torch.equal(crops.box, drawn.box)
    assert torch.equal(crops.flip, drawn.flip)
    with pytest.raises(ValueError, match="epoch"):
        source.crops(4, 0)
    with pytest.raises(ValueError, match=r"^step: expected 0 \.\. 4, got 5"):
        source.crops(0, 5)


def test_there_are_no_crops_at_the_end_of_an_epoch(image_set):
    streams = {"a": Stream(recipe="montage-2x2", views=2), "b": Stream(follows="a")}
    source = make(image_set, streams)
    crops = source.crops(1, source.steps_per_epoch)
    assert crops["a"].box.shape == (8, 0, 4)
    assert crops["b"].flip.shape == (1, 0)


def test_fallbacks_are_counted(image_set, monkeypatch):
    # No box of the whole area and a ratio other than 1 fits into a square.
    never = Recipe(crop=RandomResizedCrop((1.0, 1.0), (1.2, 1.3)))
    monkeypatch.setitem(RECIPES, "supcon", never)
    source = make(image_set, {"a": Stream(recipe="supcon", views=2), "b": Stream()})
    assert source.fallbacks() == {"a": (0, 0), "b": (0, 0)}
    list(source.epoch(0))
    assert source.fallbacks() == {"a": (240, 240), "b": (0, 120)}


def test_montages_of_odd_images_are_refused_at_once():
    odd = ImageSet(np.zeros((2, 15, 16, 3), np.uint8), np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="even sides, got 15 x 16"):
        make(odd, {"a": Stream(recipe="montage-2x2")})


def test_the_source_keeps_its_own_copy(image_set):
    images, labels = image_set.images.copy(), image_set.labels.copy()
    source = make(ImageSet(images, labels))
    images[:] = 0
    labels[:] = 0
    assert_same(
        joined(source.epoch(0), "root"), joined(make(image_set).epoch(0), "root")
    )


def test_read_only_arrays_are_welcome(image_set):
    images, labels = image_set.images.copy(), image_set.labels.copy()
    images.flags.writeable = labels.flags.writeable = False
    assert make(ImageSet(images, labels)).steps_per_epoch == 4


@pytest.mark.parametrize("sampler", [*SAMPLERS, "2-per-class"])
def test_one_image(sampler):
    single = ImageSet(np.zeros((1, 8, 8, 1), np.uint8), np.zeros(1, np.int64))
    source = make(
        single, {"a": Stream(sampler, "crop", views=2)}, mean=(0.0,), std=(1.0,)
    )
    (step,) = source.epoch(0)
    assert step["a"].images.shape == (2, 1, 1, 8, 8)


FOLLOWS = r"follows: expected .*\(a\)"
FOLLOWED = {"a": Stream(), "b": Stream(follows="a")}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"streams": {}}, "streams"),
        ({"streams": dict.fromkeys(range(65), Stream())}, "expected 1 to 64, got 65"),
        ({"streams": {"a": Stream(), "b": Stream(follows="c")}}, FOLLOWS),
        ({"streams": {"a": Stream(), "b": Stream(follows="b")}}, FOLLOWS),
        ({"streams": {**FOLLOWED, "c": Stream(follows="b")}}, FOLLOWS),
        ({"batch_size": 0}, "batch_size"),
        ({"epochs": 0}, "epochs"),
        ({"seed": -1}, "seed"),
        ({"seed": 1 << 32}, "seed"),
        ({"num_classes": 4}, "labels"),
        ({"mean": (0.5,)}, "mean"),
        ({"dtype": torch.int64}, "dtype"),
    ],
)
def test_wrong_arguments(image_set, changes, name):
    with pytest.raises(ValueError, match=name):
        make(image_set, **changes)


def test_wrong_positions_are_refused_at_once(image_set):
    source = make(image_set)
    for epoch in (-1, 4):
        with pytest.raises(ValueError, match="epoch"):
            source.epoch(epoch)
    for step in (-1, 5):
        with pytest.raises(ValueError, match="start_step"):
            source.epoch(0, start_step=step)


@pytest.mark.cuda
def test_gpu_draws_the_same_and_does_not_synchronise(image_set):
    host = make(image_set)
    device = make(image_set, device="cuda")
    for epoch in range(2):
        steps = device.epoch(epoch)
        drawn = [next(steps)]
        with no_waiting():
            drawn += list(steps)
        expected = list(host.epoch(epoch))
        for name in STREAMS:
            images, labels, indices = joined(drawn, name)
            wanted = joined(expected, name)
            assert torch.equal(indices.cpu(), wanted[2])
            assert torch.equal(labels.cpu(), wanted[1])
            assert torch.allclose(images.cpu(), wanted[0], atol=1e-4)


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("batch_size", [32, 50])
def test_processes_share_a_step_out(image_set, world_size, batch_size):
    streams = {
        **STREAMS,
        "montage": Stream("class-balanced", "montage-2x2", views=2, follows="contrast"),
    }
    whole = make(image_set, streams, batch_size=batch_size)
    plan = {"batch_size": batch_size, "world_size": world_size}
    parts = [make(image_set, streams, rank=r, **plan) for r in range(world_size)]
    assert all(part.steps_per_epoch == whole.steps_per_epoch for part in parts)
    for epoch, start in ((0, 0), (2, 1)):
        rows = [part.epoch(epoch, start) for part in parts]
        for step, *shares in zip(whole.epoch(epoch, start), *rows, strict=True):
            for name, batch in step.items():
                sizes = [len(share[name].labels) for share in shares]
                assert max(sizes) - min(sizes) <= 1
                found = sources.joined([share[name] for share in shares])
                assert all(map(torch.equal, found, batch.tensors()))


@pytest.mark.parametrize("start", [0, 3])
def test_m_images_a_class_resumes_and_is_shared_out(image_set, start):
    streams = {"a": Stream("4-per-class", "crop-flip", views=2)}
    whole = make(image_set, streams, batch_size=16)
    steps = list(whole.epoch(1))[start:]
    if start == 0:  # later ones may hold the end of a round
        assert len(steps[0]["a"].labels.unique()) == 4
    parts = [
        make(image_set, streams, batch_size=16, rank=rank, world_size=2).epoch(1, start)
        for rank in range(2)
    ]
    for step, *shares in zip(steps, *parts, strict=True):
        found = sources.joined([share["a"] for share in shares])
        assert all(map(torch.equal, found, step["a"].tensors()))


def test_more_processes_than_images_in_a_step_are_refused(image_set):
    with pytest.raises(ValueError, match="an image for each of 5 processes"):
        make(image_set, batch_size=4, world_size=5)
    with pytest.raises(ValueError, match="0 <= rank < 2"):
        make(image_set, rank=2, world_size=2)


def test_colours_need_an_image_that_has_them(image_set):
    grey = replace(image_set, images=image_set.images[..., :1])
    with pytest.raises(ValueError, match="recipe: 'crop-flip-gray' changes colours"):
        make(grey, {"a": Stream(recipe="crop-flip-gray")}, mean=(0.5,), std=(0.5,))
