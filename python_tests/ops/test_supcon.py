"""The supervised contrastive loss in one operation, against its oracle."""

import doctest
import math

import pytest
import torch
import torch.nn.functional as F

from s3h_ext.ops import supcon, supervised_contrastive
from s3h_ext.ops.reference import supervised_contrastive_dense as dense

REDUCTIONS = ["mean", "sum", "none"]
CHECKS = [
    f"test_{name}"
    for name in (
        "schema",
        "autograd_registration",
        "faketensor",
        "aot_dispatch_dynamic",
    )
]


def draw(n, depth=9, classes=5, dtype=torch.float64, seed=0):
    """Unit rows, and labels of which some are -1, one is huge and one is alone."""
    generator = torch.Generator().manual_seed(seed + n)
    z = torch.randn(n, depth, generator=generator, dtype=torch.float64)
    labels = torch.randint(-1, classes, (n,), generator=generator)
    if n > 2:
        labels[0], labels[2] = 1 << 40, classes
    return F.normalize(z, dim=1).to(dtype), labels


def run(function, z, labels, **options):
    z = z.detach().requires_grad_()
    loss, counted = function(z, labels, **options)
    weights = torch.linspace(-1, 2, loss.numel()).reshape(loss.shape)
    (grad,) = torch.autograd.grad((loss * weights.to(loss)).sum(), z)
    return loss.detach(), counted, grad


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("num_classes", [None, 0, 3, 1000])
@pytest.mark.parametrize("n", [0, 1, 2, 50, 301])
def test_matches_the_oracle(n, num_classes, reduction):
    z, labels = draw(n)
    options = {
        "temperature": 0.1,
        "num_classes": num_classes,
        "reduction": reduction,
    }
    torch.testing.assert_close(
        run(supervised_contrastive, z, labels, **options),
        run(dense, z, labels, **options),
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("temperature", [0.005, 0.1, 5.0])
@pytest.mark.parametrize("size", [(64, 16), (301, 33), (200, 128)], ids=str)
def test_error_is_that_of_plain_pytorch(size, temperature, reduction):
    z, labels = draw(*size, dtype=torch.float32)
    options = {"temperature": temperature, "reduction": reduction}
    exact = run(dense, z.double(), labels, **options)
    plain = run(dense, z, labels, **options)
    ours = run(supervised_contrastive, z, labels, **options)
    assert ours[1] == exact[1]
    for factor, mine, theirs, right in zip(
        (2, 3), ours[::2], plain[::2], exact[::2], strict=True
    ):
        error = (mine.double() - right).norm()
        known = 2e-6 * (1 + right.norm())
        assert error <= factor * (theirs.double() - right).norm() + known


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(dtype):
    z, labels = draw(150, 40, dtype=dtype)
    loss, counted, grad = run(supervised_contrastive, z, labels, temperature=0.1)
    right = run(dense, z.double(), labels, temperature=0.1)
    assert (loss.dtype, grad.dtype, counted) == (torch.float32, dtype, right[1])
    torch.testing.assert_close(loss.double(), right[0], rtol=1e-5, atol=1e-6)
    error = (grad.double() - right[2]).norm() / right[2].norm()
    assert error < (3e-3 if dtype == torch.bfloat16 else 3e-4)


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

    def loss(z):
        return supervised_contrastive(z, labels, temperature=0.5, reduction=reduction)[
            0
        ]

    assert torch.autograd.gradcheck(loss, (z.requires_grad_(),))


@pytest.mark.parametrize("reduction", [0, 1, 2])
@pytest.mark.parametrize(
    ("dtype", "keep"),
    [
        (torch.float32, False),
        (torch.float32, True),
        (torch.float64, False),
        (torch.bfloat16, True),
    ],
)
def test_opcheck(reduction, dtype, keep):
    z, labels = draw(9, 4, classes=2, dtype=dtype)
    settings = (0.1, 3, reduction, False, keep)
    torch.library.opcheck(
        torch.ops.s3h.supcon.default,
        (z.requires_grad_(), labels, *settings),
        # What is kept is not written to its end: its shape alone can be compared.
        test_utils=CHECKS[:3] if keep else CHECKS,
    )
    loss, _, lse, scores = torch.ops.s3h.supcon(z.detach(), labels, *settings)
    torch.library.opcheck(
        torch.ops.s3h.supcon_backward.default,
        (torch.ones_like(loss), lse, scores, z.detach(), labels, *settings),
    )


def test_only_the_loss_has_a_gradient():
    z, labels = draw(9)
    loss, counted, lse, scores = torch.ops.s3h.supcon(
        z.float().requires_grad_(), labels, 0.1, -1, 1, False, True
    )
    assert scores.numel() > 0
    assert not scores.requires_grad
    assert loss.requires_grad
    assert not counted.requires_grad
    assert not lse.requires_grad


def test_double_backward_is_refused():
    z, labels = draw(9)
    loss, _ = supervised_contrastive(z.requires_grad_(), labels, temperature=0.1)
    (grad,) = torch.autograd.grad(loss, z, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        grad.sum().backward()


def test_compile_full_graph():
    @torch.compile(fullgraph=True, backend="aot_eager")
    def loss(z):
        return supervised_contrastive(z, labels, temperature=0.1)[0] * 2

    z, labels = draw(20, dtype=torch.float32)
    loss(z.requires_grad_()).backward()
    right = run(supervised_contrastive, z, labels, temperature=0.1)[2]
    # The weight of a single element is -1 there.
    torch.testing.assert_close(z.grad, -2 * right)


def test_autocast_leaves_it_alone():
    z, labels = draw(40, dtype=torch.float32)
    plain = run(supervised_contrastive, z, labels, temperature=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = run(supervised_contrastive, z, labels, temperature=0.1)
    assert all(map(torch.equal, mixed, plain))


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_same_bits(deterministic, reduction):
    z, labels = draw(301, 40, dtype=torch.float32)
    before = torch.get_num_threads()
    torch.use_deterministic_algorithms(deterministic)
    try:
        results = []
        for threads in (1, 2, 3, 5) if deterministic else (2, 2, 2):
            torch.set_num_threads(threads)
            results.append(
                run(
                    supervised_contrastive,
                    z,
                    labels,
                    temperature=0.1,
                    reduction=reduction,
                )
            )
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


Z, Y = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"features": Z[0]}, ValueError, r"features must be \[N, D\]"),
        ({"features": Y[:, None]}, TypeError, "features must be float32"),
        ({"features": Z.to("meta")}, ValueError, "features must be on the CPU"),
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
    operators, none = torch.ops.s3h, torch.empty(0)
    with pytest.raises(RuntimeError, match="labels must have 4 elements"):
        operators.supcon(Z, Y[:2], 0.1, -1, 1, False, False)
    with pytest.raises(RuntimeError, match="reduction must be 0"):
        operators.supcon(Z, Y, 0.1, -1, 3, False, False)
    with pytest.raises(RuntimeError, match="grad must have the loss's elements"):
        operators.supcon_backward(
            Z[:, 0], Z[:, 0], none, Z, Y, 0.1, -1, 1, False, False
        )
    with pytest.raises(RuntimeError, match="lse must have 4 elements"):
        operators.supcon_backward(Z[0, 0], Z[0], none, Z, Y, 0.1, -1, 1, False, False)
    with pytest.raises(RuntimeError, match="keep_scores is for sums in float32"):
        operators.supcon(Z, Y, 0.1, -1, 1, True, True)
    _, _, lse, scores = operators.supcon(Z, Y, 0.1, -1, 1, False, True)
    with pytest.raises(RuntimeError, match="scores must have"):
        operators.supcon_backward(
            Z[0, 0], lse, scores[1:], Z, Y, 0.1, -1, 1, False, True
        )


def test_examples():
    assert doctest.testmod(supcon).failed == 0


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize(("n", "depth"), [(600, 129), (1024, 128), (700, 65)])
def test_many_rows_over_threads(n, depth, threads):
    z, labels = draw(n, depth)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for reduction in ("mean", "none"):
            options = {"temperature": 0.1, "reduction": reduction}
            loss, counted, grad = run(
                supervised_contrastive, z.float(), labels, **options
            )
            right, number, expected = run(dense, z, labels, **options)
            assert counted == number
            torch.testing.assert_close(loss.double(), right, rtol=1e-5, atol=1e-4)
            error = (grad.double() - expected).norm(dim=1)
            assert (error <= 1e-4 * expected.norm(dim=1).max()).all()
    finally:
        torch.set_num_threads(before)
