"""The CUDA similarity kernels, executed on the host, against the float64 oracle."""

import math

import pytest
import torch
from torch.nn import functional as F

from python_tests.cuda_host import kernels
from python_tests.ops.test_similarity import assert_lawful, options, run, widen
from python_tests.settings import every_type
from s3h_ext.ops.reference import similarity_logsumexp_dense as dense

EXECUTION = [
    *("assume_normalized", "deterministic", "allow_tf32", "need_queries", "need_keys"),
    *("multiprocessors", "shared_limit", "variant", "seed"),
]
SMALL_SHARED = 99 * 1024  # as on sm_86, sm_89, sm_120


def matrices(n, m, depth, dtype, length=1.0):
    """Unit rows times a length; m is None in the symmetric case."""
    generator = torch.Generator().manual_seed(n + depth)

    def rows(count):
        matrix = torch.randn(count, depth, dtype=torch.float64, generator=generator)
        return (F.normalize(matrix, dim=1) * length).to(dtype)

    return rows(n), None if m is None else rows(m)


def check_law(q, k, *, temperature=0.1, **kwargs):
    execution = {name: kwargs.pop(name) for name in EXECUTION if name in kwargs}
    generator = torch.Generator().manual_seed(5)
    upstream = torch.randn(q.shape[0], generator=generator)
    given = {"q": q, "k": k, "upstream": upstream, "temperature": temperature, **kwargs}
    ours, our_grads = kernels.similarity(
        q, k, upstream, temperature=temperature, **kwargs, **execution
    )
    # 16 bits: the same numbers in float32, as the operation promises.
    plain_type = torch.float64 if q.dtype == torch.float64 else torch.float32
    plain, plain_grads = run(dense, **widen(given, plain_type))
    exact, exact_grads = run(dense, **widen(given))
    sixteen = q.element_size() == 2
    floor = 1e-12 if q.dtype == torch.float64 else 2e-6
    assert_lawful(ours, plain, exact, 2, floor, "lse")
    wanted = [execution.get("need_queries", True), execution.get("need_keys", True)]
    pairs = zip(wanted, plain_grads, exact_grads, strict=False)
    expected = [(plain, exact) for want, plain, exact in pairs if want]
    assert len(our_grads) == len(expected)
    for mine, (theirs, right) in zip(our_grads, expected, strict=True):
        scale = float(right.abs().max()) if right.numel() else 0.0
        known = torch.finfo(plain_type).eps * 2
        if exact.isfinite().any():
            known *= 1 + float(exact[exact.isfinite()].abs().max())
        weights = torch.finfo(q.dtype).eps if sixteen else floor
        grad_floor = (weights + known) * max(1.0, scale)
        assert_lawful(mine, theirs, right, 3, grad_floor, "gradient")
        if scale > 0:
            error = (mine.double() - right).norm() / right.norm()
            assert error < (weights if sixteen else 4 * known + 1e-6), error


@every_type
@pytest.mark.parametrize(
    "names", ["", "closed", "shut", "number self", "own", "closed mixed self"]
)
def test_rectangular(dtype, names):
    q, k = matrices(37, 70, 24, dtype)
    check_law(q, k, **options(names, 37, 70))


@every_type
@pytest.mark.parametrize("names", ["", "closed", "number", "own", "closed mixed"])
def test_symmetric(dtype, names):
    q, _ = matrices(67, None, 24, dtype)
    check_law(q, None, **options(names, 67, 67, symmetric=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (3, 2, 7), (66, 65, 33), (130, 20, 16), (40, 40, 131)], ids=str
)
def test_odd_shapes(shape, dtype):
    n, m, depth = shape
    q, k = matrices(n, m, depth, dtype)
    check_law(q, k, **options("closed mixed", n, m))
    check_law(q, None)


