"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s3h_ext import huge_pages
from s3h_ext.data import Batch, Feed, LongTailDataset
from s3h_ext.data.sets.naming import class_lines
from s3h_ext.data.sets.readable import without_unreadable
from s3h_ext.models.average import WeightAverage
from s3h_ext.report.metrics import Evaluation
from s3h_ext.runs.card import read_card, write_card
from s3h_ext.runs.checkpoint import (
    CheckpointError,
    drop_unfinished,
    latest_checkpoint,
    rng_state,
    save_checkpoint,
    set_rng_state,
)
from s3h_ext.runs.config import TrainConfig
from s3h_ext.runs.consistency import check_options
from s3h_ext.runs.folder import RunFolder
from s3h_ext.runs.loading import build_network, open_dataset, take_weights
from s3h_ext.runs.precision import resolve_precision
from s3h_ext.training.distributed import AgreedStop, World
from s3h_ext.training.evaluation import evaluate_method
from s3h_ext.training.finite import DivergedError, check_finite, spoiled
from s3h_ext.training.interrupt import StopRequest
from s3h_ext.training.leaving import leave_results
from s3h_ext.training.meter import EpochMeter
from s3h_ext.training.optimizer import build_optimizer, optimizer_state
from s3h_ext.training.reading import read_once
from s3h_ext.training.recording import Replayer, choose_recorder
from s3h_ext.training.resume import check_card, check_together
from s3h_ext.training.runlog import RunLog, SilentLog
from s3h_ext.training.schedule import learning_rate
from s3h_ext.training.step import TrainingStep
from s3h_ext.training.summary import run_line, run_summary


