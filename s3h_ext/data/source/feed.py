"""Builds a run's sources from its options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch

from s3h_ext.checks import NOT_NEGATIVE, check, check_choice
from s3h_ext.data.dataset import ImageFiles, ImageSet, LongTailDataset
from s3h_ext.data.source.decode import (
    Decoder,
    PillowDecoder,
    Unreadable,
    UnreadablePolicy,
)
from s3h_ext.data.source.evaluation import EvaluationBatches
from s3h_ext.data.source.pixels import FilePixels, ResidentPixels
from s3h_ext.data.source.source import Source
from s3h_ext.data.streams import Stream

__all__ = ["Feed", "SourceName"]

SourceName = Literal["auto", "resident", "pil", "dali"]


class Feed:
    """Factory of a run's sources.

    Args:
        source: ``"resident"`` for images in memory; ``"pil"`` or ``"dali"`` for
            photographs; ``"auto"`` for ``"resident"`` or ``"pil"``.
        workers: Threads that read and decode photographs; 0 for one per CPU.
        unreadable: What to do about photographs that cannot be read: ``"error"`` or
            ``"skip"``.

    Attributes:
        unreadable: The unreadable photographs of all sources made here.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> from s3h_ext.data import load_dataset
        >>> data = load_dataset("digits-lt")
        >>> streams = {"pair": Stream(recipe="supcon", views=2)}
        >>> source = Feed().training(data, streams, batch_size=64, epochs=10, seed=0)
        >>> next(source.epoch(0))["pair"].images.shape
        torch.Size([2, 61, 3, 32, 32])
        >>> len(Feed().evaluation(data.test, data, batch_size=100))
        3
    """

    def __init__(
        self,
        source: SourceName = "auto",
        workers: int = 0,
        unreadable: UnreadablePolicy = "error",
    ) -> None:
        check_choice("source", source, get_args(SourceName))
        check(NOT_NEGATIVE, workers=workers)
        self.source, self.workers = source, workers
        self.unreadable = Unreadable(unreadable)

    def training(
        self,
        dataset: LongTailDataset,
        streams: Mapping[str, Stream],
        *,
        batch_size: int,
        epochs: int,
        seed: int,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
    ) -> Source:
        """Return the source of this process's part of the training batches.

        Raises:
            ValueError: an argument is out of range, or the source does not fit the
                data.
        """
        return Source(
            self._pixels(dataset.train, dataset, device),
            streams,
            num_classes=dataset.num_classes,
            batch_size=batch_size,
            epochs=epochs,
            seed=seed,
            rank=rank,
            world_size=world_size,
        )

    def evaluation(
        self,
        images: ImageSet | ImageFiles,
        dataset: LongTailDataset,
        *,
        batch_size: int,
        device: torch.device | str = "cpu",
    ) -> EvaluationBatches:
        """Return the batches of a split of ``dataset``, in order, not augmented.

        Raises:
            ValueError: as for :meth:`training`.
        """
        pixels = self._pixels(images, dataset, device)
        return EvaluationBatches(pixels, batch_size=batch_size)

    def _pixels(
        self,
        images: ImageSet | ImageFiles,
        dataset: LongTailDataset,
        device: torch.device | str,
    ) -> ResidentPixels | FilePixels:
        mean, std = dataset.mean, dataset.std
        fitting = ("resident",) if isinstance(images, ImageSet) else ("pil", "dali")
        if self.source not in ("auto", *fitting):
            raise ValueError(
                f"source: the images of {dataset.name} need {' or '.join(fitting)}; "
                f"got {self.source!r}"
            )
        if isinstance(images, ImageSet):
            return ResidentPixels(images, mean=mean, std=std, device=device)
        decoder: Decoder
        if self.source == "dali":
            from s3h_ext.data.source.dali import DaliDecoder

            decoder = DaliDecoder(
                images, self.unreadable, workers=self.workers, device=device
            )
        else:
            decoder = PillowDecoder(images, self.unreadable, workers=self.workers)
        return FilePixels(images, decoder, mean=mean, std=std, device=device)
