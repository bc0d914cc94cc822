"""Class-sum dot products against the masked matrix product they replace."""

import pytest
import torch

from s3h_ext.ops import class_sum_dots
from s3h_ext.ops.plain import class_sums as plain_forms


def draw(n=30, m=20, depth=9, dtype=torch.float64):
    generator = torch.Generator().manual_seed(n)
    q = torch.randn(n, depth, generator=generator, dtype=torch.float64).to(dtype)
    k = torch.randn(m, depth, generator=generator, dtype=torch.float64).to(dtype)
    a = torch.randint(-1, 6, (n,), generator=generator)
    b = torch.randint(-1, 6, (m,), generator=generator)
    return q.requires_grad_(), k.requires_grad_(), a, b


def by_matrix(q, k, a, b):
    same = (a[:, None] == b) & (a[:, None] >= 0) & (a[:, None] < 5)
    return ((q @ k.T) * same).sum(dim=1)


@pytest.mark.parametrize("size", [(30, 20, 9), (64, 80, 70), (1, 1, 1), (0, 4, 3)])
def test_rectangular(size):
    q, k, a, b = draw(*size)
    dots = class_sum_dots(q, k, query_classes=a, key_classes=b, num_classes=5)
    expected = by_matrix(q, k, a, b)
    torch.testing.assert_close(dots, expected)
    weights = torch.randn(len(q), dtype=torch.float64)
    for ours, right in zip(
        torch.autograd.grad(dots, (q, k), weights),
        torch.autograd.grad(expected, (q, k), weights),
        strict=True,
    ):
        torch.testing.assert_close(ours, right)


def test_symmetric_leaves_the_row_itself_out():
    q, _, a, _ = draw()
    inside = (a >= 0) & (a < 5)
    expected = by_matrix(q, q, a, a) - (q * q).sum(dim=1) * inside
    torch.testing.assert_close(
        class_sum_dots(q, query_classes=a, num_classes=5), expected
    )
    small, _, classes, _ = draw(7, 1, 3)
    assert torch.autograd.gradcheck(
        lambda q: class_sum_dots(q, query_classes=classes, num_classes=5), (small,)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_types(dtype):
    q, k, a, b = draw(dtype=dtype)
    dots = class_sum_dots(q, k, query_classes=a, key_classes=b, num_classes=5)
    assert dots.dtype == torch.float32
    torch.testing.assert_close(dots, by_matrix(q.float(), k.float(), a, b))
    dots.sum().backward()
    assert q.grad.dtype == k.grad.dtype == dtype


@pytest.mark.parametrize("symmetric", [True, False])
def test_opcheck_and_plain_form(symmetric):
    q, k, a, b = draw()
    arguments = (q, None, a, None, 5) if symmetric else (q, k, a, b, 5)
    torch.library.opcheck(torch.ops.s3h.class_sum_dots.default, arguments)
    plain = [t.detach() if isinstance(t, torch.Tensor) else t for t in arguments]
    grad = torch.randn(30, dtype=torch.float64)
    torch.testing.assert_close(
        plain_forms.class_sum_dots(*plain), torch.ops.s3h.class_sum_dots(*plain)
    )
    torch.testing.assert_close(
        plain_forms.class_sum_dots_backward(grad, True, not symmetric, *plain),
        torch.ops.s3h.class_sum_dots_backward(grad, True, not symmetric, *plain),
    )


def test_bad_input():
    q, k, a, b = draw()
    with pytest.raises(ValueError, match=r"key_classes must have shape \(20,\)"):
        class_sum_dots(q, k, query_classes=a, key_classes=b[:3], num_classes=5)
    with pytest.raises(ValueError, match="must be given together"):
        class_sum_dots(q, k, query_classes=a, num_classes=5)
    with pytest.raises(TypeError, match="keys must have the queries' type"):
        class_sum_dots(q, k.float(), query_classes=a, key_classes=b, num_classes=5)
    with pytest.raises(TypeError, match="query_classes must be integers"):
        class_sum_dots(q, query_classes=a.float(), num_classes=5)
    with pytest.raises(ValueError, match="num_classes must not be negative, got -1"):
        class_sum_dots(q, query_classes=a, num_classes=-1)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("symmetric", [True, False])
def test_many_rows_over_threads(symmetric, threads):
    n, m, depth = 900, 900 if symmetric else 1100, 129
    q = torch.randn(n, depth, dtype=torch.float64)
    k = q if symmetric else torch.randn(m, depth, dtype=torch.float64)
    a = torch.randint(-1, 9, (n,))
    b = a if symmetric else torch.randint(-1, 9, (m,))
    same = (a[:, None] == b) & (a[:, None] >= 0) & (a[:, None] < 8)
    if symmetric:
        same &= ~torch.eye(n, dtype=torch.bool)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rows = q.float().requires_grad_()
        others = {} if symmetric else {"keys": k.float(), "key_classes": b}
        dots = class_sum_dots(rows, query_classes=a, num_classes=8, **others)
        (grad,) = torch.autograd.grad(dots.sum(), rows)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(
        dots.double(), ((q @ k.T) * same).sum(1), rtol=1e-4, atol=1e-2
    )
    expected = same.double() @ k
    if symmetric:
        expected *= 2
    torch.testing.assert_close(grad.double(), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("classes", [2**40, 2**62])
def test_memory_that_is_not_there_is_named_as_pytorch_does(classes):
    queries, labels = torch.randn(4, 8), torch.zeros(4, dtype=torch.int64)
    # What programs look for that try again with a smaller batch.
    message = rf"DefaultCPUAllocator: can't allocate memory.*\[{classes}, 8\]"
    with pytest.raises(RuntimeError, match=message):
        class_sum_dots(queries, query_classes=labels, num_classes=classes)
