"""In a forked process: one thread, because those of OpenMP stayed behind in the process that was forked.

A fork copies the thread that calls it and no other.  The libraries below, torch's OpenMP first, go on believing in the
threads that they had started and would wait for them for ever.  One thread asks for none of them.
"""

from __future__ import annotations

import os
import threading

import torch
from threadpoolctl import threadpool_limits

_forked = False
_settled = threading.local()


def _mark() -> None:
    global _forked, _settled
    _forked, _settled = True, threading.local()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mark)


def use_one_thread_if_forked() -> bool:
    """In a forked process let the libraries below use one thread from now on; whether that changed anything in torch.

    Numbers of threads belong to the thread that sets them, so every thread asks.
    """
    if not _forked:
        return False
    before = torch.get_num_threads()
    first = not hasattr(_settled, "done")
    if first:
        threadpool_limits(1)
        _settled.done = True
    if first or before > 1:
        # MKL's are set by it too, which OpenMP's number does not tell
        torch.set_num_threads(1)
    return before > 1
