"""Steps that are recorded once and replayed: CUDA graphs.

A ResNet-32 step is some thousand small kernels. Launched one by one they keep the host
busy longer than the GPU; recorded as a CUDA graph they are one launch. A replay runs
the same kernels on the same memory and no Python, so whatever differs from step to step
has to be in that memory: the batch, the learning rate, and what a method writes in
:meth:`s3h_ext.methods.Method.begin_epoch`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from s3h_ext.runs.config import GraphsName

__all__ = ["CudaGraphs", "Replayer", "choose_recorder"]

T = TypeVar("T")


class CudaGraphs:
    """Records CUDA graphs that share their memory, and so replay one at a time."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self.forget()

    def forget(self) -> None:
        """Give later recordings memory of their own.

        A pool without graphs is not taken again while a tensor in it lives.
        """
        self._pool = torch.cuda.graph_pool_handle()

    def run(self, function: Callable[[], T]) -> T:
        """Return ``function()``, run on the stream of the recordings."""
        # Autograd remembers on which stream a weight was first used.
        outside = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(outside)
        with torch.cuda.stream(self._stream):
            result = function()
        outside.wait_stream(self._stream)
        return result

    def record(self, function: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """Return the function's results, and what does its work again.

        Recording does not do the work: the results are those of the last replay.
        """
        graph = torch.cuda.CUDAGraph()
        outside = torch.cuda.current_stream(self._stream.device)
        try:
            # Other threads (pinned memory, decoders) may call CUDA meanwhile.
            with torch.cuda.graph(
                graph,
                pool=self._pool,
                stream=self._stream,
                capture_error_mode="thread_local",
            ):
                result = function()
        except RuntimeError:
            torch.cuda.set_stream(outside)  # torch leaves its own
            raise
        return result, graph.replay


class Replayer:
    """Runs functions of tensors, the first time as they are and then from recordings.

    Where a function cannot be recorded it raises if it is to ``insist``; if not,
    it warns and runs everything as it is from then on.
    """

    def __init__(self, recorder: CudaGraphs, insist: bool = True) -> None:
        self._recorder, self._insist = recorder, insist
        self._given_up = False
        self._met: set[Hashable] = set()
        self._made: dict[Hashable, tuple[list[Tensor], Any, Callable[[], None]]] = {}

    def __call__(
        self,
        name: str,
        inputs: Sequence[Tensor],
        function: Callable[[list[Tensor]], T],
    ) -> T:
        """Return ``function(inputs)``; a recording's results last to the next call.

        Args:
            name: of the function; a replay stands for any other call of this name with
                inputs of the same shapes and strides.
            inputs: what the function may read that is not at the same place next time.
            function: its work is done by operations on the device alone.

        Raises:
            RuntimeError: it is not, and ``insist``.
        """
        if self._given_up:
            return function(list(inputs))
        key = (name, *((t.shape, t.stride(), t.dtype) for t in inputs))
        if key not in self._met:
            # The first run makes what stays: momenta, workspaces, plans.
            self._met.add(key)
            return self._recorder.run(lambda: function(list(inputs)))
        if key not in self._made:
            places = [tensor.clone() for tensor in inputs]
            try:
                result, replay = self._recorder.record(lambda: function(places))
            except RuntimeError as error:
                if self._insist:
                    raise
                self._give_up(name, error)
                return function(list(inputs))
            self._made[key] = places, result, replay
        places, result, replay = self._made[key]
        for tensor, place in zip(inputs, places, strict=True):
            place.copy_(tensor)
        replay()
        made: T = result
        return made

    def drop(self) -> None:
        """Drop all recordings: functions do other work from now on."""
        self._met.clear()
        self._made.clear()
        self._recorder.forget()

    def _give_up(self, name: str, error: RuntimeError) -> None:
        self._given_up = True
        self._made.clear()
        # The end of a capture that went wrong says no more than that.
        cause = error.__context__ or error
        reason = str(cause).strip().partition("\n")[0]
        warnings.warn(
            f"{name} cannot be recorded as a CUDA graph and runs without one "
            f"({reason}); --graphs off skips the attempt",
            stacklevel=3,
        )


def choose_recorder(
    name: GraphsName, device: torch.device, processes: int, resident: bool
) -> CudaGraphs | None:
    """Return what records the steps of a run, or None if they run as they are.

    Args:
        name: the option; ``"auto"`` is for images that are resident on one GPU.
        device: of the run.
        processes: of the run.
        resident: whether the training images are kept on the device.

    Raises:
        ValueError: ``"on"`` where there is no GPU or there are several processes.
    """
    if name == "on" and (device.type != "cuda" or processes > 1):
        raise ValueError(
            f"graphs: 'on' needs one process on a CUDA device, got {processes} on "
            f"{device}"
        )
    if name == "off" or device.type != "cuda" or processes > 1:
        return None
    return CudaGraphs(device) if name == "on" or resident else None
