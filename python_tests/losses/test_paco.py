"""PaCo and GPaCo against the formula of their released code."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F

from python_tests.losses import backends
from python_tests.losses.law import assert_equal, assert_law, unit
from s3h_ext.losses import FeatureQueue, LogitAdjustedLoss, PaCoLoss, paco_loss

TAU, N, D, C, Q = 0.2, 9, 6, 4, 11
COUNTS = torch.tensor([90, 40, 12, 3]).double()


def released(
    anchors,
    keys,
    labels,
    logits,
    counts=None,
    *,
    alpha=0.05,
    beta=1.0,
    gamma=1.0,
    smoothing=0.0,
    logit_temperature=1.0,
):
    """dvlab-research/Parametric-Contrastive-Learning, PaCoLoss; each anchor's loss.

    Its losses.py adds 1e-12 to the denominator and 1e-9 to the shares, and the formula
    has neither. ``labels`` are those of the anchors, then of the keys.
    """
    count = len(anchors)
    every = torch.cat([anchors, keys])
    others = 1 - torch.eye(count, len(every), dtype=every.dtype)
    if counts is not None:
        logits = logits + (counts / counts.sum()).log()
    scores = torch.cat([logits / logit_temperature, anchors @ every.T / TAU], dim=1)
    one_hot = F.one_hot(labels[:count], C).to(every.dtype)
    target = smoothing / (C - 1) * (1 - one_hot) + (1 - smoothing) * one_hot
    same = (labels[:count, None] == labels).to(every.dtype) * others
    positive = torch.cat([beta * target, alpha * same], dim=1)
    seen = torch.cat([torch.ones_like(logits), gamma * others], dim=1)
    log_prob = scores - (scores.exp() * seen).sum(1, keepdim=True).log()
    return -(positive * log_prob).sum(1) / positive.sum(1)


SETTINGS = {
    "PaCo": {},
    "PaCo, CIFAR": {"alpha": 0.02, "logit_temperature": 0.5},
    "GPaCo": {"smoothing": 0.1},
    "classes alone in the denominator": {"gamma": 0.0, "beta": 0.7},
    "everything": {
        **{"alpha": 0.3, "beta": 0.6, "gamma": 1.7, "smoothing": 0.2},
        "logit_temperature": 2.0,
    },
}


def problem(dtype=torch.float64):
    """Rows, keys with a few empty places, and what the released code sees of them."""
    z, logits = unit(N, D).to(dtype), torch.randn(N, C, dtype=torch.float64).to(dtype)
    keys, key_labels = unit(Q, D).to(dtype), torch.arange(Q) % C
    key_labels[[0, 5]] = -1
    return z, torch.arange(N) % 3, logits, keys, key_labels


CLOSE = {"rtol": 1e-9, "atol": 1e-9}
assert_close = functools.partial(torch.testing.assert_close, **CLOSE)


@pytest.mark.parametrize("backend", backends.NAMES)
@pytest.mark.parametrize("counts", [None, COUNTS])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_released_formula(monkeypatch, settings, counts, backend):
    backends.use(monkeypatch, backend)
    z, labels, logits, keys, key_labels = problem()
    leaves = [t.requires_grad_() for t in (z, logits, keys)]
    filled = key_labels >= 0
    every_label = torch.cat([labels, key_labels[filled]])
    expected = released(z, keys[filled], every_label, logits, counts, **settings)
    given = {"class_counts": counts, **settings, "temperature": TAU}
    found = paco_loss(z, labels, logits, keys, key_labels, reduction="none", **given)
    module = PaCoLoss(counts, TAU, **settings)
    assert_close(module(z, labels, logits, keys, key_labels), expected.mean())
    upstream = torch.linspace(-1, 2, N, dtype=torch.float64)
    assert_equal(found, expected, *leaves, upstream=upstream, **CLOSE)


def test_without_keys():
    z, labels, logits, *_ = problem()
    ours = PaCoLoss(COUNTS, TAU)(z, labels, logits)
    assert_close(ours, released(z, z[:0], labels, logits, COUNTS).mean())


def test_paco_as_it_is_trained():
    """One encoder's rows against the other's and the queue's; these are then put in."""
    queue, labels = FeatureQueue(Q, D, dtype=torch.float64), torch.arange(N) % C
    loss_fn, held, held_labels = PaCoLoss(COUNTS, TAU), unit(0, D), labels[:0]
    for _ in range(3):
        q, k, logits = unit(N, D), unit(N, D), torch.randn(N, C).double()
        q.requires_grad_()
        keys = torch.cat([k, queue.features])
        ours = loss_fn(q, labels, logits, keys, torch.cat([labels, queue.labels]))
        every = torch.cat([labels, labels, held_labels])
        theirs = released(q, torch.cat([k, held]), every, logits, COUNTS).mean()
        assert_equal(ours, theirs, q, **CLOSE)
        queue.enqueue(k, labels)
        held = torch.cat([held, k])[-Q:]
        held_labels = torch.cat([held_labels, labels])[-Q:]


