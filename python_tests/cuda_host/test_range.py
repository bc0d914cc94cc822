"""Scores of any size and long sums in the CUDA kernels, executed on the host.

The law without an allowance for the size of the scores: the plain form in float32 says
what may be lost.
"""

import math

import pytest
import torch
from torch.nn import functional as F

from python_tests.cuda_host import kernels
from python_tests.cuda_host.test_similarity import matrices
from python_tests.ops.test_similarity import options, run, widen
from s3h_ext.ops.reference import similarity_logsumexp_dense as dense

EPS = torch.finfo(torch.float32).eps


def check_law(q, k, *, temperature, unit=False, roundings=2, **execution):
    upstream = torch.linspace(-1, 2, q.shape[0])
    execution = {"assume_normalized": unit, **execution}
    names = ("key_bias", "query_labels", "key_labels", "same_label_bias", "self_index")
    words = {name: execution.pop(name) for name in names if name in execution}
    words["temperature"] = temperature
    lse, ours = kernels.similarity(q, k, upstream, **words, **execution)
    given = {"q": q, "k": k, "upstream": upstream, **words}
    plain, exact = (
        run(dense, **widen(given, dtype)) for dtype in (torch.float32, torch.float64)
    )
    finite = exact[0].isfinite()
    error = (lse.double() - exact[0])[finite].norm()
    theirs = (plain[0].double() - exact[0])[finite].norm()
    assert error <= 2 * theirs + 2 * EPS * exact[0][finite].norm()
    stored = torch.finfo(q.dtype).eps if q.element_size() == 2 else 0.0
    known = roundings * EPS + stored
    for mine, other, right in zip(ours, plain[1], exact[1], strict=True):
        norm = right.norm()
        error = (mine.double() - right).norm()
        allowed = 3 * (other.double() - right).norm() + known * norm
        assert error <= allowed, (error / norm, allowed / norm)


