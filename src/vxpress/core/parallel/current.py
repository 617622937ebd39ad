"""The world of the current call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from vxpress.core.parallel.world import SINGLE, World

_current: ContextVar[World] = ContextVar("vxpress_world", default=SINGLE)


def current_world() -> World:
    """Return the world in which the current call runs; :data:`SINGLE` unless a fit is shared by several processes."""
    return _current.get()


@contextmanager
def within(world: World) -> Iterator[None]:
    """Run this block in a world."""
    token = _current.set(world)
    try:
        yield
    finally:
        _current.reset(token)
