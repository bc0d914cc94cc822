"""Balanced contrastive learning (Zhu et al., CVPR 2022)."""

from __future__ import annotations

from s3h_ext.data.views.mixing import Mixing
from s3h_ext.methods.s3h import S3H


class BCL(S3H):
    r"""Logit-adjusted classification and balanced contrast on one network.

    .. math:: L = \lambda L_{CE} + \mu L_{BCL}

    One view of each image goes to the classifier. ``views`` others go through an MLP
    head into the balanced contrastive loss, whose class centres are the classifier's
    weights projected by another MLP (section 3.3). It is :class:`S3H` without its three
    parts: no montages, one head, no second model.

    Args:
        contrast_recipe: augmentation of the contrastive views; same choices as
            ``recipe``.
        views: contrastive views of each image.
        ce_weight: lambda, weight of the cross-entropy. The paper: 2 on CIFAR, else 1.
        contrast_weight: mu, weight of the contrastive loss. The paper: 0.6 on CIFAR,
            0.35 on large data sets.
        temperature: temperature of the contrastive loss, > 0.
        tau: strength of the logit adjustment, >= 0; 0 is plain cross-entropy.
        projection_hidden: hidden units of the MLP heads.
        projection_dim: dimension of the embeddings.
        sampler: how to draw training images: ``"instance-balanced"``,
            ``"class-balanced"``, ``"square-root"``, or ``"progressive"``, from the
            first to the second.
        recipe: augmentation of the classification view, a name of
            ``s3h_ext.data.views.recipes.RECIPES``.
        mixing: how to mix other images into the classification view; not set: no
            mixing. ConCutMix (Pan et al., IEEE TIP 2024) uses class-balanced CutMix
            here, the defaults of :class:`~s3h_ext.data.views.mixing.Mixing`.
    """

    def __init__(
        self,
        contrast_recipe: str = "supcon",
        views: int = 2,
        ce_weight: float = 2.0,
        contrast_weight: float = 0.6,
        temperature: float = 0.1,
        tau: float = 1.0,
        projection_hidden: int = 512,
        projection_dim: int = 128,
        sampler: str = "instance-balanced",
        recipe: str = "autoaugment+cutout",
        mixing: Mixing | None = None,
    ) -> None:
        super().__init__(
            contrast_recipe=contrast_recipe,
            views=views,
            heads=1,
            partner="none",
            ce_weight=ce_weight,
            contrast_weight=contrast_weight,
            temperature=temperature,
            tau=tau,
            projection_hidden=projection_hidden,
            projection_dim=projection_dim,
            sampler=sampler,
            recipe=recipe,
            mixing=mixing,
        )

    @property
    def label(self) -> str:
        return "bcl"
