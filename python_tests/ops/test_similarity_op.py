"""The similarity operation's citizenship in PyTorch."""

import pytest
import torch
from torch import Tensor

from python_tests.ops.test_similarity import INF, NAN, K, Q, matrices, options, run
from s3h_ext.ops import similarity_logsumexp
from s3h_ext.ops.plain import similarity as plain_forms
from s3h_ext.ops.reference import similarity_logsumexp_dense as dense


def op_arguments(
    n, m, depth, name="plain", symmetric=False, dtype=torch.float32, keep=False
):
    q, k = matrices(n, m, depth, dtype)
    found = options(name, n, n if symmetric else m, symmetric)
    bias = found.get("same_label_bias")
    tensor = isinstance(bias, Tensor)
    return (
        q.requires_grad_(),
        None if symmetric else k.requires_grad_(),
        0.1,
        found.get("key_bias"),
        found.get("query_labels"),
        found.get("key_labels"),
        bias if tensor else None,
        0.0 if tensor or bias is None else bias,
        found.get("self_index"),
        False,
        False,
        False,
        keep,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        (9, 7, 5),
        (9, 7, 5, "bias-label-self"),
        (9, 9, 5, "label", True),
        (9, 7, 5, "own", False, torch.float64),
        (9, 7, 5, "plain", False, torch.bfloat16),
        (9, 7, 5, "bias-label-self", False, torch.float32, True),
        (9, 9, 5, "label", True, torch.bfloat16, True),
    ],
    ids=str,
)
def test_opcheck(arguments):
    given = op_arguments(*arguments)
    checks = ["schema", "autograd_registration", "faketensor", "aot_dispatch_dynamic"]
    # What is kept is not written to its end: its shape alone can be compared.
    torch.library.opcheck(
        torch.ops.s3h.similarity_logsumexp.default,
        given,
        test_utils=[f"test_{name}" for name in (checks[:3] if given[-1] else checks)],
    )


@pytest.mark.parametrize("keep", [False, True])
def test_opcheck_backward(keep):
    forward = [
        a.detach() if isinstance(a, Tensor) else a
        for a in op_arguments(9, 7, 5, keep=keep)
    ]
    saved = torch.ops.s3h.similarity_logsumexp(*forward)
    torch.library.opcheck(
        torch.ops.s3h.similarity_logsumexp_backward.default,
        (torch.randn(9), *saved, True, False, *forward),
    )


@pytest.mark.parametrize("symmetric", [True, False])
def test_compile_full_graph(symmetric):
    @torch.compile(fullgraph=True, backend="aot_eager")
    def loss(q, k):
        return similarity_logsumexp(q, None if symmetric else k, temperature=0.1).mean()

    q, k = (t.requires_grad_() for t in matrices(20, 12, 8))
    value = loss(q, k)
    value.backward()
    plain, (right, *_) = run(
        dense, q, None if symmetric else k, torch.full((20,), 1 / 20), temperature=0.1
    )
    torch.testing.assert_close(value, plain.mean())
    torch.testing.assert_close(q.grad, right)


def test_autocast_meets_in_the_wider_type():
    q, k = matrices(20, 12, 8)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = similarity_logsumexp(q.bfloat16(), k, temperature=0.1)
        wide = similarity_logsumexp(q, k, temperature=0.1)
    assert mixed.dtype == wide.dtype == torch.float32
    torch.testing.assert_close(
        mixed, similarity_logsumexp(q.bfloat16().float(), k, temperature=0.1)
    )
    torch.testing.assert_close(wide, similarity_logsumexp(q, k, temperature=0.1))


@pytest.mark.parametrize("symmetric", [True, False])
def test_same_bits_every_time(symmetric):
    q, k = matrices(500, 300, 48)
    upstream = torch.randn(500)
    results = [
        run(
            similarity_logsumexp, q, None if symmetric else k, upstream, temperature=0.1
        )
        for _ in range(5)
    ]
    for lse, grads in results[1:]:
        assert torch.equal(lse, results[0][0])
        assert all(map(torch.equal, grads, results[0][1]))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_deterministic_mode_does_not_depend_on_threads(symmetric, dtype):
    q, k = matrices(301, 170, 20, dtype)
    upstream = torch.randn(301)
    before = torch.get_num_threads()
    torch.use_deterministic_algorithms(True)
    try:
        results = []
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            results.append(
                run(
                    similarity_logsumexp,
                    q,
                    None if symmetric else k,
                    upstream,
                    temperature=0.1,
                )
            )
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(before)
    for lse, grads in results[1:]:
        assert torch.equal(lse, results[0][0])
        assert all(map(torch.equal, grads, results[0][1]))


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_chunked_form_is_not_rounded_under_autocast(symmetric):
    q, k = matrices(20, 12, 8)
    arguments = (q, None if symmetric else k, 0.1, None, None, None, None, 0.0, None)
    saved = plain_forms.similarity_logsumexp(*arguments)
    backward = plain_forms.similarity_logsumexp_backward
    grads = backward(torch.ones(20), *saved, True, True, *arguments)
    with torch.autocast("cpu", torch.bfloat16):
        again = plain_forms.similarity_logsumexp(*arguments)
        found = backward(torch.ones(20), *saved, True, True, *arguments)
    assert torch.equal(saved[0], again[0])
    assert all(map(torch.equal, grads, found))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", ["plain", "bias-label-self", "own"])
