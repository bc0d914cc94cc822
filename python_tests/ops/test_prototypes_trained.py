"""Prototypes after many updates, and in two processes."""

import pytest
import torch
import torch.multiprocessing as mp

from python_tests.ops.test_prototypes import METRICS, states
from s3h_ext.ops import (
    accumulate_prototypes,
    all_reduce_update,
    apply_prototypes_,
)


def clusters(seed, classes=6, most=8, per_cluster=60, depth=16, spread=0.25):
    """Samples of known sub-clusters, in random order: features, labels, rows, K."""
    generator = torch.Generator().manual_seed(seed)
    k = [1 + c % most for c in range(classes)]
    rows = torch.arange(sum(k)).repeat_interleave(per_cluster)
    owner = torch.arange(classes).repeat_interleave(torch.tensor(k))
    centres = 2 * torch.randn(sum(k), depth, generator=generator)
    noise = spread * torch.randn(len(rows), depth, generator=generator)
    order = torch.randperm(len(rows), generator=generator)
    return (centres[rows] + noise)[order], owner[rows][order], rows[order], k


def run(
    features,
    labels,
    k,
    metric,
    epochs=6,
    batch=64,
    start=None,
    seed=0,
    expire_below=0.1,
):
    offsets = torch.tensor([0, *k]).cumsum(0)
    shape = (sum(k), features.shape[1])
    p, s, m = torch.zeros(shape), torch.zeros(shape), torch.zeros(sum(k))
    if start is not None:
        p, m = start.clone(), torch.ones(sum(k))
        s = p.clone()
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for part in torch.randperm(len(labels), generator=generator).split(batch):
            update = accumulate_prototypes(
                features[part], labels[part], p, m, offsets, metric=metric
            )
            settings = {"momentum": 0.9, "expire_below": expire_below}
            apply_prototypes_(p, s, m, offsets, update, metric=metric, **settings)
    return accumulate_prototypes(features, labels, p, m, offsets, metric=metric), m


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("seed", range(5))
def test_known_sub_clusters_are_found_from_random_starts(metric, seed):
    from sklearn.metrics import adjusted_rand_score

    f, y, rows, k = clusters(seed, classes=8)
    update, _ = run(f, y, k, metric, seed=seed)
    scores = [
        adjusted_rand_score(rows[y == c], update.assignments[y == c])
        for c in range(len(k))
    ]
    # As k-means from one start, a class may end where two clusters share a row.
    assert min(scores) >= 0.75
    assert sum(scores) / len(scores) >= 0.95


@pytest.mark.parametrize("metric", METRICS)
def test_dead_rows_recover(metric):
    from sklearn.metrics import adjusted_rand_score

    f, y, rows, k = clusters(1, classes=8)
    # All rows of a class start at one place, far from every sample.
    start = torch.full((sum(k), f.shape[1]), -30.0)
    start += 0.1 * torch.randn(start.shape)
    if metric == "cosine":
        start = torch.nn.functional.normalize(start, dim=1)
    update, masses = run(f, y, k, metric, start=start, epochs=12)
    assert (masses > 0).all()
    assert (update.counts > 0).all()
    assert adjusted_rand_score(rows, update.assignments) >= 0.95
    kept, _ = run(f, y, k, metric, start=start, epochs=12, expire_below=0.0)
    assert (kept.counts == 0).any()
    assert adjusted_rand_score(rows, kept.assignments) < 0.95


def two_processes(rank, file, f, y, state, o, results):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{file}", rank=rank, world_size=2
    )
    part = slice(0, 130) if rank == 0 else slice(130, None)
    p, s, m = (t.clone() for t in state)
    update = all_reduce_update(accumulate_prototypes(f[part], y[part], p, m, o))
    apply_prototypes_(p, s, m, o, update)
    results[rank] = (*update, p, s, m)
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    f, y, o, state = states()
    # Whole numbers: no order of summation can tell the results apart.
    f = (8 * f).round()
    state[0].mul_(8).round_()
    y[y == 3] = 4  # a class that nobody has
    y[130:][y[130:] == 1] = 0  # and one that the second process has not
    f[150] = f[20] = 40 * torch.ones(f.shape[1])  # equally far in both
    y[150] = y[20] = 2
    context = mp.get_context("spawn")
    with context.Manager() as manager:
        results = manager.dict()
        mp.spawn(
            two_processes, (str(tmp_path / "meet"), f, y, state, o, results), nprocs=2
        )
        parts = [results[0], results[1]]
    p, s, m = (t.clone() for t in state)
    update = accumulate_prototypes(f, y, p, m, o)
    apply_prototypes_(p, s, m, o, update)
    assert torch.equal(torch.cat([part[0] for part in parts]), update.assignments)
    for part in parts:
        assert all(map(torch.equal, part[1:], (*update[1:], p, s, m)))
