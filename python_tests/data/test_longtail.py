import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3h_ext.data.longtail import class_profile, hold_out, pick_subset

CIFAR10_COUNTS = {
    10: [5000, 3871, 2997, 2320, 1796, 1391, 1077, 834, 645, 500],
    50: [5000, 3237, 2096, 1357, 878, 568, 368, 238, 154, 100],
    100: [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50],
}


def ldam_picks(targets, imbalance, num_classes):
    """The published generator, run on the global legacy state it uses."""
    state = np.random.get_state()
    np.random.seed(0)
    try:
        chosen = []
        largest = len(targets) / num_classes
        for label in np.unique(targets):
            exponent = label / (num_classes - 1.0)
            count = int(largest * ((1 / imbalance) ** exponent))
            members = np.where(targets == label)[0]
            np.random.shuffle(members)
            chosen.append(members[:count])
        return np.concatenate(chosen)
    finally:
        np.random.set_state(state)


def official_size_labels(num_classes):
    labels = np.arange(50_000) % num_classes
    return np.random.RandomState(3).permutation(labels)


@pytest.mark.parametrize("imbalance", CIFAR10_COUNTS)
def test_cifar10_counts_are_the_published_ones(imbalance):
    counts = class_profile(10, largest=5000, imbalance=imbalance)
    assert counts.tolist() == CIFAR10_COUNTS[imbalance]


@pytest.mark.parametrize(
    ("imbalance", "total", "many", "medium", "few"),
    [
        (10, 19_573, 69, 31, 0),
        (50, 12_608, 41, 41, 18),
        (100, 10_847, 35, 35, 30),
        (200, 9_502, 30, 31, 39),
    ],
)
def test_cifar100_counts_are_the_published_ones(imbalance, total, many, medium, few):
    counts = class_profile(100, largest=500, imbalance=imbalance)
    assert counts.sum() == total
    assert counts[0] == 500
    assert counts[-1] == math.floor(500 / imbalance)
    assert (counts > 100).sum() == many
    assert ((counts >= 20) & (counts <= 100)).sum() == medium
    assert (counts < 20).sum() == few


@pytest.mark.parametrize("num_classes", [10, 100])
@pytest.mark.parametrize("imbalance", [10, 20, 50, 100, 200, 256])
def test_counts_of_cifar_are_those_of_the_published_formula(num_classes, imbalance):
    largest, factor = 50_000 // num_classes, 1 / imbalance
    shares, half = (
        (c / (num_classes - 1.0) for c in range(num_classes)),
        num_classes // 2,
    )
    expected = {
        "exp": [int(largest * factor**share) for share in shares],
        "step": [largest] * half + [int(largest * factor)] * half,
    }
    cut = {"largest": largest, "imbalance": imbalance}
    for profile, counts in expected.items():
        assert class_profile(num_classes, **cut, profile=profile).tolist() == counts


@pytest.mark.parametrize("profile", ["exp", "step"])
def test_a_whole_quotient_is_kept_whole(profile):
    for imbalance in range(1, 1000):
        for smallest in (1, 2, 7):
            cut = {"imbalance": imbalance, "profile": profile}
            whole = smallest * imbalance
            assert class_profile(4, largest=whole, **cut)[-1] == smallest
            if imbalance > 1 and whole > imbalance:
                assert class_profile(4, largest=whole - 1, **cut)[-1] == smallest - 1


def test_of_an_odd_number_the_smaller_half_is_large():
    counts = class_profile(5, largest=60, imbalance=10, profile="step")
    assert counts.tolist() == [60, 60, 6, 6, 6]


@pytest.mark.parametrize("num_classes", [10, 100])
@pytest.mark.parametrize("imbalance", [1, 10, 50, 100])
def test_picks_are_those_of_the_published_generator(num_classes, imbalance):
    labels = official_size_labels(num_classes)
    counts = class_profile(
        num_classes, largest=50_000 // num_classes, imbalance=imbalance
    )
    expected = ldam_picks(labels, imbalance, num_classes)
    assert np.array_equal(pick_subset(labels, counts), expected)