@pytest.mark.parametrize(
    ("dtype", "length"),
    [
        *((torch.float32, length) for length in (100.0, 1e4, 1e5)),
        *((torch.bfloat16, 1e4), (torch.float16, 100.0)),
    ],
    ids=str,
)
@pytest.mark.parametrize("names", ["", "closed mixed self"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_rows_of_any_length(dtype, length, names, symmetric):
    q, k = matrices(70, 60, 24, dtype, length)
    m = 70 if symmetric else 60
    chosen = options(names, 70, m, symmetric)
    check_law(q, None if symmetric else k, temperature=0.5, **chosen)


@pytest.mark.parametrize(
    ("dtype", "depth"),
    [(torch.float32, 260), (torch.float32, 400), (torch.bfloat16, 260)],
    ids=str,
)
@pytest.mark.parametrize("length", [100.0, 1e4])
def test_long_rows_of_several_chunks_of_depth(dtype, depth, length):
    q, k = matrices(40, 50, depth, dtype, length)
    check_law(q, None, temperature=0.5)
    check_law(q, k, temperature=0.5)


@pytest.mark.parametrize("depth", [128, 400, 1000])
@pytest.mark.parametrize(
    ("dtype", "length"), [(torch.bfloat16, 1e4), (torch.float16, 100.0)], ids=str
)
def test_cut_off_of_16_bit_scores(dtype, length, depth):
    """Tensor cores add 16 elements of depth at a time and cut off each sum."""
    q, k = matrices(24, 20, depth, dtype, length)
    alone = {"temperature": 0.5, "need_queries": False, "need_keys": False}
    lse, _ = kernels.similarity(q, k, torch.ones(24), **alone)
    q, k = q.double(), k.double()
    exact = torch.logsumexp(q @ k.T / 0.5, dim=1)
    largest = (q.abs() @ k.abs().T).amax(dim=1) / 0.5
    allowed = math.ceil(depth / 16) * EPS * largest + 2 * EPS * (exact.abs() + 1)
    error = (lse.double() - exact).abs()
    assert (error <= allowed).all(), (error / allowed).max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("length", [1e3, 1e4])
def test_equal_keys_of_long_rows_share_a_weight(dtype, length):
    """A float32 log-sum-exp of 1e8 does not know a sum of 2 from one of 3."""
    q, _ = matrices(24, None, 24, dtype, length)
    z = torch.cat([q, q, q])
    check_law(z, None, temperature=0.5)
    check_law(q, z, temperature=0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("kind", ["long", "some long", "antipodal", "opposite keys"])
def test_rows_that_are_not_unit_where_they_were_expected_to_be(
    kind, deterministic, dtype
):
    """Sums without a shift overflow, or vanish."""
    q, k = matrices(150, 130, 24, dtype)
    if kind == "long":
        q, k = q * 1e4, k * 1e4
    elif kind == "some long":
        q[:3] *= 50
        q[149] *= 1e3
    elif kind == "antipodal":  # no row has a near one
        q = 100 * torch.eye(2, 24).to(dtype)
        q[1] = -q[0]
    else:
        q, k = 30 * q[:1].expand(70, 24), -30 * q[:1].expand(130, 24)
    q, k = q.contiguous(), k.contiguous()
    words = {"temperature": 0.1, "deterministic": deterministic, "unit": True}
    check_law(q, None, **words)
    check_law(q, k, **words)


@pytest.mark.parametrize("depth", [20, 128])
@pytest.mark.parametrize("length", [1e-9, 1e-6, 1e-3, 0.0, 3.0])
@pytest.mark.parametrize("which", [slice(None), slice(3, 4)], ids=["all", "one"])
def test_float32_rows_whose_numbers_no_pair_of_float16_holds(which, length, depth):
    q, k = matrices(70, 40, depth, torch.float32)
    for matrix in (q, k):
        matrix[which] = F.one_hot(torch.arange(70) % depth, depth)[: len(matrix)][which]
        matrix[which] *= length
    for deterministic in (False, True):
        words = {"temperature": 0.1, "deterministic": deterministic, "unit": True}
        check_law(q, None, **words)
        check_law(q, k, **words)


@pytest.mark.parametrize("temperature", [0.04, 0.1, 1.0])
@pytest.mark.parametrize("small", [1.0, 1e-4, 1e-8])
def test_unit_rows_of_large_and_small_numbers(small, temperature):
    """Half of the numbers are below what float16 knows beside the others."""
    q, k = matrices(60, 50, 128, torch.float64)
    scale = torch.where(torch.arange(128) % 2 == 0, 1.0, small)
    q, k = (F.normalize(matrix * scale, dim=1).float() for matrix in (q, k))
    for keys in (None, k, k[:1], torch.cat([q, q])):
        check_law(q, keys, temperature=temperature, unit=True)


@pytest.mark.parametrize("deterministic", [False, True])
def test_columns_of_long_rows_split_among_blocks(deterministic):
    q, k = matrices(20, 400, 24, torch.float32)
    k[300:] *= 100
    words = {"temperature": 0.1, "deterministic": deterministic, "unit": True}
    check_law(q, k, **words, multiprocessors=9)


@pytest.mark.parametrize("temperature", [0.01, 0.0225, 0.04, 0.1])
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tight_clusters(temperature, deterministic, dtype):
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(4, 24).repeat(25, 1)
    noise = 0.005 * torch.randn(100, 24, generator=generator)
    z = F.normalize(centres + noise, dim=1).to(dtype)
    for k in (None, torch.cat([z, -z])):
        check_law(z, k, temperature=temperature, deterministic=deterministic, unit=True)


@pytest.mark.parametrize("temperature", [0.01, 0.04, 0.1])
def test_one_key_outweighs_the_others(temperature):
    z = torch.eye(32, 40).repeat(2, 1)
    for unit in (False, True):
        check_law(z, None, temperature=temperature, unit=unit)


@pytest.mark.parametrize("kind", ["random", "identical"])
@pytest.mark.parametrize("n", [4, pytest.param(70, marks=pytest.mark.slow)])
def test_sums_over_thousands_of_keys(kind, n):
    q, k = matrices(n, 8000, 16, torch.float32)
    if kind == "identical":
        k = k[:1].expand(8000, 16).contiguous()
    # Of identical keys: 250 equal numbers are added up, one for every 32 keys.
    roundings = 8 if kind == "identical" else 2
    check_law(q, k, temperature=0.5, roundings=roundings)
    check_law(q, k, temperature=0.5, unit=True, roundings=roundings)


@pytest.mark.parametrize("kind", ["random", "identical"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_class_of_thousands_of_rows(kind, dtype):
    n, depth = 8000, 16
    q, _ = matrices(n, None, depth, torch.float64)
    q = (q[:1].expand(n, depth) if kind == "identical" else q).to(dtype).contiguous()
    classes = torch.zeros(n, dtype=torch.int64)
    upstream = torch.linspace(-1, 2, n)
    dots, grad = kernels.class_sums(q, None, classes, None, 1, upstream)
    wide, weights = q.double(), upstream.double()
    total = wide.sum(dim=0)
    right = (wide * (total - wide)).sum(dim=1)
    error = (dots.double() - right).abs().max()
    plain = (q.float() @ q.float().T).sum(dim=1) - q.float().square().sum(dim=1)
    theirs = (plain.double() - right).abs().max()
    assert error <= 2 * theirs + 4 * EPS * right.abs().max()
    right = weights[:, None] * (total - 2 * wide) + weights @ wide
    same = q.float()
    plain = upstream[:, None] * (torch.ones(n, n) @ same - 2 * same) + upstream @ same
    stored = torch.finfo(dtype).eps if dtype == torch.bfloat16 else 0.0
    allowed = 3 * (plain.double() - right).norm() + (4 * EPS + stored) * right.norm()
    assert (grad.double() - right).norm() <= allowed
    assert math.isfinite(error)
