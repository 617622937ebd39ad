"""How compiled loops share torch's processors: as many threads as torch may use, never more.

Numba keeps its own threads beside torch's; both wait for work by spinning, so they must take turns and never be more
than the cores.  How many there are is torch's number (``torch.set_num_threads``), so one setting rules both and a fit
with one thread never wakes numba's.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from numba import config as numba_config

# numba fills this module when it is imported
_SETTINGS: dict[str, Any] = vars(numba_config)


def _cache_folder_is_writable() -> bool:
    """Whether numba finds a place for compiled code; without one it would refuse to define a cached function."""
    # an account without a home keeps its tilde, where pathlib would raise
    folders = [str(Path(__file__).parent), os.path.expanduser("~")]  # noqa: PTH111
    return bool(_SETTINGS["CACHE_DIR"]) or any(os.access(folder, os.W_OK) for folder in folders)


CACHED: dict[str, Any] = {"cache": _cache_folder_is_writable()}
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
    numba.set_num_threads(min(len(cuts) - 1, _SETTINGS["NUMBA_NUM_THREADS"]))
    parallel(cuts, *args)


_safe: bool | None = None


def _parallel_is_safe() -> bool:
    """Start numba's threads once and see which layer they are; torch's own number of threads is left as it was."""
    global _safe  # noqa: PLW0603 - found out once per process
    if _safe is None:
        threads = torch.get_num_threads()
        _touch(np.zeros(2))
        _safe = numba.threading_layer() in SAFE_LAYERS
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
    return _safe


@numba.njit(parallel=True, **CACHED)
def _touch(x: np.ndarray) -> None:
    for i in numba.prange(x.size):
        x[i] = i