def test_chunked_form_equals_the_dense_one(symmetric, name, monkeypatch):
    monkeypatch.setattr(plain_forms, "_CHUNK_ELEMENTS", 64)
    q, k = matrices(20, 12, 8, torch.float64)
    found = options(name, 20, 20 if symmetric else 12, symmetric)
    keys = None if symmetric else k
    upstream = torch.randn(20, dtype=torch.float64)
    exact, grads = run(dense, q, keys, upstream, temperature=0.1, **found)
    bias = found.pop("same_label_bias", 0.0)
    tensor = bias if isinstance(bias, Tensor) else None
    value = 0.0 if tensor is not None else bias
    arguments = (
        q,
        keys,
        0.1,
        found.get("key_bias"),
        found.get("query_labels"),
        found.get("key_labels"),
        tensor,
        value,
        found.get("self_index"),
    )
    saved = plain_forms.similarity_logsumexp(*arguments)
    torch.testing.assert_close(saved[0], exact)
    gq, gk = plain_forms.similarity_logsumexp_backward(
        upstream, *saved, True, True, *arguments
    )
    torch.testing.assert_close(gq, grads[0])
    if not symmetric:
        torch.testing.assert_close(gk, grads[1])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"queries": torch.randn(4)}, ValueError, r"queries must be \[N, D\]"),
        (
            {"queries": torch.ones(4, 3, dtype=torch.int64)},
            TypeError,
            "queries must be float32",
        ),
        ({"keys": torch.randn(5, 4)}, ValueError, r"keys must be \[M, 3\]"),
        ({"keys": K.double()}, TypeError, "keys must have the queries' type"),
        ({"keys": K.to("meta")}, ValueError, "keys must be on cpu"),
        (
            {"temperature": 0.0},
            ValueError,
            "temperature must be finite and above 0, got 0.0",
        ),
        ({"temperature": -1.0}, ValueError, "temperature must be finite"),
        ({"temperature": NAN}, ValueError, "temperature must be finite"),
        ({"temperature": INF}, ValueError, "temperature must be finite"),
        ({"temperature": torch.tensor(0.1)}, TypeError, "temperature must be a number"),
        ({"key_bias": torch.zeros(4)}, ValueError, r"key_bias must have shape \(5,\)"),
        (
            {"key_bias": torch.zeros(5, dtype=torch.int64)},
            TypeError,
            "key_bias must be floating",
        ),
        (
            {"key_bias": torch.zeros(5, requires_grad=True)},
            ValueError,
            "must not require a gradient",
        ),
        (
            {"same_label_bias": torch.zeros(4, requires_grad=True)},
            ValueError,
            "must not require",
        ),
        ({"same_label_bias": NAN}, ValueError, "same_label_bias must be a number"),
        ({"same_label_bias": -INF}, ValueError, "same_label_bias needs query_labels"),
        ({"same_label_bias": torch.ones(4)}, ValueError, "needs query_labels"),
        (
            {"query_labels": torch.zeros(4, dtype=torch.int64)},
            ValueError,
            "given together",
        ),
        (
            {"query_labels": torch.zeros(4), "key_labels": torch.zeros(5)},
            TypeError,
            "integers",
        ),
        (
            {"self_index": torch.zeros(5, dtype=torch.int64)},
            ValueError,
            "self_index must have shape",
        ),
        (
            {"keys": None, "self_index": torch.zeros(4, dtype=torch.int64)},
            ValueError,
            "symmetric",
        ),
    ],
)
def test_bad_input(change, error, message):
    arguments = {"queries": Q, "keys": K, "temperature": 0.1} | change
    queries, keys = arguments.pop("queries"), arguments.pop("keys")
    with pytest.raises(error, match=message):
        similarity_logsumexp(queries, keys, **arguments)


def test_the_op_itself_checks_what_memory_safety_needs():
    op = torch.ops.s3h.similarity_logsumexp
    with pytest.raises(RuntimeError, match="key_bias must have 5 elements"):
        op(Q, K, 0.1, torch.zeros(3), *(None,) * 3, 0.0, None, *(False,) * 4)
    with pytest.raises(RuntimeError, match="keys must be"):
        op(Q, K[:, :2], 0.1, *(None,) * 4, 0.0, None, *(False,) * 4)
