"""Classwise splitting, CWS (Yuan et al., Mathematics 2023, 11(13):2996).

docs/cws.md separates what the paper specifies from our choices.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, get_args

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from s3h_ext.checks import COUNT, ZERO_OR_MORE, check, check_choice, number_in
from s3h_ext.data import Batch, LongTailDataset, Stream
from s3h_ext.losses.classification import Counts, Labels
from s3h_ext.methods.base import (
    Classification,
    ClassifierMethod,
    Method,
    copy_buffers,
)
from s3h_ext.methods.subclass_analysis import analyse_subclasses, shown_classes
from s3h_ext.models import GroupedClassifier, ImageClassifier, MappingName
from s3h_ext.ops import (
    PrototypeUpdate,
    accumulate_prototypes,
    all_reduce_update,
    apply_prototypes_,
)
from s3h_ext.ops.prototypes import Metric

#: Number of moments of the training at which sub-class sizes are recorded.
MOMENTS = 64


def subclass_rows(
    class_counts: Counts, *, images_per_row: int = 10, max_rows: int = 8
) -> Tensor:
    """Return the number of sub-classes of each class.

    ``K_c = clamp(n_c // max(n_min, images_per_row), 1, max_rows)``; without the upper
    limit this is the rule of SBCL (Hou et al., ICCV 2023).

    Args:
        class_counts: training images of each class, ``C`` numbers.
        images_per_row: least number of images per sub-class.
        max_rows: largest number of sub-classes of a class.

    Returns:
        int64 ``[C]``.

    Example:
        >>> subclass_rows([500, 60, 12, 5]).tolist()
        [8, 6, 1, 1]
    """
    counts = torch.as_tensor(class_counts).to(torch.int64)
    unit = max(int(counts.min()), images_per_row)
    return (counts // unit).clamp(1, max_rows)


class SubclassClassification(Classification):
    r"""The loss of :class:`ClasswiseSplitting` and the state of its sub-classes.

    Args:
        model: network whose classifier is a :class:`~s3h_ext.models.GroupedClassifier`.
        criterion: loss of the class logits.
        subclass_criterion: loss of the sub-class logits.
        class_counts: training images of each class, ``[C]``.
        counts: initial number of training images of each sub-class, ``[S]``.
        weight: lambda, weight of the sub-class loss.
        metric: distance to the prototypes.
    """

    prototypes: Tensor  # [S, D]
    sums: Tensor  # [S, D]
    masses: Tensor  # [S]
    class_counts: Tensor  # [C]
    counts: Tensor  # [S]: training images of each sub-class, by the masses
    counted_at: Tensor  # []: progress of the epoch in which they were counted
    size_history: Tensor  # [MOMENTS, S]; NaN: not recorded yet

    def __init__(
        self,
        model: ImageClassifier,
        criterion: nn.Module,
        subclass_criterion: nn.Module,
        class_counts: Tensor,
        counts: Tensor,
        *,
        weight: float,
        metric: Metric,
    ) -> None:
        super().__init__(model, criterion)
        self.subclass_criterion = subclass_criterion
        self.weight, self.metric = weight, metric
        total, depth = len(counts), model.backbone.feature_dim
        self.register_buffer("class_counts", class_counts.float(), persistent=False)
        self.register_buffer("prototypes", torch.zeros(total, depth))
        self.register_buffer("sums", torch.zeros(total, depth))
        self.register_buffer("masses", torch.zeros(total))
        self.register_buffer("counts", counts.float())
        self.register_buffer("counted_at", torch.tensor(-1.0, dtype=torch.float64))
        self.register_buffer("size_history", torch.full((MOMENTS, total), math.nan))
        self.terms: dict[str, Tensor] = {}  # of the latest loss
        self.update: PrototypeUpdate | None = None  # of the latest training step
        self.memory: PrototypeUpdate | None = None  # buffers to reuse

    @property
    def head(self) -> GroupedClassifier:
        """The classifier over sub-classes."""
        head = self._model[0].classifier
        assert isinstance(head, GroupedClassifier)
        return head

    def forward(self, features: Tensor, labels: Labels) -> Tensor:
        """Return ``(1 - lambda) L_group + lambda L_sub`` of features ``[N, D]``."""
        assert isinstance(labels, Tensor)  # ClasswiseSplitting does not mix
        logits = self.head.subclass_logits(features)
        group: Tensor = self.criterion(self.head.group(logits), labels)
        if not self.head.active:
            return group
        update = self.assign(features, labels, self.memory)
        if self.training:
            self.update = update
        # -1 marks features that are not finite; the loss then is not finite either.
        assigned = update.assignments.clamp(min=0)
        subclass: Tensor = self.subclass_criterion(logits, assigned)
        self.terms = {"group": group.detach(), "subclass": subclass.detach()}
        return (1.0 - self.weight) * group + self.weight * subclass

    def assign(
        self, features: Tensor, labels: Tensor, out: PrototypeUpdate | None = None
    ) -> PrototypeUpdate:
        """Assign rows to sub-classes and return their update of the prototypes."""
        return accumulate_prototypes(
            features,
            labels,
            self.prototypes,
            self.masses,
            self.head.offsets,
            metric=self.metric,
            out=out,
        )

    def count(self, progress: float) -> None:
        """Estimate the training images of each sub-class, once per epoch."""
        if float(self.counted_at) == progress:
            return
        owner = self.head.owner
        total = torch.zeros_like(self.class_counts)
        total.index_add_(0, owner, self.masses)
        counts = self.class_counts[owner] * self.masses / total[owner]
        # A row that has just started counts as one image.
        counts = torch.where(total[owner] > 0, counts.clamp(min=1), self.counts)
        self.counts.copy_(counts)
        self.counted_at.fill_(progress)
        self.size_history[min(int(progress * MOMENTS), MOMENTS - 1)] = counts


class ClasswiseSplitting(Method):
    r"""A wrapper that splits frequent classes into sub-classes, for any loss.

    From ``split_from`` on, the classifier has one output per sub-class. An image
    belongs to the sub-class of its class whose prototype is nearest in feature space.

    .. math:: L = (1 - \lambda) L_{group} + \lambda L_{sub}

    Both terms are the wrapped method's own loss: ``L_group`` takes the class logits,
    mapped back from the sub-class logits, and the class counts; ``L_sub`` takes the
    sub-class logits and counts, so its class-balanced weights, margins and priors are
    those of sub-classes. Predictions use the class logits. If no class has more than
    one sub-class, the result equals the wrapped method bit for bit.

    Args:
        inner: the method to wrap, such as ``Baseline`` or ``Hybrid``.
        images_per_row: least number of training images per sub-class, see
            :func:`subclass_rows`.
        max_rows: largest number of sub-classes of a class.
        split_from: fraction of the training after which classes are split; 0.2 is epoch
            40 of 200.
        subclass_weight: lambda, weight of the sub-class loss, in [0, 1].
        mapping: from sub-class logits to class logits, ``"logsumexp"`` or ``"max"``.
        metric: distance to the prototypes, ``"euclidean"`` or ``"cosine"``.
        momentum: momentum of the prototypes' moving averages, in [0, 1), per step in
            which their class occurs.
        expire_below: a sub-class with less than this fraction of an equal share of its
            class's images restarts as one half of another.
        noise: noise added to the copied weights when classes are split, relative to the
            norm of the weights.
    """

    def __init__(
        self,
        inner: ClassifierMethod,
        images_per_row: int = 10,
        max_rows: int = 8,
        split_from: float = 0.2,
        subclass_weight: float = 0.5,
        mapping: MappingName = "logsumexp",
        metric: Metric = "euclidean",
        momentum: float = 0.99,
        expire_below: float = 0.1,
        noise: float = 0.01,
    ) -> None:
        super().__init__()
        if not isinstance(inner, ClassifierMethod):
            raise TypeError(
                "inner: expected a method with a classification loss, such as Baseline "
                f"or Hybrid, got {type(inner).__name__}"
            )
        if inner.mixing is not None:
            raise ValueError(
                "inner.mixing: expected None, got "
                f"{inner.mixing.kind!r}: a mixed image has no single sub-class"
            )
        check_choice("mapping", mapping, get_args(MappingName))
        check_choice("metric", metric, get_args(Metric))
        check(COUNT, images_per_row=images_per_row, max_rows=max_rows)
        share = number_in("[0, 1]", "a share")
        check(share, split_from=split_from, subclass_weight=subclass_weight)
        check(number_in("[0, 1)"), momentum=momentum, expire_below=expire_below)
        check(ZERO_OR_MORE, noise=noise)
        self.inner = inner
        self.images_per_row, self.max_rows = images_per_row, max_rows
        self.split_from, self.subclass_weight = split_from, subclass_weight
        self.mapping: MappingName = mapping
        self.metric: Metric = metric
        self.momentum, self.expire_below, self.noise = momentum, expire_below, noise

    @property
    def label(self) -> str:
        return "cws" if self.inner.label == "cb-ce" else f"cws-{self.inner.label}"

    @property
    def subclasses(self) -> SubclassClassification | None:
        """The loss over sub-classes, or None if no class has more than one."""
        loss = self.inner.classify
        return loss if isinstance(loss, SubclassClassification) else None

    def streams(self) -> dict[str, Stream]:
        return self.inner.streams()

    def build(self, model: ImageClassifier, dataset: LongTailDataset) -> None:
        self.inner.build(model, dataset)
        model = self.inner.model  # the inner method may bring its own
        super().build(model, dataset)
        counts = torch.as_tensor(dataset.class_counts)
        rows = subclass_rows(
            counts, images_per_row=self.images_per_row, max_rows=self.max_rows
        )
        if int(rows.max()) == 1:
            return
        offsets = torch.cat((rows.new_zeros(1), rows.cumsum(0)))
        assert not isinstance(model.classifier, GroupedClassifier)
        model.classifier = GroupedClassifier(model.classifier, offsets, self.mapping)
        equal = (counts / rows)[torch.repeat_interleave(rows)]
        self.inner.classify = SubclassClassification(
            model,
            self.inner.classify.criterion,
            self.inner.classification_loss(equal, 0.0),
            counts,
            equal,
            weight=self.subclass_weight,
            metric=self.metric,
        )

    def begin_epoch(self, progress: float) -> bool:
        stale = self.inner.begin_epoch(progress)
        subclasses = self.subclasses
        if subclasses is None or progress < self.split_from:
            return stale
        splits = not subclasses.head.active
        if splits:
            subclasses.head.split_(self.noise)
        subclasses.count(progress)
        copy_buffers(
            subclasses.subclass_criterion,
            self.inner.classification_loss(subclasses.counts, progress),
        )
        return stale or splits

    def loss(self, batch: Mapping[str, Batch]) -> dict[str, Tensor]:
        terms = self.inner.loss(batch)
        return {**terms, **self.subclasses.terms} if self.subclasses else terms

    def after_step(self) -> None:
        self.inner.after_step()
        subclasses = self.subclasses
        if subclasses is None or subclasses.update is None:
            return
        update = subclasses.update
        # Every process already has the update of joint rows.
        if not self.gather and dist.is_available() and dist.is_initialized():
            update = all_reduce_update(update)
        apply_prototypes_(
            subclasses.prototypes,
            subclasses.sums,
            subclasses.masses,
            subclasses.head.offsets,
            update,
            metric=self.metric,
            momentum=self.momentum,
            expire_below=self.expire_below,
        )
        subclasses.memory, subclasses.update = subclasses.update, None

    def predict(self, images: Tensor) -> Tensor:
        return self.inner.predict(images)

    @torch.no_grad()
    def analyse(self, train: Iterable[Batch]) -> dict[str, np.ndarray[Any, Any]]:
        """Return arrays for the report on sub-classes; none before classes are split.

        Args:
            train: the training images in order, without augmentation.
        """
        subclasses = self.subclasses
        if subclasses is None or not subclasses.head.active:
            return {}
        # Keep the sub-classes of all images but only the features that are shown: those
        # of half a million images would fill a GPU.
        offsets = subclasses.head.offsets
        classes = shown_classes(offsets.cpu()).to(offsets.device)
        assignments, features, positions, seen = [], [], [], 0
        for batch in train:
            rows = self.model.backbone(batch.images[0]).float()
            assignments.append(subclasses.assign(rows, batch.labels).assignments.cpu())
            shown = torch.isin(batch.labels, classes).nonzero()[:, 0]
            features.append(rows[shown].cpu())
            positions.append(seen + shown.cpu())
            seen += len(batch.labels)
        # The figures need float32 features; NumPy has no bfloat16 either.
        with torch.autocast("cpu", enabled=False):
            return analyse_subclasses(
                torch.cat(features),
                torch.cat(positions),
                torch.cat(assignments),
                subclasses.prototypes.cpu(),
                offsets.cpu(),
                subclasses.size_history.cpu(),
                metric=self.metric,
            )
