"""The contract between a training method and the trainer."""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from s3h_ext.data import Batch, LongTailDataset, Stream
from s3h_ext.data.views.mixing import Mixing
from s3h_ext.data.views.recipes import get_recipe
from s3h_ext.losses.classification import Counts, Labels, MixedLabels
from s3h_ext.models import ImageClassifier
from s3h_ext.ops import gather_rows

#: Features ``[B, D]`` and their labels -> the classification loss, a scalar.
Classify = Callable[[Tensor, Labels], Tensor]


def seen_labels(batch: Batch) -> Labels:
    """Return the labels of a batch's single view, two each where views are mixed."""
    if batch.mixed is None:
        return batch.labels
    mixed = batch.mixed
    return MixedLabels(batch.labels, mixed.labels[0], mixed.weights[0])


def labelled(recipe: str, argument: str = "recipe") -> str:
    """Return ``recipe`` if each of its views shows one image, whose label is its own.

    Raises:
        ValueError: it makes montages, or there is no such recipe.
    """
    if get_recipe(recipe, argument).montage:
        raise ValueError(
            f"{argument}: expected one whose views show one image each, got "
            f"{recipe!r}: a montage shows several, and has no one label to train on"
        )
    return recipe


#: What a step runs.
_STEP = frozenset({"loss", "terms", "classification_loss", "after_step"})


