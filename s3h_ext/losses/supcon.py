"""Supervised contrastive loss (Khosla et al. 2020), without the N×N matrix."""

from __future__ import annotations

from torch import Tensor

from s3h_ext.losses._common import (
    ContrastiveModule,
    ContrastiveStats,
    Keys,
    Reduced,
    check_num_classes,
    class_counts,
    class_index,
    flatten_views,
    gather_keys,
    key_sum_dots,
    reduce,
    with_stats,
)
from s3h_ext.ops import similarity_logsumexp
from s3h_ext.ops._arguments import Reduction, check_temperature, refuse_forward_mode
from s3h_ext.ops.supcon import contrast_rows


@with_stats
def supcon_loss(
    features: Tensor,
    labels: Tensor,
    *,
    temperature: float = 0.1,
    reduction: Reduction = "mean",
    num_classes: int | None = None,
    gather: bool = False,
) -> Reduced:
    r"""Supervised contrastive loss, ``L_out`` (Khosla et al. 2020, eq. 2).

    ``L_i = −1/|P(i)| Σ_{p in P(i)} log( exp(z_i·z_p/τ) / Σ_{a≠i} exp(z_i·z_a/τ) )``

    P(i): the other rows with the anchor's label. The denominator holds every other
    row, positives included. There is no τ/τ_base factor. An anchor without a positive
    is skipped.

    Args:
        features: ``[B, V, D]`` (V views of each sample) or ``[N, D]``, rows of unit
            length (``F.normalize``): they are used as they are given, and
            :mod:`s3h_ext.losses` says what becomes of others.
        labels: ``[B]`` or ``[N]`` integers below ``num_classes``; negative: no class,
            the row is no anchor and stays in the others' denominators.
        temperature: τ.
        reduction: ``"mean"`` over counted anchors, ``"sum"``, or ``"none"``, which
            gives ``[B·V]`` (sample-major) with 0 at skipped anchors.
        num_classes: upper bound of the labels, where known; without it classes are
            found by sorting. Neither waits for the device.
        gather: contrast with the rows of all processes, see :mod:`s3h_ext.losses`.
        return_stats: also return :class:`ContrastiveStats`.

    Returns:
        The loss, and the stats if asked for.

    Raises:
        ValueError: a shape, label count, temperature or reduction is not as above.
        TypeError: a type is not as above.

    Example:
        >>> import torch
        >>> z = torch.nn.functional.normalize(torch.randn(4, 2, 16), dim=-1)
        >>> supcon_loss(z, torch.tensor([0, 1, 0, 2])).shape
        torch.Size([])
    """
    temperature = check_temperature(temperature)
    num_classes = check_num_classes(num_classes)
    features, labels = flatten_views(features, labels, num_classes)
    keys = gather_keys(features, labels, gather)
    if keys.rows is None and features.device.type == "cpu":
        refuse_forward_mode("supcon_loss", features)
        loss, number = contrast_rows(
            features, labels, temperature, num_classes, reduction
        )
        return Reduced(loss, number, len(labels))
    losses, counted = _composed(features, keys, temperature, num_classes)
    return reduce(losses, counted, reduction, gather)


def _composed(
    features: Tensor, keys: Keys, temperature: float, num_classes: int | None
) -> tuple[Tensor, Tensor]:
    """The losses by the operations that every device and several processes have.

    Returns:
        ``[N]`` losses, and which anchors count.
    """
    lse = similarity_logsumexp(
        features,
        keys.rows,
        temperature=temperature,
        self_index=keys.own,
        assume_normalized=True,
    )
    every_class, size = class_index(keys.labels, num_classes)
    dots = key_sum_dots(features, keys, every_class, size)
    classes = keys.of_anchors(every_class)
    counts = class_counts(every_class, size, dots.dtype)
    positives = counts.index_select(0, classes) - 1
    attraction = dots / (temperature * positives.clamp(min=1))
    counted = (classes < size) & (positives > 0)
    return lse - attraction, counted


class SupConLoss(ContrastiveModule):
    """Module form of :func:`supcon_loss`."""

    def forward(
        self, features: Tensor, labels: Tensor, return_stats: bool = False
    ) -> Tensor | tuple[Tensor, ContrastiveStats]:
        """See :func:`supcon_loss`: features ``[B, V, D]`` or ``[N, D]``."""
        return supcon_loss(
            features,
            labels,
            return_stats=return_stats,
            **self.settings(),
        )
