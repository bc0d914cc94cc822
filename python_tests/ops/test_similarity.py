"""The similarity operation against its oracle; test_similarity_cuda.py has more."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from python_tests.settings import every_type
from s3h_ext.ops import similarity_logsumexp
from s3h_ext.ops.reference import similarity_logsumexp_dense as dense

NAN, INF = math.nan, math.inf


def matrices(n, m, depth, dtype=torch.float32, unit=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(n, depth, generator=generator, dtype=torch.float64)
    k = torch.randn(m, depth, generator=generator, dtype=torch.float64)
    if unit:
        q, k = F.normalize(q, dim=1), F.normalize(k, dim=1)
    return q.to(dtype), k.to(dtype)


def options(name, n, m, symmetric=False):
    """Returns one combination of the optional arguments, by names.

    bias, closed, shut: of keys, of which none, some or all have -inf; label, mixed,
    own, number: of equal labels, of rows, some or all -inf, or one number; self.
    """
    generator = torch.Generator().manual_seed(n * 1000 + m)

    def labels(size):
        return torch.randint(-1, 4, (size,), generator=generator)

    bias = torch.randn(m, generator=generator)
    rows = torch.randn(n, generator=generator)
    some, mixed = torch.where(bias > 0.5, -INF, bias), rows.clone()
    mixed[::3] = -INF
    of_keys = {"bias": bias, "closed": some, "shut": torch.full((m,), -INF)}
    of_pairs = {"label": rows, "mixed": mixed, "own": -INF, "number": 0.7}
    found = {}
    for part in of_keys.keys() & set(re.split("[ -]", name)):
        found["key_bias"] = of_keys[part]
    for part in of_pairs.keys() & set(re.split("[ -]", name)):
        found |= {"query_labels": labels(n), "same_label_bias": of_pairs[part]}
        found |= {} if symmetric else {"key_labels": labels(m)}
    if "self" in name and not symmetric:
        found["self_index"] = torch.randint(-3, m + 3, (n,), generator=generator)
    return found


Q, K = torch.randn(4, 3), torch.randn(5, 3)
OPTIONS = ["plain", "bias", "closed", "label", "own", "self", "bias-label-self"]
SIZES = [(1, 1, 1), (3, 5, 2), (17, 33, 7), (70, 130, 16), (200, 97, 33), (49, 65, 128)]


def op_arguments(n, m, depth, name="plain", symmetric=False, dtype=torch.float32, **to):
    """The operator's own arguments but for keep_scores."""
    q, k = matrices(n, m, depth, dtype)
    found = options(name, n, n if symmetric else m, symmetric)
    bias = found.pop("same_label_bias", 0.0)
    tensor, value = (bias, 0.0) if isinstance(bias, Tensor) else (None, bias)
    names = ("key_bias", "query_labels", "key_labels")
    places = (*map(found.get, names), tensor, value, found.get("self_index"))
    places = [t.to(**to) if isinstance(t, Tensor) else t for t in places]
    leaves = [q.to(**to).requires_grad_()]
    leaves.append(None if symmetric else k.to(**to).requires_grad_())
    return (*leaves, 0.1, *places, False, False, False)


def detached(arguments):
    return [a.detach() if isinstance(a, Tensor) else a for a in arguments]


def run(function, q, k, upstream, **kwargs):
    """Returns (lse, gradients of q and, where given, of k)."""
    q = q.detach().requires_grad_()
    leaves = [q] if k is None else [q, k.detach().requires_grad_()]
    lse = function(leaves[0], None if k is None else leaves[1], **kwargs)
    grads = torch.autograd.grad(lse, leaves, upstream.to(lse))
    return lse.detach(), list(grads)


def assert_lawful(ours, plain, exact, factor, floor, what):
    """The law: our error is at most ``factor`` times that of plain PyTorch."""
    finite = exact.isfinite()
    torch.testing.assert_close(ours.double()[~finite], exact[~finite], equal_nan=True)
    mine = (ours.double() - exact)[finite]
    theirs = (plain.double() - exact)[finite]
    if mine.numel() == 0:
        return
    bound = factor * theirs.abs().max() + floor
    worst = int(mine.abs().argmax())
    assert mine.abs().max() <= bound, (
        f"{what}: error {mine.abs().max():.3g} at {worst} over bound {bound:.3g}"
    )
    norm = exact[finite].norm()
    assert mine.norm() <= factor * theirs.norm() + floor * (1 + norm), what


