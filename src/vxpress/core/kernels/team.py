"""How loops are compiled, and divided into parts.

No result depends on the number of threads: loops that add up over cells have parts that depend on shapes alone
(:func:`groups`), and their sums are added in the order of the parts. Threads that share the parts are those of
:mod:`.helpers`. Numba's own threads are never started: they would wait for work, and for one another, by spinning.
"""

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np

from vxpress.core.kernels import compiling  # noqa: F401 - compilation shows as progress


def _can_cache() -> bool:
    """Whether numba finds a directory for compiled code; without one it cannot define a cached function."""
    try:
        numba.njit(cache=True)(_nothing)
    except (RuntimeError, OSError):
        return False
    return True


def _nothing() -> None:
    pass


CACHED: dict[str, Any] = {"cache": _can_cache()}
# of functions that only compiled ones call: no entry from Python or C is compiled for them
INNER: dict[str, Any] = {"error_model": "numpy", "nogil": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}


# cells of a group; larger with many rows of dispersions, because each group has its own sums of their gradients
GROUP, LARGE_GROUP, MANY_ROWS, MAX_GROUPS = 32, 128, 2, 32


@functools.lru_cache(maxsize=256)
def cut(n: int, n_parts: int) -> np.ndarray:
    """Return the bounds of ``n`` items divided evenly among parts."""
    return np.linspace(0, n, min(n_parts, max(n, 1)) + 1).astype(np.int64)


def groups(n: int, n_sums: int = 1) -> np.ndarray:
    """Return the bounds of groups of ``n`` cells for a loop with ``n_sums`` sums per gene over the cells of a group."""
    size = GROUP if n_sums <= MANY_ROWS else LARGE_GROUP
    return cut(n, max(1, min(MAX_GROUPS, n // size)))
