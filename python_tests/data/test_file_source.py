"""Photographs through the whole source: draws, order, ranks, resume, bad files."""

import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from s3h_ext.data import Feed, ImageSet, Stream, load_dataset
from s3h_ext.data.source.decode import PillowDecoder, Unreadable, UnreadableImageError
from s3h_ext.data.source.evaluation import EvaluationBatches
from s3h_ext.data.source.pixels import FilePixels
from s3h_ext.data.views.mixing import Mixing
from s3h_ext.ops import sample_view_boxes
from s3h_ext.ops.view_constraints import Centre

from .photographs import grow, grow_bad, grow_odd, load
from .sources import assert_same_steps, joined, source_of_arrays, source_of_files

STREAMS = {
    "contrast": Stream("instance-balanced", "supcon", views=2),
    "classifier": Stream("class-balanced", "resized-crop-flip-gray"),
    "again": Stream(recipe="montage-2x2", follows="contrast"),
    "policy": Stream("square-root", "autoaugment+cutout"),
    "moving": Stream("progressive", "crop-flip"),
}
RESIZED = "resized-crop-flip-jitter"
PAIR = {"pair": Stream(recipe=RESIZED, views=2)}


def make(data, streams=PAIR, decoder=None, **changes):
    return source_of_files(data, streams, decoder, **changes)


def test_images_of_one_size_give_the_bits_of_the_resident_source(tmp_path):
    grow(tmp_path, suffix="png", size=(32, 32))
    grow(tmp_path, (1, 1, 1), suffix="png", size=(32, 32), split="test")
    data = load_dataset("folder", root=tmp_path, size=32)
    decoder = PillowDecoder(data.train, Unreadable())
    images = [decoder.image(i) for i in range(len(data.train))]
    arrays = ImageSet(torch.stack(images).numpy(), data.train.labels)
    mixed = {
        "pasted": Stream(recipe="autoaugment+cutout", mixing=Mixing(), views=2),
        "blended": Stream("class-balanced", RESIZED, mixing=Mixing("mixup")),
        "follower": Stream(
            recipe=RESIZED, follows="blended", mixing=Mixing(unit="batch")
        ),
    }
    options = {"batch_size": 6, "epochs": 3, "seed": 7}
    pixels = {"mean": data.mean, "std": data.std, "num_classes": 3}
    for streams in (STREAMS, mixed):
        resident = source_of_arrays(arrays, streams, **pixels, **options)
        source = make(data, streams, seed=7)
        assert source.steps_per_epoch == resident.steps_per_epoch == 3
        assert_same_steps(source.epoch(1), resident.epoch(1))
        assert source.fallbacks() == resident.fallbacks()


def test_every_image_once_an_epoch_over_the_ranks(photographs):
    for world_size in (1, 2, 3):
        sources = [
            make(photographs, rank=rank, world_size=world_size, batch_size=6)
            for rank in range(world_size)
        ]
        for epoch in range(3):
            parts = [list(source.epoch(epoch)) for source in sources]
            sizes = [[len(step["pair"].indices) for step in part] for part in parts]
            assert np.ptp(sizes) <= 1 if world_size > 1 else True
            found = torch.cat([step["pair"].indices for part in parts for step in part])
            assert torch.equal(found.sort().values, torch.arange(17))


def test_several_ranks_draw_what_one_draws(photographs):
    streams = {name: s for name, s in STREAMS.items() if name != "again"}
    whole = list(make(photographs, streams).epoch(2))
    parts = [
        list(make(photographs, streams, rank=rank, world_size=2).epoch(2))
        for rank in range(2)
    ]
    for step, *shares in zip(whole, *parts, strict=True):
        for name, batch in step.items():
            found = joined([share[name] for share in shares])
            assert all(map(torch.equal, found, batch.tensors()))


def test_sibling_views_epochs_seeds_and_ranks_have_crops_of_their_own(photographs):
    def views(**arguments):
        epoch = arguments.pop("epoch", 0)
        streams = {"pair": Stream(recipe="supcon", views=2)}
        found = {}
        for step in make(photographs, streams, **arguments).epoch(epoch):
            batch = step["pair"]
            for row, index in enumerate(batch.indices.tolist()):
                found[index] = batch.images[:, row]
        return found

    def differ(one, other):
        # A crop and its mirror image are the same crop.
        grey = [x.mean(0) for x in (one, other)]
        assert not torch.allclose(grey[0], grey[1], atol=1e-3)
        assert not torch.allclose(grey[0], grey[1].flip(-1), atol=1e-3)

    first = views()
    for pair in first.values():
        differ(*pair)
    for other in (views(epoch=1), views(seed=1)):
        for index, pair in first.items():
            differ(pair[0], other[index][0])


