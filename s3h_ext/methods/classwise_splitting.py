"""Classwise splitting, CWS (Yuan et al., Mathematics 2023, 11(13):2996).

What the paper says and what is our choice: docs/cws.md.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, get_args

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from s3h_ext.data import Batch, LongTailDataset, Stream
from s3h_ext.losses.classification import Counts, Labels
from s3h_ext.methods.base import ClassifierMethod, Method
from s3h_ext.methods.subclass_analysis import analyse_subclasses, shown_classes
from s3h_ext.models import GroupedClassifier, ImageClassifier, MappingName
from s3h_ext.ops import (
    PrototypeUpdate,
    accumulate_prototypes,
    all_reduce_update,
    apply_prototypes_,
)
from s3h_ext.ops.prototypes import Metric

#: Moments of the training at which the sizes of the sub-classes are kept.
MOMENTS = 64


def subclass_rows(
    class_counts: Counts, *, images_per_row: int = 10, max_rows: int = 8
) -> Tensor:
    """Return how many sub-classes each class gets.

    ``K_c = clamp(n_c // max(n_min, images_per_row), 1, max_rows)``; without the upper
    limit it is the rule of SBCL (Hou et al., ICCV 2023).

    Args:
        class_counts: training images of each class, ``C`` numbers.
        images_per_row: least number of images that is worth a sub-class.
        max_rows: upper limit.

    Returns:
        int64 ``[C]``.

    Example:
        >>> subclass_rows([500, 60, 12, 5]).tolist()
        [8, 6, 1, 1]
    """
    counts = torch.as_tensor(class_counts).to(torch.int64)
    unit = max(int(counts.min()), images_per_row)
    return (counts // unit).clamp(1, max_rows)


class ClasswiseSplitting(Method):
    r"""Splits frequent classes into sub-classes, around any classification loss.

    From ``split_from`` on, the classifier has an output for each sub-class, an image's
    sub-class is the nearest of its class's prototypes in feature space, and

    .. math:: L = (1 - \lambda) L_{group} + \lambda L_{sub}

    where both are the wrapped method's own loss: on the sub-classes' logits mapped back
    to classes, with the classes' training counts, and on the sub-classes' logits with
    the sub-classes' counts (so class-balanced weights, margins and priors are those of
    sub-classes). Prediction is by the mapped logits. With one sub-class everywhere this
    is the wrapped method, to the bit.

    Args:
        inner: the wrapped method, such as ``Baseline`` or ``Hybrid``.
        images_per_row: see :func:`subclass_rows`.
        max_rows: most sub-classes of a class.
        split_from: share of the training before which classes are whole; 0.2 is
            epoch 40 of 200.
        subclass_weight: lambda.
        mapping: from sub-classes to classes, ``"logsumexp"`` or ``"max"``.
        metric: distance to the prototypes, ``"euclidean"`` or ``"cosine"``.
        momentum: of the prototypes' moving averages, per step with the class in it.
        expire_below: a row with less than this share of its fair part of the class's
            images starts anew as one half of another.
        noise: of the copies when classes are split, relative to the weights' length.
    """

    prototypes: Tensor  # [S, D]
    sums: Tensor  # [S, D]
    masses: Tensor  # [S]
    offsets: Tensor  # [C + 1]
    class_counts: Tensor  # [C]
    subclass_counts: Tensor  # [S]: training images of each, by the masses
    counted_at: Tensor  # []: progress of the epoch they were counted in
    size_history: Tensor  # [MOMENTS, S]; NaN: not there yet

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
                f"{inner.mixing.kind!r}: an image of two classes has no one sub-class"
            )
        for name, chosen, names in (
            ("mapping", mapping, get_args(MappingName)),
            ("metric", metric, get_args(Metric)),
        ):
            if chosen not in names:
                raise ValueError(f"{name}: expected one of {names}, got {chosen!r}")
        for name, whole in (("images_per_row", images_per_row), ("max_rows", max_rows)):
            if whole < 1:
                raise ValueError(f"{name}: expected a whole number >= 1, got {whole}")
        for name, share in (
            ("split_from", split_from),
            ("subclass_weight", subclass_weight),
        ):
            if not 0.0 <= share <= 1.0:
                raise ValueError(f"{name}: expected a share in [0, 1], got {share}")
        for name, value in (("momentum", momentum), ("expire_below", expire_below)):
            if not 0.0 <= value < 1.0:
                raise ValueError(f"{name}: expected a number in [0, 1), got {value}")
        if not (math.isfinite(noise) and noise >= 0):
            raise ValueError(f"noise: expected a finite number >= 0, got {noise}")
        self.inner = inner
        self.images_per_row, self.max_rows = images_per_row, max_rows
        self.split_from, self.subclass_weight = split_from, subclass_weight
        self.mapping: MappingName = mapping
        self.metric: Metric = metric
        self.momentum, self.expire_below, self.noise = momentum, expire_below, noise
        self._counted: float | None = None
        self._pending: PrototypeUpdate | None = None
        self._memory: PrototypeUpdate | None = None
        hook: Any = self.register_load_state_dict_post_hook  # no annotations
        hook(_forget)

    @property
    def label(self) -> str:
        return "cws" if self.inner.label == "cb-ce" else f"cws-{self.inner.label}"

    @property
    def splits(self) -> bool:
        """Whether any class has more than one sub-class."""
        return isinstance(self.model.classifier, GroupedClassifier)

    def streams(self) -> dict[str, Stream]:
        return self.inner.streams()

    def build(self, model: ImageClassifier, dataset: LongTailDataset) -> None:
        self.inner.build(model, dataset)
        super().build(model, dataset)
        counts = torch.as_tensor(dataset.class_counts)
        rows = subclass_rows(
            counts, images_per_row=self.images_per_row, max_rows=self.max_rows
        )
        if int(rows.max()) == 1:
            return
        offsets = torch.cat((rows.new_zeros(1), rows.cumsum(0)))
        total, depth = int(offsets[-1]), model.backbone.feature_dim
        assert not isinstance(model.classifier, GroupedClassifier)
        model.classifier = GroupedClassifier(model.classifier, offsets, self.mapping)
        self.register_buffer("offsets", offsets, persistent=False)
        self.register_buffer("class_counts", counts.float(), persistent=False)
        self.register_buffer("prototypes", torch.zeros(total, depth))
        self.register_buffer("sums", torch.zeros(total, depth))
        self.register_buffer("masses", torch.zeros(total))
        equal = (counts / rows)[torch.repeat_interleave(rows)]
        self.register_buffer("subclass_counts", equal.float())
        self.register_buffer("counted_at", torch.tensor(-1.0, dtype=torch.float64))
        self.register_buffer("size_history", torch.full((MOMENTS, total), math.nan))
        self.subclass_loss = self.inner.classification_loss(self.subclass_counts)

    def phase(self, progress: float) -> Hashable:
        head = self.model.classifier
        active = isinstance(head, GroupedClassifier) and head.active
        return active, self.inner.phase(progress)

    def prepare(self, progress: float) -> None:
        self.inner.prepare(progress)
        head = self.model.classifier
        if not isinstance(head, GroupedClassifier) or progress < self.split_from:
            return
        if not head.active:
            head.split_(self.noise)
        if progress != self._counted:
            self._count(progress)

    def loss(self, batch: Mapping[str, Batch], progress: float) -> dict[str, Tensor]:
        head = self.model.classifier
        if not isinstance(head, GroupedClassifier):
            return self.inner.loss(batch, progress)
        self.prepare(progress)
        parts: dict[str, Tensor] = {}

        def classify(features: Tensor, labels: Labels) -> Tensor:
            assert isinstance(labels, Tensor)  # no mixing, see __init__
            features, labels = self.joint(features, labels)
            logits = head.subclass_logits(features)
            group: Tensor = self.inner.classification(
                head.group(logits), labels, progress
            )
            if not head.active:
                return group
            assigned = self._assign(features, labels)
            own: Tensor = self.subclass_loss(logits, assigned, progress)
            parts["group"], parts["subclass"] = group.detach(), own.detach()
            weight = self.subclass_weight
            return (1.0 - weight) * group + weight * own

        terms = self.inner.terms(batch, progress, classify)
        return {**terms, **parts}

    def after_step(self) -> None:
        self.inner.after_step()
        if self._pending is None:
            return
        update = self._pending
        # Of joint rows every process already has the whole.
        if not self.gather and dist.is_available() and dist.is_initialized():
            update = all_reduce_update(update)
        apply_prototypes_(
            self.prototypes,
            self.sums,
            self.masses,
            self.offsets,
            update,
            metric=self.metric,
            momentum=self.momentum,
            expire_below=self.expire_below,
        )
        self._memory, self._pending = self._pending, None

    def predict(self, images: Tensor) -> Tensor:
        return self.inner.predict(images)

    @torch.no_grad()
    def analysis(self, train: Iterable[Batch]) -> dict[str, np.ndarray[Any, Any]]:
        head = self.model.classifier
        if not (isinstance(head, GroupedClassifier) and head.active):
            return {}
        # Of all images their sub-classes, of the few that are shown their features:
        # half a million images' would fill a GPU.
        classes = shown_classes(self.offsets.cpu()).to(self.offsets.device)
        assignments, features, positions, seen = [], [], [], 0
        for batch in train:
            found = self.model.backbone(batch.images[0]).float()
            update = accumulate_prototypes(
                found,
                batch.labels,
                self.prototypes,
                self.masses,
                self.offsets,
                metric=self.metric,
            )
            assignments.append(update.assignments.cpu())
            shown = torch.isin(batch.labels, classes).nonzero()[:, 0]
            features.append(found[shown].cpu())
            positions.append(seen + shown.cpu())
            seen += len(batch.labels)
        # Its pictures are of float32 features; NumPy has no bfloat16 either.
        with torch.autocast("cpu", enabled=False):
            return analyse_subclasses(
                torch.cat(features),
                torch.cat(positions),
                torch.cat(assignments),
                self.prototypes.cpu(),
                self.offsets.cpu(),
                self.size_history.cpu(),
                metric=self.metric,
            )

    def _assign(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return each image's sub-class ``[B]``; training, also what it adds."""
        update = accumulate_prototypes(
            features,
            labels,
            self.prototypes,
            self.masses,
            self.offsets,
            metric=self.metric,
            out=self._memory,
        )
        if self.training:
            self._pending = update
        # -1 where features are not finite; the loss says so itself.
        return update.assignments.clamp(min=0)

    def _count(self, progress: float) -> None:
        """Estimate the sub-classes' training images, once at the start of an epoch."""
        if float(self.counted_at) != progress:
            owner = torch.repeat_interleave(self.offsets.diff())
            total = torch.zeros_like(self.class_counts)
            total.index_add_(0, owner, self.masses)
            counts = self.class_counts[owner] * self.masses / total[owner]
            known = total[owner] > 0
            # A row that just started is counted as one image.
            counts = torch.where(known, counts.clamp(min=1), self.subclass_counts)
            self.subclass_counts.copy_(counts)
            self.counted_at.fill_(progress)
            self.size_history[min(int(progress * MOMENTS), MOMENTS - 1)] = counts
        # Into the buffers that are there: a recorded step reads no others.
        anew = self.inner.classification_loss(self.subclass_counts)
        for buffer, value in zip(
            self.subclass_loss.buffers(), anew.buffers(), strict=True
        ):
            buffer.copy_(value)
        self._counted = progress


def _forget(module: torch.nn.Module, incompatible: object) -> None:
    if isinstance(module, ClasswiseSplitting):
        module._counted = None
