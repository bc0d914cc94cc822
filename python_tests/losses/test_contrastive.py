"""The contrastive losses against direct transcriptions of their equations."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from python_tests.losses.law import assert_equal, unit
from s3h_ext.losses import (
    PrototypicalSupConLoss,
    balanced_contrastive_loss,
    cross_model_contrastive_loss,
    prototypical_supcon_loss,
    supcon_loss,
)

INF = math.inf


def draw_labels(n, classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, classes, (n,), generator=generator)


def supcon_by_loops(z, labels, temperature):
    """Khosla et al. eq. 2, anchor by anchor; 0 where there is no positive."""
    n = len(labels)
    losses, counted = [], 0
    for i in range(n):
        others = [a for a in range(n) if a != i]
        positives = [p for p in others if labels[p] == labels[i] >= 0]
        if not positives:
            losses.append(z.sum() * 0)
            continue
        counted += 1
        exponentials = (z @ z[i] / temperature).exp()
        shares = exponentials[positives] / exponentials[others].sum()
        losses.append(-shares.log().mean())
    return torch.stack(losses), counted


@pytest.mark.parametrize("num_classes", [None, 5])
@pytest.mark.parametrize("seed", range(4))
def test_supcon_equation(seed, num_classes):
    z, labels = unit(14, 6, seed=seed).requires_grad_(), draw_labels(14, 5, seed)
    labels[0] = -1
    expected, counted = supcon_by_loops(z, labels, 0.1)
    options = {"temperature": 0.1, "num_classes": num_classes}
    losses = supcon_loss(z, labels, reduction="none", **options)
    torch.testing.assert_close(losses, expected)
    mean, stats = supcon_loss(z, labels, return_stats=True, **options)
    assert (stats.counted.item(), stats.skipped.item()) == (counted, 14 - counted)
    assert_equal(mean, expected.sum() / counted, z)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("num_classes", [None, 4])
def test_supcon_on_other_devices_is_the_same_loss(reduction, num_classes):
    """Weights have it composed of the operations that every device has."""
    labels = draw_labels(40, 4)
    labels[3] = -1
    results = []
    for weights in (None, torch.ones(40)):
        z = unit(40, 8, seed=0).requires_grad_()
        options = {"weights": weights, "temperature": 0.2, "num_classes": num_classes}
        options |= {"reduction": reduction, "return_stats": True}
        loss, stats = supcon_loss(z, labels, **options)
        upstream = torch.linspace(-1, 2, loss.numel(), dtype=z.dtype)
        (loss * upstream.reshape(loss.shape)).sum().backward()
        results.append((loss, *stats, z.grad))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("n", [0, 1, 6])
def test_supcon_without_any_positive_is_zero_with_zero_gradient(n, reduction):
    z = unit(n, 8).requires_grad_()
    loss, stats = supcon_loss(
        z, torch.arange(n), reduction=reduction, return_stats=True
    )
    assert not loss.detach().any()
    assert stats.counted.item() == 0
    assert stats.skipped.item() == n
    loss.sum().backward()
    assert not z.grad.any()


@pytest.mark.parametrize("per_class", [1, 3])
def test_prototypical_equation(per_class):
    z, labels = unit(9, 6).requires_grad_(), draw_labels(9, 4)
    prototypes = unit(4, per_class, 6, seed=3).requires_grad_()
    scores = (torch.einsum("nd,ckd->nck", z, prototypes) / 0.2).exp().mean(dim=2)
    own = scores.gather(1, labels[:, None])[:, 0]
    expected = -torch.log(own / (scores.sum(dim=1) - own)).mean()
    given = prototypes[:, 0] if per_class == 1 else prototypes
    loss = PrototypicalSupConLoss(0.2)(z, labels, given)
    assert_equal(loss, expected, z, prototypes)


def test_prototypical_loss_can_be_negative():
    centres = torch.eye(3, 8)
    assert prototypical_supcon_loss(centres, torch.arange(3), centres) < -1


def test_prototypical_rows_without_a_class_are_skipped():
    z, centres, labels = unit(4, 8), unit(3, 8, seed=1), torch.tensor([-1, 0, 2, -100])
    inside = labels >= 0
    loss, stats = prototypical_supcon_loss(z, labels, centres, return_stats=True)
    torch.testing.assert_close(
        loss, prototypical_supcon_loss(z[inside], labels[inside], centres)
    )
    assert stats.skipped.item() == (~inside).sum().item()


def test_prototypical_single_class_is_skipped():
    z, centres = unit(4, 8).requires_grad_(), unit(1, 8).requires_grad_()
    loss, stats = prototypical_supcon_loss(
        z, torch.zeros(4, dtype=torch.int64), centres, return_stats=True
    )
    assert loss.item() == 0
    assert stats.skipped.item() == 4
    loss.backward()
    assert not z.grad.any()
    assert not centres.grad.any()


@pytest.mark.parametrize(
    "loss", [supcon_loss, balanced_contrastive_loss, prototypical_supcon_loss]
)
def test_a_learned_temperature(loss):
    """What the argument's error and docs/your-trainer.md say of it."""
    z, labels, centres = unit(12, 6), draw_labels(12, 3), unit(3, 6, seed=1)
    given = () if loss is supcon_loss else (centres,)
    tau = torch.tensor(0.2, dtype=z.dtype, requires_grad=True)
    rows, *others = (t / tau.sqrt() for t in (z, *given))
    learned = loss(rows, labels, *others, temperature=1.0)
    torch.testing.assert_close(learned, loss(z, labels, *given, temperature=0.2))
    learned.backward()
    above, below = (loss(z, labels, *given, temperature=t) for t in (0.2001, 0.1999))
    torch.testing.assert_close(tau.grad, (above - below) / 2e-4, rtol=1e-4, atol=0)


