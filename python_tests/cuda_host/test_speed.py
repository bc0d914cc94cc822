"""The model of the CUDA kernels' speed, on the listing of a small loop over tiles.

``tile_loop.sass``: sm_90, per tile one copy, two LDSM and two products, and between
these four exponentials, or eight on the dearer side of a branch.
"""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
KERNEL = "scores_backward<Bf16, (Depth)2, true>"


@pytest.fixture(scope="module")
def tool():
    folder = str(HERE.parents[1] / "tools")
    sys.path.insert(0, folder)
    try:
        import cuda_speed
    finally:
        sys.path.remove(folder)
    return cuda_speed


@pytest.fixture(scope="module")
def blocks(tool):
    (lines,) = tool.functions((HERE / "tile_loop.sass").read_text()).values()
    return tool.blocks_of(lines)


@pytest.fixture
def walk(tool, blocks):
    return tool.tile_walk(blocks, tool.Work(2, 1, 8, 1))


def count(walk, name):
    return sum(i.operation.startswith(name) for i in walk)


def test_takes_the_cheaper_branch_once(walk):
    assert count(walk, "HMMA") == 2
    assert count(walk, "LDSM") == 2
    assert count(walk, "MUFU.EX2") == 4
    assert count(walk, "FADD") == 0
    assert count(walk, "BAR.SYNC") == 1


def test_goes_round_until_the_work_is_done(tool, blocks):
    walk = tool.tile_walk(blocks, tool.Work(6, 3, 8, 1))
    assert count(walk, "HMMA") == 6
    assert count(walk, "LDGSTS") == 3


def test_no_walk(tool, blocks):
    straight = [tool.Block(b.instructions, [i + 1]) for i, b in enumerate(blocks[:-1])]
    with pytest.raises(ValueError, match="no walk with 2 products"):
        tool.tile_walk([*straight, tool.Block([], [])], tool.Work(2, 1, 8, 1))


def test_visits(tool, blocks):
    def visits(start=4, times=3):
        return tool.Visits(
            before=({"CS2R": 2, "LDC": 2},),
            start={"LDSM": 2, "BAR.SYNC.DEFER_BLOCKING": 1, "LDS": start - 1},
            each=(({"MUFU.EX2": 8}, 1), ({"MUFU": 4}, times)),
            rounds=2,
            tiles=1,
            warps=2,
        )

    walk = tool.visits_walk(blocks, visits())
    assert count(walk, "LDSM") == 2 * 2 * 4
    assert count(walk, "MUFU.EX2") == 2 * (8 + 3 * 4)
    assert count(walk, "UMOV") == 2, "what comes before the loop, once"
    more = tool.visits_walk(blocks, visits(times=4))
    assert count(more, "MUFU.EX2") == 2 * (8 + 4 * 4)
    with pytest.raises(ValueError, match="expected one block of .*, got 0"):
        tool.visits_walk(blocks, visits(start=5))
    never = visits()._replace(each=(({"MUFU.EX2": 5}, 1),))
    with pytest.raises(ValueError, match="no walk by .*MUFU.EX2"):
        tool.visits_walk(blocks, never)


def test_the_table_has_every_hot_kernel(tool):
    rows = {(row["kernel"], row["arch"]) for row in tool.read_table(tool.TABLE)}
    kernels = [*tool.WORK, *tool.VISITS]
    assert rows == {(kernel, arch) for kernel in kernels for arch in tool.GPUS}


def test_use_of_loads(tool, walk):
    # Both are read by the product that follows them.
    assert tool.use_distances(walk) == [0, 0]
    load, product = (
        next(i for i in walk if i.name == name) for name in ("LDSM", "HMMA")
    )
    other = product._replace(operands="R40, R44, R48, R40")
    own = product._replace(operands="R40, R44, R10, R40")
    load = load._replace(operands="R8, [R20]")
    assert tool.use_distances([load, other, other, own]) == [2]


def test_row(tool, walk):
    row = tool.row_of(KERNEL, "sm_90", walk)
    assert (row.products, row.exponentials, row.shared_loads) == (2, 4, 2)
    assert row.issue == len(walk)
    assert row.tensor == round(2 * 6.4)
    assert row.mufu == 32
    # Two LDSM and a copy of 512 bytes; the four quarters share 128 a cycle. What
    # keeps a slot before the copy free counts as 4 bytes a thread.
    assert row.shared == 3 * 16 + 4 * count(walk, "LDS") - 4 * count(walk, "LDSM")
    assert row.bound_ms <= row.expected_ms


def test_replay(tool, walk):
    gpu = tool.GPUS["sm_90"]
    alone = tool.replay(walk, gpu, 1)
    assert alone > sum(i.stall for i in walk)
    pair = tool.replay(walk, gpu, 2)
    assert alone / 2 <= pair < alone
    # What the units need is the limit for any number of warps.
    busy = sum(tool.unit_of(i, gpu)[1] for i in walk if i.name == "MUFU")
    assert tool.replay(walk, gpu, 16) >= max(busy, len(walk)) - 1


def test_five_per_cent_worse_fail(tool, walk, tmp_path, capsys):
    row = tool.row_of(KERNEL, "sm_90", walk)._replace(bound_ms=1.0, expected_ms=2.0)
    table = tmp_path / "speed.csv"
    tool.write_table(table, [row])
    read = tool.read_table(table)
    assert tool.worse([row._replace(bound_ms=1.04, expected_ms=1.5)], read) == []
    (line,) = tool.worse([row._replace(expected_ms=2.2)], read)
    assert "expected_ms 2.0 -> 2.2, 10 % worse" in line
    (line,) = tool.worse([row._replace(local=row.local + 1)], read)
    assert "spills' accesses 0 -> 1" in line
    (line,) = tool.worse([row], [])
    assert "not in the table" in line


def test_other_architectures_are_refused(tool):
    with pytest.raises(ValueError, match="sm_80 or sm_90, got 'sm_100'"):
        tool.rows_of("\t.target\tsm_100\n")
