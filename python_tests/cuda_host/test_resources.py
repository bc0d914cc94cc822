"""The reader of what the CUDA compiler reports of each kernel."""

import importlib.util
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "cuda_resources.py"
LOG = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN3s3h4cuda4fastINS0_4Bf16EEEvi' for 'sm_90'
ptxas info    : Function properties for _ZN3s3h4cuda4fastINS0_4Bf16EEEvi
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 1024 bytes smem
ptxas info    : Compiling entry function '_ZN3s3h4cuda4slowEv' for 'sm_80'
ptxas info    : Function properties for _ZN3s3h4cuda4slowEv
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers, 16 bytes cumulative stack size
"""


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("cuda_resources", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def found(tool):
    return tool.readable(tool.parse(LOG))


def test_reads_a_log(tool, found):
    assert found == [
        tool.Kernel("fast<Bf16>", "sm_90", 40, 1024, 0, 0, 0),
        tool.Kernel("slow", "sm_80", 255, 0, 16, 8, 12),
    ]


def test_names(tool):
    name = "void s3h::cuda::(anonymous namespace)::f<s3h::cuda::A, (bool)1>(int (*)())"
    assert tool.short_name(name) == "f<A, (bool)1>"
    assert tool.short_name("s3h::cuda::g(s3h::cuda::B)") == "g"


def test_spills(tool, found):
    (line,) = tool.spilling(found)
    assert "slow spills on sm_80: 8 bytes stored, 12 loaded" in line


def test_table_and_differences(tool, found, tmp_path):
    table = tmp_path / "table.csv"
    tool.write_table(table, "13.0", found)
    assert tool.read_table(table) == ("13.0", found)
    assert tool.differences(found, found) == []
    changed = [found[0]._replace(registers=41), found[1]]
    (line,) = tool.differences(changed, found)
    assert "registers 40" in line
    assert "registers 41" in line
    # A kernel that went, and one that came.
    assert len(tool.differences(found[:1], found)) == 0  # its arch was not compiled
    other = found[0]._replace(kernel="other")
    assert len(tool.differences([other], found[:1])) == 2


def test_status(tool, tmp_path):
    log, table = tmp_path / "log", tmp_path / "table.csv"
    fast = "".join(LOG.splitlines(keepends=True)[:5])
    command = ["--table", str(table), "--release", "13.0", str(log)]
    log.write_text(fast)
    assert tool.main(command) == 0  # another compiler's table: spills alone count
    assert tool.main([*command, "--update"]) == 0
    assert tool.main(command) == 0
    log.write_text(fast.replace("40 registers", "48 registers"))
    assert tool.main(command) == 1
    log.write_text(LOG)
    assert tool.main(command) == 1
    log.write_text("")
    assert tool.main(command) == 1
