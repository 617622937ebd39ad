"""Signals that end a command: each acts as Ctrl-C does, and the exit status says which it was."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

# SIGHUP, of a terminal that was closed, is unknown to Windows
NAMES = ("SIGTERM", "SIGHUP")


class StopSignals:
    """Within the block a signal that asks the process to end raises ``KeyboardInterrupt``, so that what was made is kept.

    Handlers that somebody else has set, and signals that are ignored as under ``nohup``, are left alone.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for one in (getattr(signal, name) for name in NAMES if hasattr(signal, name)):
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
        """Exit status of a command that was ended so: 128 and the number of the signal, as shells count."""
        return 128 + (signal.SIGINT if self.received is None else self.received)

    @property
    def what(self) -> str:
        """What happened, in a word."""
        return "interrupted" if self.received is None else f"stopped by {self.received.name}"
