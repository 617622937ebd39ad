"""Let idle threads sleep instead of spin.

With the OpenMP runtime of torch, idle threads spin for milliseconds, and the main thread spins while it waits for threads
that the system has suspended. Next to another busy program a fit of seconds then takes minutes. The runtime limits spinning
to about a thousand turns if it has more threads than processors. But it does not know of other programs, nor of other copies
of itself, as numba and scikit-learn load them.
"""

from __future__ import annotations

import ctypes
import os
import threading
from pathlib import Path

SPIN_COUNT = "1000"
# the user has set one of these
DECIDED = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
# machines with more processors usually have idle ones
MOST_PROCESSORS = 64

_decided = any(name in os.environ for name in DECIDED)
# files of copies that were loaded before the environment was set and are not handled yet
_early: set[str] = set()


def ask_idle_threads_to_sleep() -> None:
    """Set the environment variable, which every copy of the runtime reads once, when it is loaded."""
    if not _decided:
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT
        _early.update(loaded_runtimes())


def let_idle_threads_sleep() -> None:
    """Limit spinning in copies of the runtime that were loaded before vxpress was imported, such as that of torch.

    The runtime has no function for this. But a copy limits its spinning permanently once it has started more threads than
    there are processors. So a separate thread starts that many threads, which then sleep until the process ends.
    """
    while _early:
        try:
            path = _early.pop()
        except KeyError:  # another thread was faster
            return
        _exceed_the_processors(path)


def loaded_runtimes() -> set[str]:
    """Return the files of all copies of GNU's OpenMP runtime in this process; empty if the system does not list them."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    files = {line.split(maxsplit=5)[-1] for line in maps.splitlines() if "libgomp" in line}
    return {file for file in files if Path(file).name.startswith("libgomp")}


def _exceed_the_processors(path: str) -> None:
    """Make the copy of the runtime at ``path`` start one thread more than there are processors."""
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
        # the threads would end with this one, so it never ends
        never.acquire()

    threading.Thread(target=start_and_sleep, name="vxpress-openmp", daemon=True).start()
    started.wait()
