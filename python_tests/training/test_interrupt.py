"""Which signals are a wish to stop, and which end the run at once."""

import signal

import pytest

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