def widen(given, dtype=torch.float64):
    """Floating-point tensors of a dictionary in another type."""
    floating = {
        name: value.to(dtype)
        for name, value in given.items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }
    return given | floating


def check_law(q, k, op=similarity_logsumexp, **kwargs):
    upstream = torch.randn(q.shape[0], generator=torch.Generator().manual_seed(5))
    ours, our_grads = run(op, q, k, upstream, **kwargs)
    plain, plain_grads = run(dense, q, k, upstream, **kwargs)
    wide = widen({"q": q, "k": k, "upstream": upstream, **kwargs})
    exact, exact_grads = run(dense, **wide)
    floor = 1e-12 if q.dtype == torch.float64 else 2e-6
    assert_lawful(ours, plain, exact, 2, floor, "lse")
    sixteen = q.dtype in (torch.bfloat16, torch.float16)
    for name, mine, theirs, right in zip(
        ("grad queries", "grad keys"), our_grads, plain_grads, exact_grads, strict=False
    ):
        scale = float(right.abs().max()) if right.numel() else 0.0
        # A score is known to its own rounding only, which shifts its weight.
        known = torch.finfo(ours.dtype).eps * 2
        if exact.isfinite().any():
            known *= 1 + float(exact[exact.isfinite()].abs().max())
        grad_floor = ((2e-3 if sixteen else floor) + known) * max(1.0, scale)
        assert mine.dtype == q.dtype
        assert_lawful(mine, theirs, right, 3, grad_floor, name)
        if scale > 0:
            cosine = F.cosine_similarity(mine.double().ravel(), right.ravel(), dim=0)
            assert cosine > 1 - 1e-5 - known**2


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("size", SIZES, ids=str)
@every_type
def test_rectangular_matches_the_oracle(size, name, dtype):
    n, m, depth = size
    q, k = matrices(n, m, depth, dtype)
    check_law(q, k, temperature=0.1, **options(name, n, m))


@pytest.mark.parametrize("name", ["plain", "bias", "closed", "label", "bias-own"])
@pytest.mark.parametrize("size", [(2, 3), (31, 7), (130, 64), (301, 128), (100, 200)])
@every_type
def test_symmetric_matches_the_oracle(size, name, dtype):
    n, depth = size
    q, _ = matrices(n, 1, depth, dtype)
    check_law(q, None, temperature=0.1, **options(name, n, n, symmetric=True))


@pytest.mark.parametrize("depth", [1, 33, 64, 96, 127, 256, 512])
@pytest.mark.parametrize("symmetric", [True, False])
def test_every_depth(depth, symmetric):
    q, k = matrices(130, 77, depth)
    check_law(
        q,
        None if symmetric else k,
        temperature=0.1,
        **options("bias-label", 130, 130 if symmetric else 77, symmetric),
    )


@pytest.mark.parametrize("depth", [64, 128])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("upstream", "bound"), [("mean", 2e-3), ("signs", 2.5e-3)])
def test_bfloat16_gradient_is_as_good_as_its_type(depth, symmetric, upstream, bound):
    # Against the same rows in float64. Storing the result in bfloat16 costs 1.7e-3
    # of it; where upstream signs differ, terms that cancel leave more.
    q, k = matrices(1024, 1024, depth, torch.bfloat16)
    weights = torch.full((1024,), 1 / 1024)
    if upstream == "signs":
        weights = torch.randn(1024, generator=torch.Generator().manual_seed(3))
    keys = None if symmetric else k
    _, ours = run(similarity_logsumexp, q, keys, weights, temperature=0.1)
    wide = None if symmetric else k.double()
    _, exact = run(dense, q.double(), wide, weights.double(), temperature=0.1)
    for mine, right in zip(ours, exact, strict=True):
        assert (mine.double() - right).norm() <= bound * right.norm()


def test_duplicates_and_identical_rows():
    q = F.normalize(torch.ones(65, 9), dim=1)
    check_law(q, None, temperature=0.07)
    lse = similarity_logsumexp(q, temperature=0.07)
    torch.testing.assert_close(lse, torch.full((65,), 1 / 0.07 + math.log(64)))


def test_hand_computed():
    q = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    k = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 2.0]])
    lse = similarity_logsumexp(q, k, temperature=0.5)
    right = [
        math.log(math.exp(2) + math.exp(1) + 1),
        math.log(1 + math.exp(1) + math.exp(4)),
    ]
    torch.testing.assert_close(lse, torch.tensor(right))


