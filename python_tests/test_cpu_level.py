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


@pytest.mark.parametrize("level", ["", "baseline", "avx512_bf16"])
def test_a_level_that_exists_is_not(level):
    done = run(level)
    assert done.returncode == 0, done.stderr
    if level == "baseline":
        assert done.stdout.startswith("baseline ")