@every_type
def test_empty_sets(dtype):
    q, k = matrices(3, 0, 5, dtype)
    upstream = torch.ones(3)
    lse, (grad_queries, grad_keys) = kernels.similarity(q, k, upstream, temperature=1.0)
    assert (lse == -math.inf).all()
    assert (grad_queries == 0).all()
    assert grad_keys.shape == (0, 5)
    lse, (_, grad_keys) = kernels.similarity(k, q, upstream[:0], temperature=1.0)
    assert lse.shape == (0,)
    assert (grad_keys == 0).all()
    one = (q[:1], None, upstream[:1])
    lse, (grad_queries,) = kernels.similarity(*one, temperature=1.0)
    assert (lse == -math.inf).all()
    assert (grad_queries == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_columns_split_among_blocks(dtype):
    n, m = 20, 300
    q, k = matrices(n, m, 24, dtype)
    check_law(q, k, **options("closed mixed self", n, m), multiprocessors=9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_columns_split_among_blocks_where_rows_are_the_keys(dtype):
    n = 449  # up to 256 columns are not split
    q, _ = matrices(n, None, 24, dtype)
    arguments = options("closed mixed", n, n, symmetric=True)
    check_law(q, None, **arguments, multiprocessors=40)
    check_law(q, None, assume_normalized=True, deterministic=True, multiprocessors=40)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shared_limit", [kernels.H200_SHARED, SMALL_SHARED])
def test_depth_in_chunks(dtype, shared_limit):
    q, k = matrices(20, 70, 200, dtype)
    check_law(q, k, shared_limit=shared_limit)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("names", ["", "number", "own"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_unit_rows_need_no_shift(dtype, names, deterministic):
    """On and above the diagonal, if the order of additions may vary."""
    q, _ = matrices(150, None, 16, dtype)
    chosen = options(names, 150, 150, symmetric=True)
    check_law(q, None, **chosen, assume_normalized=True, deterministic=deterministic)


@pytest.mark.parametrize(
    ("dtype", "depth"),
    [
        (torch.bfloat16, 128),
        (torch.float16, 128),
        (torch.float32, 128),
        (torch.bfloat16, 24),
        (torch.float32, 24),
        (torch.float32, 140),
    ],
    ids=str,
)
@pytest.mark.parametrize("names", ["", "closed mixed"])
def test_unit_rows_with_biases(dtype, depth, names):
    """Depth 128 has kernels of its own."""
    q, k = matrices(70, 150, depth, dtype)
    chosen = options(names and names + " self", 70, 150)
    check_law(q, k, **chosen, assume_normalized=True)
    chosen = options(names, 150, 150, symmetric=True)
    check_law(k, None, **chosen, assume_normalized=True)


@pytest.mark.parametrize("vector", ["key_bias", "same_label_bias"])
@pytest.mark.parametrize("value", [40.0, -40.0])
@pytest.mark.parametrize("symmetric", [False, True])
def test_biases_that_are_not_bounded(vector, value, symmetric):
    q, k = matrices(70, 90, 128, torch.bfloat16)
    chosen = options("closed mixed", 70, 70 if symmetric else 90, symmetric)
    chosen[vector][3] = value
    check_law(q, None if symmetric else k, **chosen, assume_normalized=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("side", ["query_labels", "key_labels"])
def test_labels_of_more_than_31_bits(dtype, side):
    """Bounded numbers are met with 32 bits of a label; here these are not enough."""
    q, k = matrices(70, 90, 128, dtype)
    chosen = options("closed mixed", 70, 90)
    chosen[side][5:40] += 2**32
    check_law(q, k, **chosen, assume_normalized=True)


@pytest.mark.parametrize("deterministic", [False, True])
def test_labels_of_more_than_31_bits_among_themselves(deterministic):
    q, _ = matrices(150, None, 128, torch.bfloat16)
    chosen = options("closed mixed", 150, 150, symmetric=True)
    chosen["query_labels"][5:40] += 2**32
    check_law(q, None, **chosen, assume_normalized=True, deterministic=deterministic)


@pytest.mark.parametrize("length", [30.0, 1e20])
def test_a_row_against_itself_does_not_count_if_it_is_long(length):
    """With 1e20, the dot product that the diagonal leaves out is infinite."""
    q, _ = matrices(150, None, 128, torch.bfloat16)
    q[70] = 0
    q[70, 0] = length
    q[:70, 0] = q[71:, 0] = 0
    check_law(q, None, assume_normalized=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_last_wave_of_blocks_splits_its_columns(dtype):
    rows = 64 if dtype == torch.float32 else 128
    n, m = 4 * rows + 9, 300  # two blocks at a time
    q, k = matrices(n, m, 16, dtype)
    check_law(q, k, **options("closed mixed self", n, m), multiprocessors=1)
    check_law(q, None, assume_normalized=True, multiprocessors=1)


@pytest.mark.parametrize("temperature", [1e-3, 0.05, 1e4])
@pytest.mark.parametrize("length", [0.01, 30.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_temperature_and_row_length(temperature, length, dtype):
    q, k = matrices(20, 40, 24, dtype, length)
    check_law(q, k, temperature=temperature, **options("closed number", 20, 40))


@pytest.mark.parametrize("need_queries", [True, False])
@pytest.mark.parametrize("need_keys", [True, False])
def test_only_what_is_asked_for(need_queries, need_keys):
    q, k = matrices(20, 30, 16, torch.bfloat16)
    check_law(q, k, need_queries=need_queries, need_keys=need_keys)


def test_tf32_where_it_is_allowed():
    q, k = matrices(40, 50, 32, torch.float32)
    upstream = torch.ones(40)
    exact, _ = run(dense, q.double(), k.double(), upstream, temperature=0.1)
    lse, _ = kernels.similarity(q, k, upstream, temperature=0.1)
    fast, _ = kernels.similarity(q, k, upstream, temperature=0.1, allow_tf32=True)
    assert (lse - exact).abs().max() < 2e-6
    assert 2e-6 < (fast - exact).abs().max() < 2e-3


def test_float16_keeps_weights_below_its_range():
    """Weights near 4e-8, which is below float16, of gradients that are not."""
    n, m = 16, 256
    q, k = matrices(n, m, 8, torch.float64)
    q, k = (q / 1000).half(), (k * 200).half()
    upstream = torch.full((n,), 1e-5)
    alone = {"temperature": 0.1, "need_keys": False}
    _, (gradient,) = kernels.similarity(q, k, upstream, **alone)
    _, (exact, _) = run(dense, q.double(), k.double(), upstream, temperature=0.1)
    assert (gradient.double() - exact).norm() < 1e-3 * exact.norm()


def test_bits_do_not_depend_on_the_order_of_blocks():
    q, k = matrices(150, 300, 16, torch.bfloat16)
    upstream = torch.randn(150)
    for keys, words in ((k, {}), (None, {"assume_normalized": True})):
        words |= {"temperature": 0.1, "deterministic": True}
        first, second = (
            kernels.similarity(q, keys, upstream, seed=seed, **words) for seed in (1, 2)
        )
        assert torch.equal(first[0], second[0])
        assert all(map(torch.equal, first[1], second[1]))


SANITIZED = {
    "everything-bf16": (torch.bfloat16, 20, 70, 24, "closed mixed self", {}),
    "everything-fp32": (torch.float32, 20, 40, 9, "closed mixed self", {}),
    "narrow-fp16": (torch.float16, 20, 70, 24, "", {}),
    "triangle-bf16": (torch.bfloat16, 150, None, 16, "", {"assume_normalized": True}),
    "rows-in-registers": (
        torch.bfloat16,
        150,
        None,
        128,
        "",
        {"assume_normalized": True},
    ),
    "bounded-bf16": (
        torch.bfloat16,
        150,
        None,
        128,
        "closed mixed",
        {"assume_normalized": True},
    ),
    "splits-bf16": (torch.bfloat16, 9, 300, 16, "", {"multiprocessors": 2}),
    "pairs-fp32": (
        torch.float32,
        70,
        None,
        128,
        "closed mixed",
        {"assume_normalized": True},
    ),
    "chunks-one-stage": (torch.bfloat16, 9, 70, 131, "", {"shared_limit": 99 * 1024}),
    "chunks-two-stages": (torch.bfloat16, 9, 70, 136, "", {}),
    "fp64": (torch.float64, 9, 140, 5, "closed mixed self", {}),
}


@pytest.mark.parametrize("variant", ["address", "thread"])
@pytest.mark.parametrize("case", kernels.first_quick(SANITIZED))
def test_under_sanitizers(case, variant):
    dtype, n, m, depth, names, execution = SANITIZED[case]
    q, k = matrices(n, m, depth, dtype)
    keys = n if m is None else m
    chosen = options(names, n, keys, symmetric=m is None)
    check_law(q, k, **chosen, **execution, variant=variant)
