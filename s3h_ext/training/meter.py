"""Loss terms of a step, read without making the device wait."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


class DivergedError(RuntimeError):
    """A loss term is no longer a finite number; the message names it and the step."""


class LossMeter:
    """Sums the terms of an epoch on the device and hands out values when they arrive.

    On a GPU a value is copied to pinned memory behind the step's own work and read once
    the copy is over, a step or more late; nothing waits for it. On a CPU it is there.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sums: Tensor | None = None
        self._names: list[str] = []
        self._steps = 0
        self._pending: tuple[int, int, Tensor, torch.cuda.Event | None] | None = None
        self._last: float | None = None

    def start_epoch(self) -> None:
        """Forget the sums of the last epoch."""
        self._sums, self._steps = None, 0

    def update(self, epoch: int, step: int, terms: Mapping[str, Tensor]) -> None:
        """Take the terms of one step.

        Raises:
            DivergedError: a term of this step, or of the last one read, is not finite.
        """
        self._names = list(terms)
        values = torch.stack([t.detach().float() for t in terms.values()])  # [terms]
        self._sums = values if self._sums is None else self._sums + values
        self._steps += 1
        if self._device.type == "cpu":
            self._read(epoch, step, values)
        elif self._pending is None:
            host = torch.empty(values.shape, pin_memory=True)
            host.copy_(values, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._pending = (epoch, step, host, event)
        elif self._pending[3] is not None and self._pending[3].query():
            arrived_epoch, arrived_step, host, _ = self._pending
            self._pending = None
            self._read(arrived_epoch, arrived_step, host)

    def _read(self, epoch: int, step: int, values: Tensor) -> None:
        numbers = values.tolist()
        for name, number in zip(self._names, numbers, strict=True):
            if not math.isfinite(number):
                raise DivergedError(
                    f"{name} is {number} at step {step + 1} of epoch {epoch + 1}"
                )
        self._last = numbers[self._names.index("loss")]

    @property
    def last_loss(self) -> float | None:
        """The newest loss that has arrived."""
        return self._last

    def means(self, epoch: int) -> dict[str, float]:
        """Return the mean of each term over the epoch; this waits for the device.

        Raises:
            DivergedError: a term was not finite in some step of the epoch.
        """
        assert self._sums is not None
        means = (self._sums / self._steps).tolist()
        for name, mean in zip(self._names, means, strict=True):
            if not math.isfinite(mean):
                raise DivergedError(f"{name} was not finite in epoch {epoch + 1}")
        return dict(zip(self._names, means, strict=True))
