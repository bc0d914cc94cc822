"""Rows are born by splitting: as many clusters as asked for, as good as k-means'."""

import pytest
import torch
import torch.nn.functional as F

from benchmarks.prototypes_quality import SAMPLES, Case, draw, measure, perplexity
from python_tests.ops.test_prototypes import METRICS
from s3h_ext.ops import (
    accumulate_prototypes,
    apply_prototypes_,
    update_prototypes_,
)
from s3h_ext.ops.plain import prototypes as plain


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("depth", "rows"), [(16, 5), (64, 2), (64, 16), (128, 5), (512, 5), (512, 10)]
)
def test_every_row_is_in_use_where_there_are_no_clusters(metric, depth, rows):
    used, errors = measure(Case("isotropic", metric, depth, rows, 64, 250))
    assert min(used) >= 0.9 * rows
    assert max(errors) <= 1.05


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("rows", [5, 16])
@pytest.mark.parametrize(("batch", "steps"), [(2, 2000), (64, 300), (SAMPLES, 150)])
def test_errors_are_near_those_of_kmeans(metric, rows, batch, steps):
    _, errors = measure(Case("zipf", metric, 64, rows, batch, steps))
    assert max(errors) <= 1.3


def new_state(rows, depth):
    prototypes, sums = torch.zeros(2, sum(rows), depth)
    return prototypes, sums, torch.zeros(sum(rows)), torch.tensor([0, *rows]).cumsum(0)


@pytest.mark.parametrize("metric", METRICS)
def test_a_row_whose_data_vanish_wins_members_again(metric):
    samples = draw("isotropic", 64, 0)
    samples[:, 0] += 4  # somewhere, for the cosine
    away = samples[: SAMPLES // 4] - 40 * F.one_hot(torch.tensor(1), 64)
    *state, offsets = new_state([5], 64)

    def train(data, steps):
        for part in torch.arange(64 * steps).view(steps, 64) % len(data):
            labels = torch.zeros(64, dtype=torch.int64)
            update_prototypes_(data[part], labels, *state, offsets, metric=metric)

    def found(data):
        labels = torch.zeros(len(data), dtype=torch.int64)
        prototypes, _, masses = state
        return accumulate_prototypes(
            data, labels, prototypes, masses, offsets, metric=metric
        ).assignments

    both = torch.cat((samples, away))
    order = torch.randperm(len(both), generator=torch.Generator().manual_seed(0))
    train(both[order], 300)
    gone = found(away).unique()
    assert torch.isin(found(samples), gone).float().mean() < 0.02
    train(samples, 600)
    for row in gone:
        assert (found(samples) == row).float().mean() > 0.1
    assert perplexity(found(samples), 5) >= 4.5


@pytest.mark.parametrize("metric", METRICS)
def test_a_split_keeps_sums_and_masses_and_halves_both(metric):
    samples = draw("zipf", 64, 0).double()
    if metric == "cosine":
        samples = F.normalize(samples, dim=1)
    *state, offsets = new_state([6, 3], 64)
    state = [t.double() for t in state]
    masses, sums = torch.zeros(2), torch.zeros(2, 64)
    born = []
    for part in samples.split(100)[:8]:
        labels = torch.arange(100) % 2
        update = accumulate_prototypes(
            part, labels, state[0], state[2], offsets, metric=metric
        )
        apply_prototypes_(*state, offsets, update, metric=metric)
        masses = 0.99 * masses + 50
        sums = 0.99 * sums + torch.stack([part[0::2].sum(0), part[1::2].sum(0)])
        for c, own in enumerate((slice(0, 6), slice(6, 9))):
            torch.testing.assert_close(state[2][own].sum(), masses[c].double())
            torch.testing.assert_close(state[1][own].sum(0), sums[c].double())
        born.append([int((state[2][own] > 0).sum()) for own in (slice(6), slice(6, 9))])
    # The first batch has no distances to judge by; then one row of each class a step.
    assert born == [[min(step, 6), min(step, 3)] for step in range(1, 9)]


@pytest.mark.parametrize("metric", METRICS)
def test_the_row_with_the_greatest_distortion_is_split(metric):
    tight, wide = (
        torch.tensor([[9.0, 0.1], [9.0, -0.1]]),
        torch.tensor([[1.0, 9], [-4, 9]]),
    )
    prototypes = F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), dim=1)
    if metric == "euclidean":
        prototypes = 9 * prototypes
    masses, offsets = torch.tensor([100.0, 4.0, 0.0]), torch.tensor([0, 3])
    state = [prototypes, prototypes * masses[:, None], masses]
    samples, labels = torch.cat((tight, wide)), torch.zeros(4, dtype=torch.int64)
    update_prototypes_(samples, labels, *state, offsets, metric=metric)
    assert masses[0] == 0.99 * 100 + 2
    assert masses[1] == masses[2] == (0.99 * 4 + 2) / 2
    # The new row is on the side of the farthest sample, (-4, 9).
    assert state[0][2, 0] < state[0][1, 0]


@pytest.mark.parametrize("metric", METRICS)
def test_equal_samples_are_not_split(metric):
    samples, labels = torch.ones(8, 4), torch.zeros(8, dtype=torch.int64)
    *state, offsets = new_state([3], 4)
    if metric == "cosine":
        samples = F.one_hot(torch.tensor([2] * 8), 4).float()
    for _ in range(5):
        update_prototypes_(
            samples, labels, *state, offsets, metric=metric, momentum=0.5
        )
    assert (state[2] > 0).tolist() == [True, False, False]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("depth", "count"), [(16, 1000), (33, 64), (128, 1), (128, 500), (512, 64)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_samples_in_any_direction_are_not_split(metric, depth, count, dtype):
    rows, classes = 3, 20
    generator = torch.Generator().manual_seed(depth + count)
    samples = torch.randn(classes, depth, generator=generator, dtype=dtype)
    samples *= torch.logspace(-3, 3, classes, dtype=dtype)[:, None]
    features, labels = samples.repeat(count, 1), torch.arange(classes).repeat(count)
    for form in ("kernels", "plain"):
        *state, offsets = new_state([rows] * classes, depth)
        state = [t.to(dtype) for t in state]
        for _ in range(8):
            if form == "kernels":
                update_prototypes_(features, labels, *state, offsets, metric=metric)
            else:
                cosine = metric == "cosine"
                _, *update = plain.accumulate(
                    features, labels, state[0], state[2], offsets, cosine
                )
                added = [*update[:3], update[-1]]
                plain.apply_prototypes_(*state, offsets, *added, 0.99, 0.1, cosine)
            assert ((state[2] > 0).view(classes, rows).sum(dim=1) == 1).all(), form
