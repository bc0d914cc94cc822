"""The similarity operation's numbers on a GPU, by the law its CPU tests keep.

All but the many and the large cases run on the CPU too, so that the test code is seen
to work where there is no GPU.
"""

import functools
import math

import pytest
import torch
import torch.nn.functional as F

from python_tests.ops.test_similarity import (
    check_law,
    matrices,
    options,
    run,
)
from python_tests.settings import every_type, on_devices
from s3h_ext.ops import similarity_logsumexp
from s3h_ext.ops.reference import similarity_logsumexp_dense as dense

INF = math.inf
EVERY_OPTION = ["plain", "bias", "closed", "label", "own", "self", "bias-label-self"]

on_the_gpu = pytest.mark.parametrize(
    "device", [pytest.param("cuda", marks=pytest.mark.cuda)]
)
both_shapes = pytest.mark.parametrize("symmetric", [True, False])


def to(device, found):
    """Moves a dictionary's tensors."""
    return {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in found.items()
    }


def law(device, n, m, depth, dtype, name="plain", symmetric=False, **more):
    q, k = matrices(n, m, depth, dtype)
    found = options(name, n, n if symmetric else m, symmetric)
    keys = None if symmetric else k.to(device)
    check_law(q.to(device), keys, **({"temperature": 0.1} | more), **to(device, found))


@on_devices
@every_type
@pytest.mark.parametrize("name", EVERY_OPTION)
@both_shapes
def test_every_option(device, dtype, name, symmetric):
    law(device, 70, 97, 33, dtype, name, symmetric)


# Around the edges of tiles: 16, 32, 64, 128 rows or columns, one more and one less.
@on_the_gpu
@every_type
@pytest.mark.parametrize("rows", [1, 2, 15, 17, 63, 64, 65, 127, 128, 129, 257])
@pytest.mark.parametrize("depth", [1, 7, 8, 16, 64, 100, 128, 200])
@both_shapes
def test_sizes_around_the_tiles(device, dtype, rows, depth, symmetric):
    law(device, rows, max(1, 300 - rows), depth, dtype, "bias-label-self", symmetric)


@on_the_gpu
@every_type
@both_shapes
@pytest.mark.parametrize("depth", [128, 512, 1024])
def test_many_tiles(device, dtype, symmetric, depth):
    law(device, 3000, 1111, depth, dtype, "bias-label-self", symmetric)


@on_the_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_few_rows_and_many_keys(device, dtype):
    law(device, 64, 100_003, 64, dtype, "bias-label-self")


@on_devices
@every_type
@both_shapes
@pytest.mark.parametrize("temperature", [0.02, 0.1, 1.0])
def test_promise_of_unit_rows(device, dtype, symmetric, temperature):
    op = functools.partial(similarity_logsumexp, assume_normalized=True)
    more = {"temperature": temperature, "op": op}
    law(device, 90, 70, 24, dtype, "bias-label", symmetric, **more)


@on_devices
@both_shapes
@pytest.mark.parametrize("temperature", [1e-3, 0.01, 0.05, 1.0, 1e4])
@pytest.mark.parametrize("length", [0.01, 1.0, 30.0])
def test_any_temperature_and_row_length(device, symmetric, temperature, length):
    q, k = matrices(90, 70, 24)
    found = to(device, options("bias-label", 90, 90 if symmetric else 70, symmetric))
    keys = None if symmetric else (k * length).to(device)
    check_law((q * length).to(device), keys, temperature=temperature, **found)


@on_devices
@both_shapes
def test_tf32_where_torch_may(device, symmetric):
    setting = torch.backends.cuda.matmul
    before = setting.fp32_precision
    setting.fp32_precision = "tf32"
    try:
        law(device, 200, 300, 64, torch.float32, "bias-label-self", symmetric)
    finally:
        setting.fp32_precision = before


@on_devices
@every_type
@pytest.mark.parametrize(
    ("n", "m", "depth"), [(0, 5, 3), (5, 0, 3), (0, 0, 3), (4, 6, 0), (0, None, 3)]
)
def test_empty_sizes(device, dtype, n, m, depth):
    q = torch.randn(n, depth, device=device).to(dtype).requires_grad_()
    leaves = [q]
    if m is not None:
        leaves.append(torch.randn(m, depth, device=device).to(dtype).requires_grad_())
    lse = similarity_logsumexp(*leaves, temperature=0.1)
    right = torch.full((n,), math.log(m) if m else -INF)
    torch.testing.assert_close(lse, right.to(lse))
    for grad in torch.autograd.grad(lse, leaves, torch.ones_like(lse)):
        assert not grad.any()


