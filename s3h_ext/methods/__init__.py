"""Training methods: one file each, one class each, behind one small contract."""

from s3h_ext.methods.base import Method
from s3h_ext.methods.baseline import Baseline
from s3h_ext.methods.hybrid import Hybrid

__all__ = ["Baseline", "Hybrid", "Method"]
