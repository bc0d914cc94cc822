"""Steps that are recorded once and replayed: CUDA graphs.

A ResNet-32 step consists of about a thousand small kernels. Launching them one by one
takes the host longer than the GPU needs to run them; a recorded CUDA graph is a single
launch. A replay runs the same kernels on the same memory and no Python, so everything
that changes from step to step must be in that memory: the batch, the learning rate, and
what a method writes in :meth:`s3h_ext.methods.Method.begin_epoch`.
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
    """Recorder of CUDA graphs that share a memory pool; only one replays at a time."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self.forget()

    def forget(self) -> None:
        """Give later recordings a new memory pool.

        A pool without graphs cannot be reused while one of its tensors is alive.
        """
        self._pool = torch.cuda.graph_pool_handle()

    def run(self, function: Callable[[], T]) -> T:
        """Return ``function()``, run on the stream used for recording."""
        # Autograd remembers the stream on which a weight was first used.
        outside = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(outside)
        with torch.cuda.stream(self._stream):
            result = function()
        outside.wait_stream(self._stream)
        return result

    def record(self, function: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """Return the function's results and a function that replays it.

        Recording does not execute the work: the results are those of the latest replay.
        """
        graph = torch.cuda.CUDAGraph()
        outside = torch.cuda.current_stream(self._stream.device)
        try:
            # Other threads (pinned memory, decoders) may call CUDA at the same time.
            with torch.cuda.graph(
                graph,
                pool=self._pool,
                stream=self._stream,
                capture_error_mode="thread_local",
            ):
                result = function()
        except RuntimeError:
            torch.cuda.set_stream(outside)  # torch does not restore it
            raise
        return result, graph.replay


class Replayer:
    """Runs functions of tensors, first directly and then from recordings.

    If a function cannot be recorded, it raises if ``insist``; otherwise it warns and
    runs everything directly from then on.
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
        """Return ``function(inputs)``; results of a recording last until the next call.

        Args:
            name: name of the function; a replay replaces other calls of this name with
                inputs of the same shapes and strides.
            inputs: tensors that the function reads from changing memory.
            function: must work by operations on the device alone.

        Raises:
            RuntimeError: the function cannot be recorded, and ``insist`` is set.
        """
        if self._given_up:
            return function(list(inputs))
        key = (name, *((t.shape, t.stride(), t.dtype) for t in inputs))
        if key not in self._met:
            # The first run allocates what persists: momenta, workspaces, plans.
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
        """Drop all recordings, because functions now do different work."""
        self._met.clear()
        self._made.clear()
        self._recorder.forget()

    def _give_up(self, name: str, error: RuntimeError) -> None:
        self._given_up = True
        self._made.clear()
        # The error at the end of a failed capture does not contain the cause.
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
    """Return the recorder of a run's steps, or None to run them directly.

    Args:
        name: the option; ``"auto"`` records if images are resident on a single GPU.
        device: device of the run.
        processes: number of processes of the run.
        resident: whether the training images are kept on the device.

    Raises:
        ValueError: ``"on"`` without a GPU or with several processes.
    """
    if name == "on" and (device.type != "cuda" or processes > 1):
        raise ValueError(
            f"graphs: 'on' needs one process on a CUDA device, got {processes} on "
            f"{device}"
        )
    if name == "off" or device.type != "cuda" or processes > 1:
        return None
    return CudaGraphs(device) if name == "on" or resident else None