def test_one_image_under_many_names_is_cropped_anew_each_time(tmp_path):
    for split in ("train", "test"):
        grow(tmp_path, (2, 2), split=split)
    first, *others = sorted((tmp_path / "train").rglob("*.jpg"))
    for path in others:
        path.write_bytes(first.read_bytes())
    data = load_dataset("folder", root=tmp_path, size=16)
    ranks = [make(data, rank=rank, world_size=2, batch_size=4) for rank in range(2)]
    views = torch.cat(
        [step["pair"].images for source in ranks for step in source.epoch(0)], dim=1
    ).flatten(0, 1)
    assert len(views) == 8
    assert len({view.numpy().tobytes() for view in views}) == 8


@pytest.mark.parametrize("start", [1, 2, 3])
def test_an_epoch_entered_in_the_middle_is_its_tail(photographs, start):
    whole = list(make(photographs, STREAMS).epoch(1))
    assert_same_steps(whole[start:], make(photographs, STREAMS).epoch(1, start))


def test_workers_change_nothing(photographs):
    one, four = (
        PillowDecoder(photographs.train, Unreadable(), workers=workers)
        for workers in (1, 4)
    )
    sources = [make(photographs, STREAMS, decoder) for decoder in (one, four)]
    assert_same_steps(*(source.epoch(0) for source in sources))


def bad_folder(root):
    sizes, bad = grow_odd(root), grow_bad(root)
    return load(root, (9, 5), (2, 1)), sizes, bad


def test_odd_images_are_shown_and_bad_ones_left_out_and_counted(tmp_path):
    data, sizes, bad = bad_folder(tmp_path)
    whole = 14 + len(sizes)
    assert len(data.train) == whole + len(bad)
    feed = Feed(unreadable="skip")
    source = feed.training(data, STREAMS, batch_size=8, epochs=2, seed=0)
    for epoch in range(2):
        shown = []
        for step in source.epoch(epoch):
            for name, batch in step.items():
                assert batch.images.isfinite().all()
                assert batch.images.shape[1] == len(batch.indices) == len(batch.labels)
                assert np.array_equal(batch.labels, data.train.labels[batch.indices])
                read = {Path(data.train.name(i)).name for i in batch.indices.tolist()}
                assert not read & bad, name
            shown += step["contrast"].indices.tolist()
        assert len(shown) == len(set(shown)) == whole
    assert {Path(path).name for path in feed.unreadable.errors} == bad
    fallen, drawn = source.fallbacks()["contrast"]
    assert drawn == 2 * 2 * whole
    assert fallen > 0  # a line of 60 pixels has no crop of ratio 3/4 to 4/3


def test_crops_are_those_of_the_views_that_are_shown(tmp_path):
    data, _, bad = bad_folder(tmp_path)
    feed = Feed(unreadable="skip")
    source = feed.training(data, STREAMS, batch_size=8, epochs=2, seed=0)
    shown = 0
    for number, step in enumerate(source.epoch(1)):
        crops = source.crops(1, number)
        for name, batch in step.items():
            per_image = STREAMS[name].views * (4 if batch.quadrants else 1)
            assert crops[name].flip.shape == (per_image, len(batch.indices))
        shown += len(step["contrast"].indices)
    assert shown == len(data.train) - len(bad)


def test_the_first_bad_file_ends_the_epoch_by_its_path(tmp_path):
    data, _, bad = bad_folder(tmp_path)
    source = Feed().training(data, PAIR, batch_size=8, epochs=2, seed=0)
    said = rf"class 0/({'|'.join(bad)}): expec"
    with pytest.raises(UnreadableImageError, match=said):
        list(source.epoch(0))


