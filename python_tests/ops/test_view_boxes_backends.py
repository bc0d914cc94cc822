"""One box, three ways: operator, host module, tensor form; and in any pieces."""

import numpy as np
import pytest
import torch

from python_tests.settings import assert_same_bits
from s3h_ext.data.views.host_boxes import sample_view_boxes_host
from s3h_ext.ops.plain import view_boxes as plain_forms
from s3h_ext.ops.view_boxes import sample_view_boxes
from s3h_ext.ops.view_constraints import (
    FOUR_CORNERS,
    HALVES,
    Centre,
    Constraint,
    Grid,
    Overlap,
    PadCrop,
    RandomResizedCrop,
    Whole,
    as_constraint,
)

# Together a million draws.
CONSTRAINTS = [
    (PadCrop(4), 150_000),
    (Whole(), 50_000),
    (Centre(), 50_000),
    (RandomResizedCrop(), 300_000),
    (RandomResizedCrop((0.01, 0.5), (0.1, 10.0), tries=3), 150_000),
    (Constraint(RandomResizedCrop((0.08, 1.0)), FOUR_CORNERS), 150_000),
    (Constraint(RandomResizedCrop(), Grid(3, 2, 0.4, 0.7, pick="drawn")), 50_000),
    (Constraint(RandomResizedCrop(tries=3), overlap=Overlap(0.2, 0.4, 3)), 50_000),
    (Constraint(PadCrop(9), HALVES, Overlap(most=0.3, attempts=3)), 50_000),
]
ADDRESS = {"seed": 0xFEDCBA98, "epoch": 77, "stream": 200}


def draws(count, device="cpu"):
    """Sizes, indices and views; a tenth of the sizes are degenerate or huge."""
    generator = np.random.default_rng(0)
    sizes = generator.integers(100, 640, (count, 2))
    odd = generator.random((count, 2)) < 0.1
    extremes = [1, 2, 3, 7, 5000, (1 << 24) - 1]
    sizes[odd] = generator.choice(extremes, odd.sum())
    indices = generator.integers(0, 1 << 62, count)
    views = generator.integers(0, 1 << 24, count)
    return tuple(
        torch.from_numpy(array).to(device) for array in (sizes, indices, views)
    )


def draw(sizes, constraint, indices, views):
    return sample_view_boxes(
        sizes, constraint, sample_index=indices, view=views, **ADDRESS
    )


def draw_on_host(sizes, constraint, indices, views):
    return sample_view_boxes_host(
        sizes, constraint, sample_index=indices, view=views, **ADDRESS
    )


def plain(sizes, constraint, sample_index, view):
    numbers = as_constraint(constraint).numbers()
    address = ADDRESS.values()
    return plain_forms.sample_view_boxes(sizes, sample_index, view, numbers, *address)


def test_the_exponential_is_one():
    x = torch.linspace(-1.16, 1.16, 1001, dtype=torch.float64)[:, None]
    assert torch.allclose(plain_forms._exp(x), x.exp(), rtol=1e-14, atol=0)


def test_there_are_a_million_draws():
    assert sum(count for _, count in CONSTRAINTS) == 1_000_000


@pytest.mark.parametrize(("constraint", "count"), CONSTRAINTS)
def test_all_forms_give_the_same_bits(constraint, count):
    sizes, indices, views = draws(count)
    drawn = draw(sizes, constraint, indices, views)
    host = draw_on_host(sizes.numpy(), constraint, indices.numpy(), views.numpy())
    box, fallback = plain(sizes, constraint, indices, views)
    assert np.array_equal(drawn.box.numpy(), host.box)
    assert np.array_equal(drawn.fallback.numpy(), host.fallback)
    assert torch.equal(drawn.box, box)
    assert torch.equal(drawn.fallback, fallback)


@pytest.mark.cuda
@pytest.mark.parametrize(("constraint", "count"), CONSTRAINTS)
def test_cuda_gives_the_same_bits(constraint, count):
    sizes, indices, views = draws(count)
    here = draw(sizes, constraint, indices, views)
    there = draw(sizes.cuda(), constraint, indices.cuda(), views.cuda())
    assert torch.equal(here.box, there.box.cpu())
    assert torch.equal(here.fallback, there.fallback.cpu())


@pytest.mark.parametrize(("constraint", "_"), CONSTRAINTS)
def test_batch_order_and_threads_do_not_matter(constraint, _):
    count = 5000
    sizes, indices, views = draws(count)

    def some(rows=slice(None)):
        return draw(sizes[rows], constraint, indices[rows], views[rows])

    whole, order = some(), torch.randperm(count)
    shuffled = some(order)
    assert torch.equal(shuffled.box, whole.box[order])
    assert torch.equal(shuffled.fallback, whole.fallback[order])
    box, _ = assert_same_bits(some, (1, 3))
    assert torch.equal(box, whole.box)
    for row in (0, 1, 4999):
        assert torch.equal(some(slice(row, row + 1)).box[0], whole.box[row])


