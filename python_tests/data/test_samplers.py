import numpy as np
import pytest
import torch

from s3h_ext.data.samplers import SAMPLERS, EpochOrder, class_probabilities
from s3h_ext.data.streams import Stream

COUNTS = np.array([600, 250, 100, 0, 40, 8, 2])


@pytest.fixture
def order():
    labels = np.repeat(np.arange(len(COUNTS)), COUNTS)
    labels = np.random.RandomState(0).permutation(labels)
    return EpochOrder(labels, len(COUNTS))


def labels_of(order, indices):
    return order._labels[indices].numpy()


def test_probabilities():
    total = COUNTS.sum()
    probabilities = {
        name: class_probabilities(name, COUNTS, progress=0.25) for name in SAMPLERS
    }
    present = COUNTS > 0
    assert np.allclose(probabilities["instance-balanced"], COUNTS / total)
    assert np.allclose(probabilities["class-balanced"], present / 6)
    root = np.sqrt(COUNTS)
    assert np.allclose(probabilities["square-root"], root / root.sum())
    progressive = 0.75 * COUNTS / total + 0.25 * present / 6
    assert np.allclose(probabilities["progressive"], progressive)
    for start, end in ((0, "instance-balanced"), (1, "class-balanced")):
        found = class_probabilities("progressive", COUNTS, progress=start)
        assert np.allclose(found, probabilities[end])


def test_instance_balanced_shows_every_image_once(order):
    for epoch in range(3):
        indices, repeats = order.draw("instance-balanced", seed=0, epoch=epoch)
        assert torch.equal(indices.sort().values, torch.arange(COUNTS.sum()))
        assert not repeats.any()


def test_shuffle_is_fair():
    # Each image's place is uniform: over many epochs of five images every one of the
    # 120 orders comes up equally often.
    small = EpochOrder(np.zeros(5, np.int64), 1)
    seen: dict[tuple[int, ...], int] = {}
    epochs = 2400
    for epoch in range(epochs):
        key = tuple(small.draw("instance-balanced", seed=1, epoch=epoch)[0].tolist())
        seen[key] = seen.get(key, 0) + 1
    assert len(seen) == 120
    expected = epochs / 120
    chi_square = sum((count - expected) ** 2 / expected for count in seen.values())
    # 119 degrees of freedom: deviation 15.4.
    assert chi_square < 119 + 6 * 15.4


@pytest.mark.parametrize("sampler", ["class-balanced", "square-root", "progressive"])
def test_class_frequencies(order, sampler):
    epochs = 20
    drawn = np.zeros(len(COUNTS))
    for epoch in range(epochs):
        indices, _ = order.draw(sampler, seed=3, epoch=epoch, progress=0.5)
        drawn += np.bincount(labels_of(order, indices), minlength=len(COUNTS))
    expected = class_probabilities(sampler, COUNTS, progress=0.5) * drawn.sum()
    assert drawn[3] == expected[3] == 0
    present = expected > 0
    chi_square = ((drawn - expected)[present] ** 2 / expected[present]).sum()
    # 5 degrees of freedom: the bound is exceeded once in a million.
    assert chi_square < 36


@pytest.mark.parametrize(
    "sampler", ["class-balanced", "square-root", "progressive", "3-per-class"]
)
def test_images_of_a_class_are_used_equally_and_repeats_counted(order, sampler):
    indices, repeats = order.draw(sampler, seed=4, epoch=1, progress=0.3)
    assert len(indices) == COUNTS.sum()
    seen: dict[int, int] = {}
    for index, repeat in zip(indices.tolist(), repeats.tolist(), strict=True):
        assert repeat == seen.get(index, 0)
        seen[index] = repeat + 1
    used = torch.bincount(indices, minlength=int(COUNTS.sum()))
    for label in range(len(COUNTS)):
        uses = used[order._labels == label]
        if len(uses):
            assert uses.max() - uses.min() <= 1


