"""One box, three ways: operator, host module, tensor form; and in any pieces."""

import doctest

import numpy as np
import pytest
import torch

from s3h_ext.data.views import host_boxes
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


def plain(sizes, constraint, sample_index, view):
    numbers = as_constraint(constraint).numbers()
    return plain_forms.sample_view_boxes(
        sizes,
        sample_index,
        view,
        numbers,
        ADDRESS["seed"],
        ADDRESS["epoch"],
        ADDRESS["stream"],
    )


def test_the_exponential_is_one():
    x = torch.linspace(-1.16, 1.16, 1001, dtype=torch.float64)[:, None]
    assert torch.allclose(plain_forms._exp(x), x.exp(), rtol=1e-14, atol=0)


def test_there_are_a_million_draws():
    assert sum(count for _, count in CONSTRAINTS) == 1_000_000


@pytest.mark.parametrize(("constraint", "count"), CONSTRAINTS)
def test_all_forms_give_the_same_bits(constraint, count):
    sizes, indices, views = draws(count)
    drawn = sample_view_boxes(
        sizes, constraint, sample_index=indices, view=views, **ADDRESS
    )
    host = sample_view_boxes_host(
        sizes.numpy(),
        constraint,
        sample_index=indices.numpy(),
        view=views.numpy(),
        **ADDRESS,
    )
    box, fallback = plain(sizes, constraint, indices, views)
    assert np.array_equal(drawn.box.numpy(), host.box)
    assert np.array_equal(drawn.fallback.numpy(), host.fallback)
    assert torch.equal(drawn.box, box)
    assert torch.equal(drawn.fallback, fallback)


@pytest.mark.cuda
@pytest.mark.parametrize(("constraint", "count"), CONSTRAINTS)
def test_cuda_gives_the_same_bits(constraint, count):
    sizes, indices, views = draws(count)
    here = sample_view_boxes(
        sizes, constraint, sample_index=indices, view=views, **ADDRESS
    )
    there = sample_view_boxes(
        sizes.cuda(),
        constraint,
        sample_index=indices.cuda(),
        view=views.cuda(),
        **ADDRESS,
    )
    assert torch.equal(here.box, there.box.cpu())
    assert torch.equal(here.fallback, there.fallback.cpu())


@pytest.mark.parametrize(("constraint", "_"), CONSTRAINTS)
def test_batch_order_and_threads_do_not_matter(constraint, _):
    count = 5000
    sizes, indices, views = draws(count)

    def draw(rows):
        return sample_view_boxes(
            sizes[rows],
            constraint,
            sample_index=indices[rows],
            view=views[rows],
            **ADDRESS,
        )

    whole = draw(slice(None))
    order = torch.randperm(count)
    shuffled = draw(order)
    assert torch.equal(shuffled.box, whole.box[order])
    assert torch.equal(shuffled.fallback, whole.fallback[order])
    threads = torch.get_num_threads()
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            assert torch.equal(draw(slice(None)).box, whole.box)
    finally:
        torch.set_num_threads(threads)
    for row in (0, 1, 4999):
        alone = draw(slice(row, row + 1))
        assert torch.equal(alone.box[0], whole.box[row])


@pytest.mark.parametrize(("constraint", "_"), CONSTRAINTS)
def test_one_size_and_one_view_for_all(constraint, _):
    count = 2000
    indices = torch.arange(count)
    short = sample_view_boxes(
        (60, 90), constraint, sample_index=indices, view=3, **ADDRESS
    )
    # Every other column of a wider tensor: not contiguous.
    sizes = torch.tensor([60, 0, 90, 0]).expand(count, 4)[:, ::2]
    long = sample_view_boxes(
        sizes,
        constraint,
        sample_index=indices,
        view=torch.full((count,), 3),
        **ADDRESS,
    )
    host = sample_view_boxes_host(
        (60, 90), constraint, sample_index=indices.numpy(), view=3, **ADDRESS
    )
    box, _ = plain(torch.tensor([[60, 90]]), constraint, indices, torch.tensor([3]))
    assert torch.equal(short.box, long.box)
    assert np.array_equal(short.box.numpy(), host.box)
    assert torch.equal(short.box, box)


@pytest.mark.parametrize("field", ["seed", "epoch", "stream", "index", "view"])
def test_every_part_of_the_address_counts(field):
    address = {**ADDRESS, "index": 0, "view": 0}

    def draw(address):
        rest = {key: value for key, value in address.items() if key != "index"}
        return sample_view_boxes(
            (4096, 4096),
            PadCrop(4000),
            sample_index=torch.arange(100) + address["index"],
            **rest,
        ).box

    other = address | {field: address[field] + (1 << 32 if field == "index" else 1)}
    assert (draw(address) == draw(other))[:, :2].all(dim=1).sum() == 0


@pytest.mark.parametrize(("constraint", "_"), CONSTRAINTS)
def test_empty_batch(constraint, _):
    none = torch.zeros(0, dtype=torch.int64)
    for sizes in ((8, 8), torch.zeros(0, 2, dtype=torch.int64)):
        drawn = sample_view_boxes(
            sizes, constraint, sample_index=none, view=0, **ADDRESS
        )
        assert drawn.box.shape == (0, 4)
        assert drawn.fallback.shape == (0,)
    host = sample_view_boxes_host(
        (8, 8), constraint, sample_index=none.numpy(), view=0, **ADDRESS
    )
    assert (host.box.shape, host.fallback.shape) == ((0, 4), (0,))
    box, fallback = plain(torch.zeros(0, 2, dtype=torch.int64), constraint, none, none)
    assert (box.shape, fallback.shape) == ((0, 4), (0,))


def test_opcheck():
    sizes, indices, views = draws(50)
    numbers = as_constraint(RandomResizedCrop()).numbers()
    for size, view in ((sizes, views), (sizes[:1], views[:1])):
        torch.library.opcheck(
            torch.ops.s3h.sample_view_boxes.default,
            (size, indices, view, numbers, 1, 2, 3),
        )


def test_compile_full_graph():
    constraint = Constraint(RandomResizedCrop(), FOUR_CORNERS, Overlap(0.1, 0.3))

    def draw(indices):
        return sample_view_boxes(
            (40, 50), constraint, sample_index=indices, view=1, **ADDRESS
        )

    indices = torch.arange(20)
    compiled = torch.compile(draw, fullgraph=True, backend="aot_eager")(indices)
    assert torch.equal(compiled.box, draw(indices).box)


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
    expected = sample_view_boxes_host(
        (9, 9), PadCrop(), sample_index=np.arange(6), view=np.arange(6), **ADDRESS
    )
    small = sample_view_boxes_host(
        np.full((6, 2), 9, np.uint16),
        PadCrop(),
        sample_index=np.arange(6, dtype=np.int32),
        view=np.arange(12, dtype=np.uint8)[::2] // 2,
        **ADDRESS,
    )
    assert np.array_equal(expected.box, small.box)


def test_examples():
    assert doctest.testmod(host_boxes).failed == 0
