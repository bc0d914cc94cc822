"""Which signals are a wish to stop, and which end the run at once."""

import signal

import pytest

from python_tests.small_runs import train, trainer_of
from s3h_ext.runs.folder import RunFolder
from s3h_ext.training.interrupt import SIGNALS, StopRequest


@pytest.mark.parametrize("first", SIGNALS)
def test_a_further_sigterm_does_not_interrupt_and_a_further_sigint_does(first):
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopRequest() as stop:
        assert not stop.requested
        signal.raise_signal(first)
        assert stop.requested
        # A parent that was ended together with the run passes the signal on.
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_finished_run_has_its_report_though_it_was_to_stop(tmp_path, monkeypatch):
    write = RunFolder.write_summary

    def stop_behind_it(*arguments):
        write(*arguments)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(RunFolder, "write_summary", stop_behind_it)
    try:
        train(tmp_path, "--epochs", "1", "--report", "true")
    except KeyboardInterrupt:
        pytest.fail("the signal ended it")
    assert (tmp_path / "report.html").exists()
    assert (tmp_path / "per_class.csv").exists()


@pytest.mark.parametrize("last", [False, True])
def test_a_stop_in_the_last_evaluation_comes_too_late(tmp_path, monkeypatch, last):
    trainer = trainer_of(tmp_path)
    evaluate, done = trainer.evaluate, []

    def stop_in_it(split):
        done.append(1)
        if len(done) == 1 + last:
            signal.raise_signal(signal.SIGTERM)
        return evaluate(split)

    monkeypatch.setattr(trainer, "evaluate", stop_in_it)
    if last:
        trainer.fit()
        assert (tmp_path / "summary.json").is_file()
        return
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    # Epoch 2 was never begun.
    assert trainer.place == "after epoch 1"
    assert "stopped after epoch 1: Key" in (tmp_path / "train.log").read_text()
