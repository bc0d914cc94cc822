"""Losses over :mod:`s3h_ext.ops`, as functions and as modules.

A contrastive loss is a row-wise log-sum-exp (the denominator) minus an attraction. The
attraction sums over the same-label keys and is computed from class sums,
``Σ_{p in P(i)} z_i·z_p = z_i·(S_{y_i} − z_i)`` (:func:`s3h_ext.ops.class_sum_dots`);
:func:`s3h_ext.ops.similarity_logsumexp` computes the denominators. On the CPU, SupCon
does both in one operation (:func:`s3h_ext.ops.supervised_contrastive`). No N×M matrix
is ever formed.

The losses do not normalise their input: pass rows of unit length (``F.normalize``).
Other lengths give correct results but are slower, most of all on CUDA, whose kernels
are built for unit rows. An anchor for which the loss is undefined (no positive, or an
empty denominator) contributes nothing and is not counted by ``reduction="mean"``. A row
with a negative label has no class: it is not an anchor, and as a key it matches
nothing. In a queue, and in SupCon's ``key_labels``, a negative label marks an empty
slot, whose content is ignored. Labels may be of any integer type except uint64. If the
number of classes is known, a label out of range raises ``ValueError`` on the CPU; on a
GPU and under ``torch.compile``, where the check would synchronise, the row has no
class.

With several processes (``torch.distributed``), each holds its part of the batch. With
``gather=True``, its own rows are the anchors and the rows of all processes are the
keys; gradients flow back to the process that owns a row
(:func:`s3h_ext.ops.gather_rows`), and an anchor does not see itself. Each of R
processes returns R times its share, so the mean over the processes is the loss of the
joint batch, and the gradients averaged by ``DistributedDataParallel`` are its
gradients. ``reduction="none"`` returns the unscaled losses of the process's own
anchors: multiply their sum by R. All processes must make the call. Without ``gather``,
a process contrasts only its own rows.

Classification losses (:mod:`s3h_ext.losses.classification`) take logits and, if they
depend on class sizes, the training counts; they also ignore rows with a negative label.
Cross-entropy and the logit-adjusted loss also accept the label pairs of mixed images
(:class:`MixedLabels`). ``effective_number_weights`` turns counts into class weights.
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
