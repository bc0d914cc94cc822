"""The supervised contrastive loss in one operation, against its oracle."""

import math

import pytest
import torch
import torch.nn.functional as F

from python_tests.ops.loss_ops import (
    REDUCTIONS,
    check_errors,
    check_op,
    check_sixteen_bits,
    run,
)
from python_tests.settings import assert_same_bits, deterministic, threads
from s3h_ext.ops import supervised_contrastive
from s3h_ext.ops.reference import supervised_contrastive_dense as dense


def draw(n, depth=9, classes=5, dtype=torch.float64, seed=0):
    """Unit rows, and labels of which some are -1, one is huge and one is alone."""
    generator = torch.Generator().manual_seed(seed + n)
    z = torch.randn(n, depth, generator=generator, dtype=torch.float64)
    labels = torch.randint(-1, classes, (n,), generator=generator)
    if n > 2:
        labels[0], labels[2] = 1 << 40, classes
    return F.normalize(z, dim=1).to(dtype), labels


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("num_classes", [None, 0, 3, 1000])
@pytest.mark.parametrize("n", [0, 1, 2, 50, 301])
def test_matches_the_oracle(n, num_classes, reduction):
    given = draw(n)
    options = {"num_classes": num_classes, "reduction": reduction}
    torch.testing.assert_close(
        run(supervised_contrastive, *given, temperature=0.1, **options),
        run(dense, *given, temperature=0.1, **options),
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("temperature", [0.005, 0.1, 5.0])
@pytest.mark.parametrize("size", [(64, 16), (301, 33), (200, 128)], ids=str)
def test_error_is_that_of_plain_pytorch(size, temperature, reduction):
    given = draw(*size, dtype=torch.float32)
    options = {"temperature": temperature, "reduction": reduction}
    check_errors(supervised_contrastive, dense, *given, **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(dtype):
    check_sixteen_bits(supervised_contrastive, dense, *draw(150, 40, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.int8, torch.uint8])
def test_label_types(dtype):
    z, labels = draw(30)
    labels = labels.clamp(0, 5)
    torch.testing.assert_close(
        supervised_contrastive(z, labels.to(dtype), temperature=0.1),
        supervised_contrastive(z, labels, temperature=0.1),
    )


def test_the_largest_label_is_a_class():
    z, _ = draw(60)
    labels = torch.full((60,), 2**63 - 1)
    torch.testing.assert_close(
        supervised_contrastive(z, labels, temperature=0.1),
        supervised_contrastive(z, torch.zeros_like(labels), temperature=0.1),
    )


def test_non_contiguous_inputs():
    z, labels = draw(40)
    strided = torch.stack([z, z], dim=2)[:, :, 0]
    twice = labels.repeat_interleave(2)[::2]
    assert not strided.is_contiguous()
    torch.testing.assert_close(
        run(supervised_contrastive, strided, twice, temperature=0.1),
        run(supervised_contrastive, z, labels, temperature=0.1),
    )


def test_bad_values_are_seen_where_they_count():
    z, labels = draw(20, classes=2)
    z[7, 1] = math.nan
    labels[5] = -1
    losses, _ = supervised_contrastive(z, labels, temperature=0.1, reduction="none")
    right, _ = dense(z, labels, temperature=0.1, reduction="none")
    assert torch.equal(losses.isnan(), right.isnan())
    assert losses[5] == 0


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck(reduction):
    z, labels = draw(9, 4, classes=2)
    options = {"temperature": 0.5, "reduction": reduction}
    assert torch.autograd.gradcheck(
        lambda z: supervised_contrastive(z, labels, **options)[0], z.requires_grad_()
    )


@pytest.mark.parametrize("reduction", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_opcheck(reduction, dtype):
    z, labels = draw(9, 4, classes=2, dtype=dtype)
    for keep in {False, dtype != torch.float64}:
        settings = (0.1, 3, reduction, False, False, keep)
        given = (z.detach(), labels, *settings)
        check_op(torch.ops.s3h.supcon, (z.requires_grad_(), *given[1:]), keep)
        loss, _, lse, scores = torch.ops.s3h.supcon(*given)
        upstream = torch.ones_like(loss)
        check_op(torch.ops.s3h.supcon_backward, (upstream, lse, scores, *given))


def test_only_the_loss_has_a_gradient():
    z, labels = draw(9)
    loss, counted, lse, scores = torch.ops.s3h.supcon(
        z.float().requires_grad_(), labels, 0.1, -1, 1, False, False, True
    )
    assert scores.numel() > 0
    assert not scores.requires_grad
    assert loss.requires_grad
    assert not counted.requires_grad
    assert not lse.requires_grad


def test_autocast_leaves_it_alone():
    z, labels = draw(40, dtype=torch.float32)
    plain = run(supervised_contrastive, z, labels, temperature=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = run(supervised_contrastive, z, labels, temperature=0.1)
    assert all(map(torch.equal, mixed, plain))


@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_same_bits(wanted, reduction):
    given = draw(301, 40, dtype=torch.float32)
    options = {"temperature": 0.1, "reduction": reduction}
    with deterministic(wanted):
        assert_same_bits(
            lambda: run(supervised_contrastive, *given, **options),
            (1, 2, 3, 5) if wanted else (2, 2, 2),
        )


Z, Y = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"features": Z[0]}, ValueError, r"features must be \[N, D\]"),
        ({"features": Y[:, None]}, TypeError, "features must be float32"),
        (
            {"features": Z.to("meta")},
            ValueError,
            "features must be on the CPU, or on",
        ),
        ({"labels": Y[:2]}, ValueError, r"labels must have shape \(4,\)"),
        ({"labels": Z[:, 0]}, TypeError, "labels must be integers"),
        ({"temperature": 0}, ValueError, "temperature must be finite and above 0"),
        ({"num_classes": -1}, ValueError, "num_classes must not be negative"),
        ({"reduction": "avg"}, ValueError, "reduction must be"),
    ],
)
def test_bad_input(change, error, message):
    arguments = {"features": Z, "labels": Y, "temperature": 0.1} | change
    with pytest.raises(error, match=message):
        supervised_contrastive(**arguments)


