"""The contrastive losses against direct transcriptions of their equations."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from s3h_ext.losses import (
    PrototypicalSupConLoss,
    SupConLoss,
    balanced_contrastive_loss,
    cross_model_contrastive_loss,
    prototypical_supcon_loss,
    supcon_loss,
)

INF = math.inf


def unit(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=dtype), dim=-1)


def draw_labels(n, classes, seed=0):
    return torch.randint(
        0, classes, (n,), generator=torch.Generator().manual_seed(seed)
    )


def assert_same_gradients(ours, expected, inputs):
    for mine, right in zip(
        torch.autograd.grad(ours, inputs),
        torch.autograd.grad(expected, inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, right)


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
        denominator = sum(torch.exp(z[i] @ z[a] / temperature) for a in others)
        terms = [
            torch.log(torch.exp(z[i] @ z[p] / temperature) / denominator)
            for p in positives
        ]
        losses.append(-sum(terms) / len(positives))
    return torch.stack(losses), counted


@pytest.mark.parametrize("num_classes", [None, 5])
@pytest.mark.parametrize("seed", range(4))
def test_supcon_equation(seed, num_classes):
    z, labels = unit(14, 6, seed=seed).requires_grad_(), draw_labels(14, 5, seed)
    labels[0] = -1
    expected, counted = supcon_by_loops(z, labels, 0.1)
    losses = supcon_loss(
        z, labels, temperature=0.1, reduction="none", num_classes=num_classes
    )
    torch.testing.assert_close(losses, expected)
    mean, stats = supcon_loss(
        z, labels, temperature=0.1, num_classes=num_classes, return_stats=True
    )
    torch.testing.assert_close(mean, expected.sum() / counted)
    assert (stats.counted.item(), stats.skipped.item()) == (counted, 14 - counted)
    torch.testing.assert_close(
        torch.autograd.grad(mean, z)[0],
        torch.autograd.grad(expected.sum() / counted, z)[0],
    )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("num_classes", [None, 4])
def test_supcon_on_other_devices_is_the_same_loss(reduction, num_classes):
    """Weights have it composed of the operations that every device has."""
    labels = draw_labels(40, 4)
    labels[3] = -1
    results = []
    for weights in (None, torch.ones(40)):
        z = unit(40, 8).requires_grad_()
        loss, stats = supcon_loss(
            z,
            labels,
            weights=weights,
            temperature=0.2,
            num_classes=num_classes,
            reduction=reduction,
            return_stats=True,
        )
        upstream = torch.linspace(-1, 2, loss.numel(), dtype=z.dtype)
        (loss * upstream.reshape(loss.shape)).sum().backward()
        results.append((loss, *stats, z.grad))
    torch.testing.assert_close(results[0], results[1])


def test_supcon_views_are_the_same_as_flat_rows():
    z, labels = unit(5, 3, 8), draw_labels(5, 3)
    flat = supcon_loss(z.flatten(0, 1), labels.repeat_interleave(3))
    torch.testing.assert_close(supcon_loss(z, labels), flat)


def test_supcon_two_views_are_never_without_a_positive():
    z = unit(4, 2, 8)
    _, stats = supcon_loss(z, torch.arange(4), return_stats=True)
    assert stats.skipped.item() == 0


def test_supcon_ignores_label_names_and_row_order():
    z, labels = unit(30, 8), draw_labels(30, 6)
    names = torch.tensor([7, 1 << 40, 3, 0, 12, 5])
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    loss = supcon_loss(z, labels)
    torch.testing.assert_close(supcon_loss(z, names[labels]), loss)
    torch.testing.assert_close(supcon_loss(z[order], labels[order]), loss)


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


def test_supcon_single_class():
    z = unit(7, 8)
    labels = torch.zeros(7, dtype=torch.int64)
    expected, counted = supcon_by_loops(z, labels, 0.1)
    torch.testing.assert_close(supcon_loss(z, labels), expected.sum() / counted)


@pytest.mark.parametrize("per_class", [1, 3])
def test_prototypical_equation(per_class):
    z, labels = unit(9, 6).requires_grad_(), draw_labels(9, 4)
    prototypes = unit(4, per_class, 6, seed=3).requires_grad_()
    scores = (torch.einsum("nd,ckd->nck", z, prototypes) / 0.2).exp().mean(dim=2)
    own = scores.gather(1, labels[:, None])[:, 0]
    expected = -torch.log(own / (scores.sum(dim=1) - own)).mean()
    given = prototypes[:, 0] if per_class == 1 else prototypes
    loss = PrototypicalSupConLoss(0.2)(z, labels, given)
    torch.testing.assert_close(loss, expected)
    for ours, right in zip(
        torch.autograd.grad(loss, (z, prototypes)),
        torch.autograd.grad(expected, (z, prototypes)),
        strict=True,
    ):
        torch.testing.assert_close(ours, right)


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_features(dtype):
    z, labels = unit(40, 16, dtype=torch.float32).to(dtype), draw_labels(40, 5)
    loss = SupConLoss(0.07)(z, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, SupConLoss(0.07)(z.float(), labels))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: SupConLoss(reduction="avg"), ValueError, "reduction must be"),
        (
            lambda: supcon_loss(torch.ones(3), torch.ones(3).long()),
            ValueError,
            "features must",
        ),
        (
            lambda: supcon_loss(unit(3, 4), torch.ones(2).long()),
            ValueError,
            "labels must have",
        ),
        (
            lambda: supcon_loss(unit(3, 4), torch.ones(3)),
            TypeError,
            "labels must be integers",
        ),
        (
            lambda: supcon_loss(unit(3, 4), torch.ones(3).long(), temperature=0),
            ValueError,
            "temperature",
        ),
        (
            lambda: prototypical_supcon_loss(
                unit(3, 4), torch.ones(3).long(), unit(2, 5)
            ),
            ValueError,
            "prototypes must be",
        ),
        (
            lambda: prototypical_supcon_loss(
                unit(3, 4).float(), torch.ones(3).long(), unit(2, 4).double()
            ),
            TypeError,
            "prototypes must have the features' type",
        ),
        (
            lambda: balanced_contrastive_loss(
                unit(3, 4).bfloat16(), torch.ones(3).long(), unit(2, 4)
            ),
            TypeError,
            "centres must have the features' type torch.bfloat16",
        ),
        (
            lambda: supcon_loss(unit(3, 4), torch.ones(3, device="meta").long()),
            ValueError,
            "labels must be on cpu, got meta",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


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


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
@pytest.mark.parametrize("num_classes", [None, 5])
def test_label_types(dtype, num_classes):
    z, labels, centres = unit(20, 6), draw_labels(20, 5), unit(5, 6, seed=1)
    for loss in (supcon_loss, balanced_contrastive_loss):
        torch.testing.assert_close(
            loss(z, labels.to(dtype), num_classes=num_classes), loss(z, labels)
        )
    torch.testing.assert_close(
        prototypical_supcon_loss(z, labels.to(dtype), centres),
        prototypical_supcon_loss(z, labels, centres),
    )


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
def test_classes_beyond_the_range_of_the_labels_type(dtype):
    z, labels, centres = unit(20, 6), draw_labels(20, 5), unit(256, 6, seed=1)
    for loss in (prototypical_supcon_loss, balanced_contrastive_loss):
        torch.testing.assert_close(
            loss(z, labels.to(dtype), centres), loss(z, labels, centres)
        )
    torch.testing.assert_close(
        supcon_loss(z, labels.to(dtype), num_classes=256), supcon_loss(z, labels)
    )


def test_without_keys_no_row_of_queue_or_centres_is_left_out():
    z, labels = unit(3, 4), torch.arange(3)
    queue = {"queue": unit(6, 4, seed=1), "queue_labels": torch.arange(6) % 3}
    losses = [
        cross_model_contrastive_loss(
            z, labels, z[:0], labels[:0], self_index=index, **queue
        )
        for index in (None, torch.arange(3))
    ]
    torch.testing.assert_close(*losses)


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
    torch.testing.assert_close(losses, right)
    assert_same_gradients(losses.sum(), right.sum(), (z,))


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
