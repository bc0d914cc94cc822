"""ProCo against its formula, and its Bessel functions against mpmath."""

import math

import mpmath
import pytest
import torch
import torch.nn.functional as F

from python_tests.losses.law import assert_equal, unit
from s3h_ext.losses import ProCoLoss, proco_loss
from s3h_ext.ops.bessel import log_bessel

TAU, N, C = 0.1, 9, 4
COUNTS = torch.tensor([90, 40, 12, 3]).double()


def bessel(order, x):
    """log(I_v(x) / x^v) and I_{v+1}(x) / (x I_v(x)), to 40 digits."""
    with mpmath.workdps(40):
        order, x = mpmath.mpf(order), mpmath.mpf(x)
        if x == 0:
            log = -order * mpmath.log(2) - mpmath.loggamma(order + 1)
            return log, 1 / (2 * (order + 1))
        value = mpmath.besseli(order, x)
        log = mpmath.log(value) - order * mpmath.log(x)
        return log, mpmath.besseli(order + 1, x) / (x * value)


@pytest.mark.parametrize("dim", [1, 2, 3, 16, 63, 64, 66, 127, 128, 512, 2048])
def test_bessel_functions_to_the_last_digits(dim):
    order = dim / 2 - 1
    x = torch.tensor([0, 1e-9, 1e-3, 0.5, 3, 20, 63, 200, 1e3, 1e4, 1e5]).double()
    squares = x.square().requires_grad_()
    log = log_bessel(squares, order)
    (slope,) = torch.autograd.grad(log.sum(), squares)
    for place, square in enumerate(squares.tolist()):
        with mpmath.workdps(40):
            right, ratio = bessel(order, mpmath.sqrt(square))
        assert abs(log[place].item() - right) < 1e-14 * (2 + abs(right)) + 3e-14
        assert abs(2 * slope[place].item() - ratio) < 1e-13 * ratio


def test_bessel_functions_where_scipy_has_them():
    """``ive`` is 0 or inf outside of some range of x: there are mpmath's numbers."""
    special = pytest.importorskip("scipy.special")
    x = torch.logspace(-1, 5, 200, dtype=torch.float64)
    scaled = torch.from_numpy(special.ive(63.0, x.numpy()))
    right = scaled.log() + x - 63 * x.log()
    assert right.isfinite().all()
    torch.testing.assert_close(log_bessel(x.square(), 63.0), right, rtol=1e-12, atol=0)


@pytest.mark.parametrize("order", [-0.5, 0.0, 7.0, 31.5, 63.0, 300.0])
def test_the_derivative_of_the_bessel_function(order):
    squares = torch.tensor([0.1, 1.0, 30.0, 1e4], dtype=torch.float64)
    squares.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: log_bessel(s, order), squares)
    torch.library.opcheck(torch.ops.s3h.log_bessel, (squares, order))
    total = log_bessel(squares, order).sum()
    (slope,) = torch.autograd.grad(total, squares, create_graph=True)
    with pytest.raises(NotImplementedError, match="log_bessel has no second deriv"):
        slope.sum().backward()
    with pytest.raises(TypeError, match="squares must be float64, got torch.float32"):
        log_bessel(squares.float(), order)


class Ratio(torch.autograd.Function):
    """The released code's logarithm of a ratio, by mpmath in place of a recurrence."""

    @staticmethod
    def forward(ctx, kappa, dim):
        pairs = [bessel(dim / 2 - 1, k) for k in kappa.flatten().tolist()]
        ratios = [
            k * float(r) for k, (_, r) in zip(kappa.flatten(), pairs, strict=True)
        ]
        ctx.save_for_backward(torch.stack(ratios).reshape(kappa.shape))
        return kappa.new_tensor([float(log) for log, _ in pairs]).reshape(kappa.shape)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0], None


def released(z, labels, means, counts=COUNTS):
    """LeapLabTHU/ProCo: its logits, and then LogitAdjust's cross-entropy."""
    dim = z.shape[1]
    length = means.norm(dim=1)
    kappa = dim * length / (1 - length**2)
    kappa = torch.where((kappa > 1e5) | (kappa < 0), 1e5, kappa)
    shifted = (kappa[:, None] * F.normalize(means, dim=1))[None] + z[:, None] / TAU
    logits = Ratio.apply(shifted.norm(dim=2), dim) - Ratio.apply(kappa, dim)
    return F.cross_entropy(logits + (counts / counts.sum()).log(), labels)


