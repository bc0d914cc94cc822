"""What docs/your-trainer.md says of other code bases, against their formulas.

The formulas are written down here as their code has them, by matrices and masks, so
that no other package is needed.
"""

import pytest
import torch
import torch.nn.functional as F

from s3h_ext.losses import (
    BalancedContrastiveLoss,
    CrossModelContrastiveLoss,
    FocalLoss,
    LDAMLoss,
    LogitAdjustedLoss,
    SupConLoss,
    effective_number_weights,
    supcon_loss,
)

TAU, C = 0.1, 4
COUNTS = torch.tensor([90, 40, 12, 3])


def unit(*shape):
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def assert_equal(ours, theirs, *inputs):
    torch.testing.assert_close(ours, theirs)
    for found, expected in zip(
        torch.autograd.grad(ours, inputs),
        torch.autograd.grad(theirs, inputs),
        strict=True,
    ):
        torch.testing.assert_close(found, expected)


def supcontrast(features, labels, mode="all"):
    """HobbitLong/SupContrast, [B, V, D]; base_temperature 0.07; each anchor's loss."""
    views = features.shape[1]
    keys = torch.cat(features.unbind(1))
    anchors = features[:, 0] if mode == "one" else keys
    every = labels.repeat(views)
    others = 1 - torch.eye(len(keys), dtype=keys.dtype)[: len(anchors)]
    same = (every[: len(anchors), None] == every).to(keys.dtype) * others
    scores = anchors @ keys.T / TAU
    log_prob = scores - (scores.exp() * others).sum(1, keepdim=True).log()
    number = same.sum(1)
    number = torch.where(number < 1e-6, 1, number)
    return -(TAU / 0.07) * (same * log_prob).sum(1) / number


@pytest.mark.parametrize("labels", [torch.arange(12) % C, torch.arange(12)])
def test_supcontrast(labels):
    z = unit(12, 2, 8).requires_grad_()
    theirs = supcontrast(z, labels).mean()
    assert_equal(SupConLoss(TAU)(z, labels) * TAU / 0.07, theirs, z)


def test_supcontrast_in_the_mode_one():
    z, labels = unit(12, 3, 8).requires_grad_(), torch.arange(12) % C
    ours = supcon_loss(z, labels, temperature=TAU, reduction="none")[::3].mean()
    assert_equal(ours * TAU / 0.07, supcontrast(z, labels, "one").mean(), z)


def test_supcontrast_counts_an_anchor_without_a_positive():
    z, labels = unit(7, 1, 8).requires_grad_(), torch.tensor([0, 0, 1, 1, 1, 2, 3])
    loss, stats = SupConLoss(TAU)(z, labels, return_stats=True)
    assert stats.counted == 5
    theirs = supcontrast(z, labels).mean()
    assert_equal(loss * TAU / 0.07 * stats.counted / 7, theirs, z)


def bal_sc_l(centres, features, targets):
    """FlamieZhu/Balanced-Contrastive-Learning, BalSCL, [B, 2, D]."""
    batch = 2 * len(targets)
    every = torch.cat((targets.repeat(2), torch.arange(C)))
    class_count = F.one_hot(every, C).sum(0)
    others = 1 - torch.eye(batch, len(every), dtype=features.dtype)
    same = (every[:batch, None] == every).to(features.dtype) * others
    rows = torch.cat((*features.unbind(1), centres))
    scores = rows[:batch] @ rows.T / TAU
    weights = class_count[every] - same
    denominator = (scores.exp() * others / weights).sum(1, keepdim=True)
    log_prob = scores - denominator.log()
    return -((same * log_prob).sum(1) / same.sum(1)).mean()


def test_bcl():
    z, centres = unit(9, 2, 8).requires_grad_(), unit(C, 8).requires_grad_()
    targets = torch.tensor([0, 0, 0, 1, 0, 1, 3, 0, 3])
    ours = BalancedContrastiveLoss(TAU)(z, targets, centres)
    assert_equal(ours, bal_sc_l(centres, z, targets), z, centres)


def test_bcl_logit_adjust():
    logits = torch.randn(9, C, dtype=torch.float64, requires_grad=True)
    targets = torch.arange(9) % C
    theirs = F.cross_entropy(logits + (COUNTS / COUNTS.sum()).log(), targets)
    assert_equal(LogitAdjustedLoss(COUNTS)(logits, targets), theirs, logits)


