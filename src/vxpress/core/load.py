"""How many threads to use: no more than torch, and no more than the processors that other programs leave.

Results of the compiled loops do not depend on the number of threads, so it can follow the machine. Threads beyond the free
processors cost more than they bring, because those that compute then wait for those that the system has suspended.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

from vxpress.core import threads

# seconds between two looks at the machine; the system counts hundredths
INTERVAL = 0.25
STATISTICS, QUOTA = Path("/proc/stat"), Path("/sys/fs/cgroup/cpu.max")


def allowed() -> int:
    """Return torch's number of threads, or the number of processors of this process or its container if that is lower."""
    n = threads.number()
    return max(1, int(min(n, len(_processors()) or n, _quota())))


class Share:
    """The number of threads of a long computation, which is looked up again from time to time."""

    def __init__(self) -> None:
        self.last, self.free = _look(), math.inf

    def n_threads(self) -> int:
        """Return how many threads to use now."""
        if time.perf_counter() - self.last.at > INTERVAL:
            now = _look()
            self.last, self.free = now, now.free_since(self.last)
        return allowed() if self.free == math.inf else max(1, min(allowed(), round(self.free)))


@dataclass(frozen=True)
class _Look:
    """Seconds at a moment: on the clock, idle over all processors of this process, and used by it. NaN if unknown."""

    at: float
    idle: float
    own: float

    def free_since(self, before: _Look) -> float:
        """Compute the number of processors that were idle or used by this process; infinity if unknown."""
        free = (self.idle - before.idle + self.own - before.own) / (self.at - before.at)
        return free if math.isfinite(free) else math.inf


def _look() -> _Look:
    return _Look(time.perf_counter(), _idle(), time.process_time())


def _idle() -> float:
    """Sum the seconds that the processors of this process were idle or waited for a disk, since the system started."""
    try:
        lines = STATISTICS.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeError):
        return math.nan
    names = {f"cpu{k}" for k in _processors()}
    ticks = [sum(map(int, line.split()[4:6])) for line in lines if line.split(maxsplit=1)[0] in names]
    return sum(ticks) / os.sysconf("SC_CLK_TCK") if ticks else math.nan


def _processors() -> set[int]:
    """Return the processors on which this process may run; empty if the system does not say."""
    return set(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else set()


def _quota() -> float:
    """Return the number of processors that the container may use, at least 1; infinity without a limit."""
    try:
        limit, period = QUOTA.read_text(encoding="ascii").split()[:2]
        return math.inf if limit == "max" else max(1, round(int(limit) / int(period)))
    except (OSError, ValueError):
        return math.inf
