"""The contract between a training method and the trainer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from s3h_ext.data import Batch, LongTailDataset, Stream
from s3h_ext.models import ImageClassifier


class Method(nn.Module, ABC):
    """One way to train a classifier on long-tailed data.

    A method holds the network, the losses and whatever else it learns or tracks, so its
    ``state_dict`` is the whole of what a checkpoint keeps and ``parameters()`` is what
    the optimiser sees. Its constructor takes plain options only: it is what the
    configuration names, and it must be cheap. The trainer calls, in this order:

    1. :meth:`streams` once, for the batches a step needs;
    2. :meth:`build` once, with the network and the data set;
    3. :meth:`loss` and then :meth:`after_step` for each step;
    4. :meth:`predict` to evaluate.
    """

    model: ImageClassifier

    #: Whether the network has to come from a finished run (``--init_from``).
    needs_first_stage: ClassVar[bool] = False

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

        The network has fresh weights, or those of the run named by ``--init_from``.
        """
        self.model = model

    @abstractmethod
    def loss(self, batch: Mapping[str, Batch], progress: float) -> dict[str, Tensor]:
        """Return named scalar terms; ``"loss"`` is the one that is minimised.

        Args:
            batch: one :class:`~s3h_ext.data.resident.Batch` for each stream.
            progress: epochs done / epochs in all, in [0, 1), the same for a whole
                epoch.
        """

    def after_step(self) -> None:
        """Update what no gradient does: momentum copies, prototypes, queues."""

    def predict(self, images: Tensor) -> Tensor:
        """Return logits ``[B, num_classes]`` of normalised images ``[B, C, H, W]``."""
        logits: Tensor = self.model(images)
        return logits
