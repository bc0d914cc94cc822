"""Stateless operations on which the losses and views are built."""

from s3h_ext.ops.all_gather import gather_rows
from s3h_ext.ops.augment import Operation, augment_images
from s3h_ext.ops.batch_norm import batch_norm_relu
from s3h_ext.ops.class_sums import class_sum_dots
from s3h_ext.ops.patches import Patches
from s3h_ext.ops.prototypes import (
    PrototypeUpdate,
    accumulate_prototypes,
    all_reduce_update,
    apply_prototypes_,
    update_prototypes_,
)
from s3h_ext.ops.prototypical import prototypical_contrastive
from s3h_ext.ops.similarity import similarity_logsumexp
from s3h_ext.ops.supcon import supervised_contrastive
from s3h_ext.ops.view_boxes import ViewBoxes, sample_view_boxes
from s3h_ext.ops.views import render_views

__all__ = [
    "Operation",
    "Patches",
    "PrototypeUpdate",
    "ViewBoxes",
    "accumulate_prototypes",
    "all_reduce_update",
    "apply_prototypes_",
    "augment_images",
    "batch_norm_relu",
    "class_sum_dots",
    "gather_rows",
    "prototypical_contrastive",
    "render_views",
    "sample_view_boxes",
    "similarity_logsumexp",
    "supervised_contrastive",
    "update_prototypes_",
]
