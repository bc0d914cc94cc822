"""A run in several processes, one for each GPU, started by ``torchrun``."""

from __future__ import annotations

import inspect
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from s3h_ext.command_line import CommandError
from s3h_ext.data import Batch, ImageFiles, ImageSet
from s3h_ext.losses._common import ContrastiveModule
from s3h_ext.methods import Method
from s3h_ext.models.average import WeightAverage
from s3h_ext.runs.config import DistributedConfig
from s3h_ext.runs.precision import resolve_device
from s3h_ext.training.batch_norm import synchronise_batch_norm
from s3h_ext.training.step import Loss

__all__ = ["LostProcessError", "World", "exit_process", "join_world"]

# PyTorch 2.13 renamed the option and warns about the old name.
_DDP_OPTIONS = inspect.signature(DistributedDataParallel).parameters
_LOCAL_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers"
    if "forward_sync_buffers" in _DDP_OPTIONS
    else "broadcast_buffers": False
}

T = TypeVar("T")


class LostProcessError(CommandError):
    """Another process of the run has ended or does not answer."""


@dataclass(frozen=True)
class World:
    """The processes of a run; by default a single one.

    Attributes:
        rank: number of this process; process 0 writes all files.
        size: number of processes.
        local_rank: number of this process on its machine, which selects its GPU.
        control: process group for communication on the host.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    control: dist.ProcessGroup | None = None

    def device(self, name: str) -> torch.device:
        """Return this process's device; each of several CUDA processes has its own GPU.

        Raises:
            ValueError: no device has that name, or it is not on this machine.
        """
        cuda = name == "cuda" or (name == "auto" and torch.cuda.is_available())
        if self.size > 1 and cuda:
            name = f"cuda:{self.local_rank}"
        return resolve_device(name)

    @property
    def first(self) -> bool:
        """True in the process that writes files."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """Return the slice of ``count`` consecutive items for this process."""
        return slice(
            count * self.rank // self.size, count * (self.rank + 1) // self.size
        )

    def part(self, images: ImageSet | ImageFiles) -> ImageSet | ImageFiles:
        """Return this process's part of a split."""
        if self.size == 1:
            return images
        own = self.share(len(images))
        return images.subset(np.arange(own.start, own.stop))

    def barrier(self) -> None:
        """Wait for all processes."""
        self.sum(0)

    def any(self, flag: bool) -> bool:
        """Return whether ``flag`` is true in any process."""
        return bool(self.sum(int(flag)))

    def sum(self, number: int) -> int:
        """Return the sum of an integer over the processes."""
        if self.size == 1:
            return number
        total = torch.tensor(number)
        dist.all_reduce(total, group=self.control)
        return int(total)

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of a tensor over the processes."""
        if self.size == 1:
            return values
        total = values.detach().to("cpu", copy=True)  # all_reduce works in place
        dist.all_reduce(total, group=self.control)
        return (total / self.size).to(values.device)

    def gather(self, thing: T) -> list[T]:
        """Return the objects of all processes, in the order of their ranks."""
        things: list[Any] = [thing]
        if self.size > 1:
            things = [None] * self.size
            dist.all_gather_object(things, thing, group=self.control)
        return things

    def broadcast(self, thing: T) -> T:
        """Return the first process's object."""
        things = [thing]
        if self.size > 1:
            dist.broadcast_object_list(things, src=0, group=self.control)
        return things[0]

    def connect(
        self, method: Method, config: DistributedConfig, device: torch.device
    ) -> None:
        """Prepare a method, built and on its device, for several processes."""
        if self.size == 1:
            return
        for module in method.modules():
            if isinstance(module, (Method, ContrastiveModule)):
                module.gather = config.gather
        if config.sync_batch_norm:
            synchronise_batch_norm(method, device)

    def loss(self, method: Method) -> Loss:
        """Return the method's loss; its backward averages over the processes."""
        trained = any(p.requires_grad for p in method.parameters())
        if self.size == 1 or not trained:
            return lambda batch: method.loss(batch)
        # Statistics are local or already equal; prototypes and copies are equal.
        loss: Loss = DistributedDataParallel(_Loss(method), **_LOCAL_BUFFERS)
        return loss

    def average_batch_norm_statistics(
        self, method: Method, average: WeightAverage | None = None
    ) -> None:
        """Average the running statistics of batch norms over the processes.

        Each process tracks those of its own parts of the batches; evaluation and
        checkpoints use the averages. If they are equal, nothing changes. The statistics
        in the ``average`` of the weights are averaged too.
        """
        tracked = [
            statistic
            for norm in method.modules()
            if isinstance(norm, _BatchNorm)
            for statistic in (norm.running_mean, norm.running_var)
            if statistic is not None
        ]
        if average is not None:
            tracked += average.statistics
        if self.size > 1 and tracked:
            joined = self.mean(torch.cat([each.flatten() for each in tracked]))
            parts = joined.split([each.numel() for each in tracked])
            for each, part in zip(tracked, parts, strict=True):
                each.copy_(part.view_as(each))

    @contextmanager
    def report_lost_peers(self) -> Iterator[None]:
        """Turn errors of a broken connection into a clear message.

        Raises:
            LostProcessError: another process has ended or did not answer in time.
        """
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not _is_lost(error):
                raise
            raise LostProcessError(
                f"process {self.rank} of {self.size} on {socket.gethostname()} lost "
                "the others: one of them ended (see its own message) or did not answer "
                f"in time ({str(error).splitlines()[0][:200]})"
            ) from error

    def close(self) -> None:
        """Leave the process group."""
        if self.size > 1:
            dist.destroy_process_group()


class _Loss(nn.Module):
    """A method's loss as the forward of a module."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: Mapping[str, Batch]) -> dict[str, Tensor]:
        return self.method.loss(batch)


def _is_lost(error: RuntimeError) -> bool:
    if isinstance(error, dist.DistError):
        return True
    text = str(error).lower()
    return "gloo" in text or "connection" in text or "nccl" in text


def exit_process(status: int) -> NoReturn:
    """End the process; after an error, without leaving the process group.

    A live process group keeps threads that abort the interpreter at exit and mask its
    status; destroying the group could block on peers that have already died.
    """
    if status and dist.is_available() and dist.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    raise SystemExit(status)


def join_world(device: str, config: DistributedConfig) -> World:
    """Join the processes that ``torchrun`` started, if it did.

    Raises:
        ValueError: several processes are to use a single GPU.
        LostProcessError: the other processes did not join in time.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World()
    if "RANK" not in os.environ:
        raise ValueError(
            f"WORLD_SIZE is {size} and RANK is not set; start several processes with "
            "torchrun, or unset WORLD_SIZE to start one"
        )
    rank = int(os.environ["RANK"])
    local_rank = int(os.environ.get("LOCAL_RANK", rank))
    if device.startswith("cuda:"):
        raise ValueError(
            f"device: several processes take one GPU each; expected cuda, got {device}"
        )
    timeout = timedelta(seconds=config.timeout)
    world = World(rank, size, local_rank)
    place = world.device(device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    with world.report_lost_peers():
        if not dist.is_initialized():
            dist.init_process_group(
                "nccl" if place.type == "cuda" else "gloo", timeout=timeout
            )
        control = dist.new_group(backend="gloo", timeout=timeout)
    return World(rank, size, local_rank, control)
