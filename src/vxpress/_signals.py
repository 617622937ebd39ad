"""Signals that end a process: what they do to a command and to a fit with checkpoints, and how they are delayed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
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

    # to StopRequests
    gives_way = True

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


class Stopped(SystemExit):
    """A signal asked the process to end during a fit with checkpoints.

    It ends a script without a traceback, with the status that shells give to the signal: 143 for SIGTERM. ``str`` of it says
    from where the fit can be continued.
    """

    def __init__(self, text: str, status: int) -> None:
        super().__init__(status)
        self.text, self.status = text, status

    def __str__(self) -> str:
        return self.text


class StopRequests:
    """Raise :class:`Stopped` if a signal to terminate arrives within the block, at once or, while it is :meth:`held`, later.

    Handlers of other code, and signals that are ignored, as under ``nohup``, are not changed; those of objects
    that ``gives_way`` are replaced. ``text`` returns what :class:`Stopped` says after the name of the signal.
    """

    def __init__(self, text: Callable[[], str]) -> None:
        self.text = text
        self.received: signal.Signals | None = None
        self._waits = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for one in _signals(NAMES):
                now = signal.getsignal(one)
                if now is signal.SIG_DFL or getattr(getattr(now, "__self__", None), "gives_way", False):
                    self._before[one] = signal.signal(one, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for one, handler in self._before.items():
            signal.signal(one, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received = signal.Signals(number)
        if not self._waits:
            raise self.stopped()

    def stopped(self) -> Stopped:
        """Return what is raised; also where another process received the signal."""
        received = signal.SIGTERM if self.received is None else self.received
        return Stopped(f"stopped by {received.name}; {self.text()}", 128 + received)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Only note a request within the block, whose code may look at ``received``; it is raised at the end at the latest."""
        before, self._waits = self._waits, True
        try:
            yield
        finally:
            self._waits = before
        if self.received is not None and not before:
            raise self.stopped()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Raise within the block, in a part of a :meth:`held` block that may be left at any point."""
        before, self._waits = self._waits, False
        try:
            if self.received is not None:
                raise self.stopped()
            yield
        finally:
            self._waits = before
