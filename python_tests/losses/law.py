"""The law of errors in lower precision, for losses and their gradients."""

import torch


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
