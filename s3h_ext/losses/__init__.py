"""Losses over :mod:`s3h_ext.ops`, as functions and as modules.

A contrastive loss is a row-wise log-sum-exp (the denominator) minus an attraction. The
attraction is a sum over same-label keys and is taken from class sums,
``Σ_{p in P(i)} z_i·z_p = z_i·(S_{y_i} − z_i)`` (:func:`s3h_ext.ops.class_sum_dots`);
the denominators are calls of :func:`s3h_ext.ops.similarity_logsumexp`. On the CPU,
SupCon is both in one operation (:func:`s3h_ext.ops.supervised_contrastive`). No N×M
matrix is ever formed.

Common to all of them: rows are used as they are given and should have unit length
(``F.normalize``). On the CPU longer ones cost time alone; the CUDA kernels count on
unit rows, and overflow to inf where a score passes 88. An anchor for which the loss is
undefined (no positive, or nothing in its denominator) adds nothing and is not counted
by ``reduction="mean"``. A row with a negative label has no class: it is no anchor, and
as a key it equals nothing. In a queue, and in the ``key_labels`` of SupCon, a negative
label marks an empty place, which adds nothing, whatever it holds. Labels are integers
of any type but uint64. One that is not below the number of classes, where that is
known, is a ``ValueError`` on the CPU, and no class on a GPU and under
``torch.compile``, where looking at it would wait.

In several processes (``torch.distributed``) each has the rows of its part of the batch.
With ``gather=True`` its rows are the anchors, the rows of all processes are the keys,
gradients flow back to the processes they belong to
(:func:`s3h_ext.ops.gather_rows`), and an anchor does not see itself. Every process
returns R times its share, R being their number: the mean over the processes is the loss
of the joint batch, and the gradients that ``DistributedDataParallel`` averages are its
gradients. With ``reduction="none"`` it returns its anchors' losses as they are, and
their sum is to be multiplied by R. All processes have to call it. Without ``gather`` a
process contrasts its own rows alone.

The losses of classifiers (:mod:`s3h_ext.losses.classification`) take logits and, where
the classes' sizes matter, their training counts; a row with a negative label is not
counted by them either. Cross-entropy and the logit-adjusted loss take the two labels of
mixed images too (:class:`MixedLabels`). ``effective_number_weights`` makes class
weights of counts.
"""

from s3h_ext.losses._reduction import ContrastiveStats
from s3h_ext.losses.balanced import BalancedContrastiveLoss, balanced_contrastive_loss
from s3h_ext.losses.classification import (
    FocalLoss,
    LDAMLoss,
    LogitAdjustedLoss,
    MixedLabels,
    effective_number_weights,
    mixed_cross_entropy,
)
from s3h_ext.losses.cross_model import (
    CrossModelContrastiveLoss,
    cross_model_contrastive_loss,
)
from s3h_ext.losses.paco import PaCoLoss, paco_loss
from s3h_ext.losses.proco import ProCoLoss, proco_loss
from s3h_ext.losses.prototypical import (
    PrototypicalSupConLoss,
    prototypical_supcon_loss,
)
from s3h_ext.losses.queue import FeatureQueue
from s3h_ext.losses.supcon import SupConLoss, supcon_loss

__all__ = [
    "BalancedContrastiveLoss",
    "ContrastiveStats",
    "CrossModelContrastiveLoss",
    "FeatureQueue",
    "FocalLoss",
    "LDAMLoss",
    "LogitAdjustedLoss",
    "MixedLabels",
    "PaCoLoss",
    "ProCoLoss",
    "PrototypicalSupConLoss",
    "SupConLoss",
    "balanced_contrastive_loss",
    "cross_model_contrastive_loss",
    "effective_number_weights",
    "mixed_cross_entropy",
    "paco_loss",
    "proco_loss",
    "prototypical_supcon_loss",
    "supcon_loss",
]
