"""Prototypes on a GPU against float64, and as a citizen of the CUDA runtime.

What makes sense on the CPU runs there too, so that the test code is seen to work.
"""

import pytest
import torch

from python_tests.ops.test_prototypes import METRICS, draw
from python_tests.settings import (
    assert_same_bits,
    every_type,
    needs_kernels,
    no_waiting,
    on_a_second_stream,
    on_devices,
    record,
)
from s3h_ext.ops import (
    accumulate_prototypes,
    apply_prototypes_,
)
from s3h_ext.ops.plain import prototypes as plain_forms

SETTINGS = {"momentum": 0.9, "expire_below": 0.3}
every_metric = pytest.mark.parametrize("metric", METRICS)


def step(features, labels, state, offsets, metric):
    """Accumulates and applies; returns what was added and the new state."""
    prototypes, sums, masses = state
    update = accumulate_prototypes(
        features, labels, prototypes, masses, offsets, metric=metric
    )
    apply_prototypes_(
        prototypes, sums, masses, offsets, update, metric=metric, **SETTINGS
    )
    return [*update, *state]


def on(device, problem):
    features, labels, *state, offsets = (t.to(device) for t in problem)
    return features, labels, [t.clone() for t in state], offsets


def by_tensors(problem, metric, wide=False):
    """What a batch adds and the state after it, by the plain form."""
    features, labels, *state, offsets = problem
    if wide:
        features, *state = (t.double() for t in (features, *state))
    prototypes, sums, masses = (t.clone() for t in state)
    cosine = metric == "cosine"
    assignments, *update = plain_forms.accumulate(
        features, labels, prototypes, masses, offsets, cosine
    )
    added = [*update[:3], update[-1]]
    plain_forms.apply_prototypes_(
        prototypes, sums, masses, offsets, *added, *SETTINGS.values(), cosine
    )
    return [assignments, *update, prototypes, sums, masses]


@on_devices
@every_metric
@every_type
@pytest.mark.parametrize(
    ("rows", "depth"), [((3, 1, 5, 2, 7), 19), ((3, 1, 5, 2, 7), 128), ((40, 70), 300)]
)
def test_definition(device, metric, dtype, rows, depth):
    problem = draw(n=2000, rows=rows, depth=depth, dtype=dtype)
    found = step(*on(device, problem), metric)
    exact = by_tensors(problem, metric, wide=True)
    assert torch.equal(found[0].cpu(), exact[0])
    for ours, right in zip(found[1:], exact[1:], strict=True):
        scale = right.abs().max().clamp(min=1)
        allowed = 64 * torch.finfo(ours.dtype).eps * scale
        assert (ours.cpu().double() - right).abs().max() <= allowed


@on_devices
@every_metric
def test_same_bits_every_time(device, metric):
    problem = draw(n=9000, depth=64, dtype=torch.float32)
    count = torch.get_num_threads()
    assert_same_bits(lambda: step(*on(device, problem), metric), [count] * 4)


@on_devices
@every_metric
def test_empty_batch(device, metric):
    problem = draw(n=0)
    found = step(*on(device, problem), metric)
    assert (found[1] == 0).all()
    assert (found[4] == -1).all()
    assert torch.equal(found[6].cpu(), problem[2])


@pytest.mark.cuda
@needs_kernels
@every_metric
def test_second_stream(metric):
    problem = draw(n=500, depth=64, dtype=torch.float32)
    right = step(*on("cuda", problem), metric)
    features, *others = on("cuda", problem)
    late = torch.zeros_like(features)
    ours = on_a_second_stream(late, features, lambda: step(late, *others, metric))
    assert all(map(torch.equal, ours, right))


@pytest.mark.cuda
@needs_kernels
@every_metric
def test_graph_capture_and_replay(metric):
    problem = draw(n=500, depth=64, dtype=torch.float32)
    features, labels, state, offsets = on("cuda", problem)
    eager = [t.clone() for t in state]
    graph, captured = record(lambda: step(features, labels, state, offsets, metric))
    for recorded, before in zip(state, eager, strict=True):
        recorded.copy_(before)
    for seed in (1, 2):
        other = draw(n=500, depth=64, dtype=torch.float32, seed=seed)
        features.copy_(other[0])
        labels.copy_(other[1])
        graph.replay()
        right = step(features, labels, eager, offsets, metric)
        assert all(map(torch.equal, captured, right))


@pytest.mark.cuda
@needs_kernels
@every_metric
def test_nothing_waits_for_the_device(metric):
    problem = on("cuda", draw(dtype=torch.float32))
    step(*problem, metric)
    with no_waiting():
        step(*problem, metric)
