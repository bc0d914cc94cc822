"""Cross-entropy variants for long-tailed data, and class weights from counts.

Losses are float64 for float64 logits, otherwise float32. Labels are integers below C. A
row with a negative label, such as PyTorch's -100, contributes nothing and is not
counted by the mean; the mean over no rows is 0. A label of C or more raises
``ValueError`` on the CPU and a device-side assertion on a GPU, where a check would
synchronise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3h_ext.losses._common import (
    check_labels,
    check_logits,
    check_number,
    check_shares,
    check_weight,
)
from s3h_ext.losses._reduction import mean_of_counted

Counts = Sequence[int] | np.ndarray | Tensor


class MixedLabels(NamedTuple):
    """The two labels of each mixed image.

    Attributes:
        first: ``[N]``.
        second: ``[N]``.
        weight: ``[N]`` in [0, 1], weight of the first label; the second has the rest.
    """

    first: Tensor
    second: Tensor
    weight: Tensor


#: One label per row, ``[N]``, or the two of mixed images.
Labels = Tensor | MixedLabels


def mixed_cross_entropy(logits: Tensor, labels: Labels) -> Tensor:
    """Softmax cross-entropy for plain labels or the label pairs of mixed images.

    With weight w it is ``w CE(x, a) + (1 - w) CE(x, b)``, the cross-entropy with the
    soft target w at a and 1 - w at b (Zhang et al., "mixup", ICLR 2018).

    Args:
        logits: ``[N, C]``, floating point.
        labels: integers ``[N]`` or :class:`MixedLabels`. A mixed row counts only if
            both of its labels are valid.

    Returns:
        The mean loss, a scalar.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0, 0.0]])
        >>> labels = MixedLabels(*torch.tensor([[0], [1]]), torch.tensor([0.75]))
        >>> soft = torch.tensor([[0.75, 0.25, 0.0]])
        >>> float(mixed_cross_entropy(logits, labels) - F.cross_entropy(logits, soft))
        0.0
    """
    return mean_of_counted(*_cross_entropy(check_logits(logits), labels))


def read_counts(class_counts: Counts) -> Tensor:
    """Return the counts as float64 ``[C]`` on the CPU."""
    expected = "class_counts: expected one count >= 1 for each class"
    try:
        counts = torch.as_tensor(class_counts).detach().to("cpu", torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{expected}, got {class_counts!r}") from None
    fit = (counts >= 1) & (counts < math.inf)
    if counts.ndim != 1 or not len(counts) or not bool(fit.all()):
        raise ValueError(f"{expected}, got {class_counts!r}")
    return counts


def _cross_entropy(
    logits: Tensor, labels: Labels, name: str = "labels"
) -> tuple[Tensor, Tensor]:
    """Return ``[N]`` losses, and which rows count because they have a class."""
    if isinstance(labels, MixedLabels):
        first, whole = _cross_entropy(logits, labels.first, "labels.first")
        second, other = _cross_entropy(logits, labels.second, "labels.second")
        counted = whole & other
        weight = check_shares("labels.weight", labels.weight, logits)
        return torch.lerp(second, first, weight), counted
    labels = check_labels(name, labels, logits, "logits", logits.shape[1])
    counted = labels >= 0
    targets = labels.masked_fill(~counted, -100)
    rows = F.cross_entropy(logits, targets, reduction="none", ignore_index=-100)
    return rows, counted


def _of_class(values: Tensor, labels: Tensor) -> Tensor:
    """Return each row's class value ``[N]`` of ``[C]``; arbitrary without a class."""
    return values[labels.clamp(min=0)]


