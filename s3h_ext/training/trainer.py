"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from s3h_ext import huge_pages
from s3h_ext.data.sets.naming import class_lines
from s3h_ext.report.metrics import Evaluation
from s3h_ext.runs.checkpoint import drop_unfinished
from s3h_ext.training.finish import run_summary, selection_split, write_outputs
from s3h_ext.training.finite import DivergedError
from s3h_ext.training.interrupt import StopRequest
from s3h_ext.training.meter import EpochMeter
from s3h_ext.training.optimizer import learning_rate
from s3h_ext.training.run import TrainingRun
from s3h_ext.training.runlog import RunLog, SilentLog


class Trainer(TrainingRun):
    """Trains one method on one data set and writes the results to a folder.

    Args:
        config: the run's options.
        folder: the run's folder; created if it does not exist.
        resume: resume from the newest valid checkpoint in ``folder``, or start from
            scratch if there is none.
        dataset: data set to use instead of the one in ``config.data``.
        world: the processes of the run; the first one writes files.

    Raises:
        ValueError: options contradict each other.
        FileExistsError: ``folder`` holds a run and ``resume`` is false, or another
            process is training there.
        CheckpointError: ``resume`` finds checkpoints but none that fits this run, or
            one of other data.
    """

    def fit(self) -> dict[str, Any]:
        """Train to the last epoch; write and return the summary.

        Raises:
            KeyboardInterrupt: on SIGINT or SIGTERM, after the current step and a
                checkpoint; immediately on a second SIGINT.
            DivergedError: a loss term, a weight or a logit is not finite.
            LostProcessError: another process of the run has ended or hangs.
        """
        self._clock = time.perf_counter() - self.state.run_seconds
        try:
            with self.world.report_lost_peers():
                with self._open_log() as log:
                    test = self._train(log)
                return self._finish(test)
        finally:
            if self.world.first:
                self.folder.unlock()

    @contextmanager
    def _open_log(self) -> Iterator[RunLog]:
        """Open the first process's log; record what runs and how it ended."""
        per_epoch = self.source.steps_per_epoch
        done, steps = self.state.steps_done(per_epoch), per_epoch * self.epochs
        log = (
            RunLog(self.folder, self.state.history, steps, done)
            if self.world.first
            else SilentLog()
        )
        config, size = self.config, self.world.size
        log.note(
            f"{config.preset or 'custom'}: {self.method.label} on {self.dataset.name}, "
            f"{len(self.dataset.train)} images, seed {config.seed}, {self.epochs} "
            f"epochs; {self.precision} on {self.device}"
            f"{f', {size} processes' if size > 1 else ''}, {torch.get_num_threads()} "
            f"threads, torch {torch.__version__}, from step {done} of {steps}"
        )
        if self.device.type == "cpu":
            log.note(huge_pages.describe())
        for line in (*self.warnings, *class_lines(self.dataset), *self.dataset.notes):
            log.note(line)
        try:
            yield log
        except (Exception, KeyboardInterrupt) as error:
            with suppress(OSError):  # it may be the cause
                log.note(f"stopped {self.place}: {error!r}")
            raise
        finally:
            log.close()

    def _train(self, log: RunLog) -> Evaluation:
        """Train the remaining epochs; return the evaluation on the test split."""
        begun_at = self.state.steps_done(self.source.steps_per_epoch)
        self._left_out.note(log)
        with StopRequest() as stop:
            for epoch in range(self.state.epochs_done, self.epochs):
                self._epoch(epoch, log, stop)
        if not self.epochs:
            self.state.history = [{"epoch": 0, **self._evaluate_epoch()}]
            self.save()
            log.epoch(self.state.history[0])
        # Without held-out images, the last epoch was just evaluated on this split.
        test = self._evaluated.get("test") or self.evaluate("test")
        if self.average is not None:
            last = self._measure("test")
            log.note(f"top1 {last.top1:.2f} with the last weights, without averaging")
        self._left_out.note(log)
        for name, (fallen, drawn) in self.source.fallbacks().items():
            if fallen:
                log.note(
                    f"{fallen} of {drawn} crops drawn for {name!r} since step "
                    f"{begun_at} found no box within the constraint (fallback used)"
                )
        log.note(f"finished: top1 {test.top1:.2f} on the test split")
        return test

    def _epoch(self, epoch: int, log: RunLog, stop: StopRequest) -> None:
        """Train an epoch; evaluate it and write a checkpoint if they are due."""
        last = epoch + 1 == self.epochs
        due = last or (epoch + 1) % self.config.checkpoint_every == 0
        evaluated = last or (epoch + 1) % self.config.eval_every == 0
        row: dict[str, float | int | None] = {"epoch": epoch + 1}
        # Save first, so that a failing evaluation loses no training.
        row.update(self.train_epoch(epoch, log, stop, save=due and evaluated))
        if evaluated:
            row.update(self._evaluate_epoch(saved=due))
        self.state.history.append(row)
        self.state.epochs_done = epoch + 1
        self._inside = False
        self._left_out.note(log)
        # Ask once: a stop request in between would miss its checkpoint. In the last
        # epoch all processes ask together too, but finish the run.
        stopping = self.world.any(stop.requested) and not last
        if due or stopping:
            self.save()
        log.epoch(row)
        if stopping:
            raise KeyboardInterrupt

    def train_epoch(
        self,
        epoch: int,
        log: RunLog,
        stop: StopRequest | None = None,
        *,
        save: bool = False,
    ) -> dict[str, float]:
        """Train one epoch; return mean terms, last learning rate and images/s.

        All processes check ``stop`` together after every step. ``save`` writes a
        checkpoint after the last step.

        Raises:
            KeyboardInterrupt: ``stop`` was requested; a checkpoint was written.
        """
        optim, epochs = self.config.optim, self.config.epochs
        steps = self.source.steps_per_epoch
        self._inside = True
        meter = EpochMeter(self.device, epoch, self.state.unfinished_epoch, self.world)
        self.state.unfinished_epoch = None
        self.method.train()
        stale = self.method.begin_epoch(epoch / epochs)
        if stale and self._replayer is not None:
            self._replayer.drop()
        rate = learning_rate(optim, epoch + meter.steps / steps, epochs)
        for batch in self.source.epoch(epoch, meter.steps):
            rate = learning_rate(optim, epoch + (meter.steps + 1) / steps, epochs)
            terms = self._step(batch, rate)
            views = sum(b.images.shape[0] * b.images.shape[1] for b in batch.values())
            meter.update(terms, views)
            log.step(epoch, meter.last_loss, meter.images / meter.seconds)
            self._left_out.tell(log)
            if stop is not None and self.world.any(stop.requested):
                self._left_out.note(log)
                self.save(meter)
                raise KeyboardInterrupt
        means = meter.means()  # synchronises, so the time below is right
        seconds = meter.seconds
        if save:
            self._left_out.note(log)
            self.save(meter)
        images = self.world.sum(meter.images)
        self.state.train_seconds += seconds
        self.state.images_trained += images
        return {"lr": rate, **means, "images_per_second": images / seconds}

    def _evaluate_epoch(self, *, saved: bool = False) -> dict[str, float | None]:
        split = selection_split(self.dataset)
        self.world.average_batch_norm_statistics(self.method, self.average)
        try:
            metrics = self.evaluate(split)
        except DivergedError:
            # The checkpoint written before the evaluation is now obsolete.
            if saved and self.world.first:
                drop_unfinished(self.folder)
            raise
        self._evaluated = {split: metrics}
        best = self.state.best_top1
        self.state.best_top1 = metrics.top1 if best is None else max(best, metrics.top1)
        return {
            f"{split}_{name}": getattr(metrics, name)
            for name in ("top1", "many", "medium", "few")
        }

    def _finish(self, test: Evaluation) -> dict[str, Any]:
        self.state.run_seconds = time.perf_counter() - self._clock
        summary = run_summary(
            self.config,
            self.dataset,
            self.state,
            test,
            epochs=self.epochs,
            precision=self.precision,
            device=self.device,
            processes=self.world.size,
            dataset_given=self.dataset_given,
        )
        if self.world.first:
            # A signal must not leave the folder half-written now.
            with StopRequest(), self._averaged():
                write_outputs(
                    self.folder,
                    self.config,
                    self.dataset,
                    summary,
                    test,
                    self.train_batches(),
                    precision=self.precision,
                    device=self.device,
                )
        return summary
