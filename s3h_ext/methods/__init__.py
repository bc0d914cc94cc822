"""Training methods: one class per file, all subclasses of :class:`Method`."""

from s3h_ext.methods.base import Method
from s3h_ext.methods.baseline import Baseline
from s3h_ext.methods.bcl import BCL
from s3h_ext.methods.classwise_splitting import ClasswiseSplitting
from s3h_ext.methods.hybrid import Hybrid
from s3h_ext.methods.s3h import S3H
from s3h_ext.methods.second_stage import ClassifierRetraining, TauNormalization

__all__ = [
    "BCL",
    "S3H",
    "Baseline",
    "ClassifierRetraining",
    "ClasswiseSplitting",
    "Hybrid",
    "Method",
    "TauNormalization",
]
