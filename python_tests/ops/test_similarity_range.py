"""Scores of any size: rows that are not unit, small temperatures, long sums.

The other tests of the operations grant an error that grows with the log-sum-exp; here
the plain form alone says what may be lost.
"""

import math
import sys

import pytest
import torch
import torch.nn.functional as F

from python_tests.ops.test_similarity import options
from python_tests.settings import deterministic
from s3h_ext.losses import (
    balanced_contrastive_loss,
    cross_model_contrastive_loss,
    prototypical_supcon_loss,
    supcon_loss,
)
from s3h_ext.ops import class_sum_dots, similarity_logsumexp
from s3h_ext.ops.plain import class_sums, similarity
from s3h_ext.ops.reference import similarity_logsumexp_dense as dense
from s3h_ext.ops.reference import supervised_contrastive_dense

EPS = torch.finfo(torch.float32).eps
TYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=[False, True], ids=["fast", "deterministic"])
def either_path(request):
    with deterministic(request.param):
        yield


def rows(n, depth, length, dtype=torch.float32, seed=0, relu=False):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, depth, generator=generator, dtype=torch.float64)
    z = F.normalize(z.relu() if relu else z, dim=1) * length
    return z.to(dtype)


def widen(value, dtype):
    floating = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.detach().to(dtype) if floating else value


def gradients(function, leaves, kwargs, dtype=None):
    """The gradients of a sum with weights of both signs, in the leaves' type."""
    dtype = dtype or leaves[0].dtype
    leaves = [widen(leaf, dtype).requires_grad_() for leaf in leaves]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    kwargs = {name: widen(value, wide) for name, value in kwargs.items()}
    values = function(*leaves, **kwargs)
    weights = torch.linspace(-1, 2, values.numel(), dtype=torch.float64)
    return torch.autograd.grad((values * weights.to(values)).sum(), leaves)


def check_law(ours, plain, leaves, terms=0.0, roundings=4, **kwargs):
    """Three times the error of the same thing in plain float32, and a few roundings.

    ``terms``: the norm of what the gradient is a difference of, where that is larger.
    """
    exact = gradients(plain, leaves, kwargs, torch.float64)
    theirs = gradients(plain, leaves, kwargs, torch.float32)
    for mine, other, right in zip(
        gradients(ours, leaves, kwargs), theirs, exact, strict=True
    ):
        assert other.isfinite().all()
        norm = max(right.norm(), terms)
        stored = torch.finfo(mine.dtype).eps if mine.element_size() == 2 else 0.0
        error = (mine.double() - right).norm()
        allowed = (
            3 * (other.double() - right).norm() + (roundings * EPS + stored) * norm
        )
        assert error <= allowed, (error / norm, allowed / norm)


@pytest.mark.parametrize("length", [3.0, 30.0, 100.0, 1e3, 1e4, 1e5])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", ["plain", "closed mixed self"])
def test_rows_of_any_length(length, symmetric, name, either_path):
    q, k = rows(150, 48, length), rows(130, 48, length, seed=1)
    leaves = [q] if symmetric else [q, k]
    m = 150 if symmetric else 130
    chosen = options(name, 150, m, symmetric)
    check_law(similarity_logsumexp, dense, leaves, temperature=0.1, **chosen)


@pytest.mark.parametrize("length", [1e-17, 1.0, 30.0, 1e4, 1e17])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", ["plain", "closed mixed self"])
def test_many_rows_of_any_length(length, symmetric, name):
    # Enough for a tile unit, which splits floats into three.
    q, k = rows(530, 72, length), rows(510, 72, length, seed=1)
    leaves = [q] if symmetric else [q, k]
    chosen = options(name, 530, 530 if symmetric else 510, symmetric)
    temperature = 0.01 if length == 1.0 else 0.1
    check_law(similarity_logsumexp, dense, leaves, temperature=temperature, **chosen)


@pytest.mark.parametrize("length", [1.0, 100.0, 1e4])
@pytest.mark.parametrize("dtype", TYPES[1:])
@pytest.mark.parametrize("symmetric", [True, False])
def test_rows_of_any_length_in_sixteen_bits(length, dtype, symmetric):
    q, k = rows(150, 48, length, dtype), rows(130, 48, length, dtype, seed=1)
    leaves = [q] if symmetric else [q, k]
    check_law(similarity_logsumexp, dense, leaves, temperature=0.5)


