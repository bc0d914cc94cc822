"""The similarity operation's citizenship in PyTorch."""

import pytest
import torch

from python_tests.ops.loss_ops import check_op
from python_tests.ops.test_similarity import (
    INF,
    NAN,
    K,
    Q,
    detached,
    matrices,
    op_arguments,
    options,
    run,
)
from python_tests.settings import assert_same_bits, deterministic, on_devices
from s3h_ext.ops import similarity_logsumexp
from s3h_ext.ops.plain import similarity as plain_forms
from s3h_ext.ops.reference import similarity_logsumexp_dense as dense


@on_devices
@pytest.mark.parametrize(
    "arguments",
    [
        (9, 7, 5),
        (9, 7, 5, "bias-label-self"),
        (9, 9, 5, "label", True),
        (9, 7, 5, "plain", False, torch.bfloat16),
        (9, 7, 5, "own", False, torch.float64),
    ],
    ids=str,
)
def test_opcheck(device, arguments):
    given = op_arguments(*arguments, device=device)
    kept = device == "cpu" and torch.float64 not in arguments
    for keep in {False, kept}:
        check_op(torch.ops.s3h.similarity_logsumexp, (*given, keep), keep)


@pytest.mark.parametrize("keep", [False, True])
def test_opcheck_backward(keep):
    forward = (*detached(op_arguments(9, 7, 5)), keep)
    saved = torch.ops.s3h.similarity_logsumexp(*forward)
    torch.library.opcheck(
        torch.ops.s3h.similarity_logsumexp_backward.default,
        (torch.randn(9), *saved, True, False, *forward),
    )


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_deterministic_mode_does_not_depend_on_threads(symmetric, dtype):
    q, k = matrices(301, 170, 20, dtype)
    upstream, keys = torch.randn(301), None if symmetric else k

    def step():
        lse, grads = run(similarity_logsumexp, q, keys, upstream, temperature=0.1)
        return lse, *grads

    with deterministic():
        assert_same_bits(step)


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_chunked_form_is_not_rounded_under_autocast(symmetric):
    arguments = detached(op_arguments(20, 20, 8, symmetric=symmetric))[:9]
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
    m, upstream = 20 if symmetric else 12, torch.randn(20, dtype=torch.float64)
    arguments = detached(op_arguments(20, m, 8, name, symmetric, torch.float64))[:9]
    found = options(name, 20, m, symmetric)
    exact, grads = run(dense, *arguments[:2], upstream, temperature=0.1, **found)
    saved = plain_forms.similarity_logsumexp(*arguments)
    torch.testing.assert_close(saved[0], exact)
    chunked = plain_forms.similarity_logsumexp_backward(
        upstream, *saved, True, True, *arguments
    )
    for ours, right in zip(chunked, grads, strict=not symmetric):
        torch.testing.assert_close(ours, right)


def whole(n):
    return torch.zeros(n, dtype=torch.int64)


LEARNED = {"requires_grad": True}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"queries": torch.randn(4)}, ValueError, r"queries must be \[N, D\]"),
        ({"queries": whole((4, 3))}, TypeError, "queries must be float32"),
        ({"keys": torch.randn(5, 4)}, ValueError, r"keys must be \[M, 3\]"),
        ({"keys": K.double()}, TypeError, "keys must have the queries' type"),
        ({"keys": K.to("meta")}, ValueError, "keys must be on cpu"),
        ({"temperature": 0.0}, ValueError, "temperature must be .* above 0, got 0.0"),
        ({"temperature": -1.0}, ValueError, "temperature must be finite"),
        ({"temperature": NAN}, ValueError, "temperature must be finite"),
        ({"temperature": INF}, ValueError, "temperature must be finite"),
        ({"temperature": torch.tensor(0.1)}, TypeError, "temperature must be a number"),
        ({"key_bias": torch.zeros(4)}, ValueError, r"key_bias must have shape \(5,\)"),
        ({"key_bias": whole(5)}, TypeError, "key_bias must be floating"),
        ({"key_bias": torch.zeros(5, **LEARNED)}, ValueError, "not require a gradient"),
        ({"same_label_bias": torch.zeros(4, **LEARNED)}, ValueError, "not require"),
        ({"same_label_bias": NAN}, ValueError, "same_label_bias must be a number"),
        ({"same_label_bias": -INF}, ValueError, "same_label_bias needs query_labels"),
        ({"same_label_bias": torch.ones(4)}, ValueError, "needs query_labels"),
        ({"query_labels": whole(4)}, ValueError, "given together"),
        ({"query_labels": Q[:, 0], "key_labels": K[:, 0]}, TypeError, "integers"),
        ({"self_index": whole(5)}, ValueError, "self_index must have shape"),
        ({"keys": None, "self_index": whole(4)}, ValueError, "symmetric"),
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
