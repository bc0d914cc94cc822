"""The contrastive losses as ours and as what else a user could run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from s3h_ext.losses import prototypical_supcon_loss, supcon_loss
from s3h_ext.ops import similarity_logsumexp

TEMPERATURE = 0.1
CLASSES = 100
# The label of every result of our own op without the attraction.
OP = "s3h_ext op"
OURS = "s3h_ext"


@dataclass(frozen=True)
class Peer:
    """A loss and whether it holds the N x M matrix."""

    name: str
    function: Callable[..., Tensor]
    holds_matrix: bool
    backward: bool = True


def supcon_ours(z: Tensor, labels: Tensor) -> Tensor:
    return supcon_loss(z, labels, temperature=TEMPERATURE, num_classes=CLASSES)


def supcon_op(z: Tensor, labels: Tensor) -> Tensor:
    return similarity_logsumexp(z, temperature=TEMPERATURE).sum()


def supcon_mask(z: Tensor, labels: Tensor) -> Tensor:
    """The SupContrast form: the N x N mask."""
    scores = z @ z.T / TEMPERATURE
    scores = scores - scores.detach().amax(dim=1, keepdim=True)
    others = 1 - torch.eye(len(z))
    same = (labels[:, None] == labels).float() * others
    logs = scores - (scores.exp() * others).sum(dim=1, keepdim=True).log()
    return -((same * logs).sum(dim=1) / same.sum(dim=1).clamp(min=1)).mean()


def supcon_algebraic(z: Tensor, labels: Tensor) -> Tensor:
    """One log-sum-exp and class sums: the best plain form known to us."""
    scores = (z @ z.T / TEMPERATURE).fill_diagonal_(-math.inf)
    sums = z.new_zeros(CLASSES, z.shape[1]).index_add(0, labels, z)
    counts = torch.bincount(labels, minlength=CLASSES)
    own = sums.index_select(0, labels) - z
    positives = (counts[labels] - 1).clamp(min=1)
    attraction = (z * own).sum(dim=1) / (TEMPERATURE * positives)
    return (scores.logsumexp(dim=1) - attraction).mean()


def supcon_flex(z: Tensor, labels: Tensor) -> Tensor:
    """The log-sum-exp alone, as flex_attention's by-product."""
    from torch.nn.attention.flex_attention import flex_attention

    def without_self(
        score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor
    ) -> Tensor:
        return torch.where(i == j, -math.inf, score)

    rows = z[None, None]
    _, lse = flex_attention(
        rows, rows, rows, score_mod=without_self, scale=1 / TEMPERATURE, return_lse=True
    )
    return lse.sum()


def prototype_ours(z: Tensor, labels: Tensor, centres: Tensor) -> Tensor:
    return prototypical_supcon_loss(z, labels, centres, temperature=TEMPERATURE)


def prototype_algebraic(z: Tensor, labels: Tensor, centres: Tensor) -> Tensor:
    scores = z @ centres.T / TEMPERATURE
    own = scores.gather(1, labels[:, None])[:, 0]
    rest = scores.scatter(1, labels[:, None], -math.inf)
    return (rest.logsumexp(dim=1) - own).mean()


def prototype_linear_cross_entropy(
    z: Tensor, labels: Tensor, centres: Tensor
) -> Tensor:
    """Own class in the denominator: another loss, the same work."""
    return F.linear_cross_entropy(z / TEMPERATURE, centres, labels)


def keys_ours(z: Tensor, labels: Tensor, keys: Tensor, key_labels: Tensor) -> Tensor:
    return supcon_loss(
        z,
        labels,
        keys=keys,
        key_labels=key_labels,
        temperature=TEMPERATURE,
        num_classes=CLASSES,
    )


def keys_mask(z: Tensor, labels: Tensor, keys: Tensor, key_labels: Tensor) -> Tensor:
    """The published form: the N x (N + M) mask."""
    every, every_label = torch.cat([z, keys]), torch.cat([labels, key_labels])
    scores = z @ every.T / TEMPERATURE
    scores = scores - scores.detach().amax(dim=1, keepdim=True)
    others = 1 - torch.eye(len(z), len(every))
    same = (labels[:, None] == every_label).float() * others
    logs = scores - (scores.exp() * others).sum(dim=1, keepdim=True).log()
    return -((same * logs).sum(dim=1) / same.sum(dim=1).clamp(min=1)).mean()


def peers(case: str) -> list[Peer]:
    """Everything that is compared for ``"supcon"``, ``"prototypes"`` or ``"keys"``."""
    if case == "keys":
        return [
            Peer(OURS, keys_ours, False),
            Peer("eager mask", keys_mask, True),
            Peer("compiled mask", torch.compile(keys_mask), True),
        ]
    if case == "prototypes":
        found = [
            Peer(OURS, prototype_ours, False),
            Peer("eager algebraic", prototype_algebraic, True),
            Peer("compiled algebraic", torch.compile(prototype_algebraic), True),
        ]
        if hasattr(F, "linear_cross_entropy"):
            function = prototype_linear_cross_entropy
            found.append(Peer("linear_cross_entropy", function, True))
        return found
    found = [
        Peer(OURS, supcon_ours, False),
        Peer(OP, supcon_op, False),
        Peer("eager mask", supcon_mask, True),
        Peer("eager algebraic", supcon_algebraic, True),
        Peer("compiled mask", torch.compile(supcon_mask), True),
        Peer("compiled algebraic", torch.compile(supcon_algebraic), True),
        Peer("flex_attention", torch.compile(supcon_flex), False, backward=False),
    ]
    try:
        from pytorch_metric_learning.losses import SupConLoss
    except ImportError:
        print("  pytorch-metric-learning is not installed")
    else:
        found.append(Peer("pytorch-metric-learning", SupConLoss(TEMPERATURE), True))
    return found


def inputs(
    case: str, rows: int, columns: int, depth: int, dtype: torch.dtype
) -> list[Tensor]:
    """Unit rows that require a gradient, their labels, and what they meet."""
    z = F.normalize(torch.randn(rows, depth), dim=1).to(dtype).requires_grad_()
    if case == "supcon":
        return [z, torch.randint(0, CLASSES, (rows,))]
    centres = F.normalize(torch.randn(columns, depth), dim=1).to(dtype)
    if case == "keys":
        every_label = torch.randint(0, CLASSES, (rows + columns,))
        return [z, every_label[:rows], centres, every_label[rows:]]
    return [z, torch.randint(0, columns, (rows,)), centres.requires_grad_()]
