"""How idle threads wait: asleep rather than spinning.

The OpenMP runtime under torch lets idle threads spin for milliseconds, and the main thread spin for those that the
system has put aside: beside another busy program a fit of seconds takes minutes.  The runtime itself allows about a
thousand turns once it knows of more threads than processors; it does not know of other programs, nor of other copies of
itself, of which numba and scikit-learn load their own.
"""

from __future__ import annotations

import ctypes
import os
import threading
from pathlib import Path

SPIN_COUNT = "1000"
# whoever set one of these has decided
DECIDED = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
# a machine with more processors has some to spare
MOST_PROCESSORS = 64

_decided = any(name in os.environ for name in DECIDED)
# files of the copies that were loaded before the environment asked, until each has been seen to
_early: set[str] = set()


def ask_idle_threads_to_sleep() -> None:
    """Ask for it in the environment, which every copy of the runtime reads once, when it is loaded."""
    if not _decided:
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT
        _early.update(loaded_runtimes())


def let_idle_threads_sleep() -> None:
    """See to it in the copies of the runtime that were loaded before vxpress was imported, such as torch's.

    There is no call for it.  But a copy shortens its turns for good once it has started more threads than there are
    processors: so a thread of ours starts that many, which then sleep as long as the process lives.
    """
    while _early:
        try:
            path = _early.pop()
        except KeyError:  # another thread was faster
            return
        _exceed_the_processors(path)


def loaded_runtimes() -> set[str]:
    """Files of the copies of GNU's OpenMP runtime in this process; none where the system cannot say."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    files = {line.split(maxsplit=5)[-1] for line in maps.splitlines() if "libgomp" in line}
    return {file for file in files if Path(file).name.startswith("libgomp")}


def _exceed_the_processors(path: str) -> None:
    """Let the copy of the runtime at ``path`` start a thread more than there are processors."""
    try:
        runtime, system = ctypes.CDLL(path), ctypes.CDLL(None)
        parallel, nothing = runtime.GOMP_parallel, ctypes.cast(system.free, ctypes.c_void_p)
        n_threads = int(runtime.omp_get_num_procs()) + 1
    except (OSError, AttributeError):
        return
    if n_threads > MOST_PROCESSORS + 1:
        return
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    started, never = threading.Event(), threading.Lock()
    never.acquire()

    def start_and_sleep() -> None:
        # every thread calls free(NULL), which does nothing
        parallel(nothing, None, n_threads, 0)
        started.set()
        # the threads belong to this one and would end with it
        never.acquire()

    threading.Thread(target=start_and_sleep, name="vxpress-openmp", daemon=True).start()
    started.wait()
