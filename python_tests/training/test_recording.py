"""Recorded steps against the same steps run one by one."""

import functools
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from python_tests.settings import no_waiting
from python_tests.small_runs import DIGITS, after_step, trainer_of
from python_tests.training.tape import Tape
from s3h_ext.data import load_dataset
from s3h_ext.training import run as run_module
from s3h_ext.training.recording import CudaGraphs, Replayer, choose_recorder
from s3h_ext.training.runlog import SilentLog

QUICK = [*DIGITS, *"--batch_size 14 --epochs 3 --optim.lr 0.02".split()]
CWS = "--method ClasswiseSplitting --method.images_per_row 4 --method.split_from 0.3"
METHODS = {
    "drw": "--method Baseline --method.weight_beta 0.99 --method.reweight_from 0.6",
    "mixed": (
        "--method.recipe crop --method.mixing.kind cutmix --method.mixing.start 0.3 "
        "--method.mixing.end 0.6 --optim.ema_decay 0.8"
    ),
    "sc": "--method Hybrid --method.recipe crop",
    "s3h-cosine": (
        "--method S3H --method.recipe crop --model.classifier cosine "
        "--method.momentum_schedule cosine --method.separate_norm true"
    ),
    "cws-cb": f"{CWS} --method.inner Baseline --method.inner.weight_beta 0.999",
    "cws-psc": (
        f"{CWS} --method.inner Hybrid --method.inner.contrast prototypical "
        "--method.inner.recipe crop"
    ),
}


def few_images():
    """Digits, 12 of the first class and 3 of the last: batches of 12 and 13."""
    data = load_dataset("digits-lt", imbalance=4)
    places = [
        np.flatnonzero(data.train.labels == label)[: 12 - label]
        for label in range(data.num_classes)
    ]
    train, test = data.train.subset(np.concatenate(places)), np.arange(40)
    return replace(data, train=train, test=data.test.subset(test))


def build(folder, *arguments, **more):
    return trainer_of(folder, *arguments, quick=QUICK, dataset=few_images(), **more)


def run(folder, *arguments):
    """Trains three epochs; returns the trainer and what it measured in each."""
    trainer = build(folder, *arguments)
    rows = []
    for epoch in range(3):
        row = trainer.train_epoch(epoch, SilentLog())
        del row["images_per_second"]
        rows.append({**row, "top1": trainer.evaluate("test").top1})
    return trainer, rows


@pytest.fixture
def recorded(monkeypatch):
    """Makes trainers record; returns what they record with."""
    tape = Tape()
    monkeypatch.setattr(run_module, "choose_recorder", lambda *_: tape)
    return tape


def assert_same(one, other, **tolerance):
    ours, theirs = one.method.state_dict(), other.method.state_dict()
    torch.testing.assert_close(ours, theirs, equal_nan=True, **tolerance)


@pytest.mark.parametrize("name", METHODS)
def test_recorded_steps_train_as_the_others(name, tmp_path, request):
    arguments = METHODS[name].split()
    plain, rows = run(tmp_path / "plain", *arguments)
    tape = request.getfixturevalue("recorded")
    replayed, same_rows = run(tmp_path / "recorded", *arguments)
    assert tape.replays > tape.runs > 0
    assert tape.forgotten == (name in ("cws-cb", "cws-psc"))  # at the split
    assert_same(replayed, plain, rtol=1e-3, atol=1e-4)
    for ours, theirs in zip(same_rows, rows, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)


@pytest.mark.parametrize("name", ["sc", "mixed", "drw", "s3h-cosine"])
def test_one_recording_serves_all_epochs(tmp_path, recorded, name):
    run(tmp_path / "run", *METHODS[name].split())
    # Batches of two sizes, and the test split's one batch.
    assert recorded.recordings == 3


def test_a_recorded_run_goes_on_where_it_stopped(tmp_path, recorded):
    arguments = METHODS["cws-psc"].split()
    whole = build(tmp_path / "whole", *arguments)
    whole.fit()
    first = build(tmp_path / "parts", *arguments)
    first.epochs = 2
    first.fit()
    rest = build(tmp_path / "parts", *arguments, resume=True)
    rest.fit()
    assert rest.state.epochs_done == 3
    assert_same(rest, whole, rtol=0, atol=0)


@pytest.mark.parametrize(
    "name", ["drw", pytest.param("s3h-cosine", marks=pytest.mark.slow), "cws-psc"]
)
def test_what_follows_the_progress_is_there_after_a_stop_inside_an_epoch(
    name, tmp_path
):
    arguments = [*METHODS[name].split(), "--eval_every", "3"]
    whole = build(tmp_path / "whole", *arguments)
    whole.fit()
    stopped = build(tmp_path / "parts", *arguments)
    in_the_last_epoch = 2 * stopped.source.steps_per_epoch + 2
    stop = functools.partial(signal.raise_signal, signal.SIGTERM)
    after_step(stopped.method, in_the_last_epoch, stop)
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    rest = build(tmp_path / "parts", *arguments, resume=True)
    assert rest.state.unfinished_epoch["steps"] == 2
    rest.fit()
    assert_same(rest, whole, rtol=0, atol=0)


