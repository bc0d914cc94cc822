"""The fused supervised contrastive loss on a GPU, by the law its CPU tests keep.

What is not for a GPU alone runs on the CPU too, so that the test code is seen to work
where there is no GPU.
"""

import importlib
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from python_tests.ops.loss_ops import REDUCTIONS, run
from python_tests.ops.test_supcon import draw
from python_tests.settings import DTYPES, deterministic, on_devices, record
from s3h_ext.losses import supcon_loss
from s3h_ext.ops import supervised_contrastive
from s3h_ext.ops.reference import supervised_contrastive_dense as dense

# The package gives the name to a function.
losses = importlib.import_module("s3h_ext.losses.supcon")


def check_law(z, labels, device, **options):
    options = {"temperature": 0.1} | options
    ours = run(supervised_contrastive, z.to(device), labels.to(device), **options)
    loss, counted, grad = (t.cpu() for t in ours)
    real = torch.float64 if z.dtype == torch.float64 else torch.float32
    exact = run(dense, z.double(), labels, **options)
    plain = run(dense, z.to(real), labels, **options)
    assert counted == exact[1]
    eps = torch.finfo(real).eps
    known = 8 * eps * (1 + exact[0].norm())
    error = (loss.double() - exact[0]).norm()
    assert error <= 2 * (plain[0].double() - exact[0]).norm() + known
    known = (8 * eps + torch.finfo(z.dtype).eps) * exact[2].norm() + eps
    error = (grad.double() - exact[2]).norm()
    assert error <= 3 * (plain[2].double() - exact[2]).norm() + known


@on_devices
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("num_classes", [None, 0, 4, 1000])
def test_law(device, dtype, reduction, num_classes):
    for n, depth in ((0, 9), (1, 9), (2, 1), (33, 24), (129, 136), (300, 33)):
        z, labels = draw(n, depth, dtype=dtype)
        check_law(z, labels, device, reduction=reduction, num_classes=num_classes)


# The triangle needs 33 blocks of rows on an H200; columns are split above 256.
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("classes", [3, 100, 100_000])
@pytest.mark.parametrize("num_classes", [None, 100_001])
def test_many_rows(device, dtype, classes, num_classes):
    for n in (1024, 5000):
        z, labels = draw(n, 128, classes=classes, dtype=dtype)
        check_law(z, labels, device, num_classes=num_classes)


@on_devices
def test_bad_values_are_seen_where_they_count(device):
    z, labels = draw(60, 16, classes=3, dtype=torch.float32)
    z[7, 1] = math.nan
    labels[5] = -1
    options = {"temperature": 0.1, "reduction": "none"}
    ours = run(supervised_contrastive, z.to(device), labels.to(device), **options)
    right = run(dense, z, labels, **options)
    assert torch.equal(ours[0].cpu().isnan(), right[0].isnan())
    assert ours[0][5] == 0


@on_devices
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("num_classes", [None, 7])
def test_same_bits(device, reduction, num_classes):
    z, labels = draw(700, 40, dtype=torch.float32)
    given = z.to(device), labels.to(device)
    options = {"reduction": reduction, "num_classes": num_classes}
    with deterministic():
        first, second = (
            run(supervised_contrastive, *given, temperature=0.1, **options)
            for _ in range(2)
        )
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("num_classes", [None, 10])
def test_graph_sees_new_rows_and_labels(device, num_classes):
    z, labels = (t.to(device) for t in draw(300, 32, 10, torch.float32))
    leaf = z.clone().requires_grad_()

    def step():
        loss = supcon_loss(leaf, labels, num_classes=num_classes)
        return loss, *torch.autograd.grad(loss, leaf)

    graph, recorded = record(step)
    with torch.no_grad():
        leaf.copy_(leaf.flip(0))
    labels.copy_((labels + 3) % 10)
    graph.replay()
    found = [t.clone() for t in recorded]
    torch.testing.assert_close(found, list(step()))


class Calls(TorchDispatchMode):
    """Records the operators that are called, but for views."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not function.is_view:
            self.names.append(function.name())
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("num_classes", [None, 10, 1000])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nothing_but_the_operation_runs_on_a_gpu(
    monkeypatch, dtype, num_classes, reduction
):
    """On no device, as on one. Launches: python_tests/cuda_host/test_supcon.py."""
    monkeypatch.setattr(losses, "is_fused_on", lambda device: True)
    z = torch.empty(30, 8, dtype=dtype, device="meta", requires_grad=True)
    labels = torch.empty(30, dtype=torch.int64, device="meta")
    with Calls() as calls:
        loss = supcon_loss(z, labels, num_classes=num_classes, reduction=reduction)
        start = torch.empty_like(loss)
        (grad,) = torch.autograd.grad(loss, z, start)
    assert grad.shape == z.shape
    assert calls.names == ["s3h::supcon", "aten::empty_like", "s3h::supcon_backward"]
