"""Cross-entropy variants for long-tailed data, and class weights from counts.

Losses are float64 for float64 logits, else float32. Labels are integers in [0, C); none
is ignored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3h_ext.ops.reference import compute_dtype

Counts = Sequence[int] | np.ndarray | Tensor


class MixedLabels(NamedTuple):
    """Two labels for each row, of images that were mixed.

    Attributes:
        first: ``[N]``.
        second: ``[N]``.
        weight: ``[N]``, of the first label, in [0, 1]; the second has the rest.
    """

    first: Tensor
    second: Tensor
    weight: Tensor


#: One label ``[N]`` for each row, or two.
Labels = Tensor | MixedLabels


def mixed_cross_entropy(logits: Tensor, labels: Labels) -> Tensor:
    """Softmax cross-entropy for labels of one image or of two.

    With weight w it is ``w CE(x, a) + (1 - w) CE(x, b)``, which is the cross-entropy
    with the soft target that has w at a and 1 - w at b (Zhang et al., "mixup", ICLR
    2018).

    Args:
        logits: ``[N, C]``, floating point.
        labels: int64 ``[N]``, or a :class:`MixedLabels` of them.

    Returns:
        The mean, a scalar.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0, 0.0]])
        >>> labels = MixedLabels(*torch.tensor([[0], [1]]), torch.tensor([0.75]))
        >>> soft = torch.tensor([[0.75, 0.25, 0.0]])
        >>> float(mixed_cross_entropy(logits, labels) - F.cross_entropy(logits, soft))
        0.0
    """
    if isinstance(labels, Tensor):
        return F.cross_entropy(logits, labels)
    first, second = (
        F.cross_entropy(logits, each, reduction="none") for each in labels[:2]
    )
    return torch.lerp(second, first, labels.weight.to(first.dtype)).mean()


def _counts(class_counts: Counts) -> Tensor:
    counts = torch.as_tensor(class_counts).detach().to("cpu", torch.float64)
    if counts.ndim != 1 or not len(counts) or not bool((counts >= 1).all()):
        raise ValueError(
            "class_counts: expected one count >= 1 for each class, got "
            f"{class_counts!r}"
        )
    return counts


def effective_number_weights(class_counts: Counts, beta: float = 0.9999) -> Tensor:
    """Class weights from the effective number of samples.

    ``w_c = (1 - beta) / (1 - beta ** n_c)``, scaled to sum to the number of classes
    (Cui et al., CVPR 2019, equation 2; the scaling of LDAM-DRW).

    Args:
        class_counts: training images of each class, ``C`` numbers >= 1.
        beta: in [0, 1); 0 gives weights of 1.

    Returns:
        float32 weights ``[C]``.

    Raises:
        ValueError: a count below 1, or ``beta`` outside [0, 1).

    Example:
        >>> effective_number_weights([1000, 10], beta=0.999).round(decimals=3)
        tensor([0.0310, 1.9690])
    """
    if not 0.0 <= beta < 1.0:
        raise ValueError(f"beta: expected a number in [0, 1), got {beta}")
    counts = _counts(class_counts)
    # -expm1(n log beta) keeps its digits where beta ** n is close to 1.
    log_beta = math.log(beta) if beta > 0 else -math.inf
    weights = (1.0 - beta) / -torch.expm1(counts * log_beta)
    return (weights * (len(counts) / weights.sum())).float()


class LogitAdjustedLoss(nn.Module):
    """Softmax cross-entropy on logits shifted by the log class prior.

    ``L = CE(logits + tau * log(n_c / n), y)``: the logit-adjusted loss of Menon et al.
    (ICLR 2021, equation 10); with ``tau = 1`` it is the balanced softmax of Ren et al.
    (NeurIPS 2020, equation 3). Inference uses the plain logits.

    Args:
        class_counts: training images of each class, ``C`` numbers >= 1.
        tau: strength of the adjustment, finite and >= 0; 0 is plain cross-entropy.

    Example:
        >>> import torch
        >>> loss = LogitAdjustedLoss([90, 10])
        >>> loss(torch.zeros(1, 2), torch.tensor([1])).round(decimals=3)
        tensor(2.3030)
    """

    adjustment: Tensor  # [C]

    def __init__(self, class_counts: Counts, tau: float = 1.0) -> None:
        super().__init__()
        if not (math.isfinite(tau) and tau >= 0):
            raise ValueError(f"tau: expected a finite number >= 0, got {tau}")
        counts = _counts(class_counts)
        self.tau = tau
        self.register_buffer(
            "adjustment",
            (tau * (counts / counts.sum()).log()).float(),
            persistent=False,
        )

    def forward(self, logits: Tensor, labels: Labels) -> Tensor:
        """Return the mean loss of ``logits [N, C]`` and ``labels [N]``.

        Labels of mixed images are a :class:`MixedLabels`.
        """
        logits = logits.to(compute_dtype(logits.dtype))
        if isinstance(labels, MixedLabels):
            labels = labels._replace(
                first=labels.first.long(), second=labels.second.long()
            )
        else:
            labels = labels.long()
        return mixed_cross_entropy(logits + self.adjustment, labels)


class FocalLoss(nn.Module):
    """Focal loss, ``(1 - p_y) ** gamma * CE`` (Lin et al., ICCV 2017, equation 4).

    With ``weight`` from :func:`effective_number_weights` it is the class-balanced focal
    loss. The mean is over samples, weights included, as in LDAM-DRW's baseline.

    Args:
        gamma: focusing strength, finite and >= 0; 0 is cross-entropy. LDAM-DRW's tables
            use 1.

    Example:
        >>> import torch
        >>> FocalLoss(gamma=0.0)(torch.zeros(1, 2), torch.tensor([1])).round(decimals=3)
        tensor(0.6930)
    """

    def __init__(self, gamma: float = 1.0) -> None:
        super().__init__()
        if not (math.isfinite(gamma) and gamma >= 0):
            raise ValueError(f"gamma: expected a finite number >= 0, got {gamma}")
        self.gamma = gamma

    def forward(
        self, logits: Tensor, labels: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        """Return the mean loss of ``logits [N, C]``, ``labels [N]``, ``weight [C]``."""
        logits, labels = logits.to(compute_dtype(logits.dtype)), labels.long()
        cross_entropy = F.cross_entropy(logits, labels, reduction="none")
        # 1 - p through expm1: exact where p is close to 1, and never below 0.
        focus = (-torch.expm1(-cross_entropy)).clamp_min(1e-12) ** self.gamma
        loss = focus * cross_entropy
        if weight is not None:
            loss = loss * weight[labels]
        return loss.mean()


class LDAMLoss(nn.Module):
    """Label-distribution-aware margin loss (Cao et al., NeurIPS 2019, equation 13).

    ``CE(scale * (cos_j - m_y [j = y]), y)`` with ``m_c = max_margin * (n_min /
    n_c)^(1/4)``. It takes the *scaled* logits of a cosine classifier, so the margin is
    scaled here and inference needs nothing special.

    Args:
        class_counts: training images of each class, ``C`` numbers >= 1.
        max_margin: the margin of the rarest class, in cosine units.
        scale: the classifier's logit scale.

    Example:
        >>> import torch
        >>> loss = LDAMLoss([100, 10], scale=1.0)
        >>> loss(torch.zeros(1, 2), torch.tensor([1])).round(decimals=3)
        tensor(0.9740)
    """

    margins: Tensor  # [C]

    def __init__(
        self, class_counts: Counts, max_margin: float = 0.5, scale: float = 30.0
    ) -> None:
        super().__init__()
        if not (math.isfinite(max_margin) and max_margin >= 0):
            raise ValueError(
                f"max_margin: expected a finite number >= 0, got {max_margin}"
            )
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"scale: expected a finite number > 0, got {scale}")
        counts = _counts(class_counts)
        margins = max_margin * (counts.min() / counts) ** 0.25
        self.register_buffer("margins", (scale * margins).float(), persistent=False)

    def forward(
        self, logits: Tensor, labels: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        """Return the loss of scaled cosines ``[N, C]``, weighted by ``weight [C]``.

        With weights the mean is weighted, as in ``torch.nn.CrossEntropyLoss``.
        """
        logits, labels = logits.to(compute_dtype(logits.dtype)), labels.long()
        margins = self.margins[labels].to(logits.dtype)
        margin = torch.zeros_like(logits).scatter_(1, labels[:, None], margins[:, None])
        weight = None if weight is None else weight.to(logits.dtype)
        return F.cross_entropy(logits - margin, labels, weight=weight)
