"""A run that can be trained: data, method, optimiser and state."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s3h_ext.data import (
    Batch,
    EvaluationBatches,
    Feed,
    ImageFiles,
    ImageSet,
    LongTailDataset,
)
from s3h_ext.data.sets.readable import without_unreadable
from s3h_ext.models.average import WeightAverage
from s3h_ext.report.metrics import Evaluation
from s3h_ext.runs.card import read_card, write_card
from s3h_ext.runs.checkpoint import (
    CheckpointError,
    latest_checkpoint,
    rng_state,
    save_checkpoint,
    set_rng_state,
)
from s3h_ext.runs.config import TrainConfig
from s3h_ext.runs.consistency import check_length, check_options
from s3h_ext.runs.folder import RunFolder
from s3h_ext.runs.loading import build_network, open_dataset, take_weights
from s3h_ext.runs.precision import resolve_precision
from s3h_ext.training.distributed import World
from s3h_ext.training.evaluation import evaluate_method
from s3h_ext.training.finite import check_finite, spoiled
from s3h_ext.training.meter import EpochMeter
from s3h_ext.training.optimizer import build_optimizer, optimizer_state
from s3h_ext.training.reading import LeftOut, read_once
from s3h_ext.training.recording import Replayer, choose_recorder
from s3h_ext.training.state import RunState, check_card, check_together
from s3h_ext.training.step import TrainingStep

__all__ = ["TrainingRun"]


class TrainingRun:
    """What :class:`~s3h_ext.training.trainer.Trainer` trains, evaluates and saves.

    It is built from options or from a checkpoint; the arguments are the trainer's.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        *,
        resume: bool = False,
        dataset: LongTailDataset | None = None,
        world: World | None = None,
    ) -> None:
        self.config = config
        self.world = world = world or World()
        self.folder = RunFolder(folder)
        self.warnings = check_options(config, world.size)
        if world.first and not resume:
            self.folder.check_free()
        elif world.first and self.folder.path.is_dir():
            self.folder.lock()  # before its checkpoints are read
        self.device = world.device(config.device)
        self.precision = resolve_precision(config.precision, self.device)
        checkpoint = None
        if resume:
            checkpoint = latest_checkpoint(self.folder, config.dump(), self.precision)
            # Before any other joint operation.
            check_together(world, checkpoint and checkpoint[1], self.folder)
        self.state = RunState()
        data = config.data
        self.feed = Feed(data.source, data.workers, data.unreadable)
        self.dataset_given = dataset is not None
        self.dataset = dataset or open_dataset(data)
        if checkpoint is not None:  # keep the images that the run began with
            card = read_card(self.folder)
            known = () if card is None else card.unreadable
            self.dataset = without_unreadable(self.dataset, known)
        elif data.unreadable == "skip":
            self.dataset = read_once(self.dataset, self.feed, world)
        if checkpoint is None:
            self.warnings += check_length(config, len(self.dataset.train))
        torch.manual_seed(config.seed)
        model = build_network(config, self.dataset)
        if checkpoint is None:  # it has all weights; their files may have moved
            self.state.first_stage = take_weights(model, config, self.dataset)
        self.method = config.method
        self.method.build(model, self.dataset)
        self._unset = frozenset(spoiled({"method": self.method.state_dict()}))
        # torch's stubs lack this overload.
        self.method.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        world.connect(self.method, config.distributed, self.device)
        decay = config.optim.ema_decay
        self.average = None
        if decay is not None:
            self.average = WeightAverage(self.method.model, decay)  # it may be its own
        self.source = self.feed.training(
            self.dataset,
            self.method.streams(),
            batch_size=config.batch_size,
            epochs=config.epochs,
            seed=config.seed,
            device=self.device,
            rank=world.rank,
            world_size=world.size,
        )
        splits = {"val": self.dataset.val, "test": self.dataset.test}
        self.evaluation = {
            split: self._evaluation_batches(world.part(images))
            for split, images in splits.items()
            if images is not None
        }
        # A method that trains nothing is only evaluated.
        trains = any(parameter.requires_grad for parameter in self.method.parameters())
        self.epochs = config.epochs if trains else 0
        self.optimizer = build_optimizer(self.method, config.optim, self.device)
        self.folder.create()
        if world.first:
            self.folder.lock()
            if not resume:
                self.folder.check_free()  # again, now that the folder is locked
        if checkpoint is not None:
            self._restore(*checkpoint)
        self._left_out = LeftOut(self.feed, self.state.left_out, world)
        self._evaluated: dict[str, Evaluation] = {}  # of the current weights
        self._inside = False  # inside an epoch
        self._clock = time.perf_counter()
        recorder = choose_recorder(
            config.graphs, self.device, world.size, self.source.resident
        )
        insist = config.graphs == "on"
        self._replayer = None if recorder is None else Replayer(recorder, insist)
        self._step = TrainingStep(
            world.loss(self.method),
            self.method,
            self.optimizer,
            self.precision,
            self.device,
            self.average,
            self._replayer,
        )
        world.barrier()  # all processes read before any writes
        if world.first:
            self.folder.write_config(config.dump())
            write_card(self.folder, self.dataset)

    @property
    def place(self) -> str:
        """Where the training is, such as ``"in epoch 3"``."""
        done = self.state.epochs_done
        if self._inside:
            return f"in epoch {done + 1}"
        return f"after epoch {done}" if done else "at the start"

    def evaluate(self, split: str) -> Evaluation:
        """Return the metrics of the method on ``"val"`` or ``"test"``.

        Uses the averaged weights, if there are any.
        """
        with self._averaged():
            return self._measure(split)

    def _averaged(self) -> AbstractContextManager[None]:
        return nullcontext() if self.average is None else self.average.in_place()

    def _measure(self, split: str) -> Evaluation:
        return evaluate_method(
            self.method,
            self.evaluation[split],
            self.dataset.class_counts,
            precision=self.precision,
            device=self.device,
            world=self.world,
            predict=self._predict,
        )

    def _predict(self, images: Tensor) -> Tensor:
        """Return the logits of a batch, from a recording if steps are recorded."""
        if self._replayer is None:
            return self.method.predict(images)
        return self._replayer(
            "predict", [images], lambda tensors: self.method.predict(*tensors)
        )

    def _evaluation_batches(self, images: ImageSet | ImageFiles) -> EvaluationBatches:
        return self.feed.evaluation(
            images,
            self.dataset,
            batch_size=self.config.eval_batch_size,
            device=self.device,
        )

    def train_batches(self) -> Iterator[Batch]:
        """Yield the training images in order, with the views used in evaluation.

        Lazy: images are copied only on iteration.
        """
        yield from self._evaluation_batches(self.dataset.train)

    def save(self, meter: EpochMeter | None = None) -> None:
        """Write a checkpoint; inside an epoch, ``meter`` holds the epoch's progress.

        Raises:
            DivergedError: the state is not finite; nothing was written.
        """
        self.state.run_seconds = time.perf_counter() - self._clock
        self.world.average_batch_norm_statistics(self.method, self.average)
        steps = self.source.steps_per_epoch
        saved = {
            **vars(self.state),
            "unfinished_epoch": None if meter is None else meter.state(steps),
            "method": self.method.state_dict(),
            "optimizer": optimizer_state(self.optimizer),
            "average": None if self.average is None else self.average.state_dict(),
        }
        check_finite(saved, self.place, self._unset)  # in all processes
        if self.world.first:
            saved["config"], saved["precision"] = self.config.dump(), self.precision
            saved["rng"] = rng_state(self.device)
            save_checkpoint(self.folder, self.state.epochs_done, saved)

    def _restore(self, path: Path, saved: Mapping[str, Any]) -> None:
        check_card(self.folder, self.dataset)
        try:
            self.method.load_state_dict(saved["method"])
            self.optimizer.load_state_dict(saved["optimizer"])
            if self.average is not None:
                self.average.load_state_dict(saved["average"])
            names = [field.name for field in fields(RunState)]
            self.state = RunState(**{name: saved[name] for name in names})
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(f"{path}: does not fit this run: {error}") from error
        set_rng_state(saved["rng"], self.device)
