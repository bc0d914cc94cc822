import math

import pytest
import torch
import torch.nn.functional as F

from s3h_ext.losses.classification import (
    FocalLoss,
    LDAMLoss,
    LogitAdjustedLoss,
    MixedLabels,
    effective_number_weights,
    mixed_cross_entropy,
)

COUNTS = [500, 60, 7]


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, 3, generator=generator)
    labels = torch.randint(0, 3, (12,), generator=generator)
    return logits, labels


def test_balanced_softmax_is_its_definition(batch):
    logits, labels = batch
    counts = torch.tensor(COUNTS, dtype=torch.float64)
    shifted = logits.double().exp() * counts
    shares = shifted / shifted.sum(1, keepdim=True)
    expected = -shares.gather(1, labels[:, None]).log().mean()
    found = LogitAdjustedLoss(COUNTS)(logits, labels).double()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_logit_adjustment_with_tau_0_is_cross_entropy(batch):
    torch.testing.assert_close(
        LogitAdjustedLoss(COUNTS, tau=0.0)(*batch), F.cross_entropy(*batch)
    )


def test_effective_number_weights_are_their_definition():
    beta = 0.99
    raw = torch.tensor([(1 - beta) / (1 - beta**n) for n in COUNTS]).double()
    expected = raw / raw.sum() * len(COUNTS)
    weights = effective_number_weights(COUNTS, beta)
    torch.testing.assert_close(weights, expected.float())
    assert weights.sum().item() == pytest.approx(3.0)


def test_effective_number_weights_at_the_ends():
    assert effective_number_weights(COUNTS, 0.0).tolist() == [1.0, 1.0, 1.0]
    # beta -> 1 approaches inverse frequency.
    inverse = torch.tensor([1 / n for n in COUNTS])
    found = effective_number_weights(COUNTS, 1 - 1e-9)
    torch.testing.assert_close(found, 3 * inverse / inverse.sum(), rtol=1e-4, atol=0)


def test_focal_is_its_definition(batch):
    logits, labels = batch
    p = logits.double().softmax(1).gather(1, labels[:, None]).squeeze(1)
    weight = torch.tensor([0.5, 1.0, 1.5])
    expected = (weight[labels] * (1 - p) ** 2 * -p.log()).mean()
    found = FocalLoss(gamma=2.0)(logits, labels, weight).double()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_focal_gradient_is_finite_for_a_certain_prediction():
    logits = torch.tensor([[200.0, 0.0]], requires_grad=True)
    FocalLoss(gamma=0.5)(logits, torch.tensor([0])).backward()
    assert torch.isfinite(logits.grad).all()


def test_ldam_takes_the_margin_off_the_own_class_only(batch):
    cosines, labels = batch[0].clamp(-1, 1), batch[1]
    scale = 30.0
    margins = [0.5 * (min(COUNTS) / n) ** 0.25 for n in COUNTS]
    assert margins[2] == 0.5
    expected = 0.0
    for cosine, label in zip(cosines.double(), labels, strict=True):
        shifted = cosine.clone()
        shifted[label] -= margins[label]
        expected -= math.log(torch.softmax(scale * shifted, 0)[label]) / len(labels)
    loss = LDAMLoss(COUNTS, scale=scale)(scale * cosines, labels)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_ldam_weights_are_those_of_cross_entropy(batch):
    logits, labels = batch
    weight = torch.tensor([0.2, 0.8, 2.0])
    loss = LDAMLoss(COUNTS, max_margin=0.0)(logits, labels, weight)
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels, weight=weight))


def test_ends_of_ranges_that_do_not_belong_to_them():
    with pytest.raises(ValueError, match="scale: expected a finite number > 0, got 0"):
        LDAMLoss(COUNTS, scale=0.0)
    with pytest.raises(ValueError, match=r"beta: expected .* \[0, 1\), got 1.0"):
        effective_number_weights(COUNTS, 1.0)


