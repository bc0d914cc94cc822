"""A queue that is not full: an empty place adds nothing, whatever it holds."""

import math

import pytest
import torch

from python_tests.losses.law import unit
from s3h_ext.losses import cross_model, cross_model_contrastive_loss
from s3h_ext.ops.reference import similarity_logsumexp_dense

INF = math.inf


@pytest.mark.parametrize("held", [0.0, 7.0, INF, -INF, math.nan])
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("centres", [None, unit(4, 6, seed=3)])
def test_empty_places_add_nothing(monkeypatch, held, dense, centres):
    if dense:
        monkeypatch.setattr(cross_model, "similarity_logsumexp", by_matrix)
    z, labels = unit(9, 6).requires_grad_(), torch.arange(9) % 4
    keys, queue = unit(9, 6, seed=1).requires_grad_(), unit(7, 6, seed=2)
    queue_labels = torch.tensor([2, -1, 0, 3, -100, -1, 1])
    full = queue_labels >= 0
    queue[~full] = held
    queue.requires_grad_()
    results = []
    for places in (full, torch.ones_like(full)):
        given = {"queue": queue[places], "queue_labels": queue_labels[places]}
        given |= {"self_index": torch.arange(9), "reduction": "none"}
        args = (z, labels, keys, labels)
        loss = cross_model_contrastive_loss(*args, centres=centres, **given)
        weights = torch.linspace(-1, 2, 9, dtype=loss.dtype)
        results.append(
            (loss, torch.autograd.grad((weights * loss).sum(), (z, keys, queue)))
        )
    torch.testing.assert_close(results[0], results[1])
    assert not results[1][1][2][~full].any()


def by_matrix(*args, assume_normalized, **options):
    return similarity_logsumexp_dense(*args, **options)


def test_a_queue_without_entries_is_no_queue():
    z, labels = unit(6, 4).requires_grad_(), torch.arange(6) % 3
    nothing = {"queue": unit(5, 4), "queue_labels": -torch.ones(5).long()}
    alone = cross_model_contrastive_loss(z, labels, z, labels)
    torch.testing.assert_close(
        cross_model_contrastive_loss(z, labels, z, labels, **nothing), alone
    )
    loss, stats = cross_model_contrastive_loss(
        z, labels, z[:0], labels[:0], return_stats=True, **nothing
    )
    assert (loss.item(), stats.counted.item()) == (0, 0)
    loss.backward()
    assert not z.grad.any()
