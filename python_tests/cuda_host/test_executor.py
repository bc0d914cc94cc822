"""The executor finds the defects that it is there for."""

import pytest

from python_tests.cuda_host import kernels

DEADLOCK = "deadlock: some threads wait at a barrier"


@pytest.mark.parametrize("variant", ["plain", "address", "thread"])
@pytest.mark.parametrize("seed", [0, 1])
def test_sound_kernel_passes(variant, seed):
    done = kernels.run_program(variant, "planted", "sound", seed=seed)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "defect", ["barrier", "second-barrier", "warp-barrier", "blocks"]
)
def test_missing_order_is_a_race(defect):
    done = kernels.run_program("thread", "planted", defect)
    assert done.returncode == 66
    assert "ThreadSanitizer: data race" in done.stderr


@pytest.mark.parametrize("defect", ["overrun", "global-overrun"])
def test_overrun_is_seen(defect):
    done = kernels.run_program("address", "planted", defect)
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr


@pytest.mark.parametrize("case", ["grid", "nan", "atomics", "accumulation"])
def test_what_a_device_refuses_and_what_it_keeps(case):
    done = kernels.run_program("plain", "planted", case)
    assert done.returncode == 0, done.stderr


def test_reading_a_copy_before_its_wait_gives_nan():
    done = kernels.run_program("plain", "planted", "wait")
    assert done.returncode == 1
    assert done.stdout == "128 wrong sums\n"


@pytest.mark.parametrize("defect", ["divergent", "lanes"])
def test_divergence_ends_with_a_message(defect):
    done = kernels.run_program("plain", "planted", defect)
    assert done.returncode == 70
    assert DEADLOCK in done.stderr or "met at other instructions" in done.stderr


@pytest.mark.parametrize(
    ("defect", "message"),
    [
        ("shuffles", "met at other instructions"),
        ("masks", "met at shuffles of different masks"),
    ],
)
def test_shuffles_that_only_look_alike_are_refused(defect, message):
    done = kernels.run_program("plain", "planted", defect)
    assert done.returncode == 70
    assert message in done.stderr