def _keeps_arguments(init: Callable[..., None]) -> Callable[..., None]:
    """Make a constructor keep its arguments, defaults included, as ``init_args``."""
    signature = inspect.signature(init)

    @functools.wraps(init)
    def keeping(self: Method, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        # A subclass calls its parent's constructor first, so its own arguments stay.
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        named = dict(list(bound.arguments.items())[1:])
        for parameter in signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                named.update(named.pop(parameter.name))
        self.init_args = named

    return keeping


class Method(nn.Module, ABC):
    """One way to train a classifier on long-tailed data.

    A method holds the network, the losses and whatever else it learns or tracks, so its
    ``state_dict`` is the whole of what a checkpoint keeps and ``parameters()`` is what
    the optimiser sees. Its constructor takes plain options only: it is what the
    configuration names, and it must be cheap. The trainer calls, in this order:

    1. :meth:`streams` once, for the batches a step needs;
    2. :meth:`build` once, with the network and the data set;
    3. :meth:`loss` and then :meth:`after_step` for each step, or, where steps are
       recorded, for the first few of each :meth:`phase`;
    4. :meth:`predict` to evaluate.
    """

    model: ImageClassifier

    #: Whether the network has to come from a finished run (``--init_from``).
    needs_first_stage: ClassVar[bool] = False

    #: Whether losses are those of the batches of all processes together. The trainer
    #: sets it here and on the contrastive losses.
    gather: bool = False

    #: The arguments of the constructor by name, from which a run's files name it.
    init_args: Mapping[str, Any] = {}

    @property
    @abstractmethod
    def label(self) -> str:
        """The method's name in tables and summaries, as in ``"hybrid-psc"``."""

    @abstractmethod
    def streams(self) -> dict[str, Stream]:
        """The named batches of one step: sampler, recipe and number of views each.

        The first one defines the length of an epoch.
        """

    def build(self, model: ImageClassifier, dataset: LongTailDataset) -> None:
        """Take the network over and add the modules and buffers the method needs.

        The network has fresh weights, or those of the run named by ``--init_from``; on
        ``--resume`` fresh ones, and those of the checkpoint follow.
        """
        self.model = model

    def phase(self, progress: float) -> Hashable:
        """Return what of the progress the operations of a step depend on.

        On a GPU a step is recorded and replayed (:mod:`s3h_ext.training.recording`)
        for as long as this value is the same, and a replay runs none of the method's
        Python. By default it is the progress itself, so each epoch is recorded anew. A
        method whose :meth:`loss` and :meth:`after_step` take numbers that follow the
        progress from tensors alone, which :meth:`prepare` writes, returns a constant.
        It says so for itself: a subclass with another step has the default again.
        """
        return progress

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        own = vars(cls)
        if "__init__" in own:
            setattr(cls, "__init__", _keeps_arguments(own["__init__"]))  # noqa: B010
        if "phase" not in own and not _STEP.isdisjoint(own):
            setattr(cls, "phase", Method.phase)  # noqa: B010  mypy minds assignment

    def prepare(self, progress: float) -> None:
        """Write into buffers what follows the progress and not the step.

        The trainer calls it before the steps of an epoch; a :meth:`loss` that needs it
        calls it too, and the second call does nothing.
        """

    @abstractmethod
    def loss(self, batch: Mapping[str, Batch], progress: float) -> dict[str, Tensor]:
        """Return named scalar terms; ``"loss"`` is the one that is minimised.

        In several processes the mean of their terms counts, and with :attr:`gather`
        it is the term of the joint batch: :meth:`joint` and the contrastive losses do
        that.

        Args:
            batch: one :class:`~s3h_ext.data.source.resident.Batch` for each stream.
            progress: epochs done / epochs in all, in [0, 1), the same for a whole
                epoch.
        """

    def joint(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the rows ``[N, ...]`` of all processes if :attr:`gather`.

        A loss that is more than a mean over images, such as one with class weights, is
        that of the joint batch when every process takes it of the joint rows. They are
        features, few numbers next to the images.
        """
        return gather_rows(*tensors)[0] if self.gather else tensors

    def after_step(self) -> None:
        """Update what no gradient does: momentum copies, prototypes, queues."""

    def predict(self, images: Tensor) -> Tensor:
        """Return logits ``[B, num_classes]`` of normalised images ``[B, C, H, W]``."""
        logits: Tensor = self.model(images)
        return logits

    def analysis(self, train: Iterable[Batch]) -> dict[str, np.ndarray[Any, Any]]:
        """Return arrays for the method's own part of the report, none if it has none.

        Args:
            train: the training images in their order, not augmented.
        """
        return {}


class ClassificationLoss(nn.Module, ABC):
    """The loss of a classifier's logits, for classes with certain training counts.

    Whatever follows from the counts is in its buffers.
    """

    @abstractmethod
    def forward(self, logits: Tensor, labels: Labels, progress: float) -> Tensor:
        """Return the mean loss of ``logits [B, C]`` and ``labels [B]``.

        The labels are a ``MixedLabels`` if the method's classification stream is mixed.
        """


class ClassifierMethod(Method):
    """A method that trains its classifier with one loss, which a wrapper may replace.

    A wrapper calls :meth:`terms` with a loss of its own on the classifier's features,
    and makes the method's loss for other classes by :meth:`classification_loss`.
    """

    classification: ClassificationLoss

    #: How the views that the classifier is trained on are mixed, if they are.
    mixing: Mixing | None = None

    def build(self, model: ImageClassifier, dataset: LongTailDataset) -> None:
        super().build(model, dataset)
        self.classification = self.classification_loss(dataset.class_counts)

    @abstractmethod
    def classification_loss(self, counts: Counts) -> ClassificationLoss:
        """Return the method's loss for classes with ``counts`` training images.

        It holds no trained weights and nothing that a checkpoint needs. Called after
        the network was taken over.
        """

    @abstractmethod
    def terms(
        self, batch: Mapping[str, Batch], progress: float, classify: Classify
    ) -> dict[str, Tensor]:
        """Return what :meth:`loss` does, with ``classify`` as classification loss.

        ``classify`` is called once, with the features of the classifier's batch.
        """

    def loss(self, batch: Mapping[str, Batch], progress: float) -> dict[str, Tensor]:
        def classify(features: Tensor, labels: Labels) -> Tensor:
            if isinstance(labels, MixedLabels):
                features, *parts = self.joint(features, *labels)
                labels = MixedLabels(*parts)
            else:
                features, labels = self.joint(features, labels)
            logits = self.model.classifier(features)
            loss: Tensor = self.classification(logits, labels, progress)
            return loss

        return self.terms(batch, progress, classify)
