"""S3H_CPU_LEVEL: which kernels a process takes."""

import os
import subprocess
import sys

import pytest

CALL = """
import torch
from s3h_ext.info import describe
from s3h_ext.ops import similarity_logsumexp
print(describe()["CPU dispatch level"])
similarity_logsumexp(torch.eye(3), temperature=1.0)
"""
CALLS = [
    "similarity_logsumexp(torch.eye(3).double(), temperature=1.0)",
    "supervised_contrastive(torch.eye(3), torch.zeros(3).long(), temperature=1.0)",
    "update_prototypes_(x, y, x.clone(), x.clone(), x[0], y.new_tensor([0, 3]))",
    "render_views(x.new_zeros(1, 4, 4, 3).byte(), Patches(y[:1], "
    "y.new_tensor([[0, 0, 4, 4]])), out_size=(4, 4), mean=(0.5,) * 3, std=(0.2,) * 3)",
]


def run(level):
    return subprocess.run(
        [sys.executable, "-c", CALL],
        capture_output=True,
        text=True,
        env=os.environ | {"S3H_CPU_LEVEL": level},
    )


@pytest.mark.parametrize("level", ["AVX2", "avx-2", "sse", "avx2 "])
def test_a_level_that_does_not_exist_is_an_error(level):
    done = run(level)
    message = (
        f"S3H_CPU_LEVEL must be baseline, avx2, avx512 or avx512_bf16, got '{level}'"
    )
    assert message in done.stdout  # info says it and goes on
    assert done.returncode != 0
    assert message in done.stderr


@pytest.mark.parametrize("call", CALLS)
def test_every_family_says_so(call):
    names = "x, y = torch.eye(3), torch.zeros(3).long()"
    code = f"import torch\nfrom s3h_ext.ops import *\n{names}\n{call}"
    environment = os.environ | {"S3H_CPU_LEVEL": "avx"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert "S3H_CPU_LEVEL must be baseline" in done.stderr


@pytest.mark.parametrize("level", ["", "baseline", "avx512_bf16"])
def test_a_level_that_exists_is_not(level):
    done = run(level)
    assert done.returncode == 0, done.stderr
    if level == "baseline":
        assert done.stdout.startswith("baseline ")
