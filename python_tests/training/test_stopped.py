"""Trainings that were stopped or killed go on to the same bits."""

import re
import signal
import subprocess
import sys
import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from python_tests.processes import python
from python_tests.small_runs import (
    QUICK,
    after_step,
    assert_same_weights,
    interrupt_evaluation,
    losses_of,
    newest_state,
    train,
    trainer_of,
)
from s3h_ext.runs.checkpoint import (
    checkpoint_paths,
    load_checkpoint,
)
from s3h_ext.runs.folder import RunFolder

CWS = (
    "--method ClasswiseSplitting --method.inner Baseline "
    "--method.inner.weight_beta 0.9999 --method.split_from 0.2 --method.momentum 0.9"
).split()


S3H = "--method S3H --method.recipe crop --method.projection_hidden 16".split()


@pytest.mark.parametrize(
    "method",
    [
        pytest.param([], id="ce", marks=pytest.mark.slow),
        pytest.param(CWS, id="cws"),
        pytest.param(S3H, id="s3h", marks=pytest.mark.slow),
    ],
)
def test_resume_gives_the_bits_of_the_run_that_was_not_stopped(tmp_path, method):
    arguments = ["--epochs", "3", *method]
    whole, whole_summary = train(tmp_path / "whole", *arguments)
    stopped = trainer_of(tmp_path / "parts", *arguments)
    interrupt_evaluation(stopped, 2)
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    resumed, summary = train(tmp_path / "parts", *arguments, resume=True)
    assert_same_weights(resumed.method.state_dict(), whole.method.state_dict())
    assert summary["top1"] == whole_summary["top1"]
    for found, expected in zip(resumed.state.history, whole.state.history, strict=True):
        for name in ("epoch", "loss", "test_top1"):
            assert found[name] == expected[name]


EPOCHS = 4
SCRIPT = [sys.executable, "-m", "python_tests.small_digits"]
SCRIPT += [*QUICK, "--epochs", str(EPOCHS)]


def undisturbed_run(folder, epochs):
    """Returns the final weights of a run that nothing stopped."""
    options = ["--epochs", str(epochs), "--output", str(folder)]
    subprocess.run([*SCRIPT, *options], check=True, capture_output=True)
    return final_weights(folder, epochs)


