"""The training loop."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from s3h_ext import __version__
from s3h_ext.data import Batch, Feed, LongTailDataset, load_dataset, thumbnails
from s3h_ext.data.dataset import DATASETS
from s3h_ext.models import ImageClassifier, build_model
from s3h_ext.training.checkpoint import (
    CheckpointError,
    checkpoint_paths,
    latest_checkpoint,
    save_checkpoint,
    sound_checkpoints,
)
from s3h_ext.training.config import OptimConfig, TrainConfig
from s3h_ext.training.files import write_text
from s3h_ext.training.interrupt import StopRequest
from s3h_ext.training.meter import EpochMeter
from s3h_ext.training.metrics import Evaluation, evaluate_predictions
from s3h_ext.training.precision import (
    autocast,
    device_name,
    resolve_device,
    resolve_precision,
)
from s3h_ext.training.report import try_report
from s3h_ext.training.results import write_evaluation
from s3h_ext.training.runlog import RunLog, results_table, write_summary
from s3h_ext.training.schedule import learning_rate
from s3h_ext.training.subclasses import write_subclasses
from s3h_ext.training.weights import load_weights


def parameter_groups(module: nn.Module, optim: OptimConfig) -> list[dict[str, Any]]:
    """Return groups of what is trained: with weight decay and, if asked, without."""
    decayed: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    for parameter in module.parameters():
        if not parameter.requires_grad:
            continue
        spared = parameter.ndim < 2 and not optim.decay_norm_and_bias
        (exempt if spared else decayed).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": optim.weight_decay},
        {"params": exempt, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def load_network(model: ImageClassifier, run: Path) -> None:
    """Load the network of a finished run into ``model``.

    Raises:
        CheckpointError: ``run`` holds no sound checkpoint, or one of another network.
    """
    found = next(sound_checkpoints(run / "checkpoints"), None)
    if found is None:
        raise CheckpointError(f"init_from: {run} holds no sound checkpoint")
    path, state = found
    prefix = "model."
    weights = {
        name.removeprefix(prefix): value
        for name, value in state["method"].items()
        if name.startswith(prefix)
    }
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"init_from: {path} does not fit: {error}") from error


class Trainer:
    """Trains one method on one data set and leaves a folder with everything about it.

    Args:
        config: the run's options.
        record: the same options as plain values, as they go into ``config.yaml`` and
            the checkpoints; :func:`s3h_ext.training.options.parse_options` gives both.
        output: the run's folder; made where it does not exist.
        resume: go on from the newest sound checkpoint in ``output``.
        dataset: to be used in place of the one that ``config.data`` names.

    Raises:
        FileExistsError: ``output`` holds a run and ``resume`` is false.
        CheckpointError: ``resume`` finds no checkpoint that this run can go on from.
    """

    def __init__(
        self,
        config: TrainConfig,
        record: Mapping[str, Any],
        output: Path,
        *,
        resume: bool = False,
        dataset: LongTailDataset | None = None,
    ) -> None:
        self.config = config
        self.record = dict(record)
        self.output = output
        self.checkpoints = output / "checkpoints"
        if not resume and (
            checkpoint_paths(self.checkpoints) or (output / "config.yaml").exists()
        ):
            raise FileExistsError(
                f"output: {output} already holds a run; add --resume to go on with it, "
                "or give another --output"
            )
        self.device = resolve_device(config.device)
        self.precision = resolve_precision(config.precision, self.device)
        data = config.data
        self.dataset = dataset or load_dataset(
            data.name,
            root=data.root,
            lists=data.lists,
            imbalance=data.imbalance,
            size=data.size,
            profile=data.profile,
            val_fraction=data.val_fraction,
            test_fraction=data.test_fraction,
            seed=data.split_seed,
        )
        self.feed = Feed(data.source, data.workers, data.unreadable)
        torch.manual_seed(config.seed)
        self.method = config.method
        model = build_model(
            config.model.backbone,
            self.dataset.num_classes,
            classifier=config.model.classifier,
            scale=config.model.scale,
            in_channels=self.dataset.image_shape[-1],
        )
        if config.model.weights is not None:
            load_weights(model.backbone, Path(config.model.weights))
        if config.init_from is not None:
            load_network(model, Path(config.init_from))
        elif self.method.needs_first_stage:
            raise ValueError(
                f"init_from: {type(self.method).__name__} is a second stage and needs "
                "the folder of a finished run, got None"
            )
        self.method.build(model, self.dataset)
        # The stubs of torch lack this overload.
        self.method.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.source = self.feed.training(
            self.dataset,
            self.method.streams(),
            batch_size=config.batch_size,
            epochs=config.epochs,
            seed=config.seed,
            device=self.device,
        )
        splits = {"val": self.dataset.val, "test": self.dataset.test}
        self.evaluation = {
            split: self.feed.evaluation(
                images,
                self.dataset,
                batch_size=config.eval_batch_size,
                device=self.device,
            )
            for split, images in splits.items()
            if images is not None
        }
        groups = parameter_groups(self.method, config.optim)
        # A method that trains nothing is evaluated and done.
        self.epochs = config.epochs if groups else 0
        self.optimizer = torch.optim.SGD(
            groups or [{"params": [torch.zeros(0, device=self.device)]}],
            lr=config.optim.lr,
            momentum=config.optim.momentum,
            nesterov=config.optim.nesterov,
            fused=True,
        )
        self.epochs_done = 0
        self.unfinished_epoch: dict[str, Any] | None = None
        self.history: list[dict[str, float | int | None]] = []
        self.best_top1: float | None = None
        self._evaluated: dict[str, Evaluation] = {}  # with the newest weights
        self.train_seconds = 0.0  # inside training steps
        self.run_seconds = 0.0  # everything, over all parts of an interrupted run
        self._clock = time.perf_counter()
        self.images_trained = 0
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(
                f"output: expected a folder that can be made, got {output}: "
                f"{error.strerror}"
            ) from error
        if resume:
            self._resume()
        write_text(output / "config.yaml", yaml.safe_dump(self.record, sort_keys=False))

    @property
    def selection_split(self) -> str:
        """The split that epochs are compared on: held-out images if there are any."""
        return "val" if self.dataset.val is not None else "test"

    def fit(self) -> dict[str, Any]:
        """Train to the last epoch and return the summary, which is also written.

        Raises:
            KeyboardInterrupt: on SIGINT or SIGTERM, after the step that was under way
                and a checkpoint; at once on a second signal.
            DivergedError: a loss term is not finite.
        """
        self._clock = time.perf_counter() - self.run_seconds
        steps = self.source.steps_per_epoch
        unfinished = self.unfinished_epoch["steps"] if self.unfinished_epoch else 0
        done = steps * self.epochs_done + unfinished
        log = RunLog(self.output, self.history, steps * self.epochs, done)
        log.note(f"{self._describe()}, from step {done} of {steps * self.epochs}")
        for note in self.dataset.notes:
            log.note(note)
        try:
            with StopRequest() as stop:
                for epoch in range(self.epochs_done, self.epochs):
                    self._epoch(epoch, log, stop)
            if not self.epochs:
                self.history = [{"epoch": 0, **self._evaluate_epoch()}]
                self._save()
                log.epoch(self.history[0])
            # Without held-out images the last epoch was just evaluated on this split.
            test = self._evaluated.get("test") or self.evaluate("test")
            for path, reason in self.feed.met.found.items():
                log.note(f"left out: {path}: {reason}")
            log.note(f"finished: top1 {test.top1:.2f} on the test split")
        except (Exception, KeyboardInterrupt) as error:
            log.note(f"stopped in epoch {self.epochs_done + 1}: {error!r}")
            raise
        finally:
            log.close()
        self.run_seconds = time.perf_counter() - self._clock
        summary = self._summary(test)
        # First of all: whatever fails after this, the numbers are safe.
        write_summary(self.output, summary)
        print(results_table(summary))
        write_evaluation(
            self.output, test, self.dataset.class_names, self.dataset.class_counts
        )
        if self.config.report:
            self._write_analysis()
            try_report(self.output)
        return summary

    def _describe(self) -> str:
        """What runs, and on what, in a line."""
        threads = torch.get_num_threads()
        return (
            f"{self.config.preset or 'custom'}: {self.method.label} on "
            f"{self.dataset.name}, {len(self.dataset.train)} images, seed "
            f"{self.config.seed}, {self.epochs} epochs; {self.precision} on "
            f"{self.device}, {threads} threads, torch {torch.__version__}"
        )

    def _epoch(self, epoch: int, log: RunLog, stop: StopRequest) -> None:
        config = self.config
        last = epoch + 1 == self.epochs
        row: dict[str, float | int | None] = {"epoch": epoch + 1}
        row.update(self.train_epoch(epoch, log, stop))
        if last or (epoch + 1) % config.eval_every == 0:
            row.update(self._evaluate_epoch())
        self.history.append(row)
        self.epochs_done = epoch + 1
        if last or stop.requested or (epoch + 1) % config.checkpoint_every == 0:
            self._save()
        log.epoch(row)
        if stop.requested:
            raise KeyboardInterrupt

    def evaluate(self, split: str) -> Evaluation:
        """Return the metrics of the method on ``"val"`` or ``"test"``."""
        # Kept on the device to the end: no batch waits for its results.
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        self.method.eval()
        with torch.inference_mode(), autocast(self.precision, self.device):
            for batch in self.evaluation[split]:
                logits = self.method.predict(batch.images[0]).float()  # [B, C]
                confidence = (logits.amax(1) - logits.logsumexp(1)).exp()
                found.append((batch.labels, logits.argmax(1), confidence))
        self.method.train()
        truth, predicted, confidence = map(torch.cat, zip(*found, strict=True))
        return evaluate_predictions(
            truth.cpu().numpy(),
            predicted.cpu().numpy(),
            confidence.cpu().numpy(),
            self.dataset.class_counts,
        )

    def train_epoch(
        self, epoch: int, log: RunLog, stop: StopRequest | None = None
    ) -> dict[str, float]:
        """Train one epoch; return mean terms, last learning rate and images/s.

        Raises:
            KeyboardInterrupt: ``stop`` was requested; a checkpoint was written.
        """
        config, steps = self.config, self.source.steps_per_epoch
        progress = epoch / config.epochs
        meter = EpochMeter(self.device, epoch, self.unfinished_epoch)
        self.unfinished_epoch = None
        self.method.train()
        rate = self.optimizer.param_groups[0]["lr"]
        for batch in self.source.epoch(epoch, meter.steps):
            position = epoch + (meter.steps + 1) / steps
            rate = learning_rate(config.optim, position, config.epochs)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            with autocast(self.precision, self.device):
                terms = self.method.loss(batch, progress)
            self.optimizer.zero_grad(set_to_none=True)
            terms["loss"].backward()
            self.optimizer.step()
            self.method.after_step()
            views = sum(b.images.shape[0] * b.images.shape[1] for b in batch.values())
            meter.update(terms, views)
            log.step(epoch, meter.last_loss, meter.images / meter.seconds)
            if stop is not None and stop.requested:
                self._save(meter)
                raise KeyboardInterrupt
        means = meter.means()  # waits for the device, so the clock below is true
        seconds = meter.seconds
        self.train_seconds += seconds
        self.images_trained += meter.images
        return {"lr": rate, **means, "images_per_second": meter.images / seconds}

    def _evaluate_epoch(self) -> dict[str, float | None]:
        split = self.selection_split
        metrics = self.evaluate(split)
        self._evaluated = {split: metrics}
        if self.best_top1 is None or metrics.top1 > self.best_top1:
            self.best_top1 = metrics.top1
        return {
            f"{split}_{name}": getattr(metrics, name)
            for name in ("top1", "many", "medium", "few")
        }

    def _write_analysis(self) -> None:
        """Write what the method has for its own part of the report."""
        batches = self.feed.evaluation(
            self.dataset.train,
            self.dataset,
            batch_size=self.config.eval_batch_size,
            device=self.device,
        )
        places: list[Tensor] = []

        def noted() -> Iterator[Batch]:
            # Images that cannot be read may be left out.
            for batch in batches:
                places.append(batch.indices)
                yield batch

        self.method.eval()
        with torch.inference_mode(), autocast(self.precision, self.device):
            arrays = self.method.analysis(noted())
        self.method.train()
        if arrays:
            where = torch.cat(places).cpu().numpy()
            write_subclasses(
                self.output,
                arrays,
                lambda which: thumbnails(self.dataset.train, where[which]),
            )

    def _summary(self, test: Evaluation) -> dict[str, Any]:
        config, dataset = self.config, self.dataset
        counts = dataset.class_counts
        error = test.calibration.error
        # What the data set was cut by, or is by nature.
        imbalance = config.data.imbalance or DATASETS[dataset.name]
        summary: dict[str, Any] = {
            "preset": config.preset,
            "dataset": dataset.name,
            "imbalance": imbalance or float(counts.max() / counts.min()),
            "method": self.method.label,
            "seed": config.seed,
            "epochs": self.epochs,
            "top1": test.top1,
            "many": test.many,
            "medium": test.medium,
            "few": test.few,
            "best_top1": self.best_top1,
            "best_split": self.selection_split,
            "macro_f1": test.macro_f1,
            "worst_class": test.worst_class,
            # Not a number where a confidence is none, and JSON knows no NaN.
            "calibration_error": error if math.isfinite(error) else None,
            "train_images": int(counts.sum()),
            "parameters": sum(p.numel() for p in self.method.model.parameters()),
            "seconds": self.run_seconds,
            "images_per_second": self.images_trained / max(self.train_seconds, 1e-9),
            "device": device_name(self.device),
            "precision": self.precision,
            "threads": torch.get_num_threads(),
            "versions": {
                "s3h_ext": __version__,
                "torch": torch.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
                "cuda": torch.version.cuda if self.device.type == "cuda" else None,
            },
        }
        if self.feed.met.found:
            summary["unreadable_images"] = len(self.feed.met.found)
        if dataset.val is not None:
            last = self.history[-1]
            summary.update(
                {
                    name: last[name]
                    for name in ("val_top1", "val_many", "val_medium", "val_few")
                }
            )
        return summary

    def _save(self, meter: EpochMeter | None = None) -> None:
        """Write a checkpoint; inside an epoch ``meter`` says how far that has come."""
        self.run_seconds = time.perf_counter() - self._clock
        save_checkpoint(
            self.checkpoints,
            self.epochs_done,
            {
                "unfinished_epoch": None if meter is None else meter.state(),
                "config": self.record,
                "method": self.method.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "rng": _rng_state(self.device),
                "history": self.history,
                "best_top1": self.best_top1,
                "train_seconds": self.train_seconds,
                "run_seconds": self.run_seconds,
                "images_trained": self.images_trained,
            },
        )

    def _resume(self) -> None:
        found = latest_checkpoint(self.checkpoints, self.record)
        if found is None:
            return
        path, state = found
        try:
            self.method.load_state_dict(state["method"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(f"{path}: does not fit this run: {error}") from error
        _set_rng_state(state["rng"], self.device)
        self.epochs_done = state["epochs_done"]
        self.unfinished_epoch = state["unfinished_epoch"]
        self.history = state["history"]
        self.best_top1 = state["best_top1"]
        self.train_seconds = state["train_seconds"]
        self.run_seconds = state["run_seconds"]
        self.images_trained = state["images_trained"]


def _rng_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _set_rng_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
