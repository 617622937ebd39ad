"""How compiled loops share torch's processors: as many threads as torch may use, never more.

Numba keeps its own threads beside torch's; both wait for work by spinning, so they must take turns and never be more
than the cores.  How many there are is torch's number (``torch.set_num_threads``), so one setting rules both and a fit
with one thread never wakes numba's.
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

from vxpress.core.kernels import compiling  # noqa: F401 - compilation shows as progress

# numba fills this module when it is imported
_SETTINGS: dict[str, Any] = vars(numba_config)


def _can_cache() -> bool:
    """Whether numba finds a place for compiled code; without one it refuses to define a cached function."""
    try:
        numba.njit(cache=True)(_nothing)
    except (RuntimeError, OSError):
        return False
    return True


def _nothing() -> None:
    pass


CACHED: dict[str, Any] = {"cache": _can_cache()}
# layers that hold up when two Python threads fit at once
SAFE_LAYERS = ("omp", "tbb")


@functools.lru_cache(maxsize=256)
def cut(n: int, threads: int) -> np.ndarray:
    """Bounds of as many equal runs of ``n`` as there are threads."""
    return np.linspace(0, n, min(threads, max(n, 1)) + 1).astype(np.int64)


def run(serial: Callable[..., Any], parallel: Callable[..., Any], cuts: np.ndarray, *args: Any) -> None:
    """Run a compiled loop over the runs between ``cuts``: side by side where that is safe, else one after the other.

    The result is the same to the last bit either way: what is summed with what depends on the cuts alone.
    """
    if len(cuts) <= 2 or not _parallel_is_safe():
        serial(cuts, *args)
        return
    before = numba.get_num_threads()
    numba.set_num_threads(min(len(cuts) - 1, _SETTINGS["NUMBA_NUM_THREADS"]))
    try:
        parallel(cuts, *args)
    finally:
        numba.set_num_threads(before)


_safe: bool | None = None
_starting = threading.Lock()


def _after_fork() -> None:
    """A forked child cannot use its parent's threads: OpenMP would end it, whoever had started them."""
    global _safe, _starting
    _safe, _starting = False, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _parallel_is_safe() -> bool:
    """Start numba's threads once and see which layer they are; torch's own number of threads is left as it was."""
    global _safe  # noqa: PLW0603 - found out once per process
    if _safe is not None:
        return _safe
    with _starting:
        if _safe is not None:
            return _safe
        threads = torch.get_num_threads()
        try:
            _touch(np.zeros(2))
        finally:
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
        layer = numba.threading_layer()
        _safe = layer in SAFE_LAYERS
        if not _safe:
            msg = (
                f"numba's threads are of the kind {layer!r}, which two Python threads cannot share: compiled loops run on one "
                "processor. OpenMP (the system's libgomp) or the package tbb lets them use all."
            )
            warnings.warn(msg, RuntimeWarning, stacklevel=2)
    return _safe


@numba.njit(parallel=True, **CACHED)
def _touch(x: np.ndarray) -> None:
    for i in numba.prange(x.size):
        x[i] = i