def test_supcon_matches_pytorch_metric_learning():
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    theirs = losses.SupConLoss(temperature=0.1)
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        n = int(torch.randint(4, 40, (1,), generator=generator))
        classes = int(torch.randint(2, 8, (1,), generator=generator))
        z = unit(n, 16, seed=seed, dtype=torch.float32)
        # Theirs is 0 by definition where the whole batch is one class.
        labels = draw_labels(n, classes, seed)
        labels[:2] = torch.tensor([0, 1])
        loss, stats = supcon_loss(
            z, labels, temperature=0.1, reduction="sum", return_stats=True
        )
        # Their mean is over all anchors with a positive too.
        mean = loss / stats.counted.clamp(min=1)
        torch.testing.assert_close(mean, theirs(z, labels), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
def test_classes_beyond_the_range_of_the_labels_type(dtype):
    z, labels, centres = unit(20, 6), draw_labels(20, 5), unit(256, 6)
    for loss in (
        lambda labels: prototypical_supcon_loss(z, labels, centres),
        lambda labels: balanced_contrastive_loss(z, labels, centres),
        lambda labels: balanced_contrastive_loss(z, labels),
        lambda labels: supcon_loss(z, labels, num_classes=256),
    ):
        torch.testing.assert_close(loss(labels.to(dtype)), loss(labels))


def test_without_keys_no_row_of_queue_or_centres_is_left_out():
    z, labels = unit(3, 4), torch.arange(3)
    given = (z, labels, z[:0], labels[:0])
    queue = {"queue": unit(6, 4), "queue_labels": torch.arange(6) % 3}
    every = cross_model_contrastive_loss(*given, **queue)
    some = cross_model_contrastive_loss(*given, self_index=torch.arange(3), **queue)
    torch.testing.assert_close(every, some)


@pytest.mark.parametrize("temperature", [1e-3, 0.01, 10.0, 1e4])
@pytest.mark.parametrize("length", [0.1, 3.0])
def test_any_temperature_and_length_against_logs(temperature, length):
    # In log space, where the loops' exponentials would overflow. Two rows are equal,
    # and one row has no class.
    z, labels = unit(12, 6) * length, draw_labels(12, 3)
    z[5] = z[2]
    labels[7] = -1
    z.requires_grad_()
    losses = supcon_loss(z, labels, temperature=temperature, reduction="none")
    own = torch.eye(12, dtype=torch.bool)
    scores = (z @ z.T / temperature).masked_fill(own, -INF)
    logs = scores.log_softmax(dim=1)
    same = (labels[:, None] == labels) & (labels >= 0) & ~own
    number = same.sum(dim=1)
    right = -torch.where(same, logs, 0).sum(dim=1) / number.clamp(min=1)
    assert_equal(losses, right, z, upstream=torch.ones_like(right))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 24),
    classes=st.integers(1, 6),
)
def test_row_order_and_label_names_do_not_matter(seed, n, classes):
    z, labels = unit(n, 7, seed=seed), draw_labels(n, classes, seed)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(n, generator=generator)
    names = torch.randperm(classes, generator=generator)
    centres = unit(classes, 7, seed=seed + 1)
    renamed = torch.empty_like(centres)
    renamed[names] = centres
    far = torch.randint(1 << 40, 1 << 41, (classes,), generator=generator)
    for loss in (supcon_loss, balanced_contrastive_loss):
        value = loss(z, labels)
        torch.testing.assert_close(loss(z[order], labels[order]), value)
        torch.testing.assert_close(loss(z, far[labels]), value)
    for loss in (balanced_contrastive_loss, prototypical_supcon_loss):
        value = loss(z, labels, centres)
        torch.testing.assert_close(loss(z[order], labels[order], centres), value)
        torch.testing.assert_close(loss(z, names[labels], renamed), value)
