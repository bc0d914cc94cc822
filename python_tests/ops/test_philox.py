import numpy as np
import pytest
import torch

from s3h_ext.ops.philox import philox4x32, philox_uniform, philox_words

# Known-answer vectors of Random123 (kat_vectors, philox4x32 with 10 rounds).
KNOWN_ANSWERS = [
    ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        *((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def reference_philox(counter, key):
    """Philox4x32-10 in unbounded Python integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [
            (p1 >> 32) ^ c[1] ^ k[0],
            p1 & 0xFFFFFFFF,
            (p0 >> 32) ^ c[3] ^ k[1],
            p0 & 0xFFFFFFFF,
        ]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers(counter, key, expected):
    words = philox4x32(tuple(torch.tensor([word]) for word in counter), key)
    assert tuple(int(word) for word in words) == expected


def test_every_address_field_lands_in_its_counter_word():
    index, view, seed, epoch, stream = 0x1234_9ABCDEF0, 0x00ABCDEF, 7, 0xFFFFFFFE, 0xC5
    place = {"index": torch.tensor([index]), "view": torch.tensor([view])}
    address = {"seed": seed, "epoch": epoch, "stream": stream, **place}
    words = philox_words(**address, draws=11)[0].tolist()
    expected = [
        word
        for block in range(3)
        for word in reference_philox(
            (0x9ABCDEF0, 0x1234, view | stream << 24, block), (seed, epoch)
        )
    ]
    assert words == expected[:11]


def test_uniforms_are_the_upper_24_bits():
    address = {"seed": 3, "epoch": 4, "index": torch.arange(1000), "view": 2}
    words = philox_words(**address, draws=5)
    uniforms = philox_uniform(**address, draws=5)
    assert uniforms.dtype == torch.float32
    assert uniforms.shape == (1000, 5)
    assert torch.equal(uniforms.double(), (words >> 8).double() / 2**24)
    assert uniforms.min() >= 0
    assert uniforms.max() < 1


def test_uniforms_look_uniform():
    uniforms = philox_uniform(
        seed=0, epoch=0, index=torch.arange(50_000), view=0, draws=4
    )
    for column in uniforms.T.numpy():
        observed = np.histogram(column, bins=64, range=(0, 1))[0]
        chi_square = ((observed - 50_000 / 64) ** 2 / (50_000 / 64)).sum()
        # 63 degrees of freedom: mean 63, deviation 11.
        assert chi_square < 63 + 6 * 11.3
    correlation = np.corrcoef(uniforms.T.numpy())
    assert np.abs(correlation - np.eye(4)).max() < 6 / np.sqrt(50_000)


def test_a_draw_depends_on_its_address_alone():
    index = torch.randperm(257)
    views = torch.arange(257) % 5
    whole = philox_uniform(seed=1, epoch=2, index=index, view=views, draws=9)
    for row in (0, 100, 256):
        part = {"index": index[row : row + 1], "view": int(views[row])}
        alone = philox_uniform(seed=1, epoch=2, **part, draws=3)
        assert torch.equal(alone[0], whole[row, :3])


@pytest.mark.parametrize("field", ["seed", "epoch", "view", "stream", "index"])
def test_every_field_changes_the_draws(field):
    address = {"seed": 1, "epoch": 1, "index": torch.arange(64), "view": 1, "stream": 1}
    other = dict(address)
    other[field] = address[field] + (1000 if field == "index" else 1)
    same = philox_words(**address, draws=4) == philox_words(**other, draws=4)
    assert not same.any()


def test_index_and_view_broadcast():
    index, view = torch.arange(6), torch.arange(3)[:, None]
    grid = philox_uniform(seed=0, epoch=0, index=index, view=view, draws=2)
    assert grid.shape == (3, 6, 2)
    row = philox_uniform(seed=0, epoch=0, index=index, view=2, draws=2)
    assert torch.equal(grid[2], row)


def test_no_draws_and_no_samples():
    index = torch.arange(3)
    assert philox_uniform(seed=0, epoch=0, index=index, view=0, draws=0).shape == (3, 0)
    empty = philox_uniform(seed=0, epoch=0, index=index[:0], view=0, draws=2)
    assert empty.shape == (0, 2)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"seed": -1}, ValueError),
        ({"seed": 1 << 32}, ValueError),
        ({"epoch": 1 << 32}, ValueError),
        ({"stream": 256}, ValueError),
        ({"view": 1 << 24}, ValueError),
        ({"draws": -1}, ValueError),
        ({"index": torch.zeros(2, dtype=torch.int32)}, TypeError),
        ({"view": torch.zeros(2)}, TypeError),
    ],
)
def test_wrong_arguments_are_named(change, error):
    address = {"seed": 0, "epoch": 0, "index": torch.arange(2), "view": 0, "draws": 1}
    with pytest.raises(error, match=next(iter(change))):
        philox_words(**(address | change))
