"""The devices that a test runs on, and settings of PyTorch for a part of it."""

import contextlib

import pytest
import torch

from s3h_ext.ops._library import CUDA

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

on_devices = pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
)
every_type = pytest.mark.parametrize("dtype", DTYPES, ids=str)
needs_kernels = pytest.mark.skipif(CUDA is None, reason="CUDA kernels are not built")


@contextlib.contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def deterministic(wanted=True):
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(wanted)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def assert_same_bits(function, counts=(1, 2, 3, 5)):
    """Every number of threads gives the same tensors; returns them."""
    results = []
    for count in counts:
        with threads(count):
            results.append(list(function()))
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))
    return results[0]


@contextlib.contextmanager
def no_waiting():
    """What waits for the GPU is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def on_a_second_stream(late, values, function):
    """Calls ``function`` on another stream, where ``late`` has ``values`` only then.

    What runs on another stream than that one reads what ``late`` holds before.
    """
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(50_000_000)
        late.copy_(values)
        found = function()
    torch.cuda.synchronize()
    return found


def record(function):
    """Calls ``function``, then records it as a CUDA graph: (graph, results)."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = function()
    return graph, found
