"""Hybrid-SC and Hybrid-PSC (Wang et al., CVPR 2021, arXiv 2103.14267)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3h_ext.checks import COUNT, POSITIVE, check, check_choice
from s3h_ext.data import Batch, LongTailDataset, Stream
from s3h_ext.data.views.recipes import get_recipe
from s3h_ext.losses import PrototypicalSupConLoss, SupConLoss
from s3h_ext.losses.classification import Counts, Labels, mixed_cross_entropy
from s3h_ext.methods.base import ClassifierMethod, require_labelled
from s3h_ext.models import ImageClassifier, MLPHead, unit_rows

ContrastName = Literal["supcon", "prototypical"]
DecayName = Literal["parabolic", "linear"]


class CrossEntropy(nn.Module):
    """Softmax cross-entropy."""

    def forward(self, logits: Tensor, labels: Labels) -> Tensor:
        """Return the mean loss of ``logits [N, C]`` and their labels."""
        return mixed_cross_entropy(logits.float(), labels)


class Hybrid(ClassifierMethod):
    r"""A contrastive and a classification branch on one backbone.

    .. math:: L = \alpha L_{contrast} + (1 - \alpha) L_{CE},
              \quad \alpha = 1 - (T / T_{max})^2

    The contrastive branch sees an instance-balanced batch through an MLP head, the
    classifier branch a class-balanced one. Training moves from the first to the second,
    and inference uses only the classifier. ``T`` is the epoch.

    The paper does not specify how the prototypes are made, how wide the projection is,
    whether an image has one view or two, and whether the losses are summed or averaged
    over the batch. Here, prototypes are learned parameters, normalised in the forward,
    and losses are averaged; the rest are options.

    Args:
        contrast: ``"supcon"`` for Hybrid-SC, ``"prototypical"`` for Hybrid-PSC
            (contrasts each image with class prototypes; its own class is not in the
            denominator).
        temperature: temperature of the contrastive loss, > 0. The paper: 0.1, and 1 for
            Hybrid-PSC on CIFAR-10-LT.
        views: views of each image in the contrastive batch.
        projection_hidden: hidden units of the MLP head.
        projection_dim: dimension of the embeddings and the prototypes.
        prototypes_per_class: number of prototypes per class; only for
            ``"prototypical"``.
        decay: schedule of the contrastive weight alpha, ``"parabolic"`` or
            ``"linear"``.
        recipe: augmentation of both branches, a name of
            ``s3h_ext.data.views.recipes.RECIPES``.
        classifier_recipe: augmentation of the classifier branch if it differs; views of
            both branches must have the same size.
        contrast_sampler: how to draw the contrastive batch: ``"instance-balanced"``,
            ``"class-balanced"``, ``"square-root"``, or ``"progressive"``, from the
            first to the second.
        classifier_sampler: how to draw the classifier's batch; same choices.
    """

    term_weights: Tensor  # [2]: weights of contrast and cross-entropy in this epoch

    def __init__(
        self,
        contrast: ContrastName = "supcon",
        temperature: float = 0.1,
        views: int = 2,
        projection_hidden: int = 64,
        projection_dim: int = 128,
        prototypes_per_class: int = 1,
        decay: DecayName = "parabolic",
        recipe: str = "crop-flip-gray",
        classifier_recipe: str | None = None,
        contrast_sampler: str = "instance-balanced",
        classifier_sampler: str = "class-balanced",
    ) -> None:
        super().__init__()
        check_choice("contrast", contrast, get_args(ContrastName))
        check_choice("decay", decay, get_args(DecayName))
        check(POSITIVE, temperature=temperature)
        check(COUNT, views=views, prototypes_per_class=prototypes_per_class)
        check(COUNT, projection_hidden=projection_hidden, projection_dim=projection_dim)
        if contrast == "supcon" and prototypes_per_class > 1:
            raise ValueError(
                "prototypes_per_class: contrast 'supcon' has no prototypes; expected "
                f"1, got {prototypes_per_class}"
            )
        self.contrast: ContrastName = contrast
        self.views = views
        self.projection_hidden, self.projection_dim = projection_hidden, projection_dim
        self.prototypes_per_class = prototypes_per_class
        self.decay: DecayName = decay
        self.recipe = recipe
        self.classifier_recipe = (
            recipe if classifier_recipe is None else classifier_recipe
        )
        self.contrast_sampler: str = contrast_sampler
        self.classifier_sampler: str = classifier_sampler
        self.criterion = (
            SupConLoss(temperature)
            if contrast == "supcon"
            else PrototypicalSupConLoss(temperature)
        )

    @property
    def label(self) -> str:
        return "hybrid-sc" if self.contrast == "supcon" else "hybrid-psc"

    def streams(self) -> dict[str, Stream]:
        contrast = require_labelled(self.recipe)
        classifier = require_labelled(self.classifier_recipe, "classifier_recipe")
        return {
            "contrast": Stream(self.contrast_sampler, contrast, self.views),
            "classifier": Stream(self.classifier_sampler, classifier),
        }

    def build(self, model: ImageClassifier, dataset: LongTailDataset) -> None:
        super().build(model, dataset)
        self._check_sizes(dataset.image_shape)
        feature_dim = model.backbone.feature_dim
        self.head = MLPHead(feature_dim, self.projection_hidden, self.projection_dim)
        if self.contrast == "prototypical":
            self.prototypes = nn.Parameter(
                F.normalize(
                    torch.randn(
                        dataset.num_classes,
                        self.prototypes_per_class,
                        self.projection_dim,
                    ),
                    dim=-1,
                )
            )  # [C, K, D]

        self.register_buffer("term_weights", torch.tensor([1.0, 0.0]), persistent=False)

    def _check_sizes(self, image_shape: tuple[int, int, int]) -> None:
        """Reject branches whose views cannot go through the network in one batch."""
        height, width, _ = image_shape
        contrast, classifier = (
            get_recipe(recipe, name).view_size(height, width)
            for recipe, name in (
                (self.recipe, "recipe"),
                (self.classifier_recipe, "classifier_recipe"),
            )
        )
        if contrast != classifier:
            raise ValueError(
                f"classifier_recipe: expected views of {contrast[0]} x {contrast[1]} "
                f"pixels, like those of {self.recipe!r}, got "
                f"{self.classifier_recipe!r} with {classifier[0]} x {classifier[1]}"
            )

    def begin_epoch(self, progress: float) -> bool:
        alpha = self.alpha(progress)
        self.term_weights[0].fill_(alpha)
        self.term_weights[1].fill_(1.0 - alpha)
        return super().begin_epoch(progress)

    def alpha(self, progress: float) -> float:
        """Return the weight of the contrastive term at ``progress`` in [0, 1]."""
        return 1.0 - (progress if self.decay == "linear" else progress**2)

    def classification_loss(self, counts: Counts, progress: float) -> CrossEntropy:
        return CrossEntropy()  # the same for any counts

    def loss(self, batch: Mapping[str, Batch]) -> dict[str, Tensor]:
        contrast, classifier = batch["contrast"], batch["classifier"]
        # One pass over both batches: one launch per layer instead of two, and batch
        # norm tracks the mixture that the two branches train on.
        images = torch.cat(
            (contrast.images.flatten(0, 1), classifier.images.flatten(0, 1))
        )
        features = self.model.backbone(images)
        split = contrast.images.shape[0] * contrast.images.shape[1]
        embeddings = unit_rows(self.head(features[:split]))  # [V*B, D]
        labels = contrast.labels.repeat(contrast.images.shape[0])  # [V*B]
        if self.contrast == "supcon":
            contrastive = self.criterion(embeddings, labels)
        else:
            prototypes = F.normalize(self.prototypes.float(), dim=-1)
            contrastive = self.criterion(
                embeddings, labels, prototypes.to(embeddings.dtype)
            )
        cross_entropy = self.classify(*self.joint(features[split:], classifier.labels))
        alpha, rest = self.term_weights
        return {
            "loss": alpha * contrastive + rest * cross_entropy,
            "contrastive": contrastive.detach(),
            "cross_entropy": cross_entropy.detach(),
        }