def final_weights(folder, epochs=EPOCHS):
    state = newest_state(folder)
    assert (state["epochs_done"], state["unfinished_epoch"]) == (epochs, None)
    return state["method"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return undisturbed_run(tmp_path_factory.mktemp("undisturbed") / "run", EPOCHS)


def start(folder, *arguments):
    return subprocess.Popen(
        [*SCRIPT, "--output", str(folder), "--resume", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_checkpoint(process, folder):
    deadline = time.monotonic() + 120
    while not checkpoint_paths(RunFolder(folder)):
        assert process.poll() is None, "the run ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.01)


# Everything is imported once; each attempt is a fork that kills itself at a moment
# somewhere in the next epoch and a half, evaluation and checkpoint included.
KILLED = """
import os, random, signal, sys, threading
times = int(sys.argv.pop(1))
import python_tests.small_digits
from s3h_ext.methods import Baseline
from s3h_ext.methods import Hybrid
from s3h_ext.train import main

rng = random.Random(0)

def attempt(last_step, delay):
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    done = []
    def after_step(method):
        done.append(1)
        if len(done) == last_step:
            timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL))
            timer.start()
    Baseline.after_step = after_step
    os._exit(main([*sys.argv[1:], "--resume"]))

for _ in range(times):
    status = attempt(rng.randint(1, 9), rng.uniform(0.0, 0.05))
    if not os.WIFSIGNALED(status):
        sys.exit("the run was over before it was killed as often")
sys.exit(os.waitstatus_to_exitcode(attempt(0, 0.0)))
"""


def run_script(code, folder, *arguments, epochs=EPOCHS, status=0):
    options = [*SCRIPT[3:], "--epochs", str(epochs), "--output", str(folder)]
    return python("-c", code, *arguments, *options, status=status)


@pytest.mark.parametrize(
    ("times", "epochs"), [(1, 2), pytest.param(10, 12, marks=pytest.mark.slow)]
)
def test_sigkill_at_random_moments_changes_no_bit(tmp_path, times, epochs):
    folder = tmp_path / "killed"
    run_script(KILLED, folder, times, epochs=epochs)
    expected = undisturbed_run(tmp_path / "undisturbed", epochs)
    assert_same_weights(final_weights(folder, epochs), expected)
    assert not list((folder / "checkpoints").glob("*.partial"))


KILLED_WHILE_WRITING = """
import os, pathlib, signal, sys
import python_tests.small_digits
from s3h_ext.methods import Hybrid
from s3h_ext.train import main
replace = os.replace
def killed(source, target):
    path = pathlib.Path(source)
    if path.name == "epoch_00003.safetensors.partial":
        path.write_bytes(path.read_bytes()[:-1000])
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(source, target)
os.replace = killed
main(sys.argv[1:])
"""


def test_sigkill_while_a_checkpoint_is_written_changes_no_bit(tmp_path, undisturbed):
    run_script(KILLED_WHILE_WRITING, tmp_path, status=-signal.SIGKILL)
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == [
        "epoch_00001.safetensors",
        "epoch_00002.safetensors",
        "epoch_00002_and_more.safetensors",
        "epoch_00003.safetensors.partial",
    ]
    process = start(tmp_path)
    process.communicate()
    assert process.returncode == 0
    assert_same_weights(final_weights(tmp_path), undisturbed)


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM]
)
def test_a_polite_stop_saves_inside_the_epoch(tmp_path, undisturbed, number):
    process = start(tmp_path)
    wait_for_checkpoint(process, tmp_path)
    process.send_signal(number)
    _, messages = process.communicate()
    assert process.returncode == 130
    assert f"run the same command with --output {tmp_path} --resume" in messages
    assert newest_state(tmp_path)["epochs_done"] < EPOCHS
    process = start(tmp_path)
    _, messages = process.communicate()
    assert process.returncode == 0
    assert_same_weights(final_weights(tmp_path), undisturbed)


def test_stopping_inside_an_epoch_keeps_its_numbers(tmp_path):
    whole, _ = train(tmp_path / "whole")
    stopped = trainer_of(tmp_path / "parts")
    after_step(stopped.method, 3, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    state = newest_state(tmp_path / "parts")
    assert (state["epochs_done"], state["unfinished_epoch"]["steps"]) == (0, 3)
    resumed, _ = train(tmp_path / "parts", resume=True)
    assert_same_weights(resumed.method.state_dict(), whole.method.state_dict())
    assert losses_of(resumed) == losses_of(whole)
    assert resumed.state.images_trained == whole.state.images_trained
    log = (tmp_path / "parts" / "train.log").read_text()
    lines = [line.split("  ", 1)[1] for line in log.splitlines()]
    begun = [line.rsplit(", ", 1)[-1] for line in lines if "from step" in line]
    assert begun == ["from step 0 of 12", "from step 3 of 12"]
    told = [line for line in lines if re.match("stopped|epoch |finished", line)]
    assert told[0] == "stopped in epoch 1: KeyboardInterrupt()"
    assert [line.split(",")[0] for line in told[1:3]] == ["epoch 1", "epoch 2"]
    assert told[3].startswith("finished: top1 ")


class StopAt:
    """A wish to stop that comes between two questions for it."""

    def __init__(self, question):
        self._left = question

    @property
    def requested(self):
        self._left -= 1
        return self._left <= 0

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


# One question after each of six steps, one after the epoch.
@pytest.mark.parametrize(("question", "steps"), [(6, 6), (7, 6), (8, 7)])
def test_a_stop_at_the_end_of_an_epoch_saves_it(tmp_path, monkeypatch, question, steps):
    place = "s3h_ext.training.trainer.StopRequest"
    monkeypatch.setattr(place, lambda: StopAt(question))
    trainer = trainer_of(tmp_path, "--checkpoint_every", "5")
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    (path,) = checkpoint_paths(trainer.folder)
    state = load_checkpoint(path)
    unfinished = state["unfinished_epoch"] or {"steps": 0}
    assert 6 * state["epochs_done"] + unfinished["steps"] == steps


def test_a_resumed_run_keeps_the_curves_of_all_epochs(tmp_path):
    stopped = trainer_of(tmp_path, "--epochs", "3")
    interrupt_evaluation(stopped, 2)
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    train(tmp_path, "--epochs", "3", resume=True)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name in events.Tags()["scalars"]:
        assert [event.step for event in events.Scalars(name)] == [1, 2, 3], name
