"""The prototypical loss in one operation, against the loss written out."""

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
from python_tests.settings import assert_same_bits, deterministic
from s3h_ext.losses import prototypical_supcon_loss
from s3h_ext.ops import prototypical_contrastive

CLASSES = 7


def draw(n, depth=9, classes=CLASSES, per_class=1, dtype=torch.float32, seed=0):
    """Unit rows, prototypes, and labels of which some are no class."""
    generator = torch.Generator().manual_seed(seed + n)
    z = torch.randn(n, depth, generator=generator, dtype=torch.float64)
    p = torch.randn(classes, per_class, depth, generator=generator, dtype=torch.float64)
    labels = torch.randint(-1, classes, (n,), generator=generator)
    if n > 2:
        labels[0], labels[2] = 1 << 40, classes
    if per_class == 1:
        p = p[:, 0]
    return F.normalize(z, dim=1).to(dtype), F.normalize(p, dim=-1).to(dtype), labels


def dense(z, prototypes, labels, *, temperature, reduction="mean"):
    """The formula, from all scores."""
    if prototypes.ndim == 2:
        prototypes = prototypes[:, None]
    classes = prototypes.shape[0]
    scores = torch.einsum("nd,ckd->nck", z, prototypes) / temperature
    known = (labels >= 0) & (labels < classes)
    own = F.one_hot(torch.where(known, labels, 0), max(1, classes))[:, :classes].bool()
    counted = known & (classes > 1) & (prototypes.shape[1] > 0)
    if not counted.any():
        zero = (z.sum() + prototypes.sum()) * 0
        loss = zero.expand(len(z)) if reduction == "none" else zero
        return loss, counted.sum()
    masked = scores.masked_fill(own[:, :, None], -math.inf)[counted]
    others = masked.flatten(1).logsumexp(dim=1)
    mine = scores[counted, labels[counted]].logsumexp(dim=1)
    losses = z.new_zeros(len(z)).index_put((counted.nonzero()[:, 0],), others - mine)
    total = {"none": losses, "sum": losses.sum(), "mean": losses.sum() / counted.sum()}
    return total[reduction], counted.sum()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("temperature", [0.005, 0.1, 5.0])
@pytest.mark.parametrize("per_class", [1, 3])
@pytest.mark.parametrize(
    ("n", "depth", "classes"), [(1, 3, 2), (64, 16, 7), (301, 33, 100), (200, 128, 40)]
)
def test_error_is_that_of_plain_pytorch(
    n, depth, classes, per_class, temperature, reduction
):
    given = draw(n, depth, classes, per_class)
    options = {"temperature": temperature, "reduction": reduction}
    check_errors(prototypical_contrastive, dense, *given, **options)


@pytest.mark.parametrize("norm", [10.0, 1000.0])
def test_long_rows(norm):
    z, *others = draw(100, 32, 20)
    options = {"temperature": 0.1, "reduction": "none"}
    check_errors(prototypical_contrastive, dense, z * norm, *others, **options)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("per_class", [0, 1, 2])