@pytest.mark.parametrize(("constraint", "_"), CONSTRAINTS)
def test_one_size_and_one_view_for_all(constraint, _):
    count = 2000
    indices = torch.arange(count)
    short = draw((60, 90), constraint, indices, 3)
    # Every other column of a wider tensor: not contiguous.
    sizes = torch.tensor([60, 0, 90, 0]).expand(count, 4)[:, ::2]
    long = draw(sizes, constraint, indices, torch.full((count,), 3))
    host = draw_on_host((60, 90), constraint, indices.numpy(), 3)
    box, _ = plain(torch.tensor([[60, 90]]), constraint, indices, torch.tensor([3]))
    assert torch.equal(short.box, long.box)
    assert np.array_equal(short.box.numpy(), host.box)
    assert torch.equal(short.box, box)


@pytest.mark.parametrize("field", ["seed", "epoch", "stream", "index", "view"])
def test_every_part_of_the_address_counts(field):
    address = {**ADDRESS, "index": 0, "view": 0}
    other = address | {field: address[field] + (1 << 32 if field == "index" else 1)}
    tops_and_lefts = []
    for given in (address, other):
        index = torch.arange(100) + given.pop("index")
        drawn = sample_view_boxes(
            (4096, 4096), PadCrop(4000), sample_index=index, **given
        )
        tops_and_lefts.append(drawn.box[:, :2])
    assert not (tops_and_lefts[0] == tops_and_lefts[1]).all(dim=1).any()


@pytest.mark.parametrize(("constraint", "_"), CONSTRAINTS)
def test_empty_batch(constraint, _):
    none = torch.zeros(0, dtype=torch.int64)
    for box, fallback in (
        draw((8, 8), constraint, none, 0),
        draw(none.view(0, 2), constraint, none, 0),
        draw_on_host((8, 8), constraint, none.numpy(), 0),
        plain(none.view(0, 2), constraint, none, none),
    ):
        assert (box.shape, fallback.shape) == ((0, 4), (0,))


def test_opcheck():
    sizes, indices, views = draws(50)
    numbers = as_constraint(RandomResizedCrop()).numbers()
    for size, view in ((sizes, views), (sizes[:1], views[:1])):
        torch.library.opcheck(
            torch.ops.s3h.sample_view_boxes.default,
            (size, indices, view, numbers, 1, 2, 3),
        )


@pytest.mark.parametrize("position", range(18))
def test_the_operator_refuses_nan_in_a_constraint(position):
    sizes, indices, views = draws(2)
    numbers = as_constraint(RandomResizedCrop()).numbers()
    numbers[position] = float("nan")
    with pytest.raises(RuntimeError, match="constraint: expected .* got -?nan"):
        torch.ops.s3h.sample_view_boxes(sizes, indices, views, numbers, 0, 0, 0)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"seed": -1}, ValueError),
        ({"epoch": 1 << 32}, ValueError),
        ({"stream": 256}, ValueError),
        ({"view": -1}, ValueError),
        ({"view": np.array([0, 1 << 24])}, ValueError),
        ({"view": np.arange(3)}, ValueError),
        ({"view": 0.5}, TypeError),
        ({"sample_index": np.array([0, -1])}, ValueError),
        ({"sample_index": np.zeros((2, 1), np.int64)}, ValueError),
        ({"sample_index": np.zeros(2)}, TypeError),
        ({"sizes": (0, 3)}, ValueError),
        ({"sizes": (3, 3, 3)}, ValueError),
        ({"sizes": np.full((2, 2), 1 << 24)}, ValueError),
        ({"sizes": (3.0, 3.0)}, TypeError),
        ({"constraint": None}, TypeError),
    ],
)
def test_wrong_arguments_of_the_host_are_named(change, error):
    arguments = {
        "sizes": (32, 32),
        "constraint": PadCrop(),
        "seed": 0,
        "epoch": 0,
        "sample_index": np.arange(2),
        "view": 0,
    }
    with pytest.raises(error, match=f"^{next(iter(change))}"):
        sample_view_boxes_host(**(arguments | change))


def test_host_takes_any_integers():
    expected = draw_on_host((9, 9), PadCrop(), np.arange(6), np.arange(6))
    small = draw_on_host(
        np.full((6, 2), 9, np.uint16),
        PadCrop(),
        np.arange(6, dtype=np.int32),
        np.arange(12, dtype=np.uint8)[::2] // 2,
    )
    assert np.array_equal(expected.box, small.box)
