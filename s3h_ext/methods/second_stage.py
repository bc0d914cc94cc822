"""Second stages on a finished run (Kang et al., "Decoupling", ICLR 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from s3h_ext.checks import check
from s3h_ext.data import Batch, LongTailDataset, Stream
from s3h_ext.methods.base import Method, require_labelled
from s3h_ext.models import (
    TAU_RANGE,
    GroupedClassifier,
    ImageClassifier,
    LinearClassifier,
    normalize_weights,
)

Stage = TypeVar("Stage", bound="SecondStage")


class SecondStage(Method):
    """A second stage on the frozen backbone of a finished run (``--init_from RUN``)."""

    needs_first_stage = True

    def build(self, model: ImageClassifier, dataset: LongTailDataset) -> None:
        super().build(model, dataset)
        model.backbone.requires_grad_(False)

    def train(self: Stage, mode: bool = True) -> Stage:
        super().train(mode)
        # Freeze batch norm's running statistics too.
        self.model.backbone.eval()
        return self

    def loss(self, batch: Mapping[str, Batch]) -> dict[str, Tensor]:
        train = batch["train"]
        with torch.no_grad():
            features = self.model.backbone(train.images.flatten(0, 1))
        features, labels = self.joint(features, train.labels)
        assert isinstance(labels, Tensor)
        logits = self.model.classifier(features)
        return {"loss": F.cross_entropy(logits.float(), labels)}


class ClassifierRetraining(SecondStage):
    """cRT: a new classifier on the frozen backbone, trained class-balanced (sec. 4.1).

    Args:
        sampler: how to draw training images: ``"instance-balanced"``,
            ``"class-balanced"``, ``"square-root"``, or ``"progressive"``, from the
            first to the second.
        recipe: augmentation of the training images, a name of
            ``s3h_ext.data.views.recipes.RECIPES``.
    """

    def __init__(
        self, sampler: str = "class-balanced", recipe: str = "crop-flip"
    ) -> None:
        super().__init__()
        self.sampler, self.recipe = sampler, recipe

    @property
    def label(self) -> str:
        return "crt"

    def streams(self) -> dict[str, Stream]:
        return {"train": Stream(self.sampler, require_labelled(self.recipe))}

    def build(self, model: ImageClassifier, dataset: LongTailDataset) -> None:
        super().build(model, dataset)
        assert not isinstance(model.classifier, GroupedClassifier)  # only CWS has it
        model.classifier.reset_parameters()


class TauNormalization(SecondStage):
    r"""A rescaling of the classifier's weights, without training (section 4.2, eq. 4).

    .. math:: \tilde w_c = w_c / \lVert w_c \rVert^\tau

    The bias is dropped, as in the paper. Nothing is trained: the run only evaluates.
    Choose ``tau`` with ``--data.val_fraction``, never on the test split, as ``python -m
    s3h_ext.evaluate RUN --classifier tau-norm`` does.

    Args:
        tau: exponent of the row norm, in [0, 2]; 0 leaves the weights unchanged, 1
            makes them unit vectors.
    """

    def __init__(self, tau: float = 0.7) -> None:
        super().__init__()
        check(TAU_RANGE, tau=tau)
        self.tau = tau

    @property
    def label(self) -> str:
        return "tau-norm"

    def streams(self) -> dict[str, Stream]:
        return {"train": Stream(recipe="none")}

    def build(self, model: ImageClassifier, dataset: LongTailDataset) -> None:
        super().build(model, dataset)
        classifier = model.classifier
        if not isinstance(classifier, LinearClassifier):
            raise ValueError(
                "method: TauNormalization needs a linear classifier; a cosine one "
                "already has unit weights"
            )
        with torch.no_grad():
            classifier.weight.copy_(normalize_weights(classifier.weight, self.tau))
            if classifier.bias is not None:
                classifier.bias.zero_()
        classifier.requires_grad_(False)