@on_devices
@every_type
def test_row_without_a_key_is_minus_infinity_with_zero_gradient(device, dtype):
    single = torch.randn(1, 8, device=device).to(dtype).requires_grad_()
    lse = similarity_logsumexp(single, temperature=0.1)
    assert lse.item() == -INF
    lse.backward(torch.ones_like(lse))
    assert not single.grad.any()

    leaves = [t.to(device).requires_grad_() for t in matrices(70, 40, 8, dtype)]
    bias = torch.full((40,), -INF, device=device)
    closed = similarity_logsumexp(*leaves, temperature=0.1, key_bias=bias)
    assert (closed == -INF).all()
    for grad in torch.autograd.grad(closed, leaves, torch.randn_like(closed)):
        assert not grad.any()


@on_devices
@both_shapes
def test_wide_and_negative_labels(device, symmetric):
    q, k = (t.to(device) for t in matrices(6, 6, 8))
    wide = torch.tensor([1, 1 + (1 << 32), -1, 1 + (1 << 40), 1, -1], device=device)
    kwargs = {"temperature": 0.1, "query_labels": wide, "same_label_bias": -INF}
    if not symmetric:
        kwargs["key_labels"] = wide
    keys = None if symmetric else k
    torch.testing.assert_close(
        similarity_logsumexp(q, keys, **kwargs), dense(q, keys, **kwargs)
    )


@on_devices
@every_type
def test_views_of_other_memory(device, dtype):
    q, k = (t.to(device) for t in matrices(40, 50, 24, dtype))
    given = {"temperature": 0.1, "key_bias": torch.randn(100, device=device)[::2]}
    right = run(similarity_logsumexp, q, k, torch.ones(40), **given)
    # Contiguous, but one element off any wider alignment.
    shifted = torch.zeros(40 * 24 + 1, device=device, dtype=dtype)[1:].view(40, 24)
    shifted.copy_(q)
    across, upstream = k.T.contiguous().T, torch.ones(1).expand(40)
    for view in (shifted, torch.stack([q, q], dim=2)[:, :, 0], q.T.contiguous().T):
        ours = run(similarity_logsumexp, view, across, upstream, **given)
        torch.testing.assert_close(ours, right)


@on_devices
@pytest.mark.parametrize("value", [math.nan, INF])
@both_shapes
def test_bad_values_stay_visible(device, value, symmetric):
    q, k = matrices(200, 30, 8)
    q[3, 2] = value
    q, k = q.to(device), k.to(device)
    lse = similarity_logsumexp(q, None if symmetric else k, temperature=0.1)
    assert not lse[3].isfinite()
    if not symmetric:
        others = torch.arange(200, device=device) != 3
        assert lse[others].isfinite().all()
    elif math.isnan(value):
        assert lse.isnan().all()


@on_devices
@both_shapes
def test_gradcheck(device, symmetric):
    q, k = (t.to(device) for t in matrices(6, 5, 4, torch.float64))
    found = options("bias-label-self", 6, 6 if symmetric else 5, symmetric)
    found = to(device, found) | {"temperature": 0.5}
    leaves = [q.requires_grad_()] + ([] if symmetric else [k.requires_grad_()])
    assert torch.autograd.gradcheck(
        lambda *leaves: similarity_logsumexp(*leaves, **found), leaves
    )


@on_devices
@pytest.mark.parametrize("needed", [0, 1])
def test_only_what_is_needed_gets_a_gradient(device, needed):
    leaves = [t.to(device) for t in matrices(70, 50, 12)]
    _, right = run(dense, *leaves, torch.ones(70), temperature=0.5)
    leaves[needed].requires_grad_()
    similarity_logsumexp(*leaves, temperature=0.5).sum().backward()
    torch.testing.assert_close(leaves[needed].grad, right[needed])


@on_devices
def test_supcon_gradient_is_the_formula_of_the_full_matrix(device):
    """A whole loss: both operations together, on the device."""
    from s3h_ext.losses import supcon_loss

    z = F.normalize(torch.randn(150, 32), dim=1).to(device).requires_grad_()
    labels = torch.arange(150, device=device) % 7
    loss = supcon_loss(z, labels, temperature=0.1, num_classes=7)
    (ours,) = torch.autograd.grad(loss, z)
    wide = z.detach().double().requires_grad_()
    scores = (wide @ wide.T / 0.1).fill_diagonal_(-INF)
    same = (labels[:, None] == labels).fill_diagonal_(False)
    logs = scores - scores.logsumexp(dim=1, keepdim=True)
    plain = -(logs.masked_fill(~same, 0).sum(dim=1) / same.sum(dim=1)).mean()
    (right,) = torch.autograd.grad(plain, wide)
    torch.testing.assert_close(loss.double(), plain, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.double(), right, rtol=1e-4, atol=1e-6)
