"""Parametric contrastive losses, PaCo and GPaCo (Cui et al., ICCV 2021, TPAMI 2023)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from s3h_ext.losses._common import (
    ContrastiveModule,
    check_columns,
    check_labels,
    check_logits,
    check_number,
    class_index,
    gather_keys,
)
from s3h_ext.losses._reduction import (
    ContrastiveStats,
    Reduced,
    reduce,
    with_stats,
)
from s3h_ext.losses._seen import Classes, see_batch, see_keys
from s3h_ext.losses.classification import Counts, read_counts
from s3h_ext.ops._arguments import (
    Reduction,
    check_matrices,
    check_temperature,
    check_vector,
)


@with_stats
def paco_loss(
    features: Tensor,
    labels: Tensor,
    logits: Tensor,
    keys: Tensor | None = None,
    key_labels: Tensor | None = None,
    *,
    class_counts: Tensor | None = None,
    alpha: float = 0.05,
    beta: float = 1.0,
    gamma: float = 1.0,
    smoothing: float = 0.0,
    logit_temperature: float = 1.0,
    temperature: float = 0.1,
    reduction: Reduction = "mean",
    gather: bool = False,
) -> Reduced:
    r"""Contrast with rows and learnable class centres: PaCo and GPaCo.

    ``L_i = −Σ_{p in P(i) ∪ C} w_ip log( exp(x_ip) / Z_i ) / Σ_p w_ip``,
    ``Z_i = Σ_{c in C} exp(x_ic) + γ Σ_{a in A(i)} exp(x_ia)``

    A(i) are the other rows and the keys, with ``x_ia = z_i·z_a/τ``; P(i) are those with
    the anchor's label, each of weight α. C are the class centres, whose scores are the
    classifier's logits: ``x_ic = (logit_ic + log(n_c/n)) / τ_C`` with class counts,
    ``logit_ic / τ_C`` without. The centre of the anchor's class has the weight β (1 −
    ε), with smoothing ε; the others share β ε.

    This is PaCo's rebalanced loss with its center learning rebalance (Cui et al., ICCV
    2021) as in the released code, which divides by the sum of the weights; there the
    anchors are one encoder's rows, and the keys are those of the momentum encoder and
    the queue. GPaCo (TPAMI 2023) has all views of one encoder as anchors, a queue and
    smoothing.

    Args:
        features: anchors ``[N, D]``, rows of unit length.
        labels: ``[N]`` integers below C; negative: no class; the row is not an anchor
            but stays in the others' denominators.
        logits: the anchors' logits ``[N, C]``.
        keys: ``[M, D]`` further keys, the same in every process, or None.
        key_labels: ``[M]`` integers below C, with ``keys``; negative: an empty slot,
            whose content is ignored.
        class_counts: training counts ``[C]``, or numbers > 0 in proportion to them.
        alpha: α, weight of each row that is a positive.
        beta: β, weight of the centres.
        gamma: γ, weight of the rows in the denominator.
        smoothing: ε, label smoothing in [0, 1).
        logit_temperature: τ_C, > 0; ``supt`` in the released code.
        temperature: τ, > 0.
        reduction: ``"mean"`` over counted anchors, ``"sum"``, or ``"none"`` ``[N]``.
        gather: contrast with the rows of all processes, see :mod:`s3h_ext.losses`.
        return_stats: also return :class:`ContrastiveStats`.

    Returns:
        The loss, and the stats if asked for.

    Raises:
        ValueError: a shape, label, number or reduction is invalid.
        TypeError: an argument has the wrong type.

    Example:
        >>> z = torch.nn.functional.normalize(torch.randn(8, 16), dim=1)
        >>> logits, counts = torch.randn(8, 3), torch.tensor([90, 9, 1])
        >>> paco_loss(z, torch.arange(8) % 3, logits, class_counts=counts).shape
        torch.Size([])
    """
    temperature = check_temperature(temperature)
    alpha, beta = check_number("alpha", alpha), check_number("beta", beta)
    gamma, smoothing = check_number("gamma", gamma), _check_smoothing(smoothing)
    logit_temperature = check_number(
        "logit_temperature", logit_temperature, positive=True
    )
    check_matrices(features, None, "features")
    logits = check_logits(logits)
    if len(logits) != len(features) or logits.device != features.device:
        raise ValueError(
            f"logits must be [{len(features)}, C] on {features.device}, a row for each "
            f"of the features, got shape {tuple(logits.shape)} on {logits.device}"
        )
    classes = logits.shape[1]
    labels = check_labels("labels", labels, features, "features", classes)
    if (keys is None) != (key_labels is None):
        raise ValueError("keys and key_labels must be given together")
    batch = gather_keys(features, labels, gather)
    every, size = class_index(batch.labels, classes)
    of_batch = Classes(batch.of_anchors(every), every, size)
    seen = see_batch(features, batch, 1, of_batch, temperature)
    if keys is not None and key_labels is not None:
        keys = check_columns("keys", keys, features)
        key_labels = check_labels("key_labels", key_labels, keys, "keys", classes)
        of_keys = of_batch._replace(keys=class_index(key_labels, classes)[0])
        empty = key_labels < 0
        seen = seen.join(see_keys(features, keys, empty, None, of_keys, temperature))
    if class_counts is not None:
        check_vector("class_counts", class_counts, classes, features.device)
        shares = class_counts / class_counts.sum()
        logits = logits + shares.log().to(logits.dtype)
    logits = logits / logit_temperature
    lse = logits.logsumexp(dim=1)
    if gamma > 0:
        lse = torch.logaddexp(lse, seen.lse + math.log(gamma))
    known = of_batch.anchors < classes
    own = torch.where(known, of_batch.anchors, 0)
    of_own = logits.gather(1, own[:, None])[:, 0]
    other = smoothing / max(1, classes - 1)
    centres = (1 - smoothing - other) * of_own + other * logits.sum(dim=1)
    weight = beta + alpha * seen.number
    counted = known & (weight > 0)
    attraction = beta * centres + (alpha / temperature) * seen.dots
    losses = lse - attraction / torch.where(counted, weight, 1)
    return reduce(losses, counted, reduction, gather)


def _check_smoothing(smoothing: float) -> float:
    smoothing = check_number("smoothing", smoothing)
    if smoothing >= 1:
        raise ValueError(f"smoothing: expected a number in [0, 1), got {smoothing}")
    return smoothing


class PaCoLoss(ContrastiveModule):
    """Module form of :func:`paco_loss`.

    Args:
        class_counts: training images of each class, ``C`` numbers >= 1, or None to use
            the logits unadjusted.
        temperature: τ, > 0.
        reduction: ``"mean"`` over counted anchors, ``"sum"`` or ``"none"``.
        gather: contrast with the rows of all processes, see :mod:`s3h_ext.losses`.
        alpha: α, weight of each row that is a positive.
        beta: β, weight of the centres.
        gamma: γ, weight of the rows in the denominator.
        smoothing: ε, label smoothing in [0, 1); used by GPaCo.
        logit_temperature: τ_C, > 0.

    Raises:
        ValueError: an argument is out of range.
        TypeError: an argument has the wrong type.

    Example:
        >>> loss_fn = PaCoLoss([90, 9, 1], temperature=0.05)
        >>> z = torch.nn.functional.normalize(torch.randn(8, 16), dim=1)
        >>> loss_fn(z, torch.arange(8) % 3, torch.randn(8, 3)).shape
        torch.Size([])
    """

    class_counts: Tensor | None  # [C]

    def __init__(
        self,
        class_counts: Counts | None = None,
        temperature: float = 0.1,
        reduction: Reduction = "mean",
        gather: bool = False,
        *,
        alpha: float = 0.05,
        beta: float = 1.0,
        gamma: float = 1.0,
        smoothing: float = 0.0,
        logit_temperature: float = 1.0,
    ) -> None:
        super().__init__(temperature, reduction, gather=gather)
        counts = None if class_counts is None else read_counts(class_counts)
        self.register_buffer("class_counts", counts, persistent=False)
        self.alpha = check_number("alpha", alpha)
        self.beta = check_number("beta", beta)
        self.gamma = check_number("gamma", gamma)
        self.smoothing = _check_smoothing(smoothing)
        self.logit_temperature = check_number(
            "logit_temperature", logit_temperature, positive=True
        )

    def settings(self) -> dict[str, Any]:
        """Return the function's arguments; the logits set the number of classes."""
        settings = super().settings()
        del settings["num_classes"]
        names = "class_counts alpha beta gamma smoothing logit_temperature".split()
        return settings | {name: getattr(self, name) for name in names}

    def forward(
        self,
        features: Tensor,
        labels: Tensor,
        logits: Tensor,
        keys: Tensor | None = None,
        key_labels: Tensor | None = None,
        return_stats: bool = False,
    ) -> Tensor | tuple[Tensor, ContrastiveStats]:
        """See :func:`paco_loss`: ``[N, D]``, ``[N]``, ``[N, C]``."""
        return paco_loss(
            features,
            labels,
            logits,
            keys,
            key_labels,
            return_stats=return_stats,
            **self.settings(),
        )
