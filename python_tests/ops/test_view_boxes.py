"""Promises of drawn boxes, one by one; test_view_boxes_backends.py compares forms."""

import hashlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

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
)

SLACK = 1e-9
VIEWS = 16


def ends(low, high):
    return st.tuples(st.floats(low, high), st.floats(low, high)).map(sorted).map(tuple)


shares = st.floats(0.05, 1.0)
resized_crops = st.builds(
    RandomResizedCrop,
    scale=ends(0.01, 1.0),
    ratio=ends(0.1, 10.0),
    tries=st.integers(1, 12),
)
crops = st.one_of(
    st.just(Whole()),
    st.builds(PadCrop, st.integers(0, 20)),
    st.builds(Centre, shares),
    resized_crops,
)
grids = st.builds(
    Grid,
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    height=shares,
    width=shares,
    pick=st.sampled_from(["view", "drawn"]),
)
overlaps = ends(0.0, 1.0).flatmap(
    lambda pair: st.builds(Overlap, st.just(pair[0]), st.just(pair[1]))
)
sides = st.one_of(st.integers(1, 8), st.integers(1, 600), st.just((1 << 24) - 1))
addresses = st.fixed_dictionaries(
    {
        "seed": st.integers(0, (1 << 32) - 1),
        "epoch": st.integers(0, (1 << 32) - 1),
        "stream": st.integers(0, 255),
    }
)
indices = st.integers(0, (1 << 63) - 1)


ORIGIN = {"seed": 0, "epoch": 0, "stream": 0}


def draw(constraint, height, width, address=ORIGIN, index=0, views=VIEWS):
    """Boxes as lists of Python integers, and flags, of views 0 .. views - 1."""
    drawn = sample_view_boxes(
        (height, width),
        constraint,
        sample_index=torch.full((views,), index),
        view=torch.arange(views),
        **address,
    )
    return drawn.box.tolist(), drawn.fallback.tolist()


def side_of(share, side):
    return max(1, math.floor(share * side + 0.5))


def cells_of(grid, height, width):
    """All cells as (top, left, height, width), row by row."""
    h, w = side_of(grid.height, height), side_of(grid.width, width)

    def start(free, number, count):
        return free // 2 if count == 1 else free * number // (count - 1)

    return [
        (start(height - h, r, grid.rows), start(width - w, c, grid.columns), h, w)
        for r in range(grid.rows)
        for c in range(grid.columns)
    ]


def regions_of(grid, height, width, view):
    cells = cells_of(grid, height, width)
    return [cells[view % len(cells)]] if grid.pick == "view" else cells


def iou(a, b):
    down = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    across = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    common = max(down, 0) * max(across, 0)
    return common / (a[2] * a[3] + b[2] * b[3] - common)


def inside(box, region):
    return (
        box[0] >= region[0]
        and box[1] >= region[1]
        and box[0] + box[2] <= region[0] + region[2]
        and box[1] + box[3] <= region[1] + region[3]
    )


@settings(deadline=None)
@given(crops, grids, sides, sides, addresses, indices)
def test_boxes_lie_in_their_region(crop, grid, height, width, address, index):
    boxes, _ = draw(Constraint(crop, grid), height, width, address, index)
    for view, box in enumerate(boxes):
        assert box[2] >= 1
        assert box[3] >= 1
        regions = regions_of(grid, height, width, view)
        assert all(inside(region, (0, 0, height, width)) for region in regions)
        if isinstance(crop, PadCrop):
            shifts = [(box[0] - r[0], box[1] - r[1]) for r in regions]
            assert any(max(map(abs, shift)) <= crop.padding for shift in shifts)
            assert box[2:] == list(regions[0][2:])
        else:
            assert any(inside(box, region) for region in regions)
        if isinstance(crop, Whole):
            assert tuple(box) in regions


@settings(deadline=None)
@given(resized_crops, grids, sides, sides, addresses)
def test_resized_crops_keep_area_and_ratio(crop, grid, height, width, address):
    boxes, fallback = draw(Constraint(crop, grid), height, width, address)
    _, _, region_height, region_width = cells_of(grid, height, width)[0]
    area = region_height * region_width
    low, high = crop.ratio
    # Rounding moves each side by half a pixel at most.
    for (_, _, h, w), missed in zip(boxes, fallback, strict=True):
        if missed:
            continue
        assert (w + 0.5) >= low * (h - 0.5) * (1 - SLACK)
        assert (w - 0.5) <= high * (h + 0.5) * (1 + SLACK)
        assert (w + 0.5) * (h + 0.5) >= crop.scale[0] * area * (1 - SLACK)
        assert (w - 0.5) * (h - 0.5) <= crop.scale[1] * area * (1 + SLACK)


