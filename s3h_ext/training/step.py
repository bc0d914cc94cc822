"""A training step, run directly or replayed from a recording."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from s3h_ext.data import Batch
from s3h_ext.methods import Method
from s3h_ext.models.average import WeightAverage
from s3h_ext.runs.precision import autocast
from s3h_ext.training.recording import Replayer

__all__ = ["Loss", "TrainingStep"]

#: Computes the named loss terms of a batch.
Loss = Callable[[Mapping[str, Batch]], dict[str, Tensor]]


class TrainingStep:
    """Loss, backward, optimiser, and the method's own updates.

    It also updates the ``average`` of the weights. A ``replayer`` records the step once
    for each batch size and replays it.
    """

    def __init__(
        self,
        loss: Loss,
        method: Method,
        optimizer: torch.optim.Optimizer,
        precision: str,
        device: torch.device,
        average: WeightAverage | None = None,
        replayer: Replayer | None = None,
    ) -> None:
        self._loss, self._method, self._optimizer = loss, method, optimizer
        self._precision, self._device = precision, device
        self._average, self._replayer = average, replayer
        # A recorded step reads the learning rate from the device.
        self._rate = None if replayer is None else torch.zeros((), device=device)

    def __call__(self, batch: Mapping[str, Batch], rate: float) -> dict[str, Tensor]:
        """Do a step at a learning rate; return the terms of the loss, detached.

        The terms of a recorded step are overwritten by the next one.
        """
        if self._rate is not None:
            self._rate.fill_(rate)
        for group in self._optimizer.param_groups:
            group["lr"] = rate if self._rate is None else self._rate
        if self._replayer is None:
            return self._run(batch)
        return self._replayer(
            "step",
            _tensors(batch),
            lambda tensors: self._run(_with_tensors(batch, tensors)),
        )

    def _run(self, batch: Mapping[str, Batch]) -> dict[str, Tensor]:
        with autocast(self._precision, self._device):
            terms = self._loss(batch)
        self._optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        self._optimizer.step()
        self._method.after_step()
        if self._average is not None:
            self._average.update()
        # A term that is not detached would keep its autograd graph until the next step.
        return {name: term.detach() for name, term in terms.items()}


def _tensors(batch: Mapping[str, Batch]) -> list[Tensor]:
    return [tensor for part in batch.values() for tensor in part.tensors()]


def _with_tensors(
    batch: Mapping[str, Batch], tensors: Sequence[Tensor]
) -> dict[str, Batch]:
    """Return a copy of ``batch`` with other tensors, in the order of ``_tensors``."""
    rest = iter(tensors)
    return {name: part.each(lambda _: next(rest)) for name, part in batch.items()}
