"""Sums an epoch's loss terms without synchronising with the device."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from s3h_ext.training.distributed import World
from s3h_ext.training.finite import DivergedError


class EpochMeter:
    """Loss terms, images and seconds of one epoch.

    Terms are summed on the device. On a GPU, the values of a step are copied
    asynchronously to pinned memory and read when the copy is done, one or more steps
    late. On a CPU they are available at once. ``state`` continues an interrupted epoch,
    from :meth:`state`.

    Attributes:
        steps: steps done.
        images: views that went through this process's network; after an interruption,
            the first process counts those of all.
        last_loss: the latest loss available on the host.
    """

    def __init__(
        self,
        device: torch.device,
        epoch: int,
        state: Mapping[str, Any] | None = None,
        world: World | None = None,
    ) -> None:
        state = state or {}
        self._world = world or World()
        self._device = device
        self._epoch = epoch
        self._names: list[str] = list(state.get("names", ()))
        sums = state.get("sums")
        self._sums: Tensor | None = None if sums is None else sums.to(device)
        self._arriving: tuple[int, Tensor, torch.cuda.Event] | None = None
        self._earlier_seconds: float = state.get("seconds", 0.0)
        self._started = time.perf_counter()
        self.steps: int = state.get("steps", 0)
        self.images: int = state.get("images", 0) if self._world.first else 0
        self.last_loss: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds of the epoch so far, including those before an interruption."""
        return self._earlier_seconds + time.perf_counter() - self._started

    def state(self, of: int) -> dict[str, Any]:
        """Return the state of the epoch for a checkpoint, summed over all processes."""
        sums = self._sums
        return {
            "names": self._names,
            "sums": None if sums is None else self._world.mean(sums).cpu(),
            "steps": self.steps,
            "of": of,
            "images": self._world.sum(self.images),
            "seconds": self.seconds,
        }

    def update(self, terms: Mapping[str, Tensor], images: int) -> None:
        """Add the terms of one step and the number of its views.

        Raises:
            DivergedError: a term of this step, or of the last one read, is not finite.
        """
        self._names = list(terms)
        values = torch.stack([t.detach().float() for t in terms.values()])  # [terms]
        self._sums = values if self._sums is None else self._sums + values
        self.steps += 1
        self.images += images
        if self._device.type == "cpu":
            self._read(self.steps, values)
        elif self._arriving is None:
            host = torch.empty(values.shape, pin_memory=True)
            host.copy_(values, non_blocking=True)
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(self._device))
            self._arriving = (self.steps, host, event)
        elif self._arriving[2].query():
            step, host, _ = self._arriving
            self._arriving = None
            self._read(step, host)

    def _read(self, step: int, values: Tensor) -> None:
        numbers = values.tolist()
        spoiled = {
            name: number
            for name, number in zip(self._names, numbers, strict=True)
            if not math.isfinite(number)
        }
        if spoiled:
            # The loss is not finite because one of its terms is not: name that term.
            name = next((name for name in spoiled if name != "loss"), "loss")
            raise DivergedError(
                f"{name} is {spoiled[name]} at step {step} of epoch {self._epoch + 1}"
            )
        self.last_loss = numbers[self._names.index("loss")]

    def means(self) -> dict[str, float]:
        """Return the mean of each term over the epoch; synchronises with the device.

        Raises:
            DivergedError: a term was not finite in some step of the epoch.
        """
        assert self._sums is not None
        means = (self._world.mean(self._sums) / self.steps).tolist()
        for name, mean in zip(self._names, means, strict=True):
            if not math.isfinite(mean):
                raise DivergedError(f"{name} was not finite in epoch {self._epoch + 1}")
        return dict(zip(self._names, means, strict=True))
