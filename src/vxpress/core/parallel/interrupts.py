"""Ctrl-C with several processes: it takes effect at a point that all of them reach together.

Otherwise one process would leave a computation in the middle in which the others wait for it.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any, Self

from vxpress._signals import NAMES

# seconds after which a second Ctrl-C is another one, and not a copy that the launcher has passed on
COPY = 2.0


class HeldInterrupts:
    """Within the block, Ctrl-C and other signals that act like it are kept until :meth:`take` or a block :meth:`at_once`.

    A second one ends the process at once.
    """

    gives_way = True
    """Whether a request for a checkpoint may take the place of the handlers."""

    def __init__(self) -> None:
        self.pending: list[tuple[int, FrameType | None]] = []
        self.since, self.now = 0.0, False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self.pending.clear()
        if threading.current_thread() is threading.main_thread():
            numbers = [getattr(signal, name) for name in ("SIGINT", *NAMES) if hasattr(signal, name)]
            handlers = {one: signal.getsignal(one) for one in numbers}
            # other code decides what its own handlers do
            self._before = {one: now for one, now in handlers.items() if one == signal.SIGINT or _gives_way(now)}
            self._before = {one: now for one, now in self._before.items() if callable(now)}
            for one in self._before:
                signal.signal(one, self._receive)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for one, handler in self._before.items():
            if signal.getsignal(one) == self._receive:
                signal.signal(one, handler)
        self._before = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        again = bool(self.pending) and time.monotonic() - self.since > COPY
        if self.now or again:
            self._before[number](number, frame)
            return
        self.since = self.since if self.pending else time.monotonic()
        self.pending.append((number, frame))

    def take(self) -> None:
        """Let the handlers of what was kept do their work, except for raising ``KeyboardInterrupt``."""
        kept, self.pending = self.pending, []
        for number, frame in kept:
            with suppress(KeyboardInterrupt):
                self._before[number](number, frame)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within this block, an interrupt takes effect at once, as does one that was kept."""
        if self.pending:
            self.take()
            raise KeyboardInterrupt
        self.now = True
        try:
            yield
        finally:
            self.now = False


def _gives_way(handler: Any) -> bool:
    return getattr(getattr(handler, "__self__", None), "gives_way", False) is True
