"""Prototypical supervised contrastive loss (Wang et al., CVPR 2021)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from s3h_ext.losses._common import ContrastiveModule, check_labels, check_type
from s3h_ext.losses._reduction import (
    ContrastiveStats,
    Reduced,
    reduce,
    with_stats,
)
from s3h_ext.ops import similarity_logsumexp
from s3h_ext.ops._arguments import (
    Reduction,
    check_matrices,
    check_temperature,
    check_tensor,
    refuse_forward_mode,
)
from s3h_ext.ops.all_gather import process_count
from s3h_ext.ops.prototypical import contrast_prototypes


@with_stats
def prototypical_supcon_loss(
    features: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    *,
    temperature: float = 0.1,
    reduction: Reduction = "mean",
    gather: bool = False,
) -> Reduced:
    r"""Prototypical supervised contrastive loss (Wang et al. 2021, Hybrid-PSC).

    ``L_i = −log( exp(z_i·p_{y_i}/τ) / Σ_{j≠y_i} exp(z_i·p_j/τ) )``

    The anchor's own class is *not* in the denominator, so the loss is not a softmax and
    can be negative. With K prototypes per class, ``exp(z_i·p_j/τ)`` becomes the mean
    over the class's prototypes, in numerator and denominator alike; K = 1 is the
    paper's loss. An anchor with a negative label is skipped, and so are all if there is
    only one class. Memory is O((N·K + C·K)·D).

    Args:
        features: ``[N, D]``, unit rows.
        labels: ``[N]`` integers below C; negative: no class.
        prototypes: ``[C, D]`` or ``[C, K, D]``, unit rows; learnable if they require
            grad.
        temperature: τ, > 0.
        reduction: ``"mean"`` over counted anchors, ``"sum"``, or ``"none"`` ``[N]``.
        gather: count the anchors of all processes, see :mod:`s3h_ext.losses`.
        return_stats: also return :class:`ContrastiveStats`.

    Returns:
        The loss, and the stats if asked for.

    Raises:
        ValueError: a shape, label, temperature or reduction is invalid.
        TypeError: an argument has the wrong type.

    Example:
        >>> z = torch.nn.functional.normalize(torch.randn(8, 16), dim=1)
        >>> centres = torch.nn.functional.normalize(torch.randn(3, 16), dim=1)
        >>> prototypical_supcon_loss(z, torch.arange(8) % 3, centres).shape
        torch.Size([])
    """
    temperature = check_temperature(temperature)
    check_matrices(features, None, "features")
    check_tensor("prototypes", prototypes)
    if prototypes.ndim not in (2, 3) or prototypes.shape[-1] != features.shape[-1]:
        raise ValueError(
            f"prototypes must be [C, {features.shape[-1]}] or "
            f"[C, K, {features.shape[-1]}], got shape {tuple(prototypes.shape)}"
        )
    prototypes = check_type("prototypes", prototypes, features)
    num_classes = prototypes.shape[0]
    labels = check_labels("labels", labels, features, "features", num_classes)
    alone = not gather or process_count() == 1
    wide = torch.float64 in (features.dtype, prototypes.dtype)
    if alone and features.device.type == "cpu" and not wide:
        refuse_forward_mode("prototypical_supcon_loss", features, prototypes)
        loss, number = contrast_prototypes(
            features, prototypes, labels, temperature, reduction
        )
        return Reduced(loss, number, len(labels))
    losses, counted = _composed(features, labels, prototypes, temperature)
    return reduce(losses, counted, reduction, gather)


def _composed(
    features: Tensor, labels: Tensor, prototypes: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Compute the losses from generic operations, for every device and dtype.

    Returns:
        ``[N]`` losses, and which anchors count.
    """
    if prototypes.ndim == 2:
        prototypes = prototypes[:, None, :]
    num_classes, per_class, depth = prototypes.shape
    owners = torch.arange(num_classes, device=labels.device)
    lse = similarity_logsumexp(
        features,
        prototypes.reshape(-1, depth),
        temperature=temperature,
        query_labels=labels,
        key_labels=owners.repeat_interleave(per_class),
        same_label_bias=-math.inf,
        assume_normalized=True,
    )
    inside = (labels >= 0) & (labels < num_classes)
    if num_classes == 0:
        return lse, inside
    own = prototypes.index_select(0, torch.where(inside, labels, 0))
    scores = (own.to(lse.dtype) * features.to(lse.dtype)[:, None, :]).sum(dim=-1)
    attraction = (scores / temperature).logsumexp(dim=1)
    counted = inside & (lse != -math.inf)
    return lse - attraction, counted


class PrototypicalSupConLoss(ContrastiveModule):
    """Module form of :func:`prototypical_supcon_loss`."""

    def __init__(
        self,
        temperature: float = 0.1,
        reduction: Reduction = "mean",
        gather: bool = False,
    ) -> None:
        super().__init__(temperature, reduction, gather=gather)

    def settings(self) -> dict[str, Any]:
        """Return the function's arguments; prototypes set the number of classes."""
        settings = super().settings()
        del settings["num_classes"]
        return settings

    def forward(
        self,
        features: Tensor,
        labels: Tensor,
        prototypes: Tensor,
        return_stats: bool = False,
    ) -> Tensor | tuple[Tensor, ContrastiveStats]:
        """See :func:`prototypical_supcon_loss`: ``[N, D]``, ``[N]``, ``[C, D]``."""
        return prototypical_supcon_loss(
            features,
            labels,
            prototypes,
            return_stats=return_stats,
            **self.settings(),
        )