def metric_learning(embeddings, labels, keys=None, key_labels=None):
    """pytorch-metric-learning, SupConLoss; its default reducer counts losses above 0.

    With keys it is CrossBatchMemory's: the batch's own rows come first among them.
    """
    rows = F.normalize(embeddings, dim=1)
    keys = rows if keys is None else torch.cat((rows, F.normalize(keys, dim=1)))
    key_labels = labels if key_labels is None else torch.cat((labels, key_labels))
    others = ~torch.eye(len(rows), len(keys), dtype=torch.bool)
    same = (labels[:, None] == key_labels) & others
    scores = rows @ keys.T / TAU
    denominator = scores.masked_fill(~others, -torch.inf).logsumexp(1, keepdim=True)
    log_prob = torch.where(same, scores - denominator, 0).sum(1)
    losses = -log_prob / same.sum(1).clamp(min=1)
    return losses.sum() / (losses > 0).sum()


def test_pytorch_metric_learning():
    z = torch.randn(9, 8, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 0, 0, 1, 0, 1, 3, 0, 2])
    ours = SupConLoss(TAU)(F.normalize(z, dim=1), labels)
    assert_equal(ours, metric_learning(z, labels), z)


def test_a_batch_of_one_class():
    labels = torch.zeros(9).long()
    least = torch.tensor(8.0, dtype=torch.float64).log()
    equal_rows = unit(1, 8).repeat(9, 1)
    torch.testing.assert_close(SupConLoss(TAU)(equal_rows, labels), least)
    assert SupConLoss(TAU)(unit(9, 8), labels) > least


def test_cross_batch_memory_is_another_loss():
    z, labels = unit(9, 8), torch.tensor([0, 0, 0, 1, 0, 1, 3, 0, 2])
    memory, memory_labels = unit(20, 8), torch.arange(20) % C
    theirs = metric_learning(z, labels, memory, memory_labels)
    options = {"queue": memory, "queue_labels": memory_labels}
    ours = CrossModelContrastiveLoss(TAU)(
        z, labels, z, labels, self_index=torch.arange(9), **options
    )
    # The same keys in the balanced equation: a class weighs 1 in the denominator.
    rows, every = torch.cat((z, memory)), torch.cat((labels, memory_labels))
    others = 1 - torch.eye(9, 29, dtype=z.dtype)
    same = (labels[:, None] == every).to(z.dtype) * others
    weights = F.one_hot(every, C).sum(0)[every] - same
    scores = z @ rows.T / TAU
    log_prob = scores - (scores.exp() * others / weights).sum(1, keepdim=True).log()
    torch.testing.assert_close(ours, -((same * log_prob).sum(1) / same.sum(1)).mean())
    assert abs(ours - theirs) > 0.1 * theirs


@pytest.mark.parametrize("weight", [None, effective_number_weights([90, 40, 12, 3])])
def test_ldam_drw(weight):
    """kaidic/LDAM-DRW, LDAMLoss, which gets cosines and scales them itself."""
    cosines = unit(9, 8) @ unit(C, 8).T
    cosines.requires_grad_()
    target = torch.arange(9) % C
    margins = 1.0 / COUNTS.double() ** 0.25
    margins = margins * (0.5 / margins.max())
    index = F.one_hot(target, C).bool()
    output = torch.where(index, cosines - margins[target, None], cosines)
    typed = None if weight is None else weight.double()
    theirs = F.cross_entropy(30 * output, target, weight=typed)
    assert_equal(LDAMLoss(COUNTS)(30 * cosines, target, weight), theirs, cosines)


def test_ldam_drw_focal():
    """kaidic/LDAM-DRW, FocalLoss: a weight is inside the focus; without, the same."""
    logits = torch.randn(9, C, dtype=torch.float64, requires_grad=True)
    target = torch.arange(9) % C
    weight = effective_number_weights(COUNTS).double()

    def theirs(weight):
        each = F.cross_entropy(logits, target, reduction="none", weight=weight)
        return ((1 - torch.exp(-each)) ** 2 * each).mean()

    assert_equal(FocalLoss(2.0)(logits, target), theirs(None), logits)
    p = logits.softmax(1).gather(1, target[:, None])[:, 0]
    paper = (weight[target] * (1 - p) ** 2 * -p.log()).mean()
    ours = FocalLoss(2.0)(logits, target, weight)
    assert_equal(ours, paper, logits)
    assert abs(ours - theirs(weight)) > 0.1 * ours