def test_without_rows_it_is_the_logit_adjusted_loss():
    z, labels, logits, *_ = problem()
    ours = PaCoLoss(COUNTS, alpha=0, gamma=0)(z, labels, logits)
    adjusted = LogitAdjustedLoss(COUNTS)(logits, labels)  # its shares are float32
    torch.testing.assert_close(ours, adjusted, rtol=1e-6, atol=0)


def test_a_single_row_and_an_empty_queue_leave_the_classes():
    z, logits = unit(1, D).requires_grad_(), torch.randn(1, C).double().requires_grad_()
    label, empty = torch.tensor([2]), -torch.ones(Q).long()
    loss = PaCoLoss()(z, label, logits, unit(Q, D), empty)
    assert_close(loss, F.cross_entropy(logits, label))
    loss.backward()
    assert not z.grad.any()
    assert logits.grad.isfinite().all()


def test_rows_without_a_class_are_keys_alone():
    z, labels, logits, keys, key_labels = problem()
    labels[[1, 4]] = torch.tensor([-1, -100])
    known = labels >= 0
    losses, stats = paco_loss(
        z, labels, logits, keys, key_labels, reduction="none", return_stats=True
    )
    assert stats == (N - 2, 2)
    assert not losses[~known].any()
    # As keys they equal nothing.
    more = torch.cat([keys, z[~known]])
    more_labels = torch.cat([key_labels, torch.tensor([3, 3])])
    other = labels[known].clamp(max=2)
    found = paco_loss(
        z[known], other, logits[known], more, more_labels, reduction="none"
    )
    assert_close(losses[known], found)


def test_neither_a_positive_nor_a_centre():
    z, labels, logits, *_ = problem()
    rows = z[:3].requires_grad_()
    loss, stats = PaCoLoss(beta=0)(rows, labels[:3], logits[:3], return_stats=True)
    assert (loss, stats.skipped) == (0, 3)
    loss.backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_law_in_lower_precision(settings, dtype):
    z, labels, logits, keys, key_labels = problem(dtype)
    filled = key_labels >= 0
    every_label = torch.cat([labels, key_labels[filled]])
    upstream = torch.linspace(-1, 2, N)

    def differentiate(wide, ours):
        leaves = [t.to(wide).requires_grad_() for t in (z, logits, keys)]
        rows, scores, others = leaves
        if ours:
            given = {"class_counts": COUNTS, "temperature": TAU, "reduction": "none"}
            given |= settings
            losses = paco_loss(rows, labels, scores, others, key_labels, **given)
        else:
            given = (rows, others[filled], every_label, scores, COUNTS.to(wide))
            losses = released(*given, **settings)
        grads = torch.autograd.grad(losses, leaves, upstream.to(losses.dtype))
        return [losses.detach(), *grads]

    assert_law(differentiate, dtype)


@pytest.mark.parametrize("name", ["alpha", "beta", "gamma", "smoothing"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, "1", torch.tensor(1.0)])
def test_numbers_that_do_not_fit(name, value):
    error = ValueError if isinstance(value, float) else TypeError
    z, labels, logits, *_ = problem()
    for call in (functools.partial(paco_loss, z, labels, logits), PaCoLoss):
        with pytest.raises(error, match=f"{name}: expected a .*number .*, got"):
            call(**{name: value})


def test_arguments_that_do_not_fit():
    z, labels, logits, keys, _ = problem()
    with pytest.raises(ValueError, match=r"smoothing: expected a number in \[0, 1\)"):
        PaCoLoss(smoothing=1)
    with pytest.raises(ValueError, match="logit_temperature: expected .* > 0, got 0"):
        PaCoLoss(logit_temperature=0)
    with pytest.raises(ValueError, match="keys and key_labels must be given together"):
        paco_loss(z, labels, logits, keys)
    with pytest.raises(ValueError, match=r"logits must be \[9, C\] on cpu, .*\(8, 4\)"):
        paco_loss(z, labels, logits[1:])
    with pytest.raises(ValueError, match=r"class_counts must have shape \(4,\), got"):
        paco_loss(z, labels, logits, class_counts=COUNTS[1:])