def test_the_op_itself_checks_what_memory_safety_needs():
    forward, backward = torch.ops.s3h.supcon, torch.ops.s3h.supcon_backward
    given = (Z, Y, 0.1, -1, 1, False, False, False)
    kept = (*given[:-1], True)
    (_, _, lse, scores), none = forward(*kept), torch.empty(0)
    for op, arguments, message in (
        (forward, (Z, Y[:2], *given[2:]), "labels must have 4 elements"),
        (forward, (Z, Y, 0.1, -1, 3, False, False, False), "reduction must be 0"),
        (forward, (Z, Y, 0.1, -1, 1, True, False, True), "keep_scores is for sums"),
        (backward, (Z[:, 0], Z[:, 0], none, *given), "grad must have the loss's elem"),
        (backward, (Z[0, 0], Z[0], none, *given), "lse must have 4 elements"),
        (backward, (Z[0, 0], lse, scores[1:], *kept), "kept must have"),
    ):
        with pytest.raises(RuntimeError, match=message):
            op(*arguments)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize(("n", "depth"), [(600, 129), (1024, 128), (700, 65)])
def test_many_rows_over_threads(n, depth, count):
    z, labels = draw(n, depth)
    for reduction in ("mean", "none"):
        options = {"temperature": 0.1, "reduction": reduction}
        with threads(count):
            ours = run(supervised_contrastive, z.float(), labels, **options)
        right, number, expected = run(dense, z, labels, **options)
        assert ours[1] == number
        torch.testing.assert_close(ours[0].double(), right, rtol=1e-5, atol=1e-4)
        error = (ours[2].double() - expected).norm(dim=1)
        assert (error <= 1e-4 * expected.norm(dim=1).max()).all()
