"""Threads of the compiled loops: as many as torch may use, never more.

Numba has its own threads in addition to torch's. Both wait for work by spinning, so they must take turns and never
outnumber the cores.  Their number is that of torch (``torch.set_num_threads``): one setting controls both, and a fit
with one thread never starts numba's threads.  No result depends on it: loops that add up over cells have parts that
depend on shapes alone (:func:`groups`), and their sums are added in the order of the parts.
"""

from __future__ import annotations

import functools
import os
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from numba import config as numba_config

from vxpress.core import threads
from vxpress.core.kernels import compiling  # noqa: F401 - compilation shows as progress

# numba fills this module when it is imported
_SETTINGS: dict[str, Any] = vars(numba_config)


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
# threading layers that two Python threads can use at the same time
SAFE_LAYERS = ("omp", "tbb")


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


def shares(n: int) -> np.ndarray:
    """Return the bounds of one part for each thread, for loops whose result does not depend on the parts."""
    return cut(n, threads.number())


def run(serial: Callable[..., Any], parallel: Callable[..., Any], cuts: np.ndarray, *args: Any) -> None:
    """Run a compiled loop over the parts between ``cuts``: in parallel if that is safe, else one after another.

    The result is the same to the last bit in both cases, because the order of summation depends only on the cuts.
    """
    n_threads = min(len(cuts) - 1, threads.number(), _SETTINGS["NUMBA_NUM_THREADS"])
    if n_threads < 2 or not _parallel_is_safe():
        serial(cuts, *args)
        return
    before = numba.get_num_threads()
    numba.set_num_threads(n_threads)
    try:
        parallel(cuts, *args)
    finally:
        numba.set_num_threads(before)


_safe: bool | None = None
_starting = threading.Lock()


def _after_fork() -> None:
    """Forbid parallel loops in a forked process: it cannot use its parent's threads, and OpenMP would terminate it."""
    global _safe, _starting
    _safe, _starting = False, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _parallel_is_safe() -> bool:
    """Start numba's threads once and check their layer; torch's own number of threads does not change."""
    global _safe  # noqa: PLW0603 - determined once per process
    if _safe is not None:
        return _safe
    with _starting:
        if _safe is not None:
            return _safe
        before = torch.get_num_threads()
        try:
            _touch(np.zeros(2))
        finally:
            if torch.get_num_threads() != before:
                torch.set_num_threads(before)
        layer = numba.threading_layer()
        _safe = layer in SAFE_LAYERS
        if not _safe:
            msg = (
                f"numba uses the threading layer {layer!r}, which two Python threads cannot share, so compiled loops run on one "
                "core. Install OpenMP (the system's libgomp) or the package tbb to use all cores."
            )
            warnings.warn(msg, RuntimeWarning, stacklevel=2)
    return _safe


@numba.njit(parallel=True, **CACHED)
def _touch(x: np.ndarray) -> None:
    for i in numba.prange(x.size):
        x[i] = i
