"""A training step, run as it is or from a recording."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from s3h_ext.data import Batch
from s3h_ext.methods import Method
from s3h_ext.models.average import WeightAverage
from s3h_ext.runs.precision import autocast
from s3h_ext.training.distributed import Step
from s3h_ext.training.recording import Replayer

__all__ = ["RecordedStep", "TrainingStep"]


class TrainingStep:
    """Loss, backward, optimiser, and what the method tracks.

    Args:
        loss: the terms of a batch at a progress of the training.
        method: whose they are.
        optimizer: of the method's parameters.
        precision: ``"fp32"`` or ``"bf16"``.
        device: where the batches are.
        average: of the weights, to be kept up to date.
    """

    def __init__(
        self,
        loss: Step,
        method: Method,
        optimizer: torch.optim.Optimizer,
        precision: str,
        device: torch.device,
        average: WeightAverage | None = None,
    ) -> None:
        self._average = average
        self._loss, self.method, self.optimizer = loss, method, optimizer
        self._precision, self.device = precision, device

    def __call__(
        self, batch: Mapping[str, Batch], progress: float, rate: float
    ) -> dict[str, Tensor]:
        """Do a step at a learning rate; return the terms of the loss, detached."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return self.run(batch, progress)

    def run(self, batch: Mapping[str, Batch], progress: float) -> dict[str, Tensor]:
        """Do a step at the learning rate that is set."""
        with autocast(self._precision, self.device):
            terms = self._loss(batch, progress)
        self.optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        self.optimizer.step()
        self.method.after_step()
        if self._average is not None:
            self._average.update()
        # A term with its history would keep autograd's nodes into the next step.
        return {name: term.detach() for name, term in terms.items()}


class RecordedStep:
    """A step that is recorded once for each size of batch and phase of the method.

    The learning rate is a number on the device, in the optimiser's groups too.

    Args:
        replayer: makes and keeps the recordings.
        step: what is recorded; its optimiser takes the rate as a tensor.
    """

    def __init__(self, replayer: Replayer, step: TrainingStep) -> None:
        self._replayer, self._recorded = replayer, step
        self._rate = torch.zeros((), device=step.device)
        for group in step.optimizer.param_groups:
            group["lr"] = self._rate

    def __call__(
        self, batch: Mapping[str, Batch], progress: float, rate: float
    ) -> dict[str, Tensor]:
        """Do a step; the terms returned are overwritten by the next one."""
        step = self._recorded
        step.method.prepare(progress)
        self._rate.fill_(rate)
        return self._replayer(
            "step",
            step.method.phase(progress),
            _tensors(batch),
            lambda tensors: step.run(_with_tensors(batch, tensors), progress),
        )


def _tensors(batch: Mapping[str, Batch]) -> list[Tensor]:
    tensors: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        return tensor

    for part in batch.values():
        part.each(keep)
    return tensors


def _with_tensors(
    batch: Mapping[str, Batch], tensors: Sequence[Tensor]
) -> dict[str, Batch]:
    """Return a batch like ``batch`` of other tensors, in the order of ``_tensors``."""
    rest = iter(tensors)
    return {name: part.each(lambda _: next(rest)) for name, part in batch.items()}