@pytest.mark.parametrize("bias", [-80.0, -88.0, -90.0, -95.0])
def test_a_pair_far_above_its_row_that_is_excluded_has_no_gradient(bias):
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    keys = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    options = {
        "temperature": 0.1,
        "key_bias": torch.tensor([0.0, bias]),
        "query_labels": torch.tensor([0, 0, 0]),
        "key_labels": torch.tensor([0, 1]),
        "same_label_bias": -math.inf,
    }
    lse, (grad, _) = run(similarity_logsumexp, queries, keys, torch.ones(3), **options)
    # One key is left for each row.
    torch.testing.assert_close(grad, (keys[1:] / 0.1).expand(3, 2))
    torch.testing.assert_close(lse, queries @ keys[1] / 0.1 + bias)


def test_negative_labels_equal_nothing():
    q, k = matrices(6, 5, 8)
    lse = similarity_logsumexp(
        q,
        k,
        temperature=0.1,
        query_labels=torch.full((6,), -1),
        key_labels=torch.full((5,), -1),
        same_label_bias=-INF,
    )
    torch.testing.assert_close(lse, similarity_logsumexp(q, k, temperature=0.1))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_label_types(dtype):
    q, k = matrices(9, 8, 5)
    yq, yk = torch.arange(9) % 3, torch.arange(8) % 3
    kwargs = {"temperature": 0.2, "same_label_bias": 0.7}
    torch.testing.assert_close(
        similarity_logsumexp(
            q, k, query_labels=yq.to(dtype), key_labels=yk.to(dtype), **kwargs
        ),
        similarity_logsumexp(q, k, query_labels=yq, key_labels=yk, **kwargs),
    )


@pytest.mark.parametrize("temperature", [0.1, 0.01])
def test_sums_of_many_equal_terms_keep_their_digits(temperature):
    # Every score is 1 / temperature: the fast form, and the exact one.
    z = F.normalize(torch.ones(4096, 8), dim=1)
    exact = dense(z[:1].double(), z.double(), temperature=temperature)
    exact = exact + math.log(4095 / 4096)  # a row does not see itself
    plain = (z[:1] @ z[1:].T / temperature).logsumexp(1)
    floor = 4e-6 + 2 * (plain - exact).abs().item()
    for lse in (
        similarity_logsumexp(z, temperature=temperature),
        similarity_logsumexp(z, z[1:], temperature=temperature),
    ):
        assert (lse.double() - exact).abs().max() < floor


def test_a_nan_hides_no_large_value_from_the_range():
    # Scores of some 300, which only the exact form can take, on both sides of a NaN
    # within a panel and of panels with one: at temperature 0.1, 5.5^2 / 0.1.
    q, k = matrices(300, 40, 8, torch.float64)
    scale = torch.ones(300, 1, dtype=torch.float64)
    scale[:4] = scale[-4:] = 30
    q *= scale
    upstream = torch.randn(300, dtype=torch.float64)
    exact = run(dense, q, k, upstream, temperature=0.1)
    for spoiled in ([1], [1, 100, 200]):
        q32 = q.float()
        q32[spoiled] = NAN
        lse, grads = run(
            similarity_logsumexp, q32, k.float(), upstream, temperature=0.1
        )
        sound = torch.ones(300, dtype=torch.bool)
        sound[spoiled] = False
        assert lse[spoiled].isnan().all()
        torch.testing.assert_close(
            lse[sound].double(), exact[0][sound], rtol=1e-5, atol=1e-4
        )
        torch.testing.assert_close(
            grads[0][sound].double(), exact[1][0][sound], rtol=1e-4, atol=1e-4
        )


def test_a_nan_among_biases_hides_no_large_one():
    q, k = matrices(3, 4, 8)
    labels = torch.zeros(3, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)
    found, plain = (
        function(
            q,
            k,
            temperature=1.0,
            query_labels=labels[0],
            key_labels=labels[1],
            same_label_bias=torch.tensor([200.0, NAN, 0.0]),
        )
        for function in (similarity_logsumexp, dense)
    )
    torch.testing.assert_close(found, plain, equal_nan=True)


def test_forward_mode_is_refused():
    def lse(z):
        return similarity_logsumexp(z, temperature=0.1)

    with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        torch.func.jvp(lse, (Q,), (Q,))
    with forward_ad.dual_level():
        with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
            lse(forward_ad.make_dual(Q, Q))
        lse(Q)


def test_shapes_without_data():
    assert similarity_logsumexp(Q.to("meta"), K.to("meta"), temperature=0.1).shape == (
        len(Q),
    )
