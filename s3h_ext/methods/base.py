"""The contract between a training method and the trainer."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from s3h_ext.data import Batch, LongTailDataset, Stream
from s3h_ext.data.views.mixing import Mixing
from s3h_ext.data.views.recipes import get_recipe
from s3h_ext.losses.classification import Counts, Labels, MixedLabels
from s3h_ext.models import ImageClassifier
from s3h_ext.ops import gather_rows


def seen_labels(batch: Batch) -> Labels:
    """Return the labels of a batch's single view, as label pairs if it is mixed."""
    if batch.mixed is None:
        return batch.labels
    mixed = batch.mixed
    return MixedLabels(batch.labels, mixed.labels[0], mixed.weights[0])


def require_labelled(recipe: str, argument: str = "recipe") -> str:
    """Return ``recipe`` if each of its views shows a single image.

    Raises:
        ValueError: the recipe makes montages, or does not exist.
    """
    if get_recipe(recipe, argument).montage:
        raise ValueError(
            f"{argument}: expected a recipe with one image per view, got "
            f"{recipe!r}: a montage shows several and so has no single label"
        )
    return recipe


def copy_buffers(target: nn.Module, source: nn.Module) -> None:
    """Copy the buffers of ``source`` into those of ``target``, a module of its kind.

    A recorded step keeps reading the buffers it was recorded with.
    """
    for buffer, value in zip(target.buffers(), source.buffers(), strict=True):
        buffer.copy_(value)


class Method(nn.Module, ABC):
    """One way to train a classifier on long-tailed data.

    A method holds the network, the losses and whatever else it learns or tracks: a
    checkpoint keeps its ``state_dict``, and the optimiser trains its ``parameters()``.
    The constructor takes plain options only, because the configuration names it, and
    must be cheap. The trainer calls, in this order:

    1. :meth:`streams` once, for the batches that a step needs;
    2. :meth:`build` once, with the network and the data set;
    3. :meth:`begin_epoch` before the steps of each epoch, and again when a run resumes
       inside one;
    4. :meth:`loss` and then :meth:`after_step` for each step; if steps are recorded as
       CUDA graphs, only for the first few;
    5. :meth:`predict` to evaluate.
    """

    model: ImageClassifier

    #: Whether the network must come from a finished run (``--init_from``).
    needs_first_stage: ClassVar[bool] = False

    #: Whether losses cover the joint batch of all processes. The trainer sets it here
    #: and on the contrastive losses.
    gather: bool = False

    #: The constructor's arguments by name, as recorded in the run's files.
    init_args: Mapping[str, Any] = {}

    def __new__(cls, *args: Any, **kwargs: Any) -> Method:
        """Record the constructor's arguments, defaults included."""
        method = super().__new__(cls)
        signature = inspect.signature(cls)
        bound = signature.bind_partial(*args, **kwargs)
        bound.apply_defaults()
        arguments = dict(bound.arguments)
        for name, parameter in signature.parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                arguments.update(arguments.pop(name))
        object.__setattr__(method, "init_args", arguments)  # nn.Module is not set up
        return method

    @property
    @abstractmethod
    def label(self) -> str:
        """The method's name in tables and summaries, such as ``"hybrid-psc"``."""

    @abstractmethod
    def streams(self) -> dict[str, Stream]:
        """The named batches of one step: sampler, recipe and number of views of each.

        The first stream defines the length of an epoch.
        """

    def build(self, model: ImageClassifier, dataset: LongTailDataset) -> None:
        """Take over the network and add the modules and buffers that the method needs.

        The network has fresh weights, or those of the run given by ``--init_from``. On
        ``--resume`` the weights are fresh, and the checkpoint is loaded afterwards.
        Schedules must be set as at the start of the training.
        """
        self.model = model

    def begin_epoch(self, progress: float) -> bool:
        """Write everything that follows the training's progress into buffers.

        On a GPU a step is recorded and replayed (:mod:`s3h_ext.training.recording`). A
        replay runs none of the method's Python but does read buffers: write weights and
        schedules there, in place. A second call in the same epoch, after a resume, must
        not change anything that the state dict holds.

        Args:
            progress: epochs done / total epochs, in [0, 1).

        Returns:
            True if steps and predictions now do different work, so that recordings of
            them are stale. The default does nothing and returns False.
        """
        return False

    @abstractmethod
    def loss(self, batch: Mapping[str, Batch]) -> dict[str, Tensor]:
        """Return named scalar terms; ``"loss"`` is the one that is minimised.

        With several processes, the terms are averaged over them. With :attr:`gather`,
        that mean must be the term of the joint batch; :meth:`joint` and the contrastive
        losses ensure this.

        Args:
            batch: one :class:`~s3h_ext.data.source.batches.Batch` for each stream.
        """

    def joint(self, features: Tensor, labels: Labels) -> tuple[Tensor, Labels]:
        """Return features ``[N, D]`` and labels of all processes if :attr:`gather`.

        A loss that is not a plain mean over images, such as one with class weights,
        must be computed from the joint rows in every process. Features are small
        compared to images, so this is cheap.
        """
        if not self.gather:
            return features, labels
        if isinstance(labels, MixedLabels):
            (features, *parts), _ = gather_rows(features, *labels)
            return features, MixedLabels(*parts)
        (features, labels), _ = gather_rows(features, labels)
        return features, labels

    def after_step(self) -> None:
        """Update what has no gradient: momentum copies, prototypes, queues."""

    def predict(self, images: Tensor) -> Tensor:
        """Return logits ``[B, num_classes]`` of normalised images ``[B, C, H, W]``."""
        logits: Tensor = self.model(images)
        return logits


class Classification(nn.Module):
    """A classifier and a criterion, which map features to a loss.

    Args:
        model: the network whose classifier to use.
        criterion: ``(logits [N, C], labels) -> loss``.
    """

    def __init__(self, model: ImageClassifier, criterion: nn.Module) -> None:
        super().__init__()
        self.criterion = criterion
        # In a tuple, so that the network is not registered and saved twice.
        self._model = (model,)

    def forward(self, features: Tensor, labels: Labels) -> Tensor:
        """Return the mean loss, a scalar, of features ``[N, D]`` and their labels."""
        loss: Tensor = self.criterion(self._model[0].classifier(features), labels)
        return loss


class ClassifierMethod(Method):
    """A method that trains its classifier with one loss, :attr:`classify`.

    A wrapper may replace the classifier and this module, and call
    :meth:`classification_loss` to get the method's loss for other classes.
    """

    #: ``(features [N, D], labels) -> loss``; labels are :class:`MixedLabels` if the
    #: method's classification stream is mixed.
    classify: Classification

    #: How the training views of the classifier are mixed; None for no mixing.
    mixing: Mixing | None = None

    def build(self, model: ImageClassifier, dataset: LongTailDataset) -> None:
        super().build(model, dataset)
        self.class_counts = dataset.class_counts
        criterion = self.classification_loss(self.class_counts, 0.0)
        self.classify = Classification(model, criterion)

    @abstractmethod
    def classification_loss(self, counts: Counts, progress: float) -> nn.Module:
        """Return the loss of logits for classes with ``counts`` training images.

        It maps ``(logits [N, C], labels)`` to the mean loss. All that depends on counts
        and progress must be in non-persistent buffers: :meth:`begin_epoch` copies those
        of a new loss into the one in use. Called after the method has taken over the
        network.
        """

    def begin_epoch(self, progress: float) -> bool:
        criterion = self.classification_loss(self.class_counts, progress)
        copy_buffers(self.classify.criterion, criterion)
        return super().begin_epoch(progress)
