"""Where one operation takes the place of batch norm, addition and ReLU."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from s3h_ext.models import CifarResNet, ResNet, momentum_copy, normalisation
from s3h_ext.models.normalisation import fuses, norm_relu
from s3h_ext.training.batch_norm import JointBatchNorm

LAST = torch.channels_last


def draw(*shape, dtype=torch.float32):
    return torch.randn(shape).to(dtype).contiguous(memory_format=LAST)


def in_steps(norm, x, residual):
    out = norm(x)
    return F.relu(out if residual is None else out + residual)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_what_the_modules_are(dtype, residual):
    norm = nn.BatchNorm2d(20, momentum=0.3)
    nn.init.uniform_(norm.weight, 0.5, 2)
    other = copy.deepcopy(norm)
    for _ in range(2):  # the second one moves running statistics that are not new
        x = (draw(4, 20, 5, 3) * 3 + 1).to(dtype).requires_grad_()
        added = draw(4, 20, 5, 3, dtype=dtype) if residual else None
        assert fuses(norm, x, added)
        found, right = norm_relu(norm, x, added), in_steps(other, x, added)
        grad = draw(4, 20, 5, 3, dtype=dtype)
        for ours, theirs in zip(
            (found, *torch.autograd.grad(found, [x, *norm.parameters()], grad)),
            (right, *torch.autograd.grad(right, [x, *other.parameters()], grad)),
            strict=True,
        ):
            coarse = dtype == torch.bfloat16
            assert ours.dtype == theirs.dtype
            # In bfloat16 a mask may differ, where a sum is next to zero.
            limit = 0.1 * float(theirs.detach().std()) if coarse else 1e-5
            assert float((ours - theirs).detach().abs().mean()) <= limit
            if not coarse:
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.state_dict(), other.state_dict())


def norms():
    yield nn.BatchNorm2d(6).eval()
    yield nn.BatchNorm2d(6, affine=False)
    yield nn.BatchNorm2d(6, momentum=None)
    yield nn.BatchNorm2d(6).bfloat16()
    yield nn.GroupNorm(2, 6)
    hooked = nn.BatchNorm2d(6)
    hooked.register_forward_hook(lambda *_: None)
    yield hooked
    joint = nn.BatchNorm2d(6)
    joint.__class__ = JointBatchNorm
    yield joint


@pytest.mark.parametrize("norm", list(norms()), ids=lambda norm: repr(norm)[:40])
def test_other_norms_are_called(norm):
    assert not fuses(norm, draw(4, 6, 5, 3), None)


def test_other_maps_are_left_to_the_modules():
    norm, x = nn.BatchNorm2d(6), draw(4, 6, 5, 3)
    assert fuses(norm, x, x)
    others = [x.contiguous(), x.double(), x.half(), x.to("meta")]
    for other in (*others, draw(1, 6, 1, 1), draw(0, 6, 5, 3)):
        assert not fuses(norm, other, None)
    assert not fuses(norm, x, x.bfloat16())
    assert not fuses(norm, x, draw(4, 6, 1, 1))


def test_one_value_for_each_channel_is_pytorchs_error():
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        norm_relu(nn.BatchNorm2d(6), draw(1, 6, 1, 1))


def test_statistics_of_the_batch_without_running_ones():
    norm, x = nn.BatchNorm2d(6), draw(4, 6, 5, 3)
    before = copy.deepcopy(norm.state_dict())
    norm.track_running_stats = False  # apart_from_running_statistics
    right = norm_relu(norm, x)
    torch.testing.assert_close(norm.state_dict(), before, rtol=0, atol=0)
    copied = momentum_copy(norm).eval()
    assert fuses(copied, x, None)
    assert torch.equal(norm_relu(copied, x), right)


@pytest.mark.parametrize(
    "make", [lambda: CifarResNet(20), lambda: ResNet(blocks=(1,) * 4)]
)
def test_a_network_takes_it_everywhere_it_can(make, monkeypatch):
    network = make().to(memory_format=LAST)
    torch.manual_seed(0)
    images = draw(4, 3, 32, 32)
    other = copy.deepcopy(network)
    calls = []
    real = normalisation.normalise
    monkeypatch.setattr(
        normalisation, "normalise", lambda *a: calls.append(1) or real(*a)
    )
    network(images).square().mean().backward()
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    # One norm of each shortcut has no ReLU behind it.
    shortcuts = sum(name.endswith("downsample") for name, _ in network.named_modules())
    assert len(calls) == len(norms) - shortcuts
    monkeypatch.setattr(normalisation, "fuses", lambda *_: False)
    exact = copy.deepcopy(other).double()
    other(images).square().mean().backward()
    exact(images.double()).square().mean().backward()

    def error(of):
        pairs = zip(of.parameters(), exact.parameters(), strict=True)
        return max(float((a.grad - b.grad).norm() / b.grad.norm()) for a, b in pairs)

    assert error(network) <= 3 * error(other)
    for ours, right in zip(network.buffers(), exact.buffers(), strict=True):
        torch.testing.assert_close(ours, right.to(ours.dtype), rtol=1e-4, atol=1e-5)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(6)

    def forward(self, x):
        return norm_relu(self.norm, x, x)


def test_what_traces_or_transforms_finds_the_modules():
    network, x = Small(), draw(4, 6, 5, 3)
    assert "norm_relu" not in str(torch.fx.symbolic_trace(network).graph)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(network, x, check_trace=False)
    kinds = [node.kind() for node in traced.inlined_graph.nodes()]
    assert "aten::batch_norm" in kinds
    _, tangent = torch.func.jvp(momentum_copy(Small()), (x,), (x,))
    assert tangent.shape == x.shape


@pytest.mark.slow
def test_exported_training_finds_the_modules():
    x = draw(4, 6, 5, 3)
    assert "s3h." not in str(torch.export.export(Small(), (x,)).graph)
