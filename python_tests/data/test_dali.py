"""DALI gives what Pillow gives, through the same source."""

import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from s3h_ext.data import Feed, ImageFiles, Stream
from s3h_ext.data.source.decode import PillowDecoder, Unreadable, UnreadableImageError

from . import test_file_source
from .photographs import grow, grow_bad, grow_odd, jpeg, load, noise, rotated
from .sources import assert_same_steps
from .test_file_source import STREAMS, memory_growth

pytest.importorskip("nvidia.dali")

from s3h_ext.data.source.dali import DaliDecoder, _for_dali


def make(data, decoder=None, streams=STREAMS, **changes):
    decoder = decoder or DaliDecoder(data.train, Unreadable(), workers=2)
    return test_file_source.make(data, streams, decoder, **changes)


def assert_same_images(files, order, size):
    batches = np.array_split(order, -(-len(order) // size))
    found, errors = {}, {}
    for kind in (PillowDecoder, DaliDecoder):
        unreadable = Unreadable("skip")
        decoder = kind(files, unreadable, workers=2)
        images = decoder.images(iter(batches), largest=size)
        found[kind] = [image for batch in images for image in batch]
        errors[kind] = unreadable.errors
    for index, ours, theirs in zip(order.tolist(), *found.values(), strict=True):
        if ours is None:
            assert theirs is None, files.name(index)
        else:
            assert torch.equal(ours, theirs), files.name(index)
    assert errors[PillowDecoder].keys() == errors[DaliDecoder].keys()
    return errors[DaliDecoder]


@pytest.mark.parametrize("size", [1, 4, 100])
def test_odd_and_bad_files_come_out_as_from_pillow(tmp_path, size):
    sizes, bad = grow_odd(tmp_path), grow_bad(tmp_path)
    names = [f"odd/{name}" for name in sizes] + [f"class 0/{name}" for name in bad]
    grow(tmp_path, (5, 5))
    names += [str(p.relative_to(tmp_path / "train")) for p in tmp_path.rglob("0*.jpg")]
    files = ImageFiles.of(tmp_path / "train", names, [0] * len(names))
    order = np.random.default_rng(0).permutation(len(names))
    errors = assert_same_images(files, order, size)
    assert {Path(path).name for path in errors} == bad


def test_whole_jpegs_go_to_dali_and_others_to_pillow():
    pixels = noise(0)
    whole = jpeg(pixels)
    for content in (whole, jpeg(pixels, "L"), rotated(pixels, 6), jpeg(pixels[:1, :1])):
        assert _for_dali(content)
    for content in (
        whole[:-1],
        whole[: len(whole) // 2],
        whole[1:],
        whole[:2] + whole[-2:],
        jpeg(pixels, "CMYK"),
        b"",
        b"\xff\xd8\xff" + b"\0" * 40 + b"\xff\xd9",
    ):
        assert not _for_dali(content)


def test_imagenet_comes_out_as_from_pillow(data_root):
    root = data_root / "imagenet-sample"
    names = [str(p.relative_to(root)) for p in sorted(root.rglob("*.JPEG"))][::4]
    assert names
    files = ImageFiles.of(root, names, [0] * len(names))
    assert not assert_same_images(files, np.arange(len(names)), 16)


def test_batches_are_those_of_the_pillow_source(photographs):
    pillow = PillowDecoder(photographs.train, Unreadable())
    for epoch in range(2):
        assert_same_steps(
            make(photographs).epoch(epoch), make(photographs, pillow).epoch(epoch)
        )


@pytest.mark.parametrize("start", [1, 2, 3])
def test_an_epoch_entered_in_the_middle_is_its_tail(photographs, start):
    whole = list(make(photographs).epoch(1))
    assert_same_steps(whole[start:], make(photographs).epoch(1, start))


def test_pixels_stay_what_they_were_while_the_next_are_decoded(photographs):
    files = photographs.train
    batches = np.arange(17).reshape(17, 1)
    found = [b[0] for b in DaliDecoder(files, Unreadable()).images(batches, 1)]
    copies = [image.clone() for image in found]
    list(DaliDecoder(files, Unreadable()).images(batches[::-1], 1))
    pillow = PillowDecoder(files, Unreadable())
    for index, (image, copy) in enumerate(zip(found, copies, strict=True)):
        assert torch.equal(image, copy)
        assert torch.equal(image, pillow.image(index))


def test_the_first_bad_file_ends_the_epoch_by_its_path(tmp_path):
    bad = grow_bad(tmp_path)
    data = load(tmp_path)
    source = Feed("dali").training(data, STREAMS, batch_size=8, epochs=2, seed=0)
    said = rf"class 0/({'|'.join(bad)}): expec"
    with pytest.raises(UnreadableImageError, match=said):
        list(source.epoch(0))


def test_threads_end_with_the_iteration(photographs):
    steps = make(photographs, batch_size=2).epoch(0)
    next(steps)
    steps.close()
    assert not any(t.name.startswith("s3h-decode") for t in threading.enumerate())


def test_memory_stays_flat(tmp_path):
    grow(tmp_path, (8, 8), size=(200, 300))
    data = load(tmp_path, (), (1, 1), size=64)
    streams = {"pair": Stream(recipe="supcon", views=2)}
    source = make(data, streams=streams, batch_size=8, epochs=100)
    # 100 more batches of 1.4 MB of pixels, and 50 more pipelines.
    assert memory_growth(source) < 30


def test_without_dali_it_says_how_to_get_it(photographs, monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(ImportError, match=r"pip install 's3h-ext\[dali-cuda13\]'"):
        Feed("dali").evaluation(photographs.test, photographs, batch_size=2)
