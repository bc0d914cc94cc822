"""Baselines of the long-tail tables: one network trained with one loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3h_ext.checks import check, check_choice, number_in
from s3h_ext.data import Batch, LongTailDataset, Stream
from s3h_ext.data.views.mixing import Mixing
from s3h_ext.losses.classification import (
    Counts,
    FocalLoss,
    Labels,
    LDAMLoss,
    LogitAdjustedLoss,
    effective_number_weights,
    mixed_cross_entropy,
)
from s3h_ext.methods.base import ClassifierMethod, require_labelled, seen_labels
from s3h_ext.models import CosineClassifier, ImageClassifier

LossName = Literal["cross-entropy", "logit-adjusted", "focal", "ldam"]


class WeightedLoss(nn.Module):
    """A loss of logits with optional class weights: focal, LDAM or cross-entropy.

    Args:
        criterion: ``(logits, labels, class_weights) -> loss``; ``None`` for
            cross-entropy.
        class_weights: ``[C]``, or None.
    """

    class_weights: Tensor | None

    def __init__(
        self, criterion: nn.Module | None, class_weights: Tensor | None
    ) -> None:
        super().__init__()
        self.criterion = criterion
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, logits: Tensor, labels: Labels) -> Tensor:
        """Return the mean loss of logits ``[N, C]`` and their labels."""
        if self.criterion is not None:
            loss: Tensor = self.criterion(logits, labels, self.class_weights)
            return loss
        if self.class_weights is None:
            return mixed_cross_entropy(logits.float(), labels)
        assert isinstance(labels, Tensor)  # Baseline does not mix with weights
        return F.cross_entropy(logits.float(), labels, weight=self.class_weights)


class Baseline(ClassifierMethod):
    """One network trained with one classification loss.

    Covers cross-entropy, balanced softmax / logit adjustment, focal and LDAM, each with
    optional class-balanced weights, from the start or deferred (LDAM-DRW).

    Args:
        loss: ``"cross-entropy"``, ``"logit-adjusted"`` (balanced softmax if ``tau`` is
            1), ``"focal"`` or ``"ldam"`` (needs the cosine classifier).
        sampler: how to draw training images: ``"instance-balanced"``,
            ``"class-balanced"``, ``"square-root"``, or ``"progressive"``, from the
            first to the second.
        recipe: augmentation of the training images, a name of
            ``s3h_ext.data.views.recipes.RECIPES``.
        tau: strength of the logit adjustment, >= 0; 0 is plain cross-entropy.
        gamma: focusing strength of the focal loss, >= 0; 0 is cross-entropy.
        max_margin: margin of the rarest class in LDAM, as a difference of cosines.
        weight_beta: ``beta`` of the effective-number class weights, in [0, 1); 0
            disables them. LDAM-DRW uses 0.9999. As weights from the start, that suits
            ten classes with thousands of images each; 0.9 suits 100 classes with at
            most 500 each.
        reweight_from: fraction of the training after which the weights apply. 0: from
            the start; 0.8: deferred re-weighting from epoch 160 of 200.
        mixing: how to mix other images into the training images; only with
            cross-entropy and the logit-adjusted loss. Not set: no mixing.
    """

    def __init__(
        self,
        loss: LossName = "cross-entropy",
        sampler: str = "instance-balanced",
        recipe: str = "crop-flip",
        tau: float = 1.0,
        gamma: float = 1.0,
        max_margin: float = 0.5,
        weight_beta: float = 0.0,
        reweight_from: float = 0.0,
        mixing: Mixing | None = None,
    ) -> None:
        super().__init__()
        check_choice("loss", loss, get_args(LossName))
        for name, value, default, owner in (
            ("tau", tau, 1.0, "logit-adjusted"),
            ("gamma", gamma, 1.0, "focal"),
            ("max_margin", max_margin, 0.5, "ldam"),
        ):
            if value != default and loss != owner:
                raise ValueError(
                    f"{name}: only the loss {owner!r} uses it; expected {default} "
                    f"with {loss!r}, got {value}"
                )
        check(number_in("[0, 1)", "a share"), reweight_from=reweight_from)
        check(number_in("[0, 1)"), weight_beta=weight_beta)
        if reweight_from and not weight_beta:
            raise ValueError(
                f"weight_beta: reweight_from {reweight_from:g} needs class weights; "
                "expected a number in (0, 1), got 0"
            )
        if loss == "logit-adjusted" and weight_beta:
            raise ValueError(
                "weight_beta: the logit-adjusted loss already corrects for the prior; "
                f"expected 0, got {weight_beta}"
            )
        if mixing is not None and (loss in ("focal", "ldam") or weight_beta):
            raise ValueError(
                "mixing: expected None, except with 'logit-adjusted' or with "
                "'cross-entropy' without weight_beta; got "
                f"{mixing.kind!r} with {loss!r} and weight_beta {weight_beta:g}"
            )
        self.loss_name: LossName = loss
        self.mixing = mixing
        self.sampler: str = sampler
        self.recipe = recipe
        self.tau, self.gamma, self.max_margin = tau, gamma, max_margin
        self.weight_beta, self.reweight_from = weight_beta, reweight_from

    @property
    def label(self) -> str:
        if self.loss_name == "logit-adjusted":
            return (
                "balanced-softmax"
                if self.tau == 1.0
                else f"logit-adjusted-{self.tau:g}"
            )
        base = {"cross-entropy": "ce"}.get(self.loss_name, self.loss_name)
        if self.weight_beta:
            return f"{base}-drw" if self.reweight_from else f"cb-{base}"
        return base

    def streams(self) -> dict[str, Stream]:
        recipe = require_labelled(self.recipe)
        return {"train": Stream(self.sampler, recipe, mixing=self.mixing)}

    def build(self, model: ImageClassifier, dataset: LongTailDataset) -> None:
        classifier = model.classifier
        if self.loss_name == "ldam" and not isinstance(classifier, CosineClassifier):
            raise ValueError(
                "loss: 'ldam' needs --model.classifier cosine, got "
                f"{type(classifier).__name__}"
            )
        self.scale = classifier.scale if isinstance(classifier, CosineClassifier) else 1
        super().build(model, dataset)

    def classification_loss(self, counts: Counts, progress: float) -> nn.Module:
        if self.loss_name == "logit-adjusted":
            return LogitAdjustedLoss(counts, self.tau)
        weights = None
        if self.weight_beta:
            weights = effective_number_weights(counts, self.weight_beta)
            if progress < self.reweight_from:
                weights = torch.ones_like(weights)
        if self.loss_name == "focal":
            return WeightedLoss(FocalLoss(self.gamma), weights)
        if self.loss_name == "ldam":
            margins = LDAMLoss(counts, self.max_margin, self.scale)
            return WeightedLoss(margins, weights)
        return WeightedLoss(None, weights)

    def loss(self, batch: Mapping[str, Batch]) -> dict[str, Tensor]:
        train = batch["train"]
        features = self.model.backbone(train.images.flatten(0, 1))
        features, labels = self.joint(features, seen_labels(train))
        return {"loss": self.classify(features, labels)}
