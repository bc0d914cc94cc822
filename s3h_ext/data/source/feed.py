"""Which source feeds a run, and how it decodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch

from s3h_ext.data.dataset import ImageSet, LongTailDataset
from s3h_ext.data.image_files import ImageFiles
from s3h_ext.data.source.batches import EvaluationBatches
from s3h_ext.data.source.decode import (
    Decoder,
    PillowDecoder,
    Unreadable,
    UnreadablePolicy,
)
from s3h_ext.data.source.file_source import FileBatches, FileSource
from s3h_ext.data.source.resident import ResidentSource
from s3h_ext.data.streams import Stream

__all__ = ["Feed", "SourceName"]

SourceName = Literal["auto", "resident", "pil", "dali"]


@dataclass
class Feed:
    """Makes the sources of a run.

    Args:
        source: ``"resident"`` for images in memory; ``"pil"`` or ``"dali"`` for
            photographs; ``"auto"`` for ``"resident"`` or ``"pil"``.
        workers: Threads that read and decode photographs; 0 for one per CPU.
        unreadable: What to do about photographs that cannot be read: ``"error"`` or
            ``"skip"``.

    Attributes:
        met: The photographs that could not be read, of all sources made here.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> from s3h_ext.data.dataset import load_dataset
        >>> data = load_dataset("digits-lt")
        >>> len(Feed().evaluation(data.test, data, batch_size=100))
        3
    """

    source: SourceName = "auto"
    workers: int = 0
    unreadable: UnreadablePolicy = "error"
    met: Unreadable = field(init=False)

    def __post_init__(self) -> None:
        if self.source not in get_args(SourceName):
            raise ValueError(
                f"source: expected one of {get_args(SourceName)}, got {self.source!r}"
            )
        if self.workers < 0:
            raise ValueError(f"workers: expected at least 0, got {self.workers}")
        self.met = Unreadable(self.unreadable)

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
    ) -> ResidentSource | FileSource:
        """Returns the source of the training batches, this process's part of them.

        Raises:
            ValueError: an argument is out of range, or the source does not fit the
                data.
        """
        files = dataset.train
        if isinstance(files, ImageSet):
            self._must_be("resident", dataset)
            return ResidentSource(
                files,
                streams,
                num_classes=dataset.num_classes,
                mean=dataset.mean,
                std=dataset.std,
                batch_size=batch_size,
                epochs=epochs,
                seed=seed,
                device=device,
                rank=rank,
                world_size=world_size,
            )
        return FileSource(
            files,
            streams,
            self._decoder(files, dataset, device),
            num_classes=dataset.num_classes,
            mean=dataset.mean,
            std=dataset.std,
            batch_size=batch_size,
            epochs=epochs,
            seed=seed,
            device=device,
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
    ) -> EvaluationBatches | FileBatches:
        """Returns the batches of a split of ``dataset``, in its order, not augmented.

        Raises:
            ValueError: as for :meth:`training`.
        """
        mean: Sequence[float] = dataset.mean
        std: Sequence[float] = dataset.std
        if isinstance(images, ImageSet):
            self._must_be("resident", dataset)
            return EvaluationBatches(
                images, mean=mean, std=std, batch_size=batch_size, device=device
            )
        return FileBatches(
            images,
            self._decoder(images, dataset, device),
            mean=mean,
            std=std,
            batch_size=batch_size,
            device=device,
        )

    def _decoder(
        self,
        files: ImageFiles,
        dataset: LongTailDataset,
        device: torch.device | str,
    ) -> Decoder:
        if self.source == "dali":
            from s3h_ext.data.source.dali import DaliDecoder

            return DaliDecoder(files, self.met, workers=self.workers, device=device)
        self._must_be("pil", dataset)
        return PillowDecoder(files, self.met, workers=self.workers)

    def _must_be(self, source: SourceName, dataset: LongTailDataset) -> None:
        if self.source not in ("auto", source):
            raise ValueError(
                f"source: the images of {dataset.name} need "
                f"{'resident' if source == 'resident' else 'pil or dali'}; got "
                f"{self.source!r}"
            )
