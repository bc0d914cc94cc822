"""Balanced contrastive loss (Zhu et al., CVPR 2022)."""

from __future__ import annotations

import torch
from torch import Tensor

from s3h_ext.losses._common import (
    ContrastiveModule,
    check_columns,
    check_num_classes,
    class_counts,
    class_index,
    classes_of,
    flatten_views,
    gather_keys,
    key_sum_dots,
    same_class_bias,
)
from s3h_ext.losses._reduction import (
    ContrastiveStats,
    Reduced,
    reduce,
    with_stats,
)
from s3h_ext.ops import class_sum_dots, similarity_logsumexp
from s3h_ext.ops._arguments import Reduction, check_temperature, check_tensor


@with_stats
def balanced_contrastive_loss(
    features: Tensor,
    labels: Tensor,
    centres: Tensor | None = None,
    *,
    temperature: float = 0.1,
    reduction: Reduction = "mean",
    num_classes: int | None = None,
    gather: bool = False,
) -> Reduced:
    r"""Balanced contrastive loss (Zhu et al., CVPR 2022, eq. 10).

    ``L_i = −1/|P(i)| Σ_{p in P(i)} log( exp(s_ip) / Σ_{a≠i} exp(s_ia)/w_ia )``,
    ``w_ia = n_{y_a} − [a in P(i)]``

    The keys are the rows and, if given, one centre per class. P(i) are the keys with
    the anchor's label except i, including its centre; n_c is the number of keys of
    class c, including anchor and centre. So each class has the same weight in the
    denominator, however many keys it has. A key without a class has weight 1. An anchor
    without a positive is skipped; with centres, only anchors without a class.

    With several sets of centres, the loss is the mean over the sets; the scores between
    rows are computed only once, by ``lse(A ∪ B) = logaddexp(lse(A), lse(B))``.

    Args:
        features: ``[B, V, D]`` (V views of each sample) or ``[N, D]``, unit rows.
        labels: ``[B]`` or ``[N]`` integers below C; negative: no class.
        centres: ``[C, D]`` class centres, ``[S, C, D]`` for S sets, or None.
        temperature: τ, > 0.
        reduction: ``"mean"`` over counted anchors, ``"sum"``, or ``"none"`` ``[N]``.
        num_classes: C if known; with centres, it must be their number.
        gather: contrast with the rows of all processes, see :mod:`s3h_ext.losses`.
        return_stats: also return :class:`ContrastiveStats`.

    Returns:
        The loss, and the stats if asked for.

    Raises:
        ValueError: a shape, label, temperature or reduction is invalid.
        TypeError: an argument has the wrong type.

    Example:
        >>> z = torch.nn.functional.normalize(torch.randn(8, 16), dim=1)
        >>> centres = torch.nn.functional.normalize(torch.randn(3, 16), dim=1)
        >>> balanced_contrastive_loss(z, torch.arange(8) % 3, centres).shape
        torch.Size([])
    """
    temperature = check_temperature(temperature)
    num_classes = check_num_classes(num_classes)
    sets: list[Tensor] = []
    if centres is not None:
        check_tensor("centres", centres)
        if centres.ndim not in (2, 3):
            raise ValueError(
                f"centres must be [C, D] or [S, C, D], got shape {tuple(centres.shape)}"
            )
        sets = list(centres.unbind(0)) if centres.ndim == 3 else [centres]
        if not sets:
            raise ValueError("centres: expected at least one set, got none")
        num_classes = classes_of("centres", sets[0], num_classes)
    features, labels = flatten_views(features, labels, num_classes)
    sets = [check_columns("centres", one, features) for one in sets]
    keys = gather_keys(features, labels, gather)
    every_class, size = class_index(keys.labels, num_classes)
    dots = key_sum_dots(features, keys, every_class, size)
    classes = keys.of_anchors(every_class)
    counts = class_counts(every_class, size, dots.dtype)
    known = torch.where(every_class < size, every_class, -1)
    own_class = keys.of_anchors(known)
    if sets:
        counts = torch.cat([counts[:size] + 1, counts[size:]])
    number = counts.index_select(0, classes)
    bias = same_class_bias(number, number - 1)
    lse = similarity_logsumexp(
        features,
        keys.rows,
        temperature=temperature,
        key_bias=-counts.index_select(0, every_class).log(),
        query_labels=own_class,
        key_labels=None if keys.rows is None else known,
        same_label_bias=bias,
        self_index=keys.own,
        assume_normalized=True,
    )
    scale = temperature * (number - 1).clamp(min=1)
    losses = []
    for centre_set in sets:
        rows = torch.arange(size, device=labels.device)
        to_centres = similarity_logsumexp(
            features,
            centre_set,
            temperature=temperature,
            key_bias=-counts[:size].log(),
            query_labels=own_class,
            key_labels=rows,
            same_label_bias=bias,
            assume_normalized=True,
        )
        own_centre = class_sum_dots(
            features,
            centre_set,
            query_classes=classes,
            key_classes=rows,
            num_classes=size,
        )
        losses.append(torch.logaddexp(lse, to_centres) - (dots + own_centre) / scale)
    each = sum(losses[1:], losses[0]) / len(losses) if losses else lse - dots / scale
    counted = (classes < size) & (number > 1)
    return reduce(each, counted, reduction, gather)


class BalancedContrastiveLoss(ContrastiveModule):
    """Module form of :func:`balanced_contrastive_loss`."""

    def forward(
        self,
        features: Tensor,
        labels: Tensor,
        centres: Tensor | None = None,
        return_stats: bool = False,
    ) -> Tensor | tuple[Tensor, ContrastiveStats]:
        """See :func:`balanced_contrastive_loss`."""
        return balanced_contrastive_loss(
            features,
            labels,
            centres,
            return_stats=return_stats,
            **self.settings(),
        )
