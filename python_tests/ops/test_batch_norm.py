"""Batch norm, residual and ReLU in one operation, against PyTorch in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from python_tests.settings import assert_same_bits
from s3h_ext.ops import batch_norm_relu

LAST = torch.channels_last
SHAPES = [(64, 16, 16, 16), (64, 64, 8, 8), (3, 37, 5, 7), (2, 300, 2, 1), (6, 1, 3, 2)]


def draw(shape, dtype=torch.float32, residual=True, offset=0.0, spread=1.0, seed=0):
    """Maps, weight and bias, and an upstream gradient."""
    generator = torch.Generator().manual_seed(seed + math.prod(shape))

    def normal(*size):
        return torch.randn(size, generator=generator)

    x, added, grad = (
        normal(*shape).to(memory_format=LAST).contiguous(memory_format=LAST)
        for _ in range(3)
    )
    x = x * spread + offset * spread * normal(1, shape[1], 1, 1).sign()
    given = [x.to(dtype), 1 + 0.3 * normal(shape[1]), 0.3 * normal(shape[1])]
    given.append(added.to(dtype) if residual else None)
    return given, (grad + 0.3).to(dtype)


def plain(x, weight, bias, residual=None, eps=1e-5):
    """What modules do one after another."""
    running = [torch.zeros_like(weight), torch.ones_like(weight)]
    out = F.batch_norm(x, *running, weight, bias, training=True, momentum=1.0, eps=eps)
    count = x.numel() // x.shape[1]
    out = F.relu(out if residual is None else out + residual)
    return out, running[0], running[1] * ((count - 1) / count)


def gradients(function, given, grad, **options):
    inputs = [t.detach().requires_grad_() for t in given if t is not None]
    out, mean, variance = function(*inputs, **options)
    found = torch.autograd.grad(out, inputs, grad)
    return [out.detach(), mean, variance, *found]


def gradients_behind(given, grad, out):
    """The exact gradients of those elements that are positive in ``out``."""
    inputs = [t.detach().requires_grad_() for t in given if t is not None]
    x, weight, bias, *residual = inputs
    exact = F.batch_norm(x, None, None, weight, bias, training=True)
    exact = exact if not residual else exact + residual[0]
    return torch.autograd.grad(exact, inputs, grad * (out > 0))


def check_the_law(shape, dtype, offset, residual):
    given, grad = draw(shape, dtype, residual, offset)
    ours = gradients(batch_norm_relu, given, grad)
    theirs = gradients(plain, given, grad)
    wide, grad = [None if t is None else t.double() for t in given], grad.double()
    forward = gradients(plain, wide, grad)[:3]
    # A rounding that moves an element over zero is an error of the forward.
    exact = [
        [*forward, *gradients_behind(wide, grad, result[0])]
        for result in (ours, theirs)
    ]
    # The error of a sum is measured against the size of its terms, not of their sum.
    axes = (0, 2, 3)
    behind = (grad * (forward[0] > 0)).abs().sum(axes)
    floors = {1: wide[0].abs().mean(axes), 4: behind, 5: behind}
    for place, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        scale = torch.maximum(
            exact[0][place].abs().max(), floors.get(place, torch.zeros(1)).max()
        )
        errors = [
            torch.stack((difference.square().mean().sqrt(), difference.abs().max()))
            / scale
            for difference in (our - exact[0][place], their - exact[1][place])
        ]
        # x - mean, and all that is made of it, has the digits that the mean leaves.
        far = 1 + offset if place not in (1, 2, 5, 6) else 1
        epsilon = 2 * far * torch.finfo(our.dtype).eps
        factor = 2 if place < 3 else 3
        assert bool((errors[0] <= factor * errors[1] + epsilon).all()), (place, errors)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("offset", [0.0, 1.0, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_error_is_that_of_plain_pytorch(shape, dtype, offset, residual):
    check_the_law(shape, dtype, offset, residual)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype, residual):
    given, _ = draw((2, 5, 3, 2), dtype, residual)
    given = [t if t is None else t.requires_grad_() for t in given]
    torch.library.opcheck(torch.ops.s3h.batch_norm_relu, (*given, 1e-5))


def test_second_derivatives_are_those_of_pytorch():
    given, grad = draw((4, 6, 3, 3))
    second = []
    for function in (batch_norm_relu, plain):
        x, *others = (t.detach().requires_grad_() for t in given)
        out = function(x, *others)[0]
        (first,) = torch.autograd.grad(out, x, grad, create_graph=True)
        second.append(torch.autograd.grad(first.square().sum(), [x, others[0]]))
    torch.testing.assert_close(*second)


def test_the_number_of_threads_does_not_matter():
    given, grad = draw((64, 24, 16, 16), torch.bfloat16)
    assert_same_bits(lambda: gradients(batch_norm_relu, given, grad), (1, 2, 3))


def test_any_layout_is_taken():
    given, grad = draw((5, 6, 4, 3))
    right = gradients(batch_norm_relu, given, grad)
    x, weight, bias, residual = given
    strided = torch.stack((x, x), dim=4)[..., 0]
    for other in (x.contiguous(), strided):
        found = gradients(
            batch_norm_relu,
            [other, weight.repeat_interleave(2)[::2], bias, residual.contiguous()],
            grad.contiguous(),
        )
        assert all(map(torch.equal, right, found))
        assert found[0].is_contiguous(memory_format=LAST)


def test_an_expanded_gradient_is_taken():
    given, _ = draw((5, 6, 4, 3))
    grad = torch.randn(5, 6, 1, 1).expand(5, 6, 4, 3)
    found = gradients(batch_norm_relu, given, grad)
    torch.testing.assert_close(found, gradients(plain, given, grad))


def test_numbers_that_are_not_finite_spread_as_in_pytorch():
    for bad in (math.nan, math.inf):
        given, grad = draw((4, 18, 3, 3))
        given[0][1, 2, 0, 0] = bad
        for ours, theirs in zip(
            gradients(batch_norm_relu, given, grad),
            gradients(plain, given, grad),
            strict=True,
        ):
            assert torch.equal(ours.isfinite(), theirs.isfinite())


def test_constant_channels_and_tiny_numbers():
    x = torch.full((4, 3, 2, 2), 1e-39)
    x[:, 1] = 7.0
    out, mean, variance = batch_norm_relu(x, torch.ones(3), torch.full((3,), 0.5))
    assert torch.equal(out, torch.full_like(out, 0.5))
    assert float(variance.max()) == 0
    assert float(mean[1]) == 7


def test_a_first_image_that_is_far_away_costs_no_digits():
    given, _ = draw((512, 8, 4, 4), residual=False)
    given[0][0] += 3000.0
    _, mean, variance = plain(*(t.double() for t in given[:3]))
    _, our_mean, our_variance = batch_norm_relu(*given)
    assert float(((our_mean - mean) / variance.sqrt()).abs().max()) < 2e-6
    assert float((our_variance / variance - 1).abs().max()) < 2e-6


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.ones(2, 3, 2, 2).double(), "x must be float32 or bfloat16, got"),
        (0, torch.ones(2, 3), r"x must be \[N, C, H, W\] .* empty, got .*\(2, 3\)"),
        (0, torch.ones(0, 3, 2, 2), "x must be .* not empty"),
        (0, torch.ones(2, 3, 2, 2, device="meta"), "x must be on the CPU, got meta"),
        (0, [[1.0]], "x must be a tensor, got list"),
        (1, torch.ones(2), r"weight must have shape \(3,\), got \(2,\)"),
        (2, torch.ones(3).bfloat16(), "bias must be float32, got torch.bfloat16"),
        (3, torch.ones(2, 3, 2, 1), r"residual must have x's shape \(2, 3, 2, 2\)"),
        (3, torch.ones(2, 3, 2, 2).half(), "residual must be torch.float32 as x is"),
        (4, -1.0, "eps must not be negative, got -1.0"),
    ],
)
def test_bad_arguments(place, value, message):
    given = [torch.ones(2, 3, 2, 2), torch.ones(3), torch.ones(3), None, 1e-5]
    given[place] = value
    with pytest.raises((TypeError, ValueError), match=message):
        batch_norm_relu(*given[:4], eps=given[4])