@pytest.mark.parametrize("classes", [0, 1, 2])
@pytest.mark.parametrize("n", [0, 1, 5])
def test_few_rows_and_classes(n, classes, per_class, reduction):
    z, p, labels = draw(n, 4, max(1, classes), per_class)
    p = p[:classes]
    options = {"temperature": 0.1, "reduction": reduction}
    torch.testing.assert_close(
        run(prototypical_contrastive, z, p, labels, **options),
        run(dense, z, p, labels, **options),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(dtype):
    check_sixteen_bits(prototypical_contrastive, dense, *draw(150, 40, dtype=dtype))


@pytest.mark.parametrize("per_class", [1, 3])
def test_the_loss_of_float64_is_the_same(per_class):
    """The loss function composes it there, as it does on other devices."""
    z, p, labels = draw(60, 16, per_class=per_class)
    labels = torch.where(labels < CLASSES, labels, -1)

    def loss(z, p, labels, **options):
        value, stats = prototypical_supcon_loss(
            z, labels, p, return_stats=True, **options
        )
        return value, stats.counted

    for reduction in REDUCTIONS:
        options = {"temperature": 0.1, "reduction": reduction}
        wide = run(loss, z.double(), p.double(), labels, **options)
        ours = run(loss, z, p, labels, **options)
        assert ours[1] == wide[1]
        for place in (0, 2, 3):
            torch.testing.assert_close(
                ours[place].double(), wide[place], rtol=1e-5, atol=2e-6
            )


@pytest.mark.parametrize("needed", [(True, False), (False, True)])
def test_one_gradient_alone(needed):
    z, p, labels = draw(50)
    both = run(prototypical_contrastive, z, p, labels, temperature=0.1)[2:]
    for tensor, need in zip((z, p), needed, strict=True):
        tensor.requires_grad_(need)
    loss, _ = prototypical_contrastive(z, p, labels, temperature=0.1)
    (-loss).backward()  # the weight of a single element is -1 in run
    for tensor, need, right in zip((z, p), needed, both, strict=True):
        assert (tensor.grad is not None) == need
        if need:
            torch.testing.assert_close(tensor.grad, right)


def test_bad_values_are_seen_where_they_count():
    z, p, labels = draw(20)
    labels[5] = -1
    z[5, 0] = z[7, 1] = math.nan
    labels[7] = 3
    losses, _ = prototypical_contrastive(
        z, p, labels, temperature=0.1, reduction="none"
    )
    assert losses.isnan().nonzero().tolist() == [[7]]
    wide, _ = prototypical_supcon_loss(
        z.double(),
        labels.clamp(max=CLASSES - 1),
        p.double(),
        temperature=0.1,
        reduction="none",
        return_stats=True,
    )
    assert wide.isnan().nonzero().tolist() == [[7]]


def test_weights_that_would_be_denormal_are_none():
    """Rows at their prototypes, opposite ones far away: no slow numbers come out."""
    z = torch.eye(2, 64)[:1].repeat(400, 1)
    p, labels = torch.cat([z[:1], -z[:1]]), torch.arange(400) % 2
    smallest = torch.finfo(torch.float32).tiny
    for temperature in (0.0225, 0.0215, 0.0112, 0.01):
        options = {"temperature": temperature, "reduction": "none"}
        for grad in run(prototypical_contrastive, z, p, labels, **options)[2:]:
            assert grad.isfinite().all()
            assert ((grad == 0) | (grad.abs() >= smallest)).all()


@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_same_bits(wanted, reduction):
    given = draw(301, 40, 150)
    options = {"temperature": 0.1, "reduction": reduction}
    with deterministic(wanted):
        assert_same_bits(
            lambda: run(prototypical_contrastive, *given, **options),
            (1, 2, 3, 5) if wanted else (2, 2, 2),
        )


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("reduction", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype, reduction, keep):
    z, p, labels = draw(9, 4, 3, 2, dtype=dtype)
    settings = (0.1, reduction, False, keep)
    operators = torch.ops.s3h
    leaves = (z.requires_grad_(), p.requires_grad_())
    check_op(operators.prototypical, (*leaves, labels, *settings), keep)
    given = (z.detach(), p.detach(), labels, *settings)
    loss, _, lse, scores = operators.prototypical(*given)
    torch.library.opcheck(
        operators.prototypical_backward.default,
        (torch.ones_like(loss), lse, scores, True, False, *given),
    )


def test_autocast_meets_in_the_wider_type():
    z, p, labels = draw(40)
    plain = run(prototypical_contrastive, z, p, labels, temperature=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = run(prototypical_contrastive, z, p, labels, temperature=0.1)
        loss, _ = prototypical_contrastive(z.bfloat16(), p, labels, temperature=0.1)
    assert all(map(torch.equal, mixed, plain))
    torch.testing.assert_close(loss, plain[0], rtol=0.05, atol=0.05)


Z, P, Y = torch.zeros(4, 3), torch.zeros(2, 3), torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"features": Z[0]}, ValueError, r"features must be \[N, D\]"),
        ({"features": Y[:, None]}, TypeError, "features must be float32"),
        ({"features": Z.double()}, TypeError, "must be float32, bfloat16 or float16"),
        ({"prototypes": P.half()}, TypeError, "both the same"),
        ({"prototypes": P[:, :2]}, ValueError, r"prototypes must be \[C, 3\]"),
        ({"prototypes": P[0]}, ValueError, r"prototypes must be \[C, 3\]"),
        ({"features": Z.to("meta")}, ValueError, "features must be on the CPU"),
        ({"prototypes": P.to("meta")}, ValueError, "prototypes must be on the CPU"),
        ({"labels": Y[:2]}, ValueError, r"labels must have shape \(4,\)"),
        ({"labels": Z[:, 0]}, TypeError, "labels must be integers"),
        ({"temperature": 0}, ValueError, "temperature must be finite and above 0"),
        ({"reduction": "avg"}, ValueError, "reduction must be"),
    ],
)
def test_bad_input(change, error, message):
    arguments = {"features": Z, "prototypes": P, "labels": Y, "temperature": 0.1}
    with pytest.raises(error, match=message):
        prototypical_contrastive(**(arguments | change))


def test_the_op_itself_checks_what_memory_safety_needs():
    forward = torch.ops.s3h.prototypical
    backward = torch.ops.s3h.prototypical_backward
    settings = (0.1, 1, False, False)
    loss, _, lse, scores = forward(Z, P, Y, *settings)
    given = (True, True, Z, P, Y, *settings)
    for op, arguments, message in (
        (forward, (Z, P, Y[:2], *settings), "labels must have 4 elements"),
        (forward, (Z, P[:, :2], Y, *settings), "prototypes must be"),
        (forward, (Z, P, Y, 0.1, 3, False, False), "reduction must be 0"),
        (forward, (Z.double(), P.double(), Y, *settings), "must be of 32 or 16 bits"),
        (backward, (Z[:, 0], lse, scores, *given), "grad must have the loss's elem"),
        (backward, (loss, lse[:, 1:], scores, *given), "lse must be"),
        (backward, (loss, lse, torch.zeros(3), *given), "scores must have 0 elements"),
    ):
        with pytest.raises(RuntimeError, match=message):
            op(*arguments)