def effective_number_weights(class_counts: Counts, beta: float = 0.9999) -> Tensor:
    """Class weights from the effective number of samples.

    ``w_c = (1 - beta) / (1 - beta ** n_c)``, scaled to sum to the number of classes
    (Cui et al., CVPR 2019, equation 2; the scaling of LDAM-DRW).

    Args:
        class_counts: training images of each class, ``C`` numbers >= 1.
        beta: in [0, 1); closer to 1 favours rare classes more, 0 gives weights of 1.

    Returns:
        float32 weights ``[C]``.

    Raises:
        ValueError: a count below 1, or ``beta`` outside [0, 1).

    Example:
        >>> effective_number_weights([1000, 10], beta=0.999).round(decimals=3)
        tensor([0.0310, 1.9690])
    """
    beta = check_number("beta", beta)
    if beta >= 1.0:
        raise ValueError(f"beta: expected a number in [0, 1), got {beta}")
    counts = read_counts(class_counts)
    # expm1 keeps precision when beta ** n is close to 1.
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
        self.tau = check_number("tau", tau)
        counts = read_counts(class_counts)
        self.register_buffer(
            "adjustment",
            (self.tau * (counts / counts.sum()).log()).float(),
            persistent=False,
        )

    def forward(self, logits: Tensor, labels: Labels) -> Tensor:
        """Return the mean loss of logits ``[N, C]`` and plain or mixed labels."""
        logits = check_logits(logits, self.adjustment)
        return mean_of_counted(*_cross_entropy(logits + self.adjustment, labels))


class FocalLoss(nn.Module):
    """Focal loss, ``(1 - p_y) ** gamma * CE`` (Lin et al., ICCV 2017, equation 4).

    With ``weight`` from :func:`effective_number_weights` it is the class-balanced focal
    loss, ``w_y (1 - p_y) ** gamma * CE`` (Cui et al., CVPR 2019). The mean is over
    samples, not over their weights. LDAM-DRW's code computes a different loss: it also
    applies the weight inside the focusing term, ``(1 - exp(-l)) ** gamma * l`` with
    ``l = w_y CE``.

    Args:
        gamma: focusing strength, >= 0; 0 is cross-entropy. LDAM-DRW's tables use 1.

    Example:
        >>> import torch
        >>> FocalLoss(gamma=0.0)(torch.zeros(1, 2), torch.tensor([1])).round(decimals=3)
        tensor(0.6930)
    """

    def __init__(self, gamma: float = 1.0) -> None:
        super().__init__()
        self.gamma = check_number("gamma", gamma)

    def forward(
        self, logits: Tensor, labels: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        """Return the mean loss of ``logits [N, C]``, ``labels [N]``, ``weight [C]``."""
        logits = check_logits(logits)
        labels = check_labels("labels", labels, logits, "logits", logits.shape[1])
        weight = check_weight(weight, logits)
        cross_entropy, counted = _cross_entropy(logits, labels)
        # expm1 is exact for p close to 1, and 1 - p is never negative.
        focus = (-torch.expm1(-cross_entropy)).clamp_min(1e-12) ** self.gamma
        loss = focus * cross_entropy
        if weight is not None:
            loss = loss * _of_class(weight, labels)
        return mean_of_counted(loss, counted)


class LDAMLoss(nn.Module):
    """Label-distribution-aware margin loss (Cao et al., NeurIPS 2019, equation 13).

    ``CE(scale * (cos_j - m_y [j = y]), y)`` with
    ``m_c = max_margin * (n_min / n_c)^(1/4)``. It takes the *scaled* logits of a cosine
    classifier and scales the margin itself, so inference needs no change.

    Args:
        class_counts: training images of each class, ``C`` numbers >= 1.
        max_margin: margin of the rarest class, as a difference of cosines.
        scale: logit scale of the cosine classifier.

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
        max_margin = check_number("max_margin", max_margin)
        scale = check_number("scale", scale, positive=True)
        counts = read_counts(class_counts)
        margins = max_margin * (counts.min() / counts) ** 0.25
        self.register_buffer("margins", (scale * margins).float(), persistent=False)

    def forward(
        self, logits: Tensor, labels: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        """Return the loss of scaled cosines ``[N, C]``, weighted by ``weight [C]``.

        With weights the mean is weighted, as in ``torch.nn.CrossEntropyLoss``.
        """
        logits = check_logits(logits, self.margins)
        labels = check_labels("labels", labels, logits, "logits", logits.shape[1])
        weight = check_weight(weight, logits)
        columns = torch.arange(logits.shape[1], device=logits.device)
        margins = _of_class(self.margins, labels).to(logits.dtype)
        margin = torch.where(columns == labels[:, None], margins[:, None], 0)
        rows, counted = _cross_entropy(logits - margin, labels)
        weights = None if weight is None else _of_class(weight, labels)
        return mean_of_counted(rows, counted, weights)
