"""How many processors are free for a computation: those of its process and container that other programs do not use.

Threads beyond the free processors cost more than they bring, because those that compute then wait for those that the system
has suspended. What is free is what was idle plus what the computation itself used, so a computation next to others keeps
the share of time that the system gives it. On systems that do not say it, all processors are free.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vxpress.core import quota

# seconds from the start of a call to the first measurement, and between two of them; the system counts hundredths
FIRST, INTERVAL = 0.1, 0.25
STATISTICS = Path("/proc/stat")
# of the numbers of a processor in the statistics: time of programs of low priority, idle, and idle while a disk is slow; those
# after eight are parts of others
LOW, IDLE, KINDS = slice(1, 2), slice(3, 5), 8


def processors() -> int:
    """Return the number of processors that this process may use: those it is bound to, within the quota of its container."""
    limits = (group.processors() for group in quota.groups())
    return max(1, int(min(len(_bound_to()) or os.cpu_count() or 1, *limits, math.inf)))


def begin() -> None:
    """Look at the machine at the start of a call, unless this was done a moment ago."""
    if _of_thread.last is None or time.perf_counter() - _of_thread.last.at > INTERVAL:
        now = _look()
        _of_thread.last, _of_thread.free, _of_thread.wait = now, now.free_at_once(), FIRST


def free() -> int:
    """Return the number of processors that are free for a computation of this thread, at least 1; see :func:`begin`."""
    if _of_thread.last is None:
        begin()
    elif time.perf_counter() - _of_thread.last.at > _of_thread.wait:
        now = _look()
        if now.processors == _of_thread.last.processors:
            _of_thread.free = now.free_since(_of_thread.last)
        _of_thread.last, _of_thread.wait = now, INTERVAL
    return _of_thread.free


def count_this_thread() -> None:
    """Count the time of this thread as time of the computation; threads that help call it."""
    if hasattr(time, "pthread_getcpuclockid"):
        _clocks.add(time.pthread_getcpuclockid(threading.get_ident()))


@dataclass(frozen=True)
class _Look:
    """What the system says at a moment. Times are in seconds since any other moment, NaN if unknown."""

    at: float
    processors: frozenset[int]
    allowed: int
    idle: float
    """Time that the processors of this process were idle, or would have been without programs of lower priority, in total."""
    counted: float
    """Time that they have counted."""
    running: float
    """Number of threads of all programs that run or wait for a processor, and do nothing else."""
    own: Mapping[int, float]
    """Processor time of the threads of the computation."""
    groups: tuple[tuple[float, float], ...]
    """Processors that each control group may use, and the processor time that it has used."""

    def free_at_once(self) -> int:
        """Guess the number of free processors: one for this thread, and those on which nothing else runs."""
        others = self.running - 1
        return self.allowed if math.isnan(others) else self._within((os.cpu_count() or 1) - others)

    def free_since(self, before: _Look) -> int:
        """Compute the number of processors that were idle or used by the computation."""
        seconds = self.at - before.at
        own = sum(max(0.0, time - before.own.get(clock, 0.0)) for clock, time in self.own.items())
        free = math.inf
        # some systems only pretend to count
        if self.counted - before.counted > len(self.processors) * seconds / 2:
            free = (self.idle - before.idle + own) / seconds
        for (limit, used), (_, used_before) in zip(self.groups, before.groups, strict=False):
            others = (used - used_before - own) / seconds
            if math.isfinite(others):
                free = min(free, limit - max(0.0, others))
        return self._within(free)

    def _within(self, free: float) -> int:
        return max(1, min(self.allowed, round(min(free, self.allowed))))


class _OfThread(threading.local):
    """The last look of this thread, what it has found, and when to look again."""

    last: _Look | None = None
    free: int = 1
    wait: float = FIRST


_of_thread = _OfThread()
_clocks: set[int] = set()


def _after_fork() -> None:
    """Forget the threads and the looks of the parent process."""
    _of_thread.last = None
    _clocks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _look() -> _Look:
    bound = frozenset(_bound_to())
    idle, counted, running = _statistics(bound)
    groups = tuple((group.processors(), group.used()) for group in quota.groups())
    return _Look(time.perf_counter(), bound, processors(), idle, counted, running, _own(), groups)


def _own() -> dict[int, float]:
    """Return the processor time of this thread, under the key 0, and of the threads that help."""
    found = {0: time.thread_time()}
    for clock in tuple(_clocks):
        try:
            found[clock] = time.clock_gettime(clock)
        except OSError:
            # the thread has ended
            _clocks.discard(clock)
    return found


def _statistics(bound: frozenset[int]) -> tuple[float, float, float]:
    """Return idle and counted time of processors, and the number of threads that run; NaN if the system does not say."""
    unknown = math.nan, math.nan, math.nan
    try:
        lines = [line.split() for line in STATISTICS.read_text(encoding="ascii").splitlines()]
    except (OSError, UnicodeError):
        return unknown
    numbers = {words[0]: words[1:] for words in lines if words}
    ticks = [[int(word) for word in numbers.get(f"cpu{k}", ())] for k in bound]
    # some containers show other processors than those that their processes are bound to
    if not bound or not all(map(any, ticks)):
        return unknown
    # programs with `nice` leave their time to others, unless this one has it too
    idle = [LOW, IDLE] if os.getpriority(os.PRIO_PROCESS, 0) <= 0 else [IDLE]
    second = os.sysconf("SC_CLK_TCK")
    running = float(numbers.get("procs_running", ["nan"])[0])
    return (
        sum(sum(t[kind]) for t in ticks for kind in idle) / second,
        sum(sum(t[:KINDS]) for t in ticks) / second,
        running,
    )


def _bound_to() -> set[int]:
    """Return the processors on which this thread may run; empty if the system does not say."""
    return set(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else set()
