"""How far a long computation has come: the core says it, and whoever watches decides what to show.

Nothing is shown, and nothing is paid for, where nobody watches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol, TypeVar

T = TypeVar("T")


@dataclass(eq=False)
class Stage:
    """A part of a computation: ``done`` of ``total`` equal steps, or of an unknown number (None)."""

    what: str
    total: int | None = None
    done: int = 0
    note: str = ""


class Watcher(Protocol):
    """Is given every stage as it begins and as it ends, and may look at it in between, from any thread."""

    def begin(self, stage: Stage) -> None:
        """A stage begins, inside those that have not ended."""

    def end(self, stage: Stage) -> None:
        """A stage ends, finished or not."""


_watcher: ContextVar[Watcher | None] = ContextVar("vxpress_watcher", default=None)


@contextmanager
def watched(watcher: Watcher | None) -> Iterator[None]:
    """Let ``watcher`` see the stages of this block; None lets nobody."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


@contextmanager
def stage(what: str, total: int | None = None) -> Iterator[Stage]:
    """A stage whose steps the block counts itself: ``now.done += 1``."""
    now, watcher = Stage(what, total), _watcher.get()
    if watcher is None:
        yield now
        return
    watcher.begin(now)
    try:
        yield now
    finally:
        watcher.end(now)


def steps(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """The items, each a step of a stage that is done when the next one is asked for."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with stage(what, total) as now:
        for item in items:
            yield item
            now.done += 1


def parts(items: Iterable[T], what: str, total: int) -> Iterator[tuple[T, Stage]]:
    """The items, within one stage whose steps are smaller: whoever takes an item counts them."""
    with stage(what, total) as now:
        for item in items:
            yield item, now