@pytest.mark.parametrize("length", [1e3, 1e5])
@pytest.mark.parametrize("symmetric", [True, False])
def test_rows_of_any_length_in_float64(length, symmetric):
    q, k = (rows(70, 24, length, torch.float64, seed) for seed in (0, 1))
    leaves = [q] if symmetric else [q, k]
    ours = gradients(similarity_logsumexp, leaves, {"temperature": 0.1})
    right = gradients(dense, leaves, {"temperature": 0.1})
    for mine, other in zip(ours, right, strict=True):
        assert (mine - other).norm() <= 1e-12 * other.norm()


@pytest.mark.parametrize("temperature", [0.01, 0.02, 0.05])
@pytest.mark.parametrize("symmetric", [True, False])
def test_one_key_outweighs_the_others(temperature, symmetric, either_path):
    # Each row has one near key: its weight is 1 but for e^(-1 / temperature), in the
    # fast form as in the exact one.
    near = torch.eye(64, 128).repeat(2, 1)
    leaves = [near] if symmetric else [near, torch.eye(64, 128)]
    kwargs = {"temperature": temperature}
    if not symmetric:
        kwargs["key_bias"] = torch.zeros(64)
    check_law(similarity_logsumexp, dense, leaves, **kwargs)


def check_supcon(z, labels, temperature, **bounds):
    given = {"labels": labels, "temperature": temperature, "reduction": "none"}

    def plain(z, temperature, **given):
        return supervised_contrastive_dense(z, temperature=temperature, **given)[0]

    check_law(supcon_loss, plain, [z], **bounds, **given)


@pytest.mark.parametrize("shape", [(128, 128), (128, 2048)], ids=str)
@pytest.mark.parametrize("length", [1.0, 45.0, 100.0, 1e3, 1e4, 1e5])
@pytest.mark.parametrize("relu", [False, True])
def test_supcon_of_rows_of_any_length(shape, length, relu, either_path):
    z, labels = rows(*shape, length, relu=relu), torch.arange(shape[0]) % 9

    check_supcon(z, labels, 0.07)


def plain_composition(monkeypatch):
    """Has the losses take the plain forms of their operations."""

    def logsumexp(queries, keys=None, *, assume_normalized=False, **kwargs):
        return dense(queries, keys, **kwargs)

    def dots(queries, keys=None, *, query_classes, key_classes=None, num_classes):
        others = queries if keys is None else keys
        classes = query_classes if keys is None else key_classes
        same = (query_classes[:, None] == classes) & (query_classes < num_classes)[
            :, None
        ]
        if keys is None:
            same = same & ~torch.eye(len(queries), dtype=torch.bool)
        return ((queries @ others.T) * same).sum(dim=1)

    for module in ("balanced", "cross_model", "prototypical", "_common"):
        place = sys.modules[f"s3h_ext.losses.{module}"]
        for name, form in (
            ("similarity_logsumexp", logsumexp),
            ("class_sum_dots", dots),
        ):
            if hasattr(place, name):
                monkeypatch.setattr(place, name, form)


