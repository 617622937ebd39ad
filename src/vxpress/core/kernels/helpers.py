"""Threads that help with compiled calls. Between calls they sleep, so they take no time from other programs."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import numpy as np

from vxpress.core import load, threads
from vxpress.core.kernels import parts

# threads of a call at most: each of them takes the interpreter for a moment, and a call has few parts of equal size
MOST = 16


@dataclass(frozen=True)
class _Call:
    """A call that threads share, the board of its parts, and the errors of helping threads."""

    function: Callable[..., Any]
    board: np.ndarray
    args: tuple[Any, ...]
    kept: Any = None
    """What owns the memory at addresses in ``args``: a thread may still work there after an error in another one."""
    errors: list[BaseException] = field(default_factory=list)

    def make(self) -> None:
        """Make the call in the current thread; an error would otherwise leave the others waiting for its part."""
        try:
            self.function(self.board, *self.args)
        except BaseException:
            np.add(self.board, parts.OVER, out=self.board)
            raise

    def help(self) -> None:
        """Make it in a helping thread."""
        try:
            self.make()
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            self.errors.append(error)


class _Helper:
    """A thread that makes the calls it receives."""

    def __init__(self, number: int) -> None:
        self.calls: SimpleQueue[_Call] = SimpleQueue()
        threading.Thread(target=self._work, name=f"vxpress-{number}", daemon=True).start()

    def _work(self) -> None:
        load.count_this_thread()
        while True:
            # not kept in a variable, so that nothing of the call lives longer than it
            self.calls.get().help()


_helpers: list[_Helper] = []
_starting = threading.Lock()


def _after_fork() -> None:
    """Forget the threads in a forked process, which has none of its parent's."""
    global _helpers, _starting
    _helpers, _starting = [], threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def run(n_threads: int, function: Callable[..., Any], n_rounds: int, *args: Any, kept: Any = None) -> None:
    """Call ``function(board, *args)`` in this thread and in helping ones, which share its parts.

    See :mod:`vxpress.core.kernels.parts`. The helping threads are those of the process, so two calls at the same time share them too.
    ``kept`` owns the memory at addresses in ``args``.
    """
    call, n_threads = _Call(function, parts.board(n_rounds), args, kept), min(n_threads, MOST)
    try:
        if n_threads > 1:
            with _starting:
                while len(_helpers) < n_threads - 1:
                    _helpers.append(_Helper(len(_helpers) + 1))
            for helper in _helpers[: n_threads - 1]:
                helper.calls.put(call)
    finally:
        # also after a Ctrl-C: all parts are done then, and no thread goes on writing
        call.make()
    if call.errors:
        raise call.errors[0]


def number() -> int:
    """Return how many threads a call uses now."""
    return min(threads.number(), MOST)


def share(loop: Callable[..., Any], cuts: np.ndarray, *args: Any) -> None:
    """Call ``loop(board, cuts, *args)``, one round of the parts between two cuts, in as many threads as can be used now."""
    run(min(len(cuts) - 1, number()), loop, 1, cuts, *args)