@settings(deadline=None)
@given(
    ends(0.1, 10.0),
    st.integers(1, 12),
    grids,
    st.integers(1, 60),
    st.integers(1, 60),
    addresses,
)
def test_the_fallback_is_the_largest_centred_box(
    ratio, tries, grid, height, width, address
):
    crop = RandomResizedCrop((0.9, 1.0), ratio, tries)
    boxes, fallback = draw(Constraint(crop, grid), height, width, address)
    for view, (box, missed) in enumerate(zip(boxes, fallback, strict=True)):
        if not missed:
            continue
        expected = []
        for top, left, h, w in regions_of(grid, height, width, view):
            region_height, region_width = h, w
            if w < ratio[0] * h:
                h = max(1, round(w / ratio[0]))
            elif w > ratio[1] * h:
                w = max(1, round(h * ratio[1]))
            expected.append(
                [top + (region_height - h) // 2, left + (region_width - w) // 2, h, w]
            )
        assert box in expected


@settings(deadline=None)
@given(sides, sides, addresses)
def test_fallback_is_flagged_just_where_nothing_fits(height, width, address):
    # Whole area at a ratio that is the region's only for its own shape.
    side = min(height, width)
    wide = RandomResizedCrop((1.0, 1.0), (4.0, 4.0))
    assert all(draw(wide, side, side, address)[1])
    square = RandomResizedCrop((1.0, 1.0), (1.0, 1.0))
    boxes, fallback = draw(square, side, side, address)
    assert not any(fallback)
    assert boxes == [[0, 0, side, side]] * VIEWS


@settings(deadline=None)
@given(crops, grids, overlaps, sides, sides, addresses, indices)
def test_overlap_is_kept_or_flagged(crop, grid, overlap, height, width, address, index):
    constraint = Constraint(crop, grid, overlap)
    boxes, fallback = draw(constraint, height, width, address, index)
    free, missed = draw(Constraint(crop, grid), height, width, address, index)
    for even in range(0, VIEWS, 2):
        odd = even + 1
        assert (boxes[even], fallback[even]) == (free[even], missed[even])
        at_once = overlap.least <= iou(free[odd], boxes[even]) <= overlap.most
        if at_once and not missed[odd]:
            assert (boxes[odd], fallback[odd]) == (free[odd], False)
        if not fallback[odd]:
            assert overlap.least <= iou(boxes[odd], boxes[even]) <= overlap.most
        elif at_once:
            assert missed[odd]


def test_bounds_on_the_overlap_bind():
    crop = RandomResizedCrop((0.1, 0.4))
    free, _ = draw(crop, 224, 224, views=2000)
    for overlap in (Overlap(most=0.1), Overlap(least=0.4), Overlap(0.2, 0.3)):
        boxes, fallback = draw(Constraint(crop, overlap=overlap), 224, 224, views=2000)
        before = [iou(a, b) for a, b in zip(free[::2], free[1::2], strict=True)]
        kept = [overlap.least <= value <= overlap.most for value in before]
        assert 0.02 < np.mean(kept) < 0.7
        assert np.mean(fallback[1::2]) < 0.5 * (1 - np.mean(kept))
        assert not any(fallback[::2])
        for a, b, missed in zip(boxes[::2], boxes[1::2], fallback[1::2], strict=True):
            assert missed or overlap.least <= iou(a, b) <= overlap.most


def test_an_impossible_overlap_is_flagged():
    apart = Constraint(Whole(), overlap=Overlap(most=0.5))
    boxes, fallback = draw(apart, 5, 7, views=4)
    assert boxes == [[0, 0, 5, 7]] * 4
    assert fallback == [False, True, False, True]


def test_the_nearest_attempt_is_the_fallback():
    crop = RandomResizedCrop((0.1, 0.2))

    def nearest(attempts):
        same = Constraint(crop, overlap=Overlap(least=1.0, attempts=attempts))
        boxes, fallback = draw(same, 224, 224, views=400)
        assert all(fallback[1::2])
        pairs = zip(boxes[::2], boxes[1::2], strict=True)
        return np.array([iou(a, b) for a, b in pairs])

    few, many = nearest(2), nearest(50)
    assert (many >= few).all()
    assert (many > few).mean() > 0.5


def test_every_corner_and_half():
    boxes, _ = draw(Constraint(Whole(), FOUR_CORNERS), 10, 20, views=5)
    corners = [[0, 0, 8, 16], [0, 4, 8, 16], [2, 0, 8, 16], [2, 4, 8, 16]]
    assert boxes == [*corners, corners[0]]
    boxes, _ = draw(Constraint(Whole(), HALVES), 10, 5, views=2)
    # The middle column belongs to both.
    assert boxes == [[0, 0, 10, 3], [0, 2, 10, 3]]


def test_drawn_cells_are_uniform():
    grid = Grid(2, 2, 0.5, 0.5, pick="drawn")
    boxes, _ = draw(Constraint(Whole(), grid), 2, 2, views=4000)
    counts = np.bincount([2 * top + left for top, left, _, _ in boxes], minlength=4)
    # 3 degrees of freedom: deviation sqrt(6).
    assert ((counts - 1000) ** 2 / 1000).sum() < 3 + 6 * math.sqrt(6)


def test_centre_is_resize_256_and_crop_224():
    boxes, fallback = draw(Centre(224 / 256), 512, 384, views=1)
    assert (boxes, fallback) == ([[88, 24, 336, 336]], [False])


def torchvision_boxes(generator, count, height, width, scale, ratio):
    """The procedure of torchvision's RandomResizedCrop, many at a time."""
    area = height * width * generator.uniform(*scale, (count, 10))
    aspect = np.exp(generator.uniform(*np.log(ratio), (count, 10)))
    w = np.rint(np.sqrt(area * aspect)).astype(int)
    h = np.rint(np.sqrt(area / aspect)).astype(int)
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    found, first = fits.any(axis=1), (np.arange(count), fits.argmax(axis=1))
    w, h = w[first][found], h[first][found]
    top = generator.integers(0, height - h + 1)
    left = generator.integers(0, width - w + 1)
    return np.stack([top, left, h, w], axis=1), 1 - found.mean()


@pytest.mark.parametrize(
    ("height", "width", "scale", "ratio"),
    [
        (224, 224, (0.2, 1.0), (3 / 4, 4 / 3)),
        (375, 500, (0.08, 1.0), (3 / 4, 4 / 3)),
        (240, 90, (0.3, 1.0), (3 / 4, 4 / 3)),
        (200, 200, (0.05, 0.3), (0.3, 1.5)),
    ],
)
def test_distribution_is_torchvisions(height, width, scale, ratio):
    count = 20_000
    theirs, their_misses = torchvision_boxes(
        np.random.default_rng(0), count, height, width, scale, ratio
    )
    drawn = sample_view_boxes(
        (height, width),
        RandomResizedCrop(scale, ratio),
        seed=0,
        epoch=0,
        sample_index=torch.arange(count),
        view=0,
    )
    misses = drawn.fallback.double().mean().item()
    assert abs(misses - their_misses) < 6 * math.sqrt(0.5 / count)
    ours = drawn.box[~drawn.fallback].numpy()

    def features(boxes):
        top, left, h, w = boxes.T.astype(float)
        yield from (top, left, h, w, h * w, w / h, top + h, left + w)
        # Where the box may move at all, its place is uniform.
        yield top[h < height] / (height - h)[h < height]
        yield left[w < width] / (width - w)[w < width]

    for a, b in zip(features(ours), features(theirs), strict=True):
        assert stats.ks_2samp(a, b).pvalue > 1e-3


# Of the boxes of version 0.1, so that trained runs can be repeated.
@pytest.mark.parametrize(
    ("crop", "size", "digest"),
    [
        (PadCrop(4), (32, 32), "9efce8b1a44eb25a"),
        (RandomResizedCrop(), (32, 32), "56df7606114abd75"),
        (RandomResizedCrop((0.08, 1.0)), (375, 500), "f31a0e66193d9a6c"),
        (RandomResizedCrop((0.08, 1.0)), (60, 300), "2525f39364c9f0df"),
    ],
)
def test_boxes_never_change(crop, size, digest):
    numbers = torch.arange(5000)
    drawn = sample_view_boxes(
        size,
        crop,
        seed=12,
        epoch=34,
        sample_index=numbers * 1000003,
        view=numbers % 5,
        stream=6,
    )
    raw = drawn.box.numpy().astype("<i8").tobytes()
    assert hashlib.sha256(raw).hexdigest()[:16] == digest


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"seed": -1}, ValueError),
        ({"seed": 1.0}, TypeError),
        ({"epoch": 1 << 32}, ValueError),
        ({"stream": 256}, ValueError),
        ({"view": -1}, ValueError),
        ({"view": 1 << 24}, ValueError),
        ({"view": torch.tensor([0, 1 << 24])}, ValueError),
        ({"view": torch.zeros(3, dtype=torch.int64)}, ValueError),
        ({"view": torch.zeros(2)}, TypeError),
        ({"sample_index": torch.tensor([5, -3])}, ValueError),
        ({"sample_index": torch.zeros(2, 1, dtype=torch.int64)}, ValueError),
        ({"sample_index": torch.zeros(2, dtype=torch.int32)}, TypeError),
        ({"sample_index": [0, 1]}, TypeError),
        ({"sizes": (0, 5)}, ValueError),
        ({"sizes": (5, 1 << 24)}, ValueError),
        ({"sizes": torch.tensor([[5, 5], [5, 0]])}, ValueError),
        ({"sizes": torch.tensor([[5, 5], [1 << 24, 5]])}, ValueError),
        ({"sizes": torch.tensor([[5, 5]])}, ValueError),
        ({"sizes": torch.ones(2, 2)}, TypeError),
        ({"constraint": FOUR_CORNERS}, TypeError),
    ],
)
def test_wrong_arguments_are_named(change, error):
    arguments = {
        "sizes": (32, 32),
        "constraint": PadCrop(),
        "seed": 0,
        "epoch": 0,
        "sample_index": torch.arange(2),
        "view": 0,
    }
    with pytest.raises(error, match=f"^{next(iter(change))}"):
        sample_view_boxes(**(arguments | change))


def test_an_error_says_what_came_and_where():
    index = torch.tensor([5, -3])
    with pytest.raises(ValueError, match="^sample_index: .* got -3 in row 1$"):
        sample_view_boxes((1, 1), Whole(), **ORIGIN, sample_index=index, view=0)
