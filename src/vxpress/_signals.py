"""Signals that end a command: they act as Ctrl-C does, and are delayed while something must not be left incomplete."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

# SIGHUP is sent when a terminal is closed; Windows does not have it
NAMES = ("SIGTERM", "SIGHUP")


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Delay Ctrl-C, and other signals that have a handler, to the end of the block, which should be short."""
    handlers: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        known = {one: signal.getsignal(one) for one in _signals(("SIGINT", *NAMES))}
        handlers = {one: handler for one, handler in known.items() if callable(handler)}
    pressed: list[tuple[int, FrameType | None]] = []
    for one in handlers:
        signal.signal(one, lambda number, frame: pressed.append((number, frame)))
    try:
        yield
    finally:
        for one, handler in handlers.items():
            signal.signal(one, handler)
        if pressed:
            number, frame = pressed[0]
            handlers[signal.Signals(number)](number, frame)


def _signals(names: Sequence[str]) -> list[signal.Signals]:
    return [getattr(signal, name) for name in names if hasattr(signal, name)]


class StopSignals:
    """Raise ``KeyboardInterrupt`` if a signal to terminate arrives within the block, so that results are kept.

    Handlers of other code, and signals that are ignored, as under ``nohup``, are not changed.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for one in _signals(NAMES):
                if signal.getsignal(one) is signal.SIG_DFL:
                    self._before[one] = signal.signal(one, self._stop)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for one, handler in self._before.items():
            signal.signal(one, handler)

    def _stop(self, number: int, _: FrameType | None) -> None:
        self.received = signal.Signals(number)
        raise KeyboardInterrupt

    @property
    def status(self) -> int:
        """Exit status of a command that was stopped in this way: 128 plus the number of the signal, as in shells."""
        return 128 + (signal.SIGINT if self.received is None else self.received)

    @property
    def what(self) -> str:
        """What happened, in a few words."""
        return "interrupted" if self.received is None else f"stopped by {self.received.name}"
