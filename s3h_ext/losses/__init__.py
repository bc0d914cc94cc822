"""Losses over :mod:`s3h_ext.ops`, as functions and as modules."""

from s3h_ext.losses.contrastive import (
    ContrastiveStats,
    PrototypicalSupConLoss,
    SupConLoss,
    prototypical_supcon_loss,
    supcon_loss,
)

__all__ = [
    "ContrastiveStats",
    "PrototypicalSupConLoss",
    "SupConLoss",
    "prototypical_supcon_loss",
    "supcon_loss",
]
