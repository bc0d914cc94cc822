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
    """Return the labels of a batch's single view, two each where views are mixed."""
    if batch.mixed is None:
        return batch.labels
    mixed = batch.mixed
    return MixedLabels(batch.labels, mixed.labels[0], mixed.weights[0])


def require_labelled(recipe: str, argument: str = "recipe") -> str:
    """Return ``recipe`` if each of its views shows one image, whose label is its own.

    Raises:
        ValueError: it makes montages, or there is no such recipe.
    """
    if get_recipe(recipe, argument).montage:
        raise ValueError(
            f"{argument}: expected a recipe with one image per view, got "
            f"{recipe!r}: a montage shows several and so has no single label"
        )
    return recipe


def copy_buffers(target: nn.Module, source: nn.Module) -> None:
    """Write the buffers of ``source`` into those of ``target``, a module like it.

    A recorded step reads the buffers it was recorded with and no others.
    """
    for buffer, value in zip(target.buffers(), source.buffers(), strict=True):
        buffer.copy_(value)


class Method(nn.Module, ABC):
    """One way to train a classifier on long-tailed data.

    A method holds the network, the losses and whatever else it learns or tracks, so its
    ``state_dict`` is the whole of what a checkpoint keeps and ``parameters()`` is what
    the optimiser sees. Its constructor takes plain options only: it is what the
    configuration names, and it must be cheap. The trainer calls, in this order:

    1. :meth:`streams` once, for the batches a step needs;
    2. :meth:`build` once, with the network and the data set;
    3. :meth:`begin_epoch` before the steps of each epoch, and again when a run resumes
       inside one;
    4. :meth:`loss` and then :meth:`after_step` for each step, or, where steps are
       recorded, for the first few of them;
    5. :meth:`predict` to evaluate.
    """

    model: ImageClassifier

    #: Whether the network has to come from a finished run (``--init_from``).
    needs_first_stage: ClassVar[bool] = False

    #: Whether losses are those of the batches of all processes together. The trainer
    #: sets it here and on the contrastive losses.
    gather: bool = False

    #: The arguments of the constructor by name, from which a run's files name it.
    init_args: Mapping[str, Any] = {}

    def __new__(cls, *args: Any, **kwargs: Any) -> Method:
        """Keep the arguments of the constructor, defaults included."""
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
        """The method's name in tables and summaries, as in ``"hybrid-psc"``."""

    @abstractmethod
    def streams(self) -> dict[str, Stream]:
        """The named batches of one step: sampler, recipe and number of views each.

        The first one defines the length of an epoch.
        """

    def build(self, model: ImageClassifier, dataset: LongTailDataset) -> None:
        """Take the network over and add the modules and buffers the method needs.

        The network has fresh weights, or those of the run named by ``--init_from``; on
        ``--resume`` fresh ones, and those of the checkpoint follow. What follows the
        progress of the training is as at its start.
        """
        self.model = model

    def begin_epoch(self, progress: float) -> bool:
        """Write what follows the progress of the training into buffers.

        On a GPU a step is recorded and replayed (:mod:`s3h_ext.training.recording`),
        and a replay runs none of the method's Python. It does read buffers: write
        weights and schedules there, in place. A second call in the same epoch, after a
        resume, must change nothing that the state dict holds.

        Args:
            progress: epochs done / epochs in all, in [0, 1).

        Returns:
            True if steps and predictions do other work than before, so that recordings
            of them are stale. The default writes nothing and returns False.
        """
        return False

    @abstractmethod
    def loss(self, batch: Mapping[str, Batch]) -> dict[str, Tensor]:
        """Return named scalar terms; ``"loss"`` is the one that is minimised.

        In several processes the mean of their terms counts, and with :attr:`gather`
        it is the term of the joint batch: :meth:`joint` and the contrastive losses do
        that.

        Args:
            batch: one :class:`~s3h_ext.data.source.batches.Batch` for each stream.
        """

    def joint(self, features: Tensor, labels: Labels) -> tuple[Tensor, Labels]:
        """Return features ``[N, D]`` and labels of all processes if :attr:`gather`.

        A loss that is more than a mean over images, such as one with class weights, is
        that of the joint batch when every process takes it of the joint rows. Features
        are few numbers next to the images.
        """
        if not self.gather:
            return features, labels
        if isinstance(labels, MixedLabels):
            (features, *parts), _ = gather_rows(features, *labels)
            return features, MixedLabels(*parts)
        (features, labels), _ = gather_rows(features, labels)
        return features, labels

    def after_step(self) -> None:
        """Update what no gradient does: momentum copies, prototypes, queues."""

    def predict(self, images: Tensor) -> Tensor:
        """Return logits ``[B, num_classes]`` of normalised images ``[B, C, H, W]``."""
        logits: Tensor = self.model(images)
        return logits


class Classification(nn.Module):
    """The loss of features: the classifier's logits, and a criterion of them.

    Args:
        model: whose classifier it is.
        criterion: ``(logits [N, C], labels) -> loss``.
    """

    def __init__(self, model: ImageClassifier, criterion: nn.Module) -> None:
        super().__init__()
        self.criterion = criterion
        # In a tuple: the method has the network already, and saves it once.
        self._model = (model,)

    def forward(self, features: Tensor, labels: Labels) -> Tensor:
        """Return the mean loss of ``features [N, D]`` and their labels, a scalar."""
        loss: Tensor = self.criterion(self._model[0].classifier(features), labels)
        return loss


class ClassifierMethod(Method):
    """A method that trains its classifier with one loss, :attr:`classify`.

    A wrapper may put a module of its own there, as it may replace the classifier, and
    make the method's loss for other classes by :meth:`classification_loss`.
    """

    #: ``(features [N, D], labels) -> loss``; labels are a ``MixedLabels`` if the
    #: method's classification stream is mixed.
    classify: Classification

    #: How the views that the classifier is trained on are mixed, if they are.
    mixing: Mixing | None = None

    def build(self, model: ImageClassifier, dataset: LongTailDataset) -> None:
        super().build(model, dataset)
        self.class_counts = dataset.class_counts
        criterion = self.classification_loss(self.class_counts, 0.0)
        self.classify = Classification(model, criterion)

    @abstractmethod
    def classification_loss(self, counts: Counts, progress: float) -> nn.Module:
        """Return the loss of logits for classes with ``counts`` training images.

        It maps ``(logits [N, C], labels)`` to the mean loss. Whatever in it follows
        from the counts and the progress is in its buffers, which are not persistent:
        :meth:`begin_epoch` writes those of a new one into those of the one in use.
        Called after the network was taken over.
        """

    def begin_epoch(self, progress: float) -> bool:
        criterion = self.classification_loss(self.class_counts, progress)
        copy_buffers(self.classify.criterion, criterion)
        return super().begin_epoch(progress)