@pytest.mark.parametrize("sampler", [*SAMPLERS, "4-per-class"])
def test_orders_are_pure_functions(order, sampler):
    arguments = {"seed": 1, "epoch": 2, "stream": 3, "progress": 0.4}
    first = order.draw(sampler, **arguments)
    order.draw(sampler, seed=9, epoch=9)
    again = order.draw(sampler, **arguments)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    for change in ({"seed": 5}, {"epoch": 5}, {"stream": 5}):
        other = order.draw(sampler, **(arguments | change))
        assert not torch.equal(first[0], other[0])


def test_progress_moves_draws_to_the_tail(order):
    tails = []
    for progress in (0, 0.5, 1):
        drawn, _ = order.draw("progressive", seed=0, epoch=0, progress=progress)
        tails.append((labels_of(order, drawn) >= 4).mean())
    assert tails[0] < 0.1 < tails[1] < 0.4 < tails[2]


def test_one_class_and_one_image():
    order = EpochOrder(np.array([2]), 4)
    for sampler in SAMPLERS:
        indices, repeats = order.draw(sampler, seed=0, epoch=0, progress=1)
        assert indices.tolist() == [0]
        assert repeats.tolist() == [0]


def test_the_order_draws_from_numbers_of_its_own(order):
    # Stream s of the augmentation counts below 128; the orders count from there.
    with pytest.raises(ValueError, match="stream"):
        order.draw("instance-balanced", seed=0, epoch=0, stream=128)


@pytest.mark.parametrize(
    ("labels", "message"),
    [([], "at least one"), ([0, 3], r"0 \.\. 2"), ([-1, 0], r"0 \.\. 2")],
)
def test_wrong_labels(labels, message):
    with pytest.raises(ValueError, match=message):
        EpochOrder(np.array(labels, np.int64), 3)


def test_wrong_arguments(order):
    with pytest.raises(ValueError, match="sampler"):
        order.draw("balanced", seed=0, epoch=0)
    for progress in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="progress"):
            class_probabilities("progressive", COUNTS, progress=progress)
    with pytest.raises(ValueError, match="class_counts"):
        class_probabilities("square-root", np.zeros(3, np.int64))


NONE = ("0-per-class", "-1-per-class", "per-class", "4")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sampler": "class-balance"}, "did you mean 'class-balanced'"),
        *(({"sampler": n}, "sampler: expected one of .* 4-per-class") for n in NONE),
        ({"recipe": "crop-flop"}, "did you mean 'crop-flip'"),
        ({"views": 0}, "views"),
    ],
)
def test_stream_checks_its_fields(change, said):
    assert Stream() == Stream("instance-balanced", "crop-flip", 1)
    with pytest.raises(ValueError, match=said):
        Stream(**change)


@pytest.mark.parametrize("together", [1, 2, 4, 7])
@pytest.mark.parametrize("steps", [1, 9, 32])
def test_a_step_has_m_images_of_each_of_its_classes(order, together, steps):
    total = int(COUNTS.sum())
    sampler = f"{together}-per-class"
    indices, _ = order.draw(sampler, seed=0, epoch=3, steps=steps)
    labels = labels_of(order, indices)
    shown = []
    for step in range(steps):
        part = labels[step * total // steps : (step + 1) * total // steps]
        for start in range(0, len(part), together):
            group = part[start : start + together]
            assert (group == group[0]).all()
            assert len(group) == min(together, len(part) - start)
            shown.append(int(group[0]))
    # In rounds of all classes that have images.
    rounds = [shown[i : i + 6] for i in range(0, len(shown) - 5, 6)]
    assert all(sorted(one) == [0, 1, 2, 4, 5, 6] for one in rounds)
    assert len({tuple(one) for one in rounds}) > 1


def test_images_of_a_group_differ_where_the_class_has_as_many(order):
    indices, repeats = order.draw("8-per-class", seed=5, epoch=0, steps=5)
    first = 8 * 6  # of the first round
    for label in range(len(COUNTS)):
        chosen = labels_of(order, indices[:first]) == label
        used = indices[:first][chosen].unique()
        assert len(used) == min(8, COUNTS[label])
        most = repeats[:first][chosen].max() if len(used) else 0
        assert most == (3 if label == 6 else 0)
