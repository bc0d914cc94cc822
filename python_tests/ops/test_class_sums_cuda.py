"""Class-sum dot products on a GPU, by the law, with a twin of every case on the CPU."""

import pytest
import torch

from python_tests.ops.test_class_sums import by_matrix, draw
from python_tests.ops.test_similarity import assert_lawful
from python_tests.ops.test_similarity_cuda import both_shapes
from python_tests.settings import (
    assert_same_bits,
    deterministic,
    every_type,
    on_devices,
)
from s3h_ext.ops import class_sum_dots


def on(device, *tensors):
    return [t.detach().to(device).requires_grad_(t.requires_grad) for t in tensors]


def without_itself(q, a):
    inside = (a >= 0) & (a < 5)
    return by_matrix(q, q, a, a) - (q * q).sum(dim=1) * inside


def graded(function, leaves, weights):
    """Returns the dots and the gradients of ``leaves``."""
    dots = function(*leaves)
    return [dots.detach(), *torch.autograd.grad(dots, leaves, weights.to(dots))]


@on_devices
@every_type
@both_shapes
@pytest.mark.parametrize(
    "size", [(30, 20, 9), (64, 80, 70), (1, 1, 1), (0, 4, 3), (4, 0, 3), (500, 90, 128)]
)
def test_law(device, dtype, symmetric, size):
    q, k, a, b = on(device, *draw(*size, dtype=dtype))
    classes = {"query_classes": a, "num_classes": 5}

    def op(*leaves):
        more = {} if symmetric else {"key_classes": b}
        return class_sum_dots(*leaves, **classes, **more)

    def matrix(q, k=None):
        wide = q.float() if q.dtype in (torch.bfloat16, torch.float16) else q
        if symmetric:
            return without_itself(wide, a)
        return by_matrix(wide, k.to(wide.dtype), a, b)

    leaves = [q] if symmetric else [q, k]
    wide = [t.detach().double().requires_grad_() for t in leaves]
    weights = torch.randn(len(q), generator=torch.Generator().manual_seed(1))
    names = ("dots", "grad queries", "grad keys")
    for name, ours, plain, right in zip(
        names,
        graded(op, leaves, weights),
        graded(matrix, leaves, weights),
        graded(matrix, wide, weights),
        strict=False,
    ):
        narrow = name == "dots" and dtype in (torch.bfloat16, torch.float16)
        assert ours.dtype == (torch.float32 if narrow else dtype)
        factor = 2 if name == "dots" else 3
        scale = float(right.abs().max()) if right.numel() else 0.0
        floor = 16 * torch.finfo(ours.dtype).eps * max(1.0, scale)
        assert_lawful(ours, plain, right, factor, floor, name)


@on_devices
@both_shapes
def test_gradcheck(device, symmetric):
    q, k, a, b = on(device, *draw(7, 6, 3))
    given = {"query_classes": a, "key_classes": None if symmetric else b}
    assert torch.autograd.gradcheck(
        lambda *leaves: class_sum_dots(*leaves, num_classes=5, **given),
        [q] if symmetric else [q, k],
    )


@on_devices
@every_type
def test_same_bits_in_deterministic_mode(device, dtype):
    q, k, a, b = on(device, *draw(700, 500, 64, dtype=dtype))
    weights = torch.randn(len(q))

    def op(q, k):
        return class_sum_dots(q, k, query_classes=a, key_classes=b, num_classes=5)

    with deterministic():
        count = torch.get_num_threads()
        assert_same_bits(lambda: graded(op, [q, k], weights), [count] * 4)
