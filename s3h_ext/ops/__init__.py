"""Stateless operations: what the losses and views are made of."""

from s3h_ext.ops.class_sums import class_sum_dots
from s3h_ext.ops.prototypes import (
    PrototypeUpdate,
    accumulate_prototypes,
    all_reduce_update,
    apply_prototypes_,
)
from s3h_ext.ops.similarity import similarity_logsumexp

__all__ = [
    "PrototypeUpdate",
    "accumulate_prototypes",
    "all_reduce_update",
    "apply_prototypes_",
    "class_sum_dots",
    "similarity_logsumexp",
]
