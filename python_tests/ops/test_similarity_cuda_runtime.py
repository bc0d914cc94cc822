"""The CUDA kernels as citizens of the CUDA runtime: streams, graphs, devices, memory.

What makes sense on the CPU runs there too, so that the test code is seen to work.
"""

import pytest
import torch

from python_tests.ops.test_similarity import matrices, options, run
from python_tests.ops.test_similarity_cuda import both_shapes, to
from python_tests.settings import (
    assert_same_bits,
    deterministic,
    every_type,
    needs_kernels,
    no_waiting,
    on_a_second_stream,
    on_devices,
    record,
)
from s3h_ext.ops import class_sum_dots, similarity_logsumexp
from s3h_ext.ops._library import CUDA

TWO_DEVICES = torch.cuda.is_available() and torch.cuda.device_count() > 1


def step(q, keys, **kwargs):
    """Forward and backward; returns everything that comes out."""
    rows = q.shape[0]
    upstream = torch.linspace(-1, 1, rows, device=q.device)
    lse, grads = run(similarity_logsumexp, q, keys, upstream, **kwargs)
    return [lse, *grads]


def inputs(device, n, m, depth, dtype=torch.float32, symmetric=False, name="plain"):
    q, k = (t.to(device) for t in matrices(n, m, depth, dtype))
    found = to(device, options(name, n, n if symmetric else m, symmetric))
    return q, None if symmetric else k, found | {"temperature": 0.1}


@pytest.mark.cuda
@needs_kernels
def test_the_kernels_are_there():
    assert CUDA.loaded, CUDA.error


@on_devices
@every_type
@both_shapes
@pytest.mark.parametrize("wanted", [True, False])
def test_same_bits_every_time(device, dtype, symmetric, wanted):
    rows = 2000 if device == "cuda" else 300
    q, keys, found = inputs(device, rows, 170, 48, dtype, symmetric, "bias-label")
    with deterministic(wanted):
        assert_same_bits(lambda: step(q, keys, **found), [torch.get_num_threads()] * 5)


@pytest.mark.cuda
@both_shapes
def test_second_stream(symmetric):
    q, keys, found = inputs("cuda", 500, 300, 64, symmetric=symmetric)
    right, late = step(q, keys, **found), torch.zeros_like(q)
    ours = on_a_second_stream(late, q, lambda: step(late, keys, **found))
    torch.testing.assert_close(ours, right, rtol=0, atol=0)


@pytest.mark.cuda
@every_type
@both_shapes
def test_graph_capture_and_replay(dtype, symmetric):
    q, keys, found = inputs("cuda", 300, 200, 64, dtype, symmetric, "bias-label-self")
    graph, captured = record(lambda: step(q, keys, **found))
    for seed in (1, 2):
        other, other_keys = matrices(300, 200, 64, dtype, seed=seed)
        q.copy_(other)
        if keys is not None:
            keys.copy_(other_keys)
        graph.replay()
        replayed = [t.clone() for t in captured]
        torch.testing.assert_close(replayed, step(q, keys, **found), rtol=0, atol=0)


@pytest.mark.cuda
@pytest.mark.skipif(not TWO_DEVICES, reason="one GPU only")
@both_shapes
def test_second_device(symmetric):
    q, keys, found = inputs("cuda:0", 300, 200, 64, symmetric=symmetric)
    right = step(q, keys, **found)
    other = step(q.to("cuda:1"), None if symmetric else keys.to("cuda:1"), **found)
    assert torch.cuda.current_device() == 0
    for ours, first in zip(other, right, strict=True):
        assert ours.device == torch.device("cuda:1")
        torch.testing.assert_close(ours.to("cuda:0"), first)


@pytest.mark.cuda
def test_tensors_of_another_device_are_refused_by_the_op():
    q, k = matrices(6, 5, 4)
    with pytest.raises(RuntimeError, match="device"):
        torch.ops.s3h.similarity_logsumexp(
            q.cuda(), k, 0.1, *(None,) * 4, 0.0, None, *(False,) * 4
        )


@on_devices
@both_shapes
def test_compile_full_graph(device, symmetric):
    backend = "inductor" if device == "cuda" else "aot_eager"

    @torch.compile(fullgraph=True, backend=backend)
    def loss(q, keys):
        return similarity_logsumexp(q, keys, temperature=0.1).mean()

    q, keys, found = inputs(device, 90, 70, 16, symmetric=symmetric)
    q.requires_grad_()
    loss(q, keys).backward()
    right = torch.autograd.grad(similarity_logsumexp(q, keys, **found).mean(), q)[0]
    torch.testing.assert_close(q.grad, right)


@on_devices
def test_compiled_code_follows_the_tf32_setting(device):
    setting = torch.backends.cuda.matmul
    before = setting.fp32_precision
    seen = []

    def backend(graph, example_inputs):
        nodes = [n for n in graph.graph.nodes if "similarity" in str(n.target)]
        *_, allow_tf32, _ = nodes[0].args
        seen.append(allow_tf32)
        return graph.forward

    compiled = torch.compile(
        lambda q: similarity_logsumexp(q, temperature=0.1),
        fullgraph=True,
        backend=backend,
    )
    q, _, _ = inputs(device, 20, 1, 8)
    try:
        for precision in ("ieee", "tf32"):
            setting.fp32_precision = precision
            compiled(q)
    finally:
        setting.fp32_precision = before
    assert seen == [False, True]


@on_devices
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_autocast_meets_in_the_wider_type(device, half):
    q, k, _ = inputs(device, 90, 70, 16)
    with torch.autocast(device, half):
        mixed = similarity_logsumexp(q.to(half), k, temperature=0.1)
        wide = similarity_logsumexp(q, k, temperature=0.1)
    assert mixed.dtype == wide.dtype == torch.float32
    narrowed = q.to(half).float()
    torch.testing.assert_close(
        mixed, similarity_logsumexp(narrowed, k, temperature=0.1)
    )
    torch.testing.assert_close(wide, similarity_logsumexp(q, k, temperature=0.1))


@pytest.mark.cuda
@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@both_shapes
@pytest.mark.parametrize("wanted", [True, False])
def test_memory_grows_with_rows_only(dtype, symmetric, wanted):
    rows, depth = 32_768, 64
    z = torch.randn(rows, depth, device="cuda", dtype=dtype, requires_grad=True)
    keys = None if symmetric else z
    with deterministic(wanted):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        similarity_logsumexp(z, keys, temperature=0.1).sum().backward()
        extra = torch.cuda.max_memory_allocated() - before
    # 40 times the inputs; half the matrix would be 256 times, in their own type.
    assert extra <= 40 * z.nbytes, f"{extra / 2**20:.0f} MiB beside {rows} rows"


@pytest.mark.cuda
@needs_kernels
@every_type
@both_shapes
def test_nothing_waits_for_the_device(dtype, symmetric):
    q, keys, found = inputs("cuda", 300, 200, 64, dtype, symmetric, "bias-label-self")
    q.requires_grad_()
    classes = torch.arange(300, device="cuda") % 10
    step(q, keys, **found)
    with no_waiting():
        lse = similarity_logsumexp(q, keys, **found)
        dots = class_sum_dots(q, query_classes=classes, num_classes=10)
        (lse + dots).sum().backward()