@pytest.mark.parametrize(
    "loss", [LogitAdjustedLoss(COUNTS), FocalLoss(2.0), LDAMLoss(COUNTS)]
)
def test_types_of_logits(batch, loss):
    logits, labels = batch
    expected = loss(logits, labels)
    assert loss(logits.bfloat16(), labels).dtype == torch.float32
    wide = logits.double().requires_grad_()
    torch.testing.assert_close(loss(wide, labels), expected.double())
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), wide)


def test_float32_weights_go_with_float64_logits(batch):
    logits, labels = batch
    weight = effective_number_weights(COUNTS)
    for loss in (FocalLoss(), LDAMLoss(COUNTS)):
        wide = loss(logits.double(), labels, weight)
        torch.testing.assert_close(wide, loss(logits, labels, weight).double())


def soft_target_loss(logits, labels, adjustment):
    """Cross-entropy with soft targets, in float64."""
    rows = torch.arange(len(logits))
    targets = torch.zeros(logits.shape, dtype=torch.float64)
    weight = labels.weight.double()
    targets[rows, labels.first] += weight
    targets[rows, labels.second] += 1 - weight
    return F.cross_entropy(logits.double() + adjustment, targets)


@pytest.mark.parametrize("tau", [0.0, 1.0, 0.8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_mixed_labels_are_soft_targets(batch, tau, dtype):
    logits, first = batch
    logits = (5 * logits).to(dtype).requires_grad_()
    generator = torch.Generator().manual_seed(1)
    second = torch.randint(0, 3, first.shape, generator=generator)
    weight = torch.rand(first.shape, generator=generator)
    weight[:3] = torch.tensor([0.0, 1.0, 0.5])
    second[3] = first[3]
    labels = MixedLabels(first, second, weight)
    prior = (torch.tensor(COUNTS, dtype=torch.float64) / sum(COUNTS)).log()
    upstream = 1.7
    exact = logits.detach().double().requires_grad_()
    right = soft_target_loss(exact, labels, tau * prior)
    (upstream * right).backward()
    found = LogitAdjustedLoss(COUNTS, tau)(logits, labels)
    (upstream * found).backward()
    assert float(found.detach()) == pytest.approx(float(right.detach()), rel=1e-6)
    close = {torch.bfloat16: 4e-3, torch.float32: 1e-6, torch.float64: 1e-7}[dtype]
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=close, atol=close)
    if tau == 0 and dtype != torch.bfloat16:
        again = mixed_cross_entropy(logits.detach(), labels)
        assert float(again) == pytest.approx(float(right.detach()), rel=1e-6)


def test_labels_of_one_image_are_those_of_two_with_all_the_weight(batch):
    logits, labels = batch
    plain = mixed_cross_entropy(logits, labels)
    torch.testing.assert_close(plain, F.cross_entropy(logits, labels))
    alone = MixedLabels(labels, labels.flip(0), torch.ones(len(labels)))
    assert torch.equal(mixed_cross_entropy(logits, alone), plain)


def test_a_mixed_row_counts_where_both_labels_do(batch):
    logits, labels = batch
    mixed = MixedLabels(labels, labels.flip(0), torch.full((len(labels),), 0.25))
    hidden = mixed._replace(second=mixed.second.index_fill(0, torch.tensor([2]), -1))
    others = torch.arange(len(labels)) != 2
    rest = MixedLabels(*(each[others] for each in mixed))
    torch.testing.assert_close(
        mixed_cross_entropy(logits, hidden), mixed_cross_entropy(logits[others], rest)
    )


def test_mixed_labels_of_eight_bits(batch):
    logits, labels = batch
    mixed = MixedLabels(labels, labels.flip(0), torch.rand(len(labels)))
    narrow = mixed._replace(
        first=mixed.first.to(torch.uint8), second=mixed.second.to(torch.int32)
    )
    loss = LogitAdjustedLoss(COUNTS)
    assert torch.equal(loss(logits, narrow), loss(logits, mixed))