def test_a_recorded_run_goes_on_without_recordings(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "choose_recorder", lambda *_: Tape())
        first = build(tmp_path / "run")
        first.epochs = 1
        first.fit()
    rest = build(tmp_path / "run", resume=True)
    rest.fit()
    assert rest.state.epochs_done == 3
    assert all(isinstance(g["lr"], float) for g in rest.optimizer.param_groups)


def test_a_replay_reads_new_inputs_and_runs_no_python():
    tape, calls = Tape(), []
    replay = Replayer(tape)

    def double(tensors):
        calls.append(len(calls))
        return tensors[0] * 2

    for number in range(5):
        result = replay("double", [torch.full((3,), float(number))], double)
        assert result.tolist() == [2.0 * number] * 3
    assert calls == [0, 1]  # once as it is, once to be recorded
    assert (tape.runs, tape.recordings, tape.replays) == (1, 1, 4)


def test_other_shapes_and_names_are_recorded_apart():
    tape = Tape()
    replay = Replayer(tape)
    for _ in range(3):
        for size in (2, 3):
            ones = torch.ones(size)
            assert replay("sum", [ones], lambda t: t[0].sum()) == size
            assert replay("count", [ones], lambda t: t[0] * 0).tolist() == [0] * size
    assert tape.recordings == 4
    replay.drop()
    assert replay("sum", [torch.ones(2)], lambda t: -t[0].sum()) == -2
    assert (tape.runs, tape.forgotten) == (5, 1)


def test_what_reads_a_value_runs_as_it_is_unless_recordings_are_insisted_on():
    def read(tensors):
        return tensors[0].sum().item()

    replay = Replayer(Tape(), insist=False)
    assert replay("read", [torch.ones(2)], read) == 2
    with pytest.warns(UserWarning, match=r"read cannot be recorded .*on the host"):
        assert replay("read", [torch.ones(2)], read) == 2
    assert replay("read", [torch.full((2,), 4.0)], read) == 8
    insisting = Replayer(Tape())
    insisting("read", [torch.ones(2)], read)
    with pytest.raises(RuntimeError, match="on the host"):
        insisting("read", [torch.ones(2)], read)


@pytest.mark.parametrize(("device", "processes"), [("cpu", 1), ("cuda", 2)])
def test_graphs_need_one_process_on_a_gpu(device, processes):
    with pytest.raises(ValueError, match="graphs: 'on' needs one process on a CUDA"):
        choose_recorder("on", torch.device(device), processes, True)


def test_steps_run_as_they_are_without_a_gpu_or_with_several_processes():
    assert choose_recorder("auto", torch.device("cpu"), 1, True) is None
    assert choose_recorder("auto", torch.device("cuda"), 2, True) is None
    assert choose_recorder("auto", torch.device("cuda"), 1, False) is None
    assert choose_recorder("off", torch.device("cuda"), 1, True) is None


@pytest.mark.cuda
@pytest.mark.parametrize("name", METHODS)
def test_graphs_train_as_the_steps_do(name, tmp_path):
    arguments = [*METHODS[name].split(), "--device", "cuda"]
    _, rows = run(tmp_path / "plain", *arguments, "--graphs", "off")
    _, same_rows = run(tmp_path / "graphs", *arguments, "--graphs", "on")
    for ours, theirs in zip(same_rows, rows, strict=True):
        # Sums come in any order on a GPU.
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.02)


@pytest.mark.cuda
def test_a_graph_replays_on_the_device():
    device = torch.device("cuda")
    total = torch.zeros((), device=device)
    replay = Replayer(CudaGraphs(device))
    for number in range(4):
        given = torch.full((), float(number), device=device)
        result = replay("add", [given], lambda t: total.add_(t[0]) * 1)
    assert (total.item(), result.item()) == (6.0, 6.0)


@pytest.mark.cuda
def test_recorded_steps_do_not_wait_for_the_device(tmp_path):
    trainer = build(tmp_path / "run", *METHODS["s3h"].split(), "--device", "cuda")
    log = SilentLog()
    trainer.train_epoch(0, log)  # runs, records
    batches = trainer.source.epoch(1)
    first = next(batches)
    trainer._step(first, 0.1)
    with no_waiting():
        for batch in batches:
            trainer._step(batch, 0.1)
