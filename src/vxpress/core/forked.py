"""Use one thread in a forked process, because the threads of OpenMP do not exist there.

A fork copies only the thread that calls it.  Libraries such as torch's OpenMP still rely on the threads that they had
started, and would wait for them forever.  With one thread they wait for none.
"""

from __future__ import annotations

import os
import sys
import threading

import torch
from threadpoolctl import threadpool_limits

_forked, _numba_lost = False, False
_settled = threading.local()


def _mark() -> None:
    global _forked, _numba_lost, _settled
    _forked, _numba_lost, _settled = True, _numba_lost or _numba_has_threads(), threading.local()


def _numba_has_threads() -> bool:
    """Whether numba has started threads with OpenMP; a forked process that then uses numba's threads is terminated."""
    if "numba" not in sys.modules:
        return False
    try:
        return bool(sys.modules["numba"].threading_layer() == "omp")
    except (ValueError, AttributeError):  # no threads were started, or numba is being imported
        return False


def check_numba_threads(what: str) -> None:
    """Raise ``RuntimeError`` if using numba's threads would terminate this process."""
    if _numba_lost:
        msg = (
            f"{what} needs numba's threads, which cannot be used in a process that was forked after they had started. Start "
            "processes with multiprocessing.get_context('spawn') or joblib, or call it before the fork."
        )
        raise RuntimeError(msg)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mark)


def use_one_thread_if_forked() -> bool:
    """Limit numerical libraries to one thread if this process was forked; return whether this changed torch's number.

    Numbers of threads belong to the thread that sets them, so every thread calls this function.
    """
    if not _forked:
        return False
    before = torch.get_num_threads()
    first = not hasattr(_settled, "done")
    if first:
        threadpool_limits(1)
        _settled.done = True
    if first or before > 1:
        # this also sets MKL's number, which the number of OpenMP does not show
        torch.set_num_threads(1)
    return before > 1
