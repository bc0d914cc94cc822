"""Similarities by the tile unit, and by the program that stands for it."""

import os

import pytest
import torch
import torch.nn.functional as F

from python_tests.processes import python
from s3h_ext.ops import similarity_logsumexp
from s3h_ext.ops._library import CPU

HIGHEST = CPU.text("s3h_cpu_dispatch_level")
needs_the_unit = pytest.mark.skipif(HIGHEST != "amx", reason="no tile unit here")

DIGESTS = """
import hashlib, itertools, torch
from torch.nn.functional import normalize
from s3h_ext.ops import similarity_logsumexp
from s3h_ext.ops._library import CPU

torch.set_num_threads(2)
torch.manual_seed(0)
sizes = (5, 3, 1), (49, 17, 31), (150, 97, 32), (301, 260, 48), (200, 64, 129)
sizes = [(*size, torch.bfloat16) for size in sizes]
for n, m, depth, dtype in [*sizes, (530, 510, 65, torch.float32)]:
    for symmetric, labelled, temperature, deterministic in itertools.product(
        (True, False), (True, False), (0.2, 0.002), (True, False)
    ):
        if dtype == torch.float32 and labelled != deterministic:
            continue
        torch.use_deterministic_algorithms(deterministic)
        q, keys = (normalize(torch.randn(k, depth), dim=1).to(dtype) for k in (n, m))
        leaves = [q.requires_grad_()] + ([] if symmetric else [keys.requires_grad_()])
        extra = {"key_bias": torch.randn(n if symmetric else m)}
        if labelled:
            extra |= {"query_labels": torch.arange(n) % 5, "same_label_bias": -0.5}
            if not symmetric:
                extra["key_labels"] = torch.arange(m) % 5
        lse = similarity_logsumexp(*leaves, temperature=temperature, **extra)
        grads = torch.autograd.grad(lse, leaves, torch.linspace(-1, 1, n))
        numbers = [lse.detach(), *(g.float() for g in grads)]
        assert all(x.isfinite().all() for x in numbers)
        digest = hashlib.sha256(b"".join(x.numpy().tobytes() for x in numbers))
        print(n, m, depth, symmetric, labelled, temperature, digest.hexdigest())
"""


def run(code, level=""):
    environment = os.environ | {"S3H_CPU_LEVEL": level}
    return python("-c", code, env=environment).stdout.splitlines()


@needs_the_unit
def test_the_program_gives_the_same_bits():
    by_unit, by_program = run(DIGESTS, "amx"), run(DIGESTS, "amx_emulated")
    assert len(by_unit) == 88
    assert by_unit == by_program


@pytest.mark.skipif(not torch.cpu._is_amx_tile_supported(), reason="no tile unit here")
@pytest.mark.parametrize("stack", [8 << 10, 1 << 20])
def test_a_system_that_refuses_gets_the_next_level(stack):
    """Linux refuses the registers where a signal's stack could not hold them."""
    code = f"""
import ctypes
class Stack(ctypes.Structure):
    _fields_ = [("at", ctypes.c_void_p), ("flags", ctypes.c_int),
                ("size", ctypes.c_size_t)]
room = ctypes.create_string_buffer({stack})
stack = Stack(ctypes.addressof(room), 0, {stack})
assert ctypes.CDLL(None).sigaltstack(ctypes.byref(stack), None) == 0
from s3h_ext.ops._library import CPU
print(CPU.text("s3h_cpu_dispatch_level"))
"""
    assert run(code) == (["avx512"] if stack < 10_000 else ["amx"])


@needs_the_unit
def test_the_unit_is_shared_with_others():
    """Matrix products of PyTorch set the registers up in their own way."""
    torch.manual_seed(0)
    a, b = torch.randn(2, 200, 200).bfloat16()
    z = F.normalize(torch.randn(600, 40), dim=1).bfloat16().requires_grad_()
    product = a @ b
    (first,) = torch.autograd.grad(similarity_logsumexp(z, temperature=0.1).sum(), z)
    for _ in range(3):
        assert torch.equal(a @ b, product)
        (again,) = torch.autograd.grad(
            similarity_logsumexp(z, temperature=0.1).sum(), z
        )
        assert torch.equal(again, first)
