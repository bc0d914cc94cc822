"""What the tests of losses share: rows, and how close two losses are."""

import torch
import torch.nn.functional as F


def unit(*shape, seed=None, dtype=torch.float64):
    """Rows of length 1; with a seed always the same ones."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=dtype), dim=-1)


def assert_equal(ours, theirs, *inputs, upstream=None, **tolerance):
    """Two losses and their gradients are the same."""
    torch.testing.assert_close(ours, theirs, **tolerance)
    for found, expected in zip(
        torch.autograd.grad(ours, inputs, upstream),
        torch.autograd.grad(theirs, inputs, upstream),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, **tolerance)


def assert_law(differentiate, dtype):
    """Errors are at most 2 and 3 times those of the equation in float32.

    Args:
        differentiate: with a type and whether it is our form, gives the losses and then
            the gradients.
        dtype: of the rows.
    """
    found, plain, exact = (
        differentiate(wide, ours)
        for wide, ours in (
            (dtype, True),
            (torch.float32, False),
            (torch.float64, False),
        )
    )
    assert found[0].dtype == torch.float32
    # 16 bits: the gradient is rounded once, to the features' type.
    eps = torch.finfo(dtype).eps if dtype != torch.float32 else 1e-6
    for place, (mine, theirs, right) in enumerate(
        zip(found, plain, exact, strict=True)
    ):
        error = (mine.double() - right).norm()
        floor = (eps if place else 2e-6) * (1 + right.norm())
        assert error <= (3 if place else 2) * (theirs.double() - right).norm() + floor
