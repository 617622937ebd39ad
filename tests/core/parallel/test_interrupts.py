"""Ctrl-C with several processes."""

from __future__ import annotations

import os
import signal

import pytest

from vxpress._signals import StopSignals
from vxpress.core.parallel import interrupts as interrupts_module
from vxpress.core.parallel.interrupts import HeldInterrupts


def _press(what: signal.Signals = signal.SIGINT) -> None:
    os.kill(os.getpid(), what)


def test_an_interrupt_waits_until_it_is_taken() -> None:
    with HeldInterrupts() as held:
        _press()
        assert held.pending
        held.take()
        assert not held.pending
    with pytest.raises(KeyboardInterrupt):
        _press()


def test_a_block_at_once_is_interrupted_also_by_what_was_kept() -> None:
    with HeldInterrupts() as held:
        with pytest.raises(KeyboardInterrupt), held.at_once():
            _press()
        _press()
        with pytest.raises(KeyboardInterrupt), held.at_once():
            pytest.fail("the block has begun")
        assert not held.pending


def test_the_copy_that_a_launcher_passes_on_is_no_second_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    with HeldInterrupts() as held:
        _press()
        _press()
        assert len(held.pending) == 2
        monkeypatch.setattr(interrupts_module, "COPY", -1.0)
        with pytest.raises(KeyboardInterrupt):
            _press()


def test_a_signal_that_stops_the_command_is_kept_and_then_noted() -> None:
    with StopSignals() as signals, HeldInterrupts() as held:
        _press(signal.SIGTERM)
        assert signals.received is None
        held.take()
        assert signals.received is signal.SIGTERM


def test_handlers_of_other_code_act_at_once() -> None:
    received = []
    before = signal.signal(signal.SIGTERM, lambda *_: received.append(1))
    try:
        with HeldInterrupts():
            _press(signal.SIGTERM)
            assert received
    finally:
        signal.signal(signal.SIGTERM, before)
