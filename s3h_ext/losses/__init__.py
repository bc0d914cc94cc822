"""Losses over :mod:`s3h_ext.ops`, as functions and as modules."""

from s3h_ext.losses.contrastive import (
    BalancedContrastiveLoss,
    ContrastiveStats,
    CrossModelContrastiveLoss,
    PrototypicalSupConLoss,
    SupConLoss,
    balanced_contrastive_loss,
    cross_model_contrastive_loss,
    prototypical_supcon_loss,
    supcon_loss,
)

__all__ = [
    "BalancedContrastiveLoss",
    "ContrastiveStats",
    "CrossModelContrastiveLoss",
    "PrototypicalSupConLoss",
    "SupConLoss",
    "balanced_contrastive_loss",
    "cross_model_contrastive_loss",
    "prototypical_supcon_loss",
    "supcon_loss",
]
