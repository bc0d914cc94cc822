"""Two processes on the CPU against one."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

from python_tests.data.photographs import grow
from python_tests.processes import python
from python_tests.small_runs import newest_state, summary_of
from python_tests.training import two_processes
from s3h_ext.runs.card import read_card
from s3h_ext.runs.checkpoint import checkpoint_paths
from s3h_ext.runs.config import DistributedConfig
from s3h_ext.runs.folder import RunFolder
from s3h_ext.train import main
from s3h_ext.training.distributed import World, join_world

MODULE = ["-m", "python_tests.training.two_processes"]


def start(command, count=2):
    """Starts processes as torchrun does; what it adds is watching over them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    shared["MASTER_PORT"] = str(port)
    return [
        subprocess.Popen(
            [sys.executable, *command],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    processes = start([*MODULE, str(folder)])
    for process in processes:
        _, errors = process.communicate(timeout=250)
        assert process.returncode == 0, errors[-3000:]
        assert "FutureWarning" not in errors
    return folder


@pytest.mark.parametrize("name", two_processes.RUNS)
def test_two_processes_train_what_one_does(together, tmp_path, name):
    found = torch.load(together / f"{name}.pt", weights_only=True)
    alone = two_processes.double_run(tmp_path / "run", name)
    assert found["images"] == alone["images"]
    for key, value in alone["history"][0].items():
        if key != "images_per_second":
            assert found["history"][0][key] == pytest.approx(value, abs=1e-6), key
    for part in ("gradients", "state"):
        assert found[part].keys() == alone[part].keys()
        for key, value in alone[part].items():
            if "centre_projection" in key and "running_var" in key:
                # Each process brings the same centres: the unbiased variance of twice
                # as many. Nothing reads it.
                continue
            close = {"rtol": 1e-6, "atol": 1e-6, "equal_nan": True}
            torch.testing.assert_close(found[part][key], value, **close, msg=key)


OPTIONS = (
    "--preset digits-lt/hybrid-sc --data.imbalance 100 --batch_size 64 --epochs 30 "
    "--device cpu --precision fp32 --report false --distributed.timeout 60 "
    "--eval_every 40"
).split()


def wait_for_checkpoint(processes, folder):
    deadline = time.monotonic() + 150
    while not checkpoint_paths(RunFolder(folder)):
        assert all(process.poll() is None for process in processes)
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_killed_process_ends_the_other_and_the_run_goes_on_with_another_number(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("STEP_SECONDS", "0.05")
    command = [*MODULE, "train", *OPTIONS, "--output", str(tmp_path)]
    processes = start(command)
    wait_for_checkpoint(processes, tmp_path)
    processes[1].send_signal(signal.SIGKILL)
    began = time.monotonic()
    _, messages = processes[0].communicate(timeout=60)
    assert time.monotonic() - began < 60
    assert processes[0].returncode == 1
    assert "process 0 of 2" in messages
    assert "one of them ended" in messages
    assert f"the last checkpoint is in {tmp_path}" in messages
    assert "stopped in epoch" in (tmp_path / "train.log").read_text()
    done = newest_state(tmp_path)["epochs_done"]
    assert done >= 1

    # Two again, politely stopped: by a signal to one of them.
    processes = start([*command, "--resume"])
    first = checkpoint_paths(RunFolder(tmp_path))[0]
    deadline = time.monotonic() + 150
    while checkpoint_paths(RunFolder(tmp_path))[0] == first:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [130, 130], outputs
    assert "run the same command with" in outputs[0]
    assert "run the same command" not in outputs[1]
    assert newest_state(tmp_path)["epochs_done"] > done

    with two_processes.small:
        assert main([*OPTIONS, "--output", str(tmp_path), "--resume"]) == 0
    summary = summary_of(tmp_path)
    assert summary["processes"] == 1
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == [str(n) for n in range(1, 31)]


def test_a_mean_leaves_the_values_of_this_process_as_they_are(monkeypatch):
    monkeypatch.setattr(
        "torch.distributed.all_reduce", lambda total, **_: total.mul_(2)
    )
    values = torch.tensor([1.0, 3.0])
    assert World(0, 2).mean(values).tolist() == [1.0, 3.0]
    assert values.tolist() == [1.0, 3.0]


def test_worlds_without_others(monkeypatch):
    world = World()
    assert world.first
    assert world.gather(3) == [3]
    assert world.broadcast(3) == 3
    assert world.any(True)
    assert world.share(7) == slice(0, 7)
    parts = [World(rank, 3).share(7) for rank in range(3)]
    assert [(part.start, part.stop) for part in parts] == [(0, 2), (2, 4), (4, 7)]
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join_world("auto", DistributedConfig()) == World()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="RANK is not set"):
        join_world("cpu", DistributedConfig())
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match="expected cuda, got cuda:1"):
        join_world("cuda:1", DistributedConfig())
    monkeypatch.setenv("LOCAL_RANK", "64")
    with pytest.raises(ValueError, match="device: 'cuda:64' does not exist"):
        join_world("cuda", DistributedConfig())


def test_other_errors_pass_as_they_are():
    with pytest.raises(RuntimeError, match="shapes"), World(0, 2).report_lost_peers():
        raise RuntimeError("shapes do not fit")


LEAVE = """
import sys
import torch.distributed as dist
from s3h_ext.training.distributed import exit_process

if sys.argv[1] == "joined":
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
sys.stdout.write("said")
try:
    exit_process(int(sys.argv[2]))
finally:
    print(" orderly")
"""


@pytest.mark.parametrize(
    ("group", "status", "said"),
    [
        ("joined", 3, "said"),
        ("joined", 0, "said orderly"),
        ("alone", 3, "said orderly"),
    ],
)
def test_a_failed_process_leaves_its_group_as_it_is(group, status, said):
    assert python("-c", LEAVE, group, status, status=status).stdout.strip() == said


def test_two_processes_leave_out_the_same_and_name_every_file(tmp_path):
    root = grow(tmp_path / "set", (9, 6, 1), size=(40, 56))
    grow(root, (2, 2, 1), split="test", size=(40, 56))
    bad = sorted((root / "train" / "class 0").iterdir())[1:8:3]
    bad += (root / "train" / "class 2").iterdir()
    bad += sorted((root / "test" / "class 1").iterdir())[:1]
    for path in bad:
        path.write_bytes(b"")
    run = tmp_path / "run"
    options = (
        "--preset folder/hybrid-psc --data.size 32 --data.workers 1 --batch_size 2 "
        "--epochs 2 --eval_batch_size 3 --device cpu --precision fp32 --report false "
        "--data.unreadable skip"
    ).split()
    options += ["--data.root", str(root), "--output", str(run)]
    processes = start([*MODULE, "train", *options])
    said = [process.communicate(timeout=250)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    log = (run / "train.log").read_text()
    for path in bad:
        line = f"left out: {path}: no image of a known format\n"
        assert log.count(line) == 1
        # Each process names those that it has read itself.
        assert sum(text.count(line) for text in said) == 1
    assert all("left out: " in text for text in said)
    assert "'class 2' (and 1 test images)" in log
    card = read_card(RunFolder(run))
    assert card.classes == ("class 0", "class 1")
    assert card.train_images == (6, 6)
    assert summary_of(run)["unreadable_images"] == 5
