"""Progress of long computations: the core reports it, and a watcher decides what to show.

Without a watcher, nothing is shown and there is no cost.
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
    """A part of a computation: ``done`` of ``total`` equal steps; a ``total`` of None is unknown."""

    what: str
    total: int | None = None
    done: int = 0
    note: str = ""


class Watcher(Protocol):
    """Receives every stage when it begins and when it ends, and may read it in between from any thread."""

    def begin(self, stage: Stage) -> None:
        """Handle the start of a stage; it is nested in the stages that have not ended."""

    def end(self, stage: Stage) -> None:
        """Handle the end of a stage, finished or not."""


_watcher: ContextVar[Watcher | None] = ContextVar("vxpress_watcher", default=None)


@contextmanager
def watched(watcher: Watcher | None) -> Iterator[None]:
    """Report the stages of this block to ``watcher``, or to nobody if it is None."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


@contextmanager
def stage(what: str, total: int | None = None) -> Iterator[Stage]:
    """Open a stage whose steps the block counts itself: ``now.done += 1``."""
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
    """Yield the items; each is a step of a stage and counts as done when the next one is requested."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with stage(what, total) as now:
        for item in items:
            yield item
            now.done += 1


def parts(items: Iterable[T], what: str, total: int) -> Iterator[tuple[T, Stage]]:
    """Yield the items with a stage whose steps are smaller than an item; the caller counts these steps."""
    with stage(what, total) as now:
        for item in items:
            yield item, now
