"""One thread for the linear algebra of numpy and scipy, where its matrices are small.

Threads of OpenBLAS wait for each other by spinning, so products of small matrices take several times as long with two
threads as with one, above all next to other programs. And the last digits depend on their number.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits

_lock = threading.Lock()
_users = 0
_limits: threadpool_limits | None = None


def _after_fork() -> None:
    """Forget the blocks of the parent process, whose threads do not exist in this one."""
    global _lock, _users, _limits
    _lock, _users, _limits = threading.Lock(), 0, None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Within this block, BLAS uses one thread in the whole process; the number before returns when the last block ends."""
    global _users, _limits  # noqa: PLW0603 - one number per process
    with _lock:
        if _users == 0:
            _limits = threadpool_limits(1, user_api="blas")
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0 and _limits is not None:
                _limits.restore_original_limits()
