"""What the tests of losses in one operation share."""

import torch

REDUCTIONS = ["mean", "sum", "none"]


def check_op(op, given, kept=False):
    checks = ["schema", "autograd_registration", "faketensor", "aot_dispatch_dynamic"]
    # What is kept is not written to its end: its shape alone can be compared.
    names = [f"test_{name}" for name in (checks[:3] if kept else checks)]
    torch.library.opcheck(op.default, given, test_utils=names)


def run(function, *given, **options):
    """Returns loss, count and the gradients of all that is given but the labels.

    The weights of the losses have both signs; that of a single loss is -1.
    """
    *leaves, labels = given
    leaves = [t.detach().requires_grad_() for t in leaves]
    loss, counted = function(*leaves, labels, **options)
    weights = torch.linspace(-1, 2, loss.numel()).reshape(loss.shape)
    grads = torch.autograd.grad((loss * weights.to(loss)).sum(), leaves)
    return loss.detach(), counted, *grads


def widened(given):
    *leaves, labels = given
    return *(t.double() for t in leaves), labels


def check_errors(function, dense, *given, **options):
    """Errors are at most 2 and, of gradients, 3 times those of plain PyTorch."""
    exact = run(dense, *widened(given), **options)
    plain = run(dense, *given, **options)
    ours = run(function, *given, **options)
    assert ours[1] == exact[1]
    for place in (0, *range(2, len(exact))):
        right = exact[place]
        error = (ours[place].double() - right).norm()
        theirs = (plain[place].double() - right).norm()
        known = 2e-6 * (1 + right.norm())
        assert error <= (3 if place else 2) * theirs + known, place


def check_sixteen_bits(function, dense, *given):
    dtype = given[0].dtype
    loss, counted, *grads = run(function, *given, temperature=0.1)
    right = run(dense, *widened(given), temperature=0.1)
    assert (loss.dtype, counted) == (torch.float32, right[1])
    torch.testing.assert_close(loss.double(), right[0], rtol=1e-5, atol=1e-6)
    for grad, expected in zip(grads, right[2:], strict=True):
        assert grad.dtype == dtype
        error = (grad.double() - expected).norm() / expected.norm()
        assert error < (3e-3 if dtype == torch.bfloat16 else 3e-4)
