"""S3H: spatial-constraint sampling, scalable network, hybrid task (Zhao et al., 2025).

docs/s3h.md separates what the paper specifies from our choices.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Literal, get_args

import torch
from torch import Tensor

from s3h_ext.checks import COUNT, POSITIVE, ZERO_OR_MORE, check, check_choice, number_in
from s3h_ext.data import Batch, LongTailDataset, Stream
from s3h_ext.data.views.mixing import Mixing
from s3h_ext.data.views.recipes import get_recipe
from s3h_ext.losses import BalancedContrastiveLoss, CrossModelContrastiveLoss
from s3h_ext.losses.classification import Counts, LogitAdjustedLoss
from s3h_ext.methods.base import ClassifierMethod, require_labelled, seen_labels
from s3h_ext.models import (
    CascadedHeads,
    ImageClassifier,
    apart_from_running_statistics,
    class_directions,
    momentum_copy,
    pool_quadrants,
    pool_whole,
    update_momentum_copy_,
)

PartnerName = Literal["momentum", "second-head", "none"]
MomentumSchedule = Literal["constant", "cosine"]


class S3H(ClassifierMethod):
    r"""Classification of whole views with balanced contrast of montage quadrants.

    .. math:: L = w_{ce} L_{CE} + w_{con} \frac{1}{|G|} \sum_{(h, g) \in G}
              L_{bal}(f_h; f_h \cup c_g)
              + w_{cross} \frac{1}{H} \sum_h L_{bal}(f_h; k_h \cup c_h)

    Each step shows every image once as a whole, for the logit-adjusted cross-entropy,
    and in ``4 * views`` spatially constrained crops, spread over the montages of the
    batch. The encoder processes both in one pass, and a montage's map is pooled to its
    quadrants. H cascaded heads project each quadrant to embeddings ``f_1 .. f_H``; twin
    heads project the classifier's weights to class centres ``c_1 .. c_H``. ``k_h`` are
    the embeddings of the same quadrants by a momentum copy of encoder and heads; a row
    does not see its own copy. The balanced contrast is that of BCL (Zhu et al., CVPR
    2022, equation 10). Inference uses only encoder and classifier.

    Each part can be switched off: spatial sampling by ``contrast_recipe="supcon"``,
    which contrasts whole views; the cascade by ``heads=1``; contrast across models by
    ``partner="none"``. Without all three this is BCL.

    Args:
        contrast_recipe: augmentation of the contrastive views; same choices as
            ``recipe``. Montages are pooled to their quadrants, other views as a whole.
        views: montages (or whole views) per image of the batch, M.
        heads: number of cascaded projection heads, H.
        partner: what the embeddings are contrasted with besides each other and the
            class centres of their own head. ``"second-head"``: the centres of all heads
            (G is all pairs); needs two heads. ``"momentum"``: these and the momentum
            copy, even with one head. ``"none"``: nothing else (G pairs each head with
            itself).
        ce_weight: weight of the cross-entropy.
        contrast_weight: weight of the contrastive loss within the model.
        cross_weight: weight of the contrastive loss against the momentum copy.
        temperature: temperature of the contrastive losses, > 0.
        tau: strength of the logit adjustment, >= 0; 0 is plain cross-entropy.
        projection_hidden: hidden units of each projection head.
        projection_dim: dimension of the embeddings.
        momentum: momentum of the copy per step, in [0, 1); higher is slower.
        momentum_schedule: ``"constant"``, or ``"cosine"`` from ``momentum`` to 1.
        separate_norm: normalise montages by their own batch statistics and keep them
            out of the running statistics; costs a second pass of the encoder.
        sampler: how to draw training images: ``"instance-balanced"``,
            ``"class-balanced"``, ``"square-root"``, or ``"progressive"``, from the
            first to the second.
        recipe: augmentation of the classification view, a name of
            ``s3h_ext.data.views.recipes.RECIPES``.
        mixing: how to mix other images into the classification view; not set: no
            mixing. ConCutMix (Pan et al., IEEE TIP 2024) uses class-balanced CutMix
            here, the defaults of :class:`~s3h_ext.data.views.mixing.Mixing`.
    """

    copied_share: Tensor  # []: 1 - momentum in this epoch

    def __init__(
        self,
        contrast_recipe: str = "montage-2x2",
        views: int = 2,
        heads: int = 2,
        partner: PartnerName = "momentum",
        ce_weight: float = 2.0,
        contrast_weight: float = 0.6,
        cross_weight: float = 0.6,
        temperature: float = 0.1,
        tau: float = 1.0,
        projection_hidden: int = 512,
        projection_dim: int = 128,
        momentum: float = 0.99,
        momentum_schedule: MomentumSchedule = "constant",
        separate_norm: bool = False,
        sampler: str = "instance-balanced",
        recipe: str = "autoaugment+cutout",
        mixing: Mixing | None = None,
    ) -> None:
        super().__init__()
        check_choice("partner", partner, get_args(PartnerName))
        check_choice("momentum_schedule", momentum_schedule, get_args(MomentumSchedule))
        check(COUNT, views=views, heads=heads)
        check(COUNT, projection_hidden=projection_hidden, projection_dim=projection_dim)
        if partner == "second-head" and heads == 1:
            raise ValueError("heads: partner 'second-head' needs at least 2, got 1")
        check(ZERO_OR_MORE, ce_weight=ce_weight, contrast_weight=contrast_weight)
        check(ZERO_OR_MORE, cross_weight=cross_weight)
        check(POSITIVE, temperature=temperature)
        check(number_in("[0, 1)"), momentum=momentum)
        self.contrast_recipe, self.recipe = contrast_recipe, recipe
        self.sampler: str = sampler
        self.mixing = mixing
        self.views, self.heads = views, heads
        self.partner: PartnerName = partner
        self.ce_weight = ce_weight
        self.contrast_weight, self.cross_weight = contrast_weight, cross_weight
        self.tau = tau
        self.projection_hidden, self.projection_dim = projection_hidden, projection_dim
        self.momentum = momentum
        self.momentum_schedule: MomentumSchedule = momentum_schedule
        self.separate_norm = separate_norm
        self.within = BalancedContrastiveLoss(temperature)
        self.across = CrossModelContrastiveLoss(temperature)

    @property
    def label(self) -> str:
        return "s3h"

    def streams(self) -> dict[str, Stream]:
        return {
            "classification": Stream(
                self.sampler, require_labelled(self.recipe), mixing=self.mixing
            ),
            "contrast": Stream(
                recipe=self.contrast_recipe, views=self.views, follows="classification"
            ),
        }

    def build(self, model: ImageClassifier, dataset: LongTailDataset) -> None:
        super().build(model, dataset)
        self._check_maps(dataset.image_shape)
        sizes = (
            model.backbone.feature_dim,
            self.projection_hidden,
            self.projection_dim,
            self.heads,
        )
        self.projection = CascadedHeads(*sizes)
        self.centre_projection = CascadedHeads(*sizes)
        share = torch.tensor(1 - self.momentum)
        self.register_buffer("copied_share", share, persistent=False)
        if self.partner == "momentum":
            self.copied_backbone = momentum_copy(model.backbone)
            self.copied_projection = momentum_copy(self.projection)

    def classification_loss(self, counts: Counts, progress: float) -> LogitAdjustedLoss:
        return LogitAdjustedLoss(counts, self.tau)

    def begin_epoch(self, progress: float) -> bool:
        if self.momentum_schedule == "cosine":
            falling = (1 + math.cos(math.pi * progress)) / 2
            self.copied_share.fill_((1 - self.momentum) * falling)
        return super().begin_epoch(progress)

    def loss(self, batch: Mapping[str, Batch]) -> dict[str, Tensor]:
        whole, contrast = batch["classification"], batch["contrast"]
        views = contrast.images.flatten(0, 1)
        features, maps = self._encode(whole.images.flatten(0, 1), views)
        regions, labels = region_features(maps, contrast)
        # The linear classifier needs float32 here; the cosine one converts by itself.
        with torch.autocast(features.device.type, enabled=False):
            cross_entropy = self.classify(
                *self.joint(features.float(), seen_labels(whole))
            )
        embeddings = self.projection(regions)
        centres = self.centre_projection(class_directions(self.model.classifier))
        contrastive = self._within(embeddings, labels, centres)
        loss = self.ce_weight * cross_entropy + self.contrast_weight * contrastive
        terms = {
            "cross_entropy": cross_entropy.detach(),
            "contrastive": contrastive.detach(),
        }
        if self.partner == "momentum":
            with torch.no_grad():
                maps = self.copied_backbone.feature_map(views)
                keys = self.copied_projection(region_features(maps, contrast)[0])
            crossing = self._across(embeddings, labels, keys, centres)
            loss = loss + self.cross_weight * crossing
            terms["cross_model"] = crossing.detach()
        return {"loss": loss, **terms}

    def after_step(self) -> None:
        if self.partner == "momentum":
            # A Python number needs one launch on a GPU for all weights.
            cosine = self.momentum_schedule == "cosine"
            share = self.copied_share if cosine else 1 - self.momentum
            update_momentum_copy_(self.copied_backbone, self.model.backbone, share)
            update_momentum_copy_(self.copied_projection, self.projection, share)

    def _check_maps(self, image_shape: tuple[int, int, int]) -> None:
        """Reject montages whose feature maps are too small for four quadrants."""
        recipe = get_recipe(self.contrast_recipe, "contrast_recipe")
        if not recipe.montage:
            return
        *sides, channels = image_shape
        height, width = recipe.view_size(*sides)
        # The meta device computes shapes only.
        backbone = copy.deepcopy(self.model.backbone).to("meta")
        views = torch.empty(2, channels, height, width, device="meta")
        rows, columns = backbone.feature_map(views).shape[2:]
        if min(rows, columns) < 2:
            raise ValueError(
                "model.backbone: expected maps of at least 2 x 2, for the quadrants of "
                f"{self.contrast_recipe!r}, got {rows} x {columns} from {height} x "
                f"{width} pixels; use another backbone or a larger data.size"
            )

    def _encode(self, images: Tensor, views: Tensor) -> tuple[Tensor, Tensor]:
        """Return features ``[B, D]`` of whole images and maps ``[V B, D, h, w]``.

        Args:
            images: ``[B, C, H, W]``.
            views: ``[V B, C, H', W']``; encoded in the same pass if the sizes are
                equal.
        """
        backbone = self.model.backbone
        if self.separate_norm or images.shape[1:] != views.shape[1:]:
            features = pool_whole(backbone.feature_map(images))
            with (
                apart_from_running_statistics(backbone)
                if self.separate_norm
                else nullcontext()
            ):
                return features, backbone.feature_map(views)
        maps = backbone.feature_map(torch.cat((images, views)))
        return pool_whole(maps[: len(images)]), maps[len(images) :]

    def _within(
        self, embeddings: list[Tensor], labels: Tensor, centres: list[Tensor]
    ) -> Tensor:
        """Return the mean contrastive loss of the heads' rows among themselves."""
        every = torch.stack(centres)  # [H, C, D]
        losses = [
            self.within(rows, labels, own if self.partner == "none" else every)
            for rows, own in zip(embeddings, centres, strict=True)
        ]
        return torch.stack(losses).mean()

    def _across(
        self,
        embeddings: list[Tensor],
        labels: Tensor,
        keys: list[Tensor],
        centres: list[Tensor],
    ) -> Tensor:
        """Return the mean contrastive loss of the heads' rows against the copy's."""
        own = torch.arange(len(labels), device=labels.device)
        losses = [
            self.across(rows, labels, others, labels, centres=central, self_index=own)
            for rows, others, central in zip(embeddings, keys, centres, strict=True)
        ]
        return torch.stack(losses).mean()


def region_features(maps: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Pool feature maps to one feature per quadrant of montages, or per whole view.

    Args:
        maps: feature maps ``[V B, D, h, w]`` of the batch's images.
        batch: V montages or views of B images.

    Returns:
        Features ``[4 V B, D]`` and labels ``[4 V B]`` of montages; ``[V B, D]`` and
        ``[V B]`` of other views.
    """
    if batch.quadrants is None:
        return pool_whole(maps), batch.labels.repeat(len(batch.images))
    return pool_quadrants(maps), batch.quadrants.labels.flatten()
