"""The fused supervised contrastive loss of CUDA, executed on the host."""

import math

import pytest
import torch

from python_tests.cuda_host import kernels
from python_tests.ops.loss_ops import REDUCTIONS, run
from python_tests.ops.test_supcon import draw
from python_tests.settings import every_type
from s3h_ext.ops import supervised_contrastive
from s3h_ext.ops.reference import supervised_contrastive_dense as dense

H200 = 132  # multiprocessors


def execute(z, labels, *, reduction="mean", **options):
    """Loss, count, gradient of what ``run`` differentiates, and launches."""
    grad = torch.tensor(-1.0)
    if reduction == "none":
        grad = torch.linspace(-1, 2, len(z))
    return kernels.supcon(z, labels, grad, reduction=reduction, **options)


def check_law(z, labels, *, temperature=0.1, num_classes=None, reduction="mean", **how):
    options = {
        "temperature": temperature,
        "num_classes": num_classes,
        "reduction": reduction,
    }
    loss, counted, grad, _ = execute(z, labels, **options, **how)
    exact = run(dense, z.double(), labels, **options)
    real = torch.float64 if z.dtype == torch.float64 else torch.float32
    plain = run(dense, z.to(real), labels, **options)
    assert counted == exact[1]
    eps = torch.finfo(real).eps
    error = (loss.double() - exact[0]).norm()
    known = 8 * eps * (1 + exact[0].norm())
    assert error <= 2 * (plain[0].double() - exact[0]).norm() + known
    error = (grad.double() - exact[2]).norm()
    known = (8 * eps + torch.finfo(z.dtype).eps) * exact[2].norm() + eps
    assert error <= 3 * (plain[2].double() - exact[2]).norm() + known


@every_type
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("num_classes", [None, 4])
def test_law(dtype, reduction, num_classes):
    z, labels = draw(90, 24, dtype=dtype)
    check_law(z, labels, reduction=reduction, num_classes=num_classes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_classes", [None, 0, 3, 1000])
def test_few_rows(dtype, num_classes):
    for n in (0, 1, 2, 3, 31, 33):
        z, labels = draw(n, 9, dtype=dtype)
        reduction = "none" if n % 2 else "mean"
        check_law(z, labels, reduction=reduction, num_classes=num_classes)


# Columns split, and on and above the diagonal.
@pytest.mark.parametrize(
    ("n", "multiprocessors"), [(300, 9), (300, 4)], ids=["split", "triangle"]
)
@pytest.mark.parametrize("classes", [2, 150, 5000])
def test_classes_of_any_size(n, multiprocessors, classes):
    z, labels = draw(n, 24, classes=classes, dtype=torch.bfloat16)
    check_law(z, labels, multiprocessors=multiprocessors)


def test_rows_of_any_depth_and_alignment():
    for depth, skip in ((1, 4), (7, 4), (128, 0), (128, 4), (140, 0), (300, 0)):
        z, labels = draw(40, depth, dtype=torch.float32)
        check_law(z, labels, skip=skip, reduction="none")


def test_rows_that_are_not_of_unit_length():
    z, labels = draw(40, 16, dtype=torch.float32)
    check_law(z * 30, labels)
    check_law(z * 0.01, labels, temperature=5.0)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_bad_values_are_seen_where_the_cpu_shows_them(reduction):
    z, labels = draw(60, 16, classes=3, dtype=torch.float32)
    z[7, 1] = math.nan
    labels[5] = -1
    options = {"temperature": 0.1, "reduction": reduction}
    loss, counted, grad, _ = execute(z, labels, **options)
    right = run(supervised_contrastive, z, labels, **options)
    assert counted == right[1]
    assert torch.equal(loss.isnan(), right[0].isnan())
    assert torch.equal(grad.isnan(), right[2].isnan())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("num_classes", [None, 10])
def test_launches(dtype, num_classes):
    """Eight on an H200 with 1,024 rows, and in the triangle as well; float64: six."""
    # A third of the rows and of the multiprocessors, so as many splits.
    z, labels = draw(352, 8, classes=10, dtype=dtype)
    split = execute(
        z,
        labels,
        temperature=0.1,
        num_classes=num_classes,
        multiprocessors=H200 // 3,
    )
    most = 6 if dtype == torch.float64 else 8
    assert split[3] == most
    # Enough blocks of rows for the triangle, and not for an unsplit gradient.
    triangle = execute(
        z, labels, temperature=0.1, num_classes=num_classes, multiprocessors=8
    )
    assert triangle[3] == most


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("num_classes", [None, 5])
def test_bits_do_not_depend_on_the_order_of_blocks(reduction, num_classes):
    z, labels = draw(150, 16, dtype=torch.bfloat16)
    runs = [
        execute(
            z,
            labels,
            temperature=0.1,
            reduction=reduction,
            num_classes=num_classes,
            deterministic=True,
            seed=seed,
        )
        for seed in (1, 2)
    ]
    for first, second in zip(*runs, strict=True):
        assert torch.equal(torch.as_tensor(first), torch.as_tensor(second))


SANITIZED = {
    "rows-bf16": (torch.bfloat16, 60, 24, None, "none"),
    "labels-bf16": (torch.bfloat16, 150, 16, 4, "mean"),
    "rows-fp32": (torch.float32, 40, 9, None, "mean"),
    "labels-fp64": (torch.float64, 30, 7, 3, "none"),
}


@pytest.mark.parametrize("variant", ["address", "thread"])
@pytest.mark.parametrize("case", kernels.first_quick(SANITIZED))
def test_under_sanitizers(case, variant):
    dtype, n, depth, num_classes, reduction = SANITIZED[case]
    z, labels = draw(n, depth, dtype=dtype)
    check_law(z, labels, num_classes=num_classes, reduction=reduction, variant=variant)
