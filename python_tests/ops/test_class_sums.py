"""Class-sum dot products against the masked matrix product they replace."""

import pytest
import torch

from python_tests.settings import on_devices, threads
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


@on_devices
@pytest.mark.parametrize("symmetric", [True, False])
def test_opcheck_and_plain_form(device, symmetric):
    q, k, a, b = (t.detach().to(device).requires_grad_(t.requires_grad) for t in draw())
    arguments = (q, None, a, None, 5) if symmetric else (q, k, a, b, 5)
    torch.library.opcheck(torch.ops.s3h.class_sum_dots.default, arguments)
    plain = [t.detach() if isinstance(t, torch.Tensor) else t for t in arguments]
    grad = torch.randn(30, dtype=torch.float64, device=device)
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


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("symmetric", [True, False])
def test_many_rows_over_threads(symmetric, count):
    n, m, depth = 1100, 1100 if symmetric else 1300, 129
    q = torch.randn(n, depth, dtype=torch.float64)
    k = q if symmetric else torch.randn(m, depth, dtype=torch.float64)
    a = torch.randint(-1, 9, (n,))
    b = a if symmetric else torch.randint(-1, 9, (m,))
    same = (a[:, None] == b) & (a[:, None] >= 0) & (a[:, None] < 8)
    if symmetric:
        same &= ~torch.eye(n, dtype=torch.bool)
    rows = q.float().requires_grad_()
    others = {} if symmetric else {"keys": k.float(), "key_classes": b}
    with threads(count):
        dots = class_sum_dots(rows, query_classes=a, num_classes=8, **others)
        (grad,) = torch.autograd.grad(dots.sum(), rows)
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
