"""The CUDA class-sum kernels, executed on the host, against the float64 oracle."""

import pytest
import torch

from python_tests.cuda_host import kernels
from python_tests.settings import every_type
from s3h_ext.ops.plain.class_sums import class_sum_dots, class_sum_dots_backward

execute = kernels.class_sums
both_shapes = pytest.mark.parametrize("symmetric", [True, False])


def draw(n, m, depth, classes, dtype, symmetric):
    generator = torch.Generator().manual_seed(n + depth)
    q, k = (torch.randn(c, depth, generator=generator).to(dtype) for c in (n, m))
    a, b = (torch.randint(-1, classes + 1, (c,), generator=generator) for c in (n, m))
    grad = torch.randn(n, generator=generator)
    return (q, None, a, None, grad) if symmetric else (q, k, a, b, grad)


def check(n, m, depth, classes, dtype, symmetric, **execution):
    """Errors are at most those of the plain form in the same precision, and a bit."""
    q, k, a, b, grad = draw(n, m, depth, classes, dtype, symmetric)
    ours = execute(q, k, a, b, classes, grad, **execution)

    def plain(q, k, grad):
        dots = class_sum_dots(q, k, a, b, classes)
        grads = class_sum_dots_backward(grad, True, not symmetric, q, k, a, b, classes)
        return [dots, *grads]

    wide = None if symmetric else k.double()
    exact = plain(q.double(), wide, grad.double())
    theirs = plain(q, k, grad.to(torch.float64 if dtype == torch.float64 else None))
    for mine, other, right in zip(ours, theirs, exact, strict=False):
        if right.numel() == 0:
            continue
        scale = float(right.abs().max())
        floor = 16 * torch.finfo(mine.dtype).eps * max(1.0, scale)
        error = (mine.double() - right).abs().max()
        assert error <= 2 * (other.double() - right).abs().max() + floor


@every_type
@both_shapes
@pytest.mark.parametrize(
    "size",
    [(30, 20, 9, 5), (64, 80, 72, 3), (1, 1, 1, 1), (0, 4, 3, 5), (4, 0, 3, 5)],
    ids=str,
)
def test_law(dtype, symmetric, size):
    check(*size, dtype, symmetric)


@every_type
@pytest.mark.parametrize("depth", [300, 520])
def test_depth_in_chunks(dtype, depth):
    check(40, 30, depth, 4, dtype, False)


@both_shapes
def test_many_classes_share_a_block(symmetric):
    check(300, 200, 8, 100, torch.bfloat16, symmetric, multiprocessors=1)
    check(300, 200, 7, 1500, torch.float32, symmetric, multiprocessors=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_in_parts(dtype):
    check(9000, 5000, 8, 2, dtype, False)


def test_addresses_that_suit_no_vector():
    check(30, 20, 16, 5, torch.bfloat16, False, skip=2)
    check(30, 20, 16, 5, torch.float32, True, skip=4)


@pytest.mark.parametrize(
    ("queries", "keys"), [(True, False), (False, True), (False, False)]
)
def test_only_what_is_asked_for(queries, keys):
    q, k, a, b, grad = draw(20, 30, 8, 4, torch.float32, False)
    every = execute(q, k, a, b, 4, grad)
    some = execute(q, k, a, b, 4, grad, queries=queries, keys=keys)
    wanted = [True, queries, keys]
    expected = [t for t, want in zip(every, wanted, strict=True) if want]
    assert all(map(torch.equal, some, expected))


def test_rows_without_a_class_are_not_read():
    q, k, a, b, grad = draw(40, 30, 8, 4, torch.float32, False)
    right = execute(q, k, a, b, 4, grad)
    outside, other = (a < 0) | (a >= 4), (b < 0) | (b >= 4)
    assert outside.any()
    assert other.any()
    q[outside], k[other], grad[outside] = torch.nan, torch.inf, torch.nan
    found = execute(q, k, a, b, 4, grad)
    assert all(map(torch.equal, found, right))
    assert (found[0][outside] == 0).all()


def test_bits_do_not_depend_on_the_order_of_blocks():
    problem = draw(5000, 4200, 12, 3, torch.float32, False)
    runs = [execute(*problem[:4], 3, problem[4], seed=seed) for seed in (1, 2)]
    assert all(map(torch.equal, *runs))


SANITIZED = {
    "bf16": (70, 90, 16, 5, torch.bfloat16, False, {}),
    "fp32-odd": (70, 90, 13, 5, torch.float32, True, {}),
    "fp64-groups": (70, 90, 6, 60, torch.float64, False, {"multiprocessors": 1}),
    "fp16-parts": (4500, 4100, 8, 2, torch.float16, False, {"multiprocessors": 2}),
    "chunks": (20, 30, 264, 3, torch.bfloat16, True, {}),
}


@pytest.mark.parametrize("variant", ["address", "thread"])
@pytest.mark.parametrize("case", kernels.first_quick(SANITIZED))
def test_under_sanitizers(case, variant):
    *problem, execution = SANITIZED[case]
    check(*problem, **execution, variant=variant)