class Trainer:
    """Trains one method on one data set and leaves a folder with everything about it.

    Args:
        config: the run's options.
        folder: the run's folder; made where it does not exist.
        resume: go on from the newest sound checkpoint in ``folder``; where there is
            none, from the start.
        dataset: to be used in place of the one that ``config.data`` names.
        world: the processes of the run; the first one writes.

    Raises:
        ValueError: options contradict each other.
        FileExistsError: ``folder`` holds a run and ``resume`` is false, or another
            process is training there.
        CheckpointError: ``resume`` finds checkpoints and none that this run can go on
            from, or one of other data.
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
        found = None
        if resume:
            found = latest_checkpoint(self.folder, config.dump(), self.precision)
            # Before anything else is done together.
            check_together(world, found and found[1], self.folder)
        self.dataset = dataset or open_dataset(config.data)
        self.dataset_given = dataset is not None
        data = config.data
        self.feed = Feed(data.source, data.workers, data.unreadable)
        self.left_out: dict[str, str] = {}  # images that could not be read, and why
        if found is not None:  # it goes on with the images that it began with
            card = read_card(self.folder)
            known = () if card is None else card.unreadable
            self.dataset = without_unreadable(self.dataset, known)
        elif data.unreadable == "skip":
            self.dataset = read_once(self.dataset, self.feed, world)
        self.first_stage: str | None = None  # whose network the training starts from
        torch.manual_seed(config.seed)
        self.method = config.method
        model = build_network(config, self.dataset)
        if found is None:  # a checkpoint has it all, and the files may have moved
            self.first_stage = take_weights(model, config, self.dataset)
        self.method.build(model, self.dataset)
        self._unset = frozenset(spoiled({"method": self.method.state_dict()}))
        # The stubs of torch lack this overload.
        self.method.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        world.prepare(self.method, config.distributed, self.device)
        decay = config.optim.ema_decay
        self.average = None if decay is None else WeightAverage(model, decay)
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
            split: self.feed.evaluation(
                world.part(images),
                self.dataset,
                batch_size=config.eval_batch_size,
                device=self.device,
            )
            for split, images in splits.items()
            if images is not None
        }
        # A method that trains nothing is evaluated and done.
        trains = any(parameter.requires_grad for parameter in self.method.parameters())
        self.epochs = config.epochs if trains else 0
        self.optimizer = build_optimizer(self.method, config.optim, self.device)
        self.epochs_done = 0
        self.unfinished_epoch: dict[str, Any] | None = None
        self.history: list[dict[str, float | int | None]] = []
        self.best_top1: float | None = None
        self._evaluated: dict[str, Evaluation] = {}  # with the newest weights
        self._inside = False  # of an epoch
        self.train_seconds = 0.0  # inside training steps
        self.run_seconds = 0.0  # everything, over all parts of an interrupted run
        self._clock = time.perf_counter()
        self.images_trained = 0
        try:
            self.folder.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(
                f"output: expected a folder that can be made, got {folder}: "
                f"{error.strerror}"
            ) from error
        if world.first:
            self.folder.lock()
            if not resume:
                self.folder.check_free()  # again: nobody else can begin a run here now
        if found is not None:
            self._resume(*found)
        recorder = choose_recorder(
            config.graphs,
            self.device,
            world.size,
            self.source.resident,
        )
        self._replayer = (
            None
            if recorder is None
            else Replayer(recorder, insist=config.graphs == "on")
        )
        self._step = TrainingStep(
            world.loss(self.method),
            self.method,
            self.optimizer,
            self.precision,
            self.device,
            self.average,
            self._replayer,
        )
        world.any(False)  # nothing is written before all have read
        if world.first:
            self.folder.write_config(config.dump())
            write_card(self.folder, self.dataset)

    @property
    def selection_split(self) -> str:
        """The split that epochs are compared on: held-out images if there are any."""
        return "val" if self.dataset.val is not None else "test"

    @property
    def place(self) -> str:
        """Where the training is, as in ``"in epoch 3"``."""
        if self._inside:
            return f"in epoch {self.epochs_done + 1}"
        return f"after epoch {self.epochs_done}" if self.epochs_done else "at the start"

    def fit(self) -> dict[str, Any]:
        """Train to the last epoch and return the summary, which is also written.

        Raises:
            KeyboardInterrupt: on SIGINT or SIGTERM, after the step that was under way
                and a checkpoint; at once on a SIGINT after that.
            DivergedError: a loss term, a weight or a logit is not finite.
            LostProcessError: another process of the run has ended or hangs.
        """
        try:
            with self.world.watched():
                return self._fit()
        finally:
            if self.world.first:
                self.folder.unlock()

    def _fit(self) -> dict[str, Any]:
        self._clock = time.perf_counter() - self.run_seconds
        steps = self.source.steps_per_epoch
        unfinished = self.unfinished_epoch["steps"] if self.unfinished_epoch else 0
        done = steps * self.epochs_done + unfinished
        log = (
            RunLog(self.folder, self.history, steps * self.epochs, done)
            if self.world.first
            else SilentLog()
        )
        log.note(f"{run_line(self)}, from step {done} of {steps * self.epochs}")
        if self.device.type == "cpu":
            log.note(huge_pages.describe())
        for note in (
            *self.warnings,
            *class_lines(self.dataset),
            *self.dataset.notes,
        ):
            log.note(note)
        try:
            self._note_left_out(log)
            with StopRequest() as stop:
                agreed = AgreedStop(stop, self.world)
                for epoch in range(self.epochs_done, self.epochs):
                    self._epoch(epoch, log, agreed)
            if not self.epochs:
                self.history = [{"epoch": 0, **self._evaluate_epoch()}]
                self._save()
                log.epoch(self.history[0])
            # Without held-out images the last epoch was just evaluated on this split.
            test = self._evaluated.get("test") or self.evaluate("test")
            if self.average is not None:
                last = self._measure("test")
                log.note(f"top1 {last.top1:.2f} with the last weights, not averaged")
            self._note_left_out(log)
            for name, (fallen, drawn) in self.source.fallbacks().items():
                if fallen:
                    log.note(
                        f"{fallen} of the {drawn} crops drawn for {name!r} since step "
                        f"{done} met their constraint in no try and are its fallback"
                    )
            log.note(f"finished: top1 {test.top1:.2f} on the test split")
        except (Exception, KeyboardInterrupt) as error:
            with suppress(OSError):  # it may be what ends the run
                log.note(f"stopped {self.place}: {error!r}")
            raise
        finally:
            log.close()
        self.run_seconds = time.perf_counter() - self._clock
        summary = run_summary(self, test)
        if self.world.first:
            # A signal now must not leave the folder half written.
            with StopRequest(), self._averaged():
                leave_results(self, summary, test)
        return summary

    def _epoch(self, epoch: int, log: RunLog, stop: AgreedStop) -> None:
        config = self.config
        last = epoch + 1 == self.epochs
        due = last or (epoch + 1) % config.checkpoint_every == 0
        row: dict[str, float | int | None] = {"epoch": epoch + 1}
        evaluated = last or (epoch + 1) % config.eval_every == 0
        # An evaluation that fails, or is killed, costs no training.
        row.update(self.train_epoch(epoch, log, stop, save=due and evaluated))
        if evaluated:
            row.update(self._evaluate_epoch(saved=due))
        self.history.append(row)
        self.epochs_done = epoch + 1
        self._inside = False
        self._note_left_out(log)
        # Once, for a stop in between would go without its checkpoint. In the last epoch
        # all processes ask together too, and end what is nearly over.
        stopping = stop.requested and not last
        if due or stopping:
            self._save()
        log.epoch(row)
        if stopping:
            raise KeyboardInterrupt

    def evaluate(self, split: str) -> Evaluation:
        """Return the metrics of the method on ``"val"`` or ``"test"``.

        They are those of the averaged weights, if there are any.
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
        """Return the logits of a batch, from a recording where steps are."""
        if self._replayer is None:
            return self.method.predict(images)
        return self._replayer(
            "predict", [images], lambda tensors: self.method.predict(*tensors)
        )

    def train_epoch(
        self,
        epoch: int,
        log: RunLog,
        stop: AgreedStop | None = None,
        *,
        save: bool = False,
    ) -> dict[str, float]:
        """Train one epoch; return mean terms, last learning rate and images/s.

        Args:
            epoch: from 0.
            log: is told of every step.
            stop: asked after every step.
            save: write a checkpoint behind the last step.

        Raises:
            KeyboardInterrupt: ``stop`` was requested; a checkpoint was written.
        """
        config, steps = self.config, self.source.steps_per_epoch
        self._inside = True
        stale = self.method.begin_epoch(epoch / config.epochs)
        if stale and self._replayer is not None:
            self._replayer.drop()
        meter = EpochMeter(self.device, epoch, self.unfinished_epoch, self.world)
        self.unfinished_epoch = None
        self.method.train()
        rate = learning_rate(config.optim, epoch + meter.steps / steps, config.epochs)
        for batch in self.source.epoch(epoch, meter.steps):
            position = epoch + (meter.steps + 1) / steps
            rate = learning_rate(config.optim, position, config.epochs)
            terms = self._step(batch, rate)
            views = sum(b.images.shape[0] * b.images.shape[1] for b in batch.values())
            meter.update(terms, views)
            log.step(epoch, meter.last_loss, meter.images / meter.seconds)
            self._tell_left_out(log)
            if stop is not None and stop.requested:
                self._note_left_out(log)
                self._save(meter)
                raise KeyboardInterrupt
        means = meter.means()  # waits for the device, so the clock below is true
        seconds = meter.seconds
        if save:
            self._note_left_out(log)
            self._save(meter)
        images = self.world.sum(meter.images)
        self.train_seconds += seconds
        self.images_trained += images
        return {"lr": rate, **means, "images_per_second": images / seconds}

    def _evaluate_epoch(self, *, saved: bool = False) -> dict[str, float | None]:
        split = self.selection_split
        self._settle()
        try:
            metrics = self.evaluate(split)
        except DivergedError:
            # What was saved before the evaluation is of no use.
            if saved and self.world.first:
                drop_unfinished(self.folder)
            raise
        self._evaluated = {split: metrics}
        if self.best_top1 is None or metrics.top1 > self.best_top1:
            self.best_top1 = metrics.top1
        return {
            f"{split}_{name}": getattr(metrics, name)
            for name in ("top1", "many", "medium", "few")
        }

    def _settle(self) -> None:
        """Make what processes track by themselves the same."""
        self.world.settle(self.method)
        if self.average is not None:
            self.world.settle_average(self.average)

    def train_batches(self) -> Iterator[Batch]:
        """Yield the training images as evaluation shows them, in their order.

        Nothing is copied unless somebody asks.
        """
        yield from self.feed.evaluation(
            self.dataset.train,
            self.dataset,
            batch_size=self.config.eval_batch_size,
            device=self.device,
        )

    def _tell_left_out(self, log: RunLog) -> dict[str, str]:
        """Name images that this process could not read, as soon as it met them."""
        met = self.feed.unreadable.errors.copy()  # threads may be adding to it
        for path in sorted(met.keys() - self.left_out.keys()):
            self.left_out[path] = met[path]
            log.tell(f"left out: {path}: {met[path]}")
        return met

    def _note_left_out(self, log: RunLog) -> None:
        """Take note of images that some process could not read, and log new ones."""
        for met in self.world.gather(self._tell_left_out(log)):
            for path in sorted(met.keys() - self.left_out.keys()):
                self.left_out[path] = met[path]
                log.note(f"left out: {path}: {met[path]}")

    def _save(self, meter: EpochMeter | None = None) -> None:
        """Write a checkpoint; inside an epoch ``meter`` says how far that has come.

        Raises:
            DivergedError: the state is not finite, and nothing was written.
        """
        self.run_seconds = time.perf_counter() - self._clock
        self._settle()
        steps = self.source.steps_per_epoch
        trained = {
            "unfinished_epoch": None if meter is None else meter.state(steps),
            "method": self.method.state_dict(),
            "optimizer": optimizer_state(self.optimizer),
            "average": None if self.average is None else self.average.state_dict(),
        }
        check_finite(trained, self.place, self._unset)  # in all processes
        if not self.world.first:
            return
        save_checkpoint(
            self.folder,
            self.epochs_done,
            {
                **trained,
                "config": self.config.dump(),
                "precision": self.precision,
                "rng": rng_state(self.device),
                "history": self.history,
                "best_top1": self.best_top1,
                "train_seconds": self.train_seconds,
                "run_seconds": self.run_seconds,
                "images_trained": self.images_trained,
                "left_out": self.left_out,
                "first_stage": self.first_stage,
            },
        )

    def _resume(self, path: Path, state: Mapping[str, Any]) -> None:
        check_card(self.folder, self.dataset)
        try:
            self.method.load_state_dict(state["method"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(f"{path}: does not fit this run: {error}") from error
        set_rng_state(state["rng"], self.device)
        self.epochs_done = state["epochs_done"]
        self.unfinished_epoch = state["unfinished_epoch"]
        self.history = state["history"]
        self.best_top1 = state["best_top1"]
        self.train_seconds = state["train_seconds"]
        self.run_seconds = state["run_seconds"]
        self.images_trained = state["images_trained"]
        # Older checkpoints have neither.
        self.left_out = state.get("left_out", {})
        self.first_stage = state.get("first_stage")
