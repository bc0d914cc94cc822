"""Stateless operations: what the losses and views are made of."""

from s3h_ext.ops.similarity import similarity_logsumexp

__all__ = ["similarity_logsumexp"]
