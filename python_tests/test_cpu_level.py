"""S3H_CPU_LEVEL: which kernels a process takes."""

import functools
import json
import os

import pytest

from python_tests.processes import python

START = """
import json, torch
from s3h_ext.info import describe
from s3h_ext.ops import *
x, y = torch.eye(3), torch.zeros(3).long()
"""
CALLS = [
    "similarity_logsumexp(torch.eye(3), temperature=1.0)",
    "similarity_logsumexp(torch.eye(3).double(), temperature=1.0)",
    "supervised_contrastive(torch.eye(3), torch.zeros(3).long(), temperature=1.0)",
    "update_prototypes_(x, y, x.clone(), x.clone(), x[0], y.new_tensor([0, 3]))",
    "render_views(x.new_zeros(1, 4, 4, 3).byte(), Patches(y[:1], "
    "y.new_tensor([[0, 0, 4, 4]])), out_size=(4, 4), mean=(0.5,) * 3, std=(0.2,) * 3)",
]
REFUSALS = """
found = {"info": str(describe())}
for call in %r:
    try:
        exec(call)
    except ValueError as error:
        found[call] = str(error)
print(json.dumps(found))
"""


def run(code, level):
    environment = os.environ | {"S3H_CPU_LEVEL": level}
    return python("-c", START + code, env=environment).stdout


@functools.cache
def refusals(level):
    """What a process says to each call where there is no such level."""
    return json.loads(run(REFUSALS % (CALLS,), level))


@pytest.mark.parametrize("level", ["AVX2", "avx-2", "sse", "avx2 "])
def test_a_level_that_does_not_exist_is_an_error(level):
    message = (
        "S3H_CPU_LEVEL must be baseline, avx2, avx512, amx_emulated, avx512_bf16 "
        f"or amx, got '{level}'"
    )
    assert message in refusals(level)["info"]  # which goes on
    assert message in refusals(level)[CALLS[0]]


@pytest.mark.parametrize("call", CALLS[1:])
def test_every_family_says_so(call):
    assert "S3H_CPU_LEVEL must be baseline" in refusals("AVX2")[call]


@pytest.mark.parametrize("level", ["", "baseline", "avx512_bf16", "amx"])
def test_a_level_that_exists_is_not(level):
    printed = run(f'print(describe()["CPU dispatch level"])\n{CALLS[0]}', level)
    if level == "baseline":
        assert printed.startswith("baseline ")