def test_subsets_nest_and_never_repeat():
    labels = official_size_labels(100)
    larger = None
    for imbalance in (1, 10, 50, 100, 200):
        counts = class_profile(100, largest=500, imbalance=imbalance)
        picks = pick_subset(labels, counts)
        assert len(set(picks.tolist())) == len(picks)
        assert np.array_equal(np.bincount(labels[picks], minlength=100), counts)
        if larger is not None:
            assert set(picks.tolist()) < larger
        larger = set(picks.tolist())


def test_picks_leave_the_global_generator_alone():
    before = np.random.get_state()[1].copy()
    pick_subset(np.arange(10) % 2, np.array([2, 2]))
    assert np.array_equal(before, np.random.get_state()[1])


@given(
    num_classes=st.integers(2, 300),
    largest=st.integers(1, 10_000),
    share=st.floats(0, 0.99),
    profile=st.sampled_from(["exp", "step"]),
)
def test_profiles_fall_from_largest_to_largest_over_imbalance(
    num_classes, largest, share, profile
):
    imbalance = largest**share
    cut = {"largest": largest, "imbalance": imbalance, "profile": profile}
    counts = class_profile(num_classes, **cut)
    assert counts.shape == (num_classes,)
    assert counts.dtype == np.int64
    assert counts[0] == largest
    assert (np.diff(counts) <= 0).all()
    assert abs(counts[-1] - largest / imbalance) <= 1
    assert counts[-1] >= 1


BAD_FACTORS = [0, 0.99, -5, math.nan, math.inf, -math.inf]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"num_classes": 1}, "num_classes"),
        ({"largest": 0}, "largest"),
        ({"profile": "linear"}, "profile"),
        ({"imbalance": 101}, "no image for class 9"),
        *(({"imbalance": i}, "imbalance") for i in BAD_FACTORS),
    ],
)
def test_wrong_profile_arguments(change, name):
    arguments = {"num_classes": 10, "largest": 100, "imbalance": 10} | change
    with pytest.raises(ValueError, match=name):
        class_profile(arguments.pop("num_classes"), **arguments)


def test_a_class_that_is_too_small_is_an_error():
    labels = np.array([0] * 10 + [1] * 3)
    with pytest.raises(ValueError, match=r"class 1 has 3 images.*needs 5"):
        pick_subset(labels, np.array([10, 5]))


@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=12),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**32 - 1),
)
def test_hold_out_is_stratified(counts, fraction, seed):
    labels = np.random.RandomState(1).permutation(np.repeat(range(len(counts)), counts))
    expected = [min(math.floor(fraction * n + 0.5), n - 1) for n in counts]
    if sum(expected) == 0:
        with pytest.raises(ValueError, match="val_fraction"):
            hold_out(labels, fraction=fraction, seed=seed)
        return
    train, val = hold_out(labels, fraction=fraction, seed=seed)
    assert sorted([*train, *val]) == list(range(len(labels)))
    held = np.bincount(labels[val], minlength=len(counts))
    assert held.tolist() == expected
    assert (np.diff(train) > 0).all()
    assert (np.diff(val) > 0).all()


def test_hold_out_is_seeded():
    labels = np.arange(1000) % 10
    first = hold_out(labels, fraction=0.2, seed=1)[1]
    assert np.array_equal(first, hold_out(labels, fraction=0.2, seed=1)[1])
    assert not np.array_equal(first, hold_out(labels, fraction=0.2, seed=2)[1])


def test_hold_out_of_nothing():
    train, val = hold_out(np.array([0, 1]), fraction=0)
    assert train.tolist() == [0, 1]
    assert len(val) == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        *(({"fraction": f}, "val_fraction") for f in (-0.1, 1, 1.5, math.nan)),
        *(({"seed": s}, f"seed: expected .*, got {s}") for s in (-1, 2**32)),
    ],
)
def test_wrong_arguments_of_hold_out(change, said):
    with pytest.raises(ValueError, match=said):
        hold_out(np.arange(10) % 2, **{"fraction": 0.2, **change})
