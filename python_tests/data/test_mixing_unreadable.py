"""Mixing where images cannot be read."""

import torch

from python_tests.data.test_mixing import RESIZED
from s3h_ext.data.source.decode import PillowDecoder, Unreadable
from s3h_ext.data.streams import Stream
from s3h_ext.data.views.mixing import Mixing

from .photographs import grow_bad, load
from .sources import source_of_files


def make(data, batch_size, unreadable):
    mix = Mixing(probability=1.0, sampler="instance-balanced")
    streams = {"mixed": Stream(recipe=RESIZED, mixing=mix)}
    decoder = PillowDecoder(data.train, unreadable)
    return source_of_files(data, streams, decoder, batch_size=batch_size, epochs=1)


def test_nothing_is_mixed_in_for_an_image_that_cannot_be_read(tmp_path):
    bad = grow_bad(tmp_path)
    unreadable = Unreadable("skip")
    (step,) = make(load(tmp_path, (9, 1), (1, 1)), 15, unreadable).epoch(0)
    mixed, own = step["mixed"].mixed, step["mixed"].indices
    assert len(own) == 10
    assert {path.rpartition("/")[2] for path in unreadable.errors} == bad
    alone = mixed.weights[0] == 1
    assert 0 < alone.sum() < 10
    assert torch.equal(mixed.indices[0][alone], own[alone])
    readable = {int(index) for index in own}
    assert {int(index) for index in mixed.indices.flatten()} <= readable


def test_what_stands_in_for_an_unreadable_image_is_mixed_by_its_address(tmp_path):
    grow_bad(tmp_path)
    data = load(tmp_path, (9, 2), (1, 1))

    def shown(batch_size):
        found = {}
        for step in make(data, batch_size, Unreadable("skip")).epoch(0):
            batch = step["mixed"]
            partners, weights = batch.mixed.indices[0], batch.mixed.weights[0]
            for place, index in enumerate(batch.indices.tolist()):
                found[index] = int(partners[place]), float(weights[place])
        return found

    together = shown(len(data.train))
    assert any(weight < 1 for _, weight in together.values())
    for batch_size in (1, 2, 5):  # some hold no image that can be read
        assert shown(batch_size) == together
