"""What docs/your-trainer.md says of other code bases, against their formulas.

The formulas are written down here as their code has them, by matrices and masks.
"""

import pytest
import torch
import torch.nn.functional as F

from python_tests.losses.law import assert_equal, unit
from s3h_ext.losses import (
    BalancedContrastiveLoss,
    FeatureQueue,
    FocalLoss,
    LDAMLoss,
    LogitAdjustedLoss,
    SupConLoss,
    effective_number_weights,
    supcon_loss,
)

TAU, C = 0.1, 4
COUNTS = torch.tensor([90, 40, 12, 3])


def supcontrast(features, labels=None, mode="all", mask=None):
    """HobbitLong/SupContrast, [B, V, D]; base_temperature 0.07; each anchor's loss."""
    batch, views, _ = features.shape
    if mask is None and labels is None:
        mask = torch.eye(batch)
    elif mask is None:
        mask = labels[:, None] == labels
    keys = torch.cat(features.unbind(1))
    anchors = features[:, 0] if mode == "one" else keys
    times = 1 if mode == "one" else views
    others = 1 - torch.eye(len(keys), dtype=keys.dtype)[: len(anchors)]
    same = mask.to(keys.dtype).repeat(times, views) * others
    scores = anchors @ keys.T / TAU
    log_prob = scores - (scores.exp() * others).sum(1, keepdim=True).log()
    number = same.sum(1)
    number = torch.where(number < 1e-6, 1, number)
    return -(TAU / 0.07) * (same * log_prob).sum(1) / number


@pytest.mark.parametrize("labels", [torch.arange(12) % C, torch.arange(12), None])
@pytest.mark.parametrize("mode", ["all", "one"])
def test_supcontrast(labels, mode):
    z = unit(12, 2, 8).requires_grad_()
    theirs = supcontrast(z, labels, mode).mean()
    ours = SupConLoss(TAU, contrast_mode=mode)(z, labels)
    assert_equal(ours * TAU / 0.07, theirs, z)


@pytest.mark.parametrize("mode", ["all", "one"])
def test_supcontrast_with_a_mask(mode):
    z = unit(12, 3, 8).requires_grad_()
    of_image = torch.rand(12, C) < 0.4
    of_image[:, 0] |= ~of_image.any(1)  # several labels, one at least
    mask = (of_image.double() @ of_image.double().T) > 0
    theirs = supcontrast(z, mode=mode, mask=mask).mean()
    ours = SupConLoss(TAU, contrast_mode=mode)(z, mask=mask)
    assert_equal(ours * TAU / 0.07, theirs, z)


def test_supcontrast_counts_an_anchor_without_a_positive():
    z, labels = unit(7, 1, 8).requires_grad_(), torch.tensor([0, 0, 1, 1, 1, 2, 3])
    loss, stats = SupConLoss(TAU)(z, labels, return_stats=True)
    assert stats.counted == 5
    theirs = supcontrast(z, labels).mean()
    assert_equal(loss * TAU / 0.07 * stats.counted / 7, theirs, z)


def test_targeted_supcon_weights_the_anchors():
    """LTH14/targeted-supcon: each anchor's loss times its class's weight, the mean."""
    z, labels = unit(12, 2, 8).requires_grad_(), torch.arange(12) % C
    weights = torch.tensor([0.2, 0.5, 1.0, 3.0]).double()[labels]
    theirs = (supcontrast(z, labels) * weights.repeat(2)).mean()
    options = {"weights": weights, "temperature": TAU, "reduction": "sum"}
    ours = supcon_loss(z, labels, **options) / 24
    assert_equal(ours * TAU / 0.07, theirs, z)


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


def metric_learning(embeddings, labels, keys, key_labels):
    """pytorch-metric-learning, SupConLoss of other rows than the batch's."""
    rows = F.normalize(embeddings, dim=1)
    same = labels[:, None] == key_labels
    log_prob = (rows @ keys.T / TAU).log_softmax(1)
    return -(torch.where(same, log_prob, 0).sum(1) / same.sum(1)).mean()


def test_a_batch_of_one_class():
    labels = torch.zeros(9).long()
    least = torch.tensor(8.0, dtype=torch.float64).log()
    equal_rows = unit(1, 8).repeat(9, 1)
    torch.testing.assert_close(SupConLoss(TAU)(equal_rows, labels), least)
    assert SupConLoss(TAU)(unit(9, 8), labels) > least


def test_cross_batch_memory():
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    theirs = losses.CrossBatchMemory(losses.SupConLoss(TAU), 8, memory_size=20)
    queue = FeatureQueue(20, 8)
    for _ in range(4):
        z = torch.randn(9, 8, requires_grad=True)
        labels = torch.randint(0, C, (9,))
        rows = F.normalize(z, dim=1)
        index = queue.enqueue(rows, labels)
        keys = {"keys": queue.features, "key_labels": queue.labels}
        ours = SupConLoss(TAU, in_batch=False)(rows, labels, **keys, self_index=index)
        assert_equal(ours, theirs(z, labels), z)


def test_moco():
    """facebookresearch/moco: a row's own key is class 0, the queue has the others."""
    queue = FeatureQueue(20, 8, dtype=torch.float64)
    for count in (0, 7, 20):  # theirs starts with random rows instead of empty places
        queue.enqueue(unit(count, 8))
        q, k = unit(9, 8).requires_grad_(), unit(9, 8)
        filled = queue.features[queue.labels >= 0]
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ filled.T], dim=1) / TAU
        theirs = F.cross_entropy(logits, torch.zeros(9).long())
        ours = SupConLoss(TAU, in_batch=False, contrast_mode="one")(
            torch.stack([q, k], dim=1), keys=queue.features, key_labels=queue.labels
        )
        assert_equal(ours, theirs, q)


def test_supervised_moco():
    """UniMoCo's, with labels: the other encoder's rows, then the queue."""
    z, labels = torch.randn(9, 8, dtype=torch.float64), torch.arange(9) % C
    keys, key_labels = unit(29, 8), torch.arange(29) % C
    z.requires_grad_()
    theirs = metric_learning(z, labels, keys, key_labels)
    options = {"keys": keys, "key_labels": key_labels}
    ours = SupConLoss(TAU, in_batch=False)(F.normalize(z, dim=1), labels, **options)
    assert_equal(ours, theirs, z)


def nt_xent(first, second):
    """google-research/simclr: logits of a view against the other's, then its own."""
    own = torch.eye(len(first), dtype=torch.bool)
    aa, bb = ((z @ z.T / TAU).masked_fill(own, -torch.inf) for z in (first, second))
    ab = first @ second.T / TAU
    targets = torch.arange(len(first))
    of_first = F.cross_entropy(torch.cat([ab, aa], 1), targets)
    return (of_first + F.cross_entropy(torch.cat([ab.T, bb], 1), targets)) / 2


def test_simclr():
    z = unit(9, 2, 8).requires_grad_()
    assert_equal(SupConLoss(TAU)(z), nt_xent(*z.unbind(1)), z)


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
