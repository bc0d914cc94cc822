"""The single-network, single-loss baselines of every long-tail table."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

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
from s3h_ext.methods.base import (
    ClassificationLoss,
    ClassifierMethod,
    Classify,
    labelled,
    seen_labels,
)
from s3h_ext.models import CosineClassifier, ImageClassifier

LossName = Literal["cross-entropy", "logit-adjusted", "focal", "ldam"]


class BaselineLoss(ClassificationLoss):
    """The loss of :class:`Baseline` for given class counts; its options are there."""

    class_weights: Tensor | None  # [C]

    def __init__(
        self,
        loss: LossName,
        counts: Counts,
        *,
        tau: float,
        gamma: float,
        max_margin: float,
        scale: float,
        weight_beta: float,
        reweight_from: float,
    ) -> None:
        super().__init__()
        self.loss_name, self.reweight_from = loss, reweight_from
        if loss == "logit-adjusted":
            self.criterion: torch.nn.Module = LogitAdjustedLoss(counts, tau)
        elif loss == "focal":
            self.criterion = FocalLoss(gamma)
        elif loss == "ldam":
            self.criterion = LDAMLoss(counts, max_margin, scale)
        self.register_buffer(
            "class_weights",
            effective_number_weights(counts, weight_beta) if weight_beta else None,
            persistent=False,
        )

    def forward(self, logits: Tensor, labels: Labels, progress: float) -> Tensor:
        weights = self.class_weights if progress >= self.reweight_from else None
        if self.loss_name == "cross-entropy" and weights is None:
            return mixed_cross_entropy(logits.float(), labels)
        if self.loss_name == "cross-entropy":
            assert isinstance(labels, Tensor)  # no mixing with weights, see Baseline
            return F.cross_entropy(logits.float(), labels, weight=weights)
        loss: Tensor
        if self.loss_name == "logit-adjusted":
            loss = self.criterion(logits, labels)
        else:
            loss = self.criterion(logits, labels, weights)
        return loss


class Baseline(ClassifierMethod):
    """One batch, one network, one classification loss.

    Covers cross-entropy, balanced softmax / logit adjustment, focal and LDAM, each with
    optional class-balanced weights, from the start or deferred (LDAM-DRW).

    Args:
        loss: ``"cross-entropy"``, ``"logit-adjusted"`` (balanced softmax when ``tau``
            is 1), ``"focal"`` or ``"ldam"`` (wants the cosine classifier).
        sampler: how training images are drawn: ``"instance-balanced"``,
            ``"class-balanced"``, ``"square-root"``, or ``"progressive"``, from the
            first to the second.
        recipe: augmentation of the training images, a name of
            ``s3h_ext.data.views.recipes.RECIPES``.
        tau: strength of the logit adjustment.
        gamma: focusing strength of the focal loss.
        max_margin: LDAM's margin for the rarest class.
        weight_beta: ``beta`` of the effective-number class weights; 0 means no weights.
            LDAM-DRW uses 0.9999; as weights from the start that suits ten classes of
            thousands of images, 0.9 a hundred of 500 and fewer.
        reweight_from: share of the training after which the weights are used. 0: from
            the start; 0.8: deferred re-weighting from epoch 160 of 200.
        mixing: how other images are mixed into the training images, for cross-entropy
            and the logit-adjusted loss; not set: not at all.
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
        if loss not in get_args(LossName):
            raise ValueError(
                f"loss: expected one of {get_args(LossName)}, got {loss!r}"
            )
        for name, value, default, owner in (
            ("tau", tau, 1.0, "logit-adjusted"),
            ("gamma", gamma, 1.0, "focal"),
            ("max_margin", max_margin, 0.5, "ldam"),
        ):
            if value != default and loss != owner:
                raise ValueError(
                    f"{name}: belongs to the loss {owner!r}; expected {default} with "
                    f"{loss!r}, got {value}"
                )
        if not 0.0 <= reweight_from < 1.0:
            raise ValueError(
                f"reweight_from: expected a share in [0, 1), got {reweight_from}"
            )
        if not 0.0 <= weight_beta < 1.0:
            raise ValueError(
                f"weight_beta: expected a number in [0, 1), got {weight_beta}"
            )
        if reweight_from and not weight_beta:
            raise ValueError(
                "weight_beta: there are no weights to be used from reweight_from "
                f"{reweight_from:g} on; expected a number in (0, 1), got 0"
            )
        if loss == "logit-adjusted" and weight_beta:
            raise ValueError(
                "weight_beta: the logit-adjusted loss already corrects for the prior; "
                f"expected 0, got {weight_beta}"
            )
        if mixing is not None and (loss in ("focal", "ldam") or weight_beta):
            raise ValueError(
                "mixing: expected None except with 'cross-entropy', without "
                f"weight_beta, and 'logit-adjusted'; got {mixing.kind!r} with {loss!r}"
                f" and weight_beta {weight_beta:g}"
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
        recipe = labelled(self.recipe)
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

    def classification_loss(self, counts: Counts) -> BaselineLoss:
        return BaselineLoss(
            self.loss_name,
            counts,
            tau=self.tau,
            gamma=self.gamma,
            max_margin=self.max_margin,
            scale=self.scale,
            weight_beta=self.weight_beta,
            reweight_from=self.reweight_from,
        )

    def phase(self, progress: float) -> Hashable:
        return progress >= self.reweight_from

    def terms(
        self, batch: Mapping[str, Batch], progress: float, classify: Classify
    ) -> dict[str, Tensor]:
        train = batch["train"]
        features = self.model.backbone(train.images.flatten(0, 1))
        return {"loss": classify(features, seen_labels(train))}