LOSSES = {
    "prototypical": prototypical_supcon_loss,
    "balanced": balanced_contrastive_loss,
    "cross-model": cross_model_contrastive_loss,
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("length", [1.0, 100.0, 1e4])
def test_composed_losses_of_rows_of_any_length(name, length, monkeypatch, either_path):
    function = LOSSES[name]
    leaves = [rows(120, 64, length)]
    if name == "cross-model":
        leaves.append(rows(120, 64, length, seed=2))
    leaves.append(rows(7, 64, length, seed=3))
    labels = torch.arange(120) % 7

    def loss(*leaves):
        rows, *others, centres = leaves
        keys = [leaf for other in others for leaf in (other, labels)]
        place = {"centres": centres} if name == "cross-model" else {}
        given = (rows, labels, *keys) if place else (rows, labels, centres)
        return function(*given, **place, temperature=0.1, reduction="none")

    def plain(*leaves):
        with monkeypatch.context() as patch:
            plain_composition(patch)
            return loss(*leaves)

    check_law(loss, plain, leaves)


def denormals(*tensors):
    return sum(
        int(((t != 0) & (t.abs() < torch.finfo(t.dtype).tiny)).sum()) for t in tensors
    )


@pytest.mark.parametrize("temperature", [0.0225, 0.0112, 0.01, 0.005])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_result_is_a_denormal(temperature, symmetric, dtype, either_path):
    # Weights of 2^-127 to 2^-149 (2^-1023 to 2^-1074) times any upstream gradient.
    shift = 0 if dtype == torch.float32 else 620
    angles = torch.linspace(0, math.pi, 300, dtype=torch.float64)
    q = torch.stack([angles.cos(), angles.sin()], dim=1).to(dtype)
    keys = None if symmetric else q[[0, -1]].repeat(40, 1)
    bias = torch.zeros(300 if symmetric else 80, dtype=dtype)
    bias[1::2] = -shift
    leaves = [q.requires_grad_()] + ([] if symmetric else [keys.requires_grad_()])
    for key_bias in (None, bias):
        lse = similarity_logsumexp(q, keys, temperature=temperature, key_bias=key_bias)
        upstream = torch.logspace(-12, 0, 300, dtype=dtype)
        found = torch.autograd.grad(lse, leaves, upstream)
        assert denormals(lse, *found) == 0
        assert all(grad.isfinite().all() for grad in found)


def test_class_sums_leave_no_denormal():
    q = torch.full((64, 40), 1e-22, requires_grad=True)
    dots = class_sum_dots(
        q, query_classes=torch.zeros(64, dtype=torch.int64), num_classes=1
    )
    (grad,) = torch.autograd.grad(dots, q, torch.full((64,), 1e-20))
    assert denormals(dots, grad) == 0


def test_the_callers_denormals_stay():
    z = rows(600, 64, 1.0).requires_grad_()
    many = torch.full((1 << 20,), 1e-40)  # shared out to the pool's threads
    assert denormals(many * 1.0) == many.numel()
    for dtype in (torch.float32, torch.float64):
        similarity_logsumexp(z.to(dtype), temperature=0.01).sum().backward()
        supcon_loss(z.to(dtype), torch.arange(600) % 5).backward()
    assert denormals(many * 1.0) == many.numel()
    assert denormals(torch.tensor([1e-40]) * 1.0) == 1


def one_class(n, depth, kind):
    if kind == "identical":
        return rows(1, depth, 1.0).expand(n, depth).contiguous()
    return rows(n, depth, 1.0, relu=kind == "relu")


@pytest.mark.parametrize("kind", ["random", "relu", "identical"])
def test_one_class_of_thousands_of_rows(kind):
    n = 4000
    z, labels = one_class(n, 128, kind), torch.zeros(n, dtype=torch.int64)

    # Attraction and repulsion of identical rows cancel. Equal terms are rounded in the
    # same direction again and again: how far depends on how many are added in sequence,
    # which differs between instruction sets.
    roundings = 16 if kind == "identical" else 4
    check_supcon(z, labels, 0.1, terms=n**0.5 / 0.1, roundings=roundings)


@pytest.mark.parametrize("n", [1000, 10_000])
def test_loss_of_identical_rows_is_the_logarithm_of_their_number(n):
    z, labels = one_class(n, 128, "identical"), torch.zeros(n, dtype=torch.int64)
    loss = supcon_loss(z, labels, temperature=0.1)
    assert abs(loss.item() - math.log(n - 1)) < 5e-6


@pytest.mark.parametrize("kind", ["random", "relu", "identical"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_sums_of_one_class_of_thousands_of_rows(kind, symmetric):
    n = 8000
    q, classes = one_class(n, 64, kind), torch.zeros(n, dtype=torch.int64)
    keys = {} if symmetric else {"keys": q, "key_classes": classes}
    ours = q.clone().requires_grad_()
    dots = class_sum_dots(ours, query_classes=classes, num_classes=1, **keys)
    upstream = torch.linspace(-1, 2, n)
    (grad,) = torch.autograd.grad(dots, ours, upstream)
    place = (q, keys.get("keys"), classes, keys.get("key_classes"), 1)
    exact = class_sums.class_sum_dots(
        *(t.double() if i < 2 and t is not None else t for i, t in enumerate(place))
    )
    assert (dots.double() - exact).abs().max() <= 4 * EPS * exact.abs().max()
    total = q.double().sum(dim=0)
    right = upstream[:, None].double() * (total - 2 * q.double() * symmetric)
    if symmetric:
        right += upstream.double() @ q.double()
    assert (grad.double() - right).norm() <= 4 * EPS * right.norm()


@pytest.mark.parametrize("length", [100.0, 1e4])
def test_the_chunked_form_keeps_the_law(length):
    z = rows(90, 32, length)
    arguments = (z, None, 0.1, None, None, None, None, 0.0, None)

    def chunked(z):
        return Chunked.apply(z)

    class Chunked(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            saved = similarity.similarity_logsumexp(z, *arguments[1:])
            ctx.save_for_backward(z, *saved)
            return saved[0]

        @staticmethod
        def backward(ctx, grad):
            z, *saved = ctx.saved_tensors
            return similarity.similarity_logsumexp_backward(
                grad, *saved, True, False, z, *arguments[1:]
            )[0]

    check_law(chunked, lambda z: dense(z, temperature=0.1), [z])