def means_of_length(*lengths, dim):
    return unit(len(lengths), dim) * torch.tensor(lengths, dtype=torch.float64)[:, None]


@pytest.mark.parametrize("dim", [3, 16, 64, 128])
@pytest.mark.parametrize("lengths", [(0.9, 0.5, 0.05, 0.7), (1.0, 0.9999, 0.99, 1.1)])
def test_released_formula(dim, lengths):
    z, labels = unit(N, dim).requires_grad_(), torch.arange(N) % C
    means = means_of_length(*lengths, dim=dim)
    theirs = released(z, labels, means)
    ours = proco_loss(z, labels, means, COUNTS, temperature=TAU)
    assert_equal(ours, theirs, z, rtol=1e-9, atol=1e-9)


def test_the_expectation_that_the_paper_takes():
    """E exp(z.x/tau) over a class is the ratio of normalisers; here on the circle."""
    z, mean = unit(1, 2), means_of_length(0.6, dim=2)
    kappa = 2 * 0.6 / (1 - 0.6**2)
    angles = torch.linspace(0, 2 * math.pi, 20001, dtype=torch.float64)[:-1]
    keys = torch.stack([angles.cos(), angles.sin()], dim=1)
    density = (kappa * keys @ F.normalize(mean, dim=1)[0]).exp()
    log_mean = ((keys @ z[0] / TAU).exp() * density).sum().log() - density.sum().log()
    means = torch.cat([mean, torch.zeros(1, 2)])  # of length 0: uniform
    log_uniform = (keys @ z[0] / TAU).exp().mean().log()
    loss = proco_loss(z, torch.tensor([0]), means, torch.ones(2), temperature=TAU)
    expected = torch.logaddexp(log_mean, log_uniform) - log_mean
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reductions_and_rows_without_a_class(reduction):
    z, labels = unit(N, 8), torch.arange(N) % C
    labels[[1, 4]] = torch.tensor([-1, -100])
    means, kept = means_of_length(0.5, 0.6, 0.7, 0.8, dim=8), labels >= 0
    loss, stats = proco_loss(
        z, labels, means, COUNTS, reduction=reduction, return_stats=True
    )
    assert stats == (N - 2, 2)
    only = proco_loss(z[kept], labels[kept], means, COUNTS, reduction=reduction)
    torch.testing.assert_close(loss[kept] if reduction == "none" else loss, only)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_law_in_lower_precision(dtype):
    """Everything is calculated in float64: what is lost is the rounding of the result.

    By half an epsilon of the gradient's own elements, of the features' type.
    """
    z, labels = unit(32, 128).to(dtype), torch.arange(32) % C
    means = means_of_length(0.999, 0.9, 0.3, 1.0, dim=128)
    found, exact = z.clone().requires_grad_(), z.double().requires_grad_()
    ours = proco_loss(found, labels, means, COUNTS, reduction="none")
    right = proco_loss(exact, labels, means, COUNTS, reduction="none")
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, right.float(), rtol=2e-7, atol=1e-7)
    upstream = torch.linspace(-1, 2, 32)
    (mine,) = torch.autograd.grad(ours, found, upstream)
    (wide,) = torch.autograd.grad(right, exact, upstream.double())
    eps = torch.finfo(dtype).eps
    assert (mine.double() - wide).norm() <= (eps + 2e-7) * wide.norm()


def test_8142_classes_of_128_dimensions():
    """iNaturalist 2018: classes of one image, of concentration 1e5, and unseen ones."""
    classes, dim = 8142, 128
    length = torch.rand(classes, dtype=torch.float64)
    length[:100] = 1
    means = unit(classes, dim) * length[:, None]
    counts = torch.randint(2, 1000, (classes,))
    labels = torch.cat([torch.arange(8), torch.randint(0, classes, (8,))])
    z = F.normalize(means[labels] + 0.02 * torch.randn(16, dim), dim=1)
    z = z.requires_grad_()
    loss = proco_loss(z, labels, means, counts, temperature=0.07)
    (grad,) = torch.autograd.grad(loss, z)
    assert 0 < loss < 20
    assert grad.isfinite().all()
    step = 1e-6 * F.normalize(grad, dim=None)
    given = (labels, means, counts)
    above, below = (proco_loss(z + d, *given, temperature=0.07) for d in (step, -step))
    slope = (grad * step).sum()
    torch.testing.assert_close((above - below) / 2, slope, rtol=1e-6, atol=0)


