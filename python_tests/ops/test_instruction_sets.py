"""The kernels at each instruction set of this CPU: one process for each.

A level is chosen when the library is loaded, so ``python -m`` of this module runs the
checks at the one in ``S3H_CPU_LEVEL``.
"""

import itertools
import sys

import pytest
import torch
import torch.nn.functional as F

from python_tests.ops import (
    test_batch_norm,
    test_prototypical,
    test_similarity_range,
    test_supcon,
)
from python_tests.ops.conftest import LEVELS
from python_tests.ops.test_views import draw_colour, draw_patches, draw_ragged
from python_tests.processes import python
from python_tests.settings import threads
from s3h_ext.ops import render_views, similarity_logsumexp
from s3h_ext.ops._library import CPU
from s3h_ext.ops.reference import similarity_logsumexp_dense as dense

HALVES = (torch.float32, torch.bfloat16)


def check_views(path):
    """Another process has rendered the same at its own level."""
    expected = torch.load(path)
    torch.testing.assert_close(rendered(), expected, rtol=0, atol=1e-5)


def rendered():
    images = draw_ragged(12)
    patches = draw_patches(images, 60, colour=draw_colour(60))
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    return render_views(images, patches, out_size=(32, 37), mean=mean, std=std)


def check_supcon():
    check = test_supcon.test_error_is_that_of_plain_pytorch
    check((301, 33), 0.1, "none")
    check((200, 128), 0.005, "mean")


def check_prototypical():
    check = test_prototypical.test_error_is_that_of_plain_pytorch
    check(301, 33, 100, 1, 0.1, "none")
    check(200, 128, 40, 3, 0.005, "mean")


def check_batch_norm():
    for dtype in HALVES:
        for shape in ((3, 37, 5, 7), (2, 300, 2, 1), (9, 16, 8, 8)):
            for offset in (0.0, 100.0):
                test_batch_norm.check_the_law(shape, dtype, offset, shape[0] != 2)


def check_similarity_depths():
    labelled = {"query_labels": torch.arange(150) % 7, "same_label_bias": -0.5}
    weights = torch.linspace(-1, 1, 150)
    for depth, temperature, dtype in itertools.product(
        (7, 40, 128), (0.1, 0.005), HALVES
    ):
        z = F.normalize(torch.randn(150, depth), dim=1).to(dtype)
        for extra in ({}, labelled):
            a, b = z.clone().requires_grad_(), z.double().requires_grad_()
            ours = similarity_logsumexp(a, temperature=temperature, **extra)
            right = dense(b, temperature=temperature, **extra)
            scale = right.abs().max().item()
            assert (ours.double() - right).abs().max() < 1e-6 * scale
            (ours * weights).sum().backward()
            (right * weights).sum().backward()
            error = (a.grad.double() - b.grad).norm() / b.grad.norm()
            assert error < (1e-4 if dtype == torch.float32 else 6e-3), error


def check_similarity_triangles():
    """Where a triangle is cut among the threads depends on its size and the tiles."""
    for count, n in itertools.product((2, 3), range(240, 1400, 40)):
        z = F.normalize(torch.randn(n, 64), dim=1)
        a, b = z.clone().requires_grad_(), z.double().requires_grad_()
        with threads(count):
            similarity_logsumexp(a, temperature=0.1).sum().backward()
            dense(b, temperature=0.1).sum().backward()
        errors = (a.grad.double() - b.grad).norm(dim=1) / b.grad.norm(dim=1)
        assert errors.max() < 1e-4, (count, n, errors.max())


def check_similarity_nan():
    """A NaN does not hide from the range of scores what is before it in its panel."""
    q, k = torch.randn(200, 16), torch.randn(40, 16)
    q[:3] *= 30
    right = dense(q.double(), k.double(), temperature=0.1)
    q[3] = float("nan")
    lse = similarity_logsumexp(q, k, temperature=0.1)
    sound = torch.arange(200) != 3
    assert lse[3].isnan()
    torch.testing.assert_close(lse[sound].double(), right[sound], rtol=1e-5, atol=1e-4)


def check_similarity_range():
    here = test_similarity_range
    for length in (100.0, 1e4):
        for symmetric in (True, False):
            here.test_rows_of_any_length(length, symmetric, "closed mixed self", None)
            for dtype in here.TYPES[1:]:
                here.test_rows_of_any_length_in_sixteen_bits(length, dtype, symmetric)
        here.test_supcon_of_rows_of_any_length((128, 128), length, False, None)
    for temperature in (0.0225, 0.01):
        here.test_one_key_outweighs_the_others(temperature, True, None)
        for symmetric in (True, False):
            here.test_no_result_is_a_denormal(
                temperature, symmetric, torch.float32, None
            )
    here.test_sums_of_one_class_of_thousands_of_rows("identical", True)
    here.test_the_callers_denormals_stay()


@pytest.mark.parametrize("level", LEVELS)
def test_every_kernel_is_right_at_every_level(level, at_level, tmp_path):
    torch.save(rendered(), tmp_path / "views.pt")
    done = python("-m", __name__, tmp_path / "views.pt", env=at_level)
    assert done.stdout.split() == [level]


def main(views):
    print(CPU.text("s3h_cpu_dispatch_level"))
    for check in (
        *(check_supcon, check_prototypical, check_batch_norm),
        *(check_similarity_depths, check_similarity_triangles, check_similarity_nan),
        check_similarity_range,
    ):
        torch.manual_seed(0)
        check()
    check_views(views)


if __name__ == "__main__":
    main(sys.argv[1])