@pytest.mark.parametrize("world_size", [1, 2])
def test_no_batch_is_empty_while_an_image_can_be_read(tmp_path, world_size):
    data, _, bad = bad_folder(tmp_path)
    names = [Path(data.train.name(i)).name for i in range(len(data.train))]
    for rank in range(world_size):
        feed = Feed(unreadable="skip")
        part = {"rank": rank, "world_size": world_size}
        source = feed.training(
            data, STREAMS, batch_size=world_size, epochs=2, seed=0, **part
        )
        steps = list(source.epoch(0))
        assert len(steps) == source.steps_per_epoch == -(-len(names) // world_size)
        for step in steps:
            assert step.keys() == STREAMS.keys()
            for name, batch in step.items():
                assert len(batch.indices) == len(batch.labels) == 1, name
                assert names[int(batch.indices)] not in bad
                assert batch.images.isfinite().all()
            # What follows shows the stand-in too.
            assert torch.equal(step["again"].indices, step["contrast"].indices)
        assert {Path(path).name for path in feed.unreadable.errors} <= bad
        # It depends on nothing that came before.
        anew = Feed(unreadable="skip").training(
            data, STREAMS, batch_size=world_size, epochs=2, seed=0, **part
        )
        assert_same_steps(anew.epoch(0, 7), steps[7:])


def test_an_epoch_of_which_nothing_can_be_read_ends(tmp_path):
    data = load(tmp_path, (3, 2), (1, 1))
    for path in (tmp_path / "train").rglob("*.jpg"):
        path.write_bytes(b"")
    feed = Feed(unreadable="skip")
    source = feed.training(data, PAIR, batch_size=2, epochs=1, seed=0)
    with pytest.raises(UnreadableImageError, match="none of the 5 training images"):
        list(source.epoch(0))


def test_evaluation_shows_the_centre_of_every_image_in_order(photographs):
    files = photographs.train
    feed = Feed()
    batches = feed.evaluation(files, photographs, batch_size=5)
    assert len(batches) == 4
    found = list(batches)
    assert [len(batch.indices) for batch in found] == [5, 5, 5, 2]
    assert torch.cat([b.indices for b in found]).tolist() == list(range(17))
    assert np.array_equal(torch.cat([b.labels for b in found]), files.labels)
    image = PillowDecoder(files, Unreadable()).image(6)
    address = {"seed": 0, "epoch": 0, "sample_index": torch.tensor([0]), "view": 0}
    drawn = sample_view_boxes(tuple(image.shape[:2]), Centre(224 / 256), **address)
    top, left, height, width = drawn.box[0]
    crop = image[top : top + height, left : left + width].permute(2, 0, 1)[None] / 255
    expected = torch.nn.functional.interpolate(
        crop, size=(16, 16), mode="bilinear", antialias=True
    )
    mean, std = (
        torch.tensor(x).view(3, 1, 1) for x in (photographs.mean, photographs.std)
    )
    view = found[1].images[0, 1] * std + mean
    assert (view - expected[0]).abs().max() < 0.005


def test_evaluation_leaves_bad_images_out(tmp_path):
    data, sizes, bad = bad_folder(tmp_path)
    feed = Feed(unreadable="skip")
    batches = list(feed.evaluation(data.train, data, batch_size=1))
    assert len(batches) == 14 + len(sizes)
    assert len(feed.unreadable.errors) == len(bad)


def test_a_source_that_does_not_fit_the_images_is_refused(photographs):
    with pytest.raises(ValueError, match="the images of folder need pil"):
        Feed("resident").training(photographs, PAIR, batch_size=2, epochs=1, seed=0)
    digits = load_dataset("digits-lt")
    with pytest.raises(ValueError, match="the images of digits-lt need resident"):
        Feed("pil").evaluation(digits.test, digits, batch_size=2)
    with pytest.raises(ValueError, match="source: expected one of .* got 'tf'"):
        Feed("tf")


class CountingDecoder(PillowDecoder):
    """Knows how many of its images are still held, and the most that were at once."""

    def __init__(self, files, **options):
        super().__init__(files, Unreadable(), **options)
        self.held, self.most = weakref.WeakSet(), 0

    def image(self, index):
        image = super().image(index)
        self.held.add(image)
        self.most = max(self.most, len(self.held))
        return image


def test_no_photograph_is_held_longer_than_its_step(tmp_path):
    """One batch that is rendered and two that are decoded."""
    data = load(tmp_path, (40, 40), (1, 1))
    decoder = CountingDecoder(data.train, workers=1)
    for _ in make(data, PAIR, decoder, batch_size=8).epoch(0):
        pass
    assert 8 <= decoder.most <= 24
    decoder = CountingDecoder(data.train, workers=1)
    pixels = FilePixels(data.train, decoder, mean=data.mean, std=data.std)
    for _ in EvaluationBatches(pixels, batch_size=8):
        pass
    assert 8 <= decoder.most <= 24


def resident_megabytes():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def memory_growth(source):
    """MiB by which epochs 10 to 59 need more than the first 10."""
    sizes = []
    for epoch in range(60):
        for _ in source.epoch(epoch):
            pass
        sizes.append(resident_megabytes())
    return max(sizes[10:]) - max(sizes[:10])


def test_memory_stays_flat(tmp_path):
    grow(tmp_path, (8, 8), size=(200, 300))
    data = load(tmp_path, (), (1, 1), size=64)
    source = make(data, batch_size=8, epochs=100)
    assert memory_growth(source) < 15  # 100 more batches of 1.4 MB of pixels
