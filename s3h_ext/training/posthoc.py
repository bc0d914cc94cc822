"""Classifiers that can replace a run's own in an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from s3h_ext.checks import ZERO_OR_MORE, check
from s3h_ext.data import Batch
from s3h_ext.data.source.decode import UnreadableImageError
from s3h_ext.methods import Method
from s3h_ext.models import (
    LinearClassifier,
    NearestMean,
    NearestNeighbours,
    normalize_weights,
)
from s3h_ext.runs.loading import Run
from s3h_ext.runs.precision import autocast
from s3h_ext.training.evaluation import Predict

__all__ = ["TAUS", "PosthocClassifier", "make_classifier"]

#: Values tried in a sweep.
TAUS = tuple(np.linspace(0.0, 2.0, 21).round(1).tolist())

#: Maps a split of the run's data to its batches, in order.
Read = Callable[[str], Iterable[Batch]]


@dataclass(frozen=True)
class PosthocClassifier:
    """A classifier, and the facts needed to interpret its results.

    Attributes:
        predict: normalised images ``[B, C, H, W]`` to logits ``[B, num_classes]``;
            ``None`` for the run's own.
        facts: entries of ``metrics.json``.
    """

    predict: Predict | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def make_classifier(
    run: Run,
    name: str,
    read: Read,
    *,
    tau: float | None = None,
    choose_on: str = "val",
    neighbours: int = 20,
) -> PosthocClassifier:
    """Return a classifier on a run's network.

    Args:
        run: run loaded by :func:`~s3h_ext.runs.loading.load_run`.
        name: ``"head"``, the run's own; ``"logit-adjusted"`` (Menon et al., ICLR 2021,
            equation 9); ``"tau-norm"``, ``"nearest-mean"`` (Kang et al., ICLR 2020,
            section 4); ``"knn"``.
        read: returns the batches of a split; the last two classifiers read the training
            images.
        tau: strength of ``"logit-adjusted"`` (default 1) or ``"tau-norm"`` (in [0, 2];
            by default the best of :data:`TAUS` by balanced accuracy on ``choose_on``,
            the smallest in a tie).
        choose_on: split of held-out images on which to choose ``tau``.
        neighbours: number of training images that vote in ``"knn"``.

    Raises:
        ValueError: an argument is out of range, or the network has no linear classifier
            to normalise.
    """
    if name == "head":
        return PosthocClassifier()
    facts: dict[str, Any] = {"classifier": name}
    method = run.method
    if name == "logit-adjusted":
        tau = 1.0 if tau is None else tau
        check(ZERO_OR_MORE, tau=tau)
        counts = torch.tensor(run.card.train_images, dtype=torch.float64)
        # A class without images has no prior to adjust for.
        priors = (counts / counts.sum()).masked_fill(counts == 0, 1.0)
        shift = tau * priors.log().float().to(run.device)
        return PosthocClassifier(
            lambda images: method.predict(images).float() - shift, facts | {"tau": tau}
        )
    classify: Callable[[Tensor], Tensor]
    if name == "tau-norm":
        weight = _linear_weight(method)
        if tau is None:
            tau, facts["tau_sweep"] = _sweep(run, weight, read(choose_on))
            facts["tau_chosen_on"] = choose_on
        facts["tau"] = tau
        scaled = normalize_weights(weight, tau)

        def classify(features: Tensor) -> Tensor:
            return F.linear(features, scaled)

    else:
        features, labels = _features(run, read("train"))
        classes = len(run.card.classes)
        if name == "nearest-mean":
            classify = NearestMean(features, labels, classes)
        else:
            classify = NearestNeighbours(features, labels, classes, neighbours)
            facts["neighbours"] = neighbours

    def predict(images: Tensor) -> Tensor:
        features = method.model.backbone(images).float()
        # In 16 bits, different cosines could become equal.
        with torch.autocast(images.device.type, enabled=False):
            return classify(features)

    return PosthocClassifier(predict, facts)


def _linear_weight(method: Method) -> Tensor:
    classifier = method.model.classifier
    if not isinstance(classifier, LinearClassifier):
        raise ValueError(
            "classifier: tau-norm needs the weights of a linear classifier, got a "
            f"{type(classifier).__name__}"
        )
    return classifier.weight.detach().float()


def _features(run: Run, batches: Iterable[Batch]) -> tuple[Tensor, Tensor]:
    """Return features ``[N, D]`` and labels ``[N]`` of a split."""
    features, labels = [], []
    with torch.inference_mode(), autocast(run.precision, run.device, cache=False):
        for batch in batches:
            features.append(run.method.model.backbone(batch.images[0]).float())
            labels.append(batch.labels)
    if not labels:
        raise UnreadableImageError("classifier: no image of the split could be read")
    return torch.cat(features), torch.cat(labels)


def _sweep(
    run: Run, weight: Tensor, batches: Iterable[Batch]
) -> tuple[float, dict[str, float]]:
    """Return the best of TAUS, and the balanced accuracy of each in percent."""
    features, labels = _features(run, batches)
    logits, lengths = F.linear(features, weight), weight.norm(dim=1)  # [N, C], [C]
    images = torch.bincount(labels, minlength=len(weight))
    present = images > 0
    found = {}
    for tau in TAUS:
        right = labels[(logits / lengths**tau).argmax(1) == labels]
        hits = torch.bincount(right, minlength=len(weight))
        shares = hits[present].double() / images[present]
        found[f"{tau:g}"] = 100.0 * float(shares.mean())
    return float(max(found, key=lambda name: found[name])), found
