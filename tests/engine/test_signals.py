"""Signals as an orderly end, in this process."""

import os
import signal

import psis_d2  # noqa: F401
from psis_d2.engine import signals
from psis_d2.engine.signals import Interruption, SignalGate

import pytest


def send(signum=signal.SIGTERM):
    os.kill(os.getpid(), signum)


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_an_exit(signum, status):
    before = signal.getsignal(signum)
    with pytest.raises(Interruption) as end, SignalGate():
        send(signum)
    assert end.value.code == status
    assert signal.getsignal(signum) is before


def test_a_signal_may_wait():
    told = []
    with SignalGate(on_signal=told.append) as gate:
        with gate.deferring():
            assert gate.received is None
            assert gate.seconds() == 0
            send()
            assert gate.received == signal.SIGTERM
            send()  # the echo of a launcher
        assert told == [signal.SIGTERM]


def test_but_not_in_a_block_that_may_be_interrupted():
    with pytest.raises(Interruption), SignalGate() as gate, gate.deferring(), gate.deferring(False):
        send()


def test_a_second_signal_does_not_wait(monkeypatch):
    with SignalGate() as gate, gate.deferring():
        send()
        monkeypatch.setattr(signals, "_REPEAT_SECONDS", 0.0)
        with pytest.raises(Interruption) as end:
            send(signal.SIGINT)
    assert end.value.code == 143