class Estimates:
    """The released code's two estimators, with running means as it has them."""

    def __init__(self, unseen):
        self.unseen = unseen
        self.old, self.new = self.fresh(), self.fresh()

    def fresh(self):
        return [self.unseen.clone(), torch.zeros(len(self.unseen), dtype=torch.float64)]

    def begin_epoch(self):
        self.old, self.new = self.new, self.fresh()

    def update(self, z, labels):
        for means, amounts in (self.old, self.new):
            for c in labels.unique():
                rows = z[labels == c]
                share = len(rows) / (len(rows) + amounts[c])
                means[c] = means[c] * (1 - share) + rows.mean(0) * share
                amounts[c] += len(rows)


def test_the_estimates_are_those_of_the_released_code():
    loss_fn = ProCoLoss(COUNTS, dim=8, temperature=TAU)
    theirs = Estimates(loss_fn.unseen.clone())
    torch.testing.assert_close(
        loss_fn.unseen.norm(dim=1), torch.full((C,), 0.9).double()
    )
    for _ in range(3):
        loss_fn.begin_epoch()
        theirs.begin_epoch()
        for step in range(4):
            z, labels = unit(N, 8), torch.randint(0, 2 + step % 2, (N,))
            theirs.update(z, labels)
            expected = released(z.requires_grad_(), labels, theirs.old[0])
            assert_equal(loss_fn(z, labels), expected, z, rtol=1e-9, atol=1e-9)
    assert (theirs.old[1] == 0).any()  # an unseen class was among them


def test_a_resumed_run_goes_on_bit_for_bit():
    batches = [(unit(N, 8), torch.randint(-1, C, (N,))) for _ in range(6)]
    whole, found = ProCoLoss(COUNTS, dim=8), []
    for step, batch in enumerate(batches):
        if step in (0, 2, 4):
            whole.begin_epoch()
        if step == 3:
            saved = {name: value.clone() for name, value in whole.state_dict().items()}
        found.append(whole(*batch))
    resumed = ProCoLoss(COUNTS, dim=8)
    resumed.load_state_dict(saved)
    for step in (3, 4, 5):
        if step == 4:
            resumed.begin_epoch()
        assert torch.equal(resumed(*batches[step]), found[step])


def test_evaluation_leaves_the_estimates_alone():
    loss_fn = ProCoLoss(COUNTS, dim=8)
    loss_fn(unit(N, 8), torch.arange(N) % C)
    before = {name: value.clone() for name, value in loss_fn.state_dict().items()}
    loss_fn.eval()(unit(N, 8), torch.arange(N) % C)
    for name, value in loss_fn.state_dict().items():
        assert torch.equal(value, before[name])


def test_it_trains_where_it_is_compiled():
    torch.manual_seed(1)
    plain = ProCoLoss(COUNTS, dim=8)
    other = ProCoLoss(COUNTS, dim=8)
    other.load_state_dict(plain.state_dict())
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    for count in (9, 12, 7):
        batch = unit(count, 8).float(), torch.arange(count) % C
        torch.testing.assert_close(compiled(*batch), plain(*batch))
        torch.testing.assert_close(other.sums, plain.sums)


def test_what_does_not_fit():
    with pytest.raises(ValueError, match="dim must be 1 or more, got 0"):
        ProCoLoss(COUNTS, dim=0)
    with pytest.raises(ValueError, match="class_counts: expected one count >= 1"):
        ProCoLoss([3, 0], dim=4)
    with pytest.raises(ValueError, match=r"features must be \[N, 8\] like the loss's"):
        ProCoLoss(COUNTS, dim=8)(unit(N, 7), torch.arange(N) % C)
    with pytest.raises(ValueError, match=r"class_counts must have shape \(4,\)"):
        proco_loss(unit(N, 8), torch.arange(N) % C, unit(C, 8), COUNTS[1:])
    with pytest.raises(ValueError, match="labels must be below 4"):
        ProCoLoss(COUNTS, dim=8)(unit(N, 8), torch.arange(N))


def test_a_row_without_a_class_adds_nothing_to_the_estimates():
    loss_fn = ProCoLoss([3, 2], dim=4)
    rows = F.normalize(torch.randn(4, 4), dim=1)
    rows[1] = torch.nan
    loss_fn.update(rows, torch.tensor([0, -1, 1, 0]))
    assert loss_fn.masses.tolist() == [2, 1]
    torch.testing.assert_close(loss_fn.sums[0], (rows[0] + rows[3]).double())
