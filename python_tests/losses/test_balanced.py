"""The balanced and the cross-model loss against loops over their equations."""

import pytest
import torch

from python_tests.losses.law import assert_equal, unit
from python_tests.losses.test_contrastive import draw_labels
from s3h_ext.losses import (
    BalancedContrastiveLoss,
    CrossModelContrastiveLoss,
    balanced_contrastive_loss,
    cross_model_contrastive_loss,
)


def balanced_by_loops(z, labels, keys, key_labels, left_out, temperature):
    """Zhu et al. eq. 10, anchor by anchor: (losses, which are counted)."""
    losses, counted = [], []
    for i, label in enumerate(labels):
        seen = [a for a in range(len(keys)) if a != left_out[i]]
        positives = [p for p in seen if key_labels[p] == label >= 0]
        counted.append(bool(positives))
        if not positives:
            losses.append(z.sum() * 0)
            continue
        scores = torch.exp(keys @ z[i] / temperature)
        weights = []
        for a in seen:
            same = [k for k in range(len(keys)) if key_labels[k] == key_labels[a]]
            number = len(same) if key_labels[a] >= 0 else 1
            own = bool(key_labels[a] == label) and left_out[i] in same
            weights.append(number - int(own))
        denominator = sum(scores[a] / w for a, w in zip(seen, weights, strict=True))
        losses.append(
            -sum(torch.log(scores[p] / denominator) for p in positives) / len(positives)
        )
    return torch.stack(losses), torch.tensor(counted)


@pytest.mark.parametrize("with_centres", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_balanced_equation(seed, with_centres):
    z, labels = unit(13, 6, seed=seed).requires_grad_(), draw_labels(13, 4, seed)
    labels[0] = -1
    centres = unit(4, 6, seed=seed + 9).requires_grad_()
    keys = torch.cat([z, centres]) if with_centres else z
    key_labels = torch.cat([labels, torch.arange(4)])[: len(keys)]
    expected, counted = balanced_by_loops(
        z, labels, keys, key_labels.tolist(), list(range(13)), 0.2
    )
    given = centres if with_centres else None
    options = {"temperature": 0.2, "reduction": "none"}
    losses = balanced_contrastive_loss(z, labels, given, **options)
    torch.testing.assert_close(losses, expected)
    mean, stats = BalancedContrastiveLoss(0.2)(z, labels, given, return_stats=True)
    assert stats.counted == counted.sum()
    inputs = (z, centres) if with_centres else (z,)
    assert_equal(mean, expected.sum() / counted.sum(), *inputs)


def test_balanced_with_several_sets_is_the_mean_of_their_losses():
    z, labels = unit(13, 6).requires_grad_(), draw_labels(13, 4)
    labels[0] = -1
    centres = torch.stack([unit(4, 6, seed=seed) for seed in (7, 8, 9)])
    centres.requires_grad_()
    single = [
        balanced_contrastive_loss(z, labels, c, reduction="none") for c in centres
    ]
    losses = balanced_contrastive_loss(z, labels, centres, reduction="none")
    torch.testing.assert_close(losses, torch.stack(single).mean(0))
    mean, stats = BalancedContrastiveLoss()(z, labels, centres, return_stats=True)
    assert stats.skipped == 1
    expected = sum(balanced_contrastive_loss(z, labels, c) for c in centres) / 3
    assert_equal(mean, expected, z, centres)
    with pytest.raises(ValueError, match="centres: expected at least one set"):
        balanced_contrastive_loss(z, labels, centres[:0])
    with pytest.raises(ValueError, match="centres must be"):
        balanced_contrastive_loss(z, labels, centres[..., :5])


@pytest.mark.parametrize("parts", ["keys", "queue", "centres", "queue-centres"])
@pytest.mark.parametrize("excluding", [True, False])
def test_cross_model_equation(parts, excluding):
    z, labels = unit(9, 6).requires_grad_(), draw_labels(9, 4)
    keys, queue = unit(9, 6, seed=1).requires_grad_(), unit(7, 6, seed=2)
    queue_labels = draw_labels(7, 4, 5)
    labels[1] = queue_labels[0] = -1
    centres = unit(4, 6, seed=3)
    options = {}
    every, every_label = [keys], [labels]
    if "queue" in parts:
        options |= {"queue": queue, "queue_labels": queue_labels}
        every.append(queue[queue_labels >= 0])
        every_label.append(queue_labels[queue_labels >= 0])
    if "centres" in parts:
        options["centres"] = centres
        every.append(centres)
        every_label.append(torch.arange(4))
    left_out = [None] * 9
    if excluding:
        options["self_index"] = torch.arange(9)
        options["self_index"][4] = 12
        left_out = [*range(4), None, *range(5, 9)]
    expected, counted = balanced_by_loops(
        z, labels, torch.cat(every), torch.cat(every_label).tolist(), left_out, 0.2
    )
    mean, stats = cross_model_contrastive_loss(
        z, labels, keys, labels, temperature=0.2, return_stats=True, **options
    )
    assert stats.counted == counted.sum()
    assert_equal(mean, expected.sum() / counted.sum(), z, keys)
    module = CrossModelContrastiveLoss(0.2)(z, labels, keys, labels, **options)
    torch.testing.assert_close(module, mean)
