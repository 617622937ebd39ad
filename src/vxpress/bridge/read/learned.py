"""Decide which categories had enough training cells to be learned."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# with fewer cells, expression decoded under a category has a larger error than the average over the others;
# see benchmarks/small_batches.py
MIN_CELLS = 30
SHOWN = 5


def learned(n_train: Sequence[int]) -> np.ndarray:
    """Return which categories have enough training cells, boolean; all with any cells if those hold at most half of the cells."""
    n = np.asarray(n_train, dtype=np.int64)
    enough = n >= MIN_CELLS
    if 2 * n[enough].sum() <= n.sum():
        enough = n > 0
    return enough if enough.any() else np.ones(len(n), dtype=bool)


def with_cells(names: Sequence[str], n_train: Sequence[int]) -> str:
    """List the first few categories with their numbers of training cells, in words."""
    shown = ", ".join(f"{name!r} ({n})" for name, n in list(zip(names, n_train, strict=True))[:SHOWN])
    more = len(names) - SHOWN
    return shown + (f" and {more} more" if more > 0 else "")


def few(names: Sequence[str], n_train: Sequence[int]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the categories with too few training cells, and their numbers of training cells."""
    at = [i for i, n in enumerate(n_train) if n < MIN_CELLS]
    return tuple(names[i] for i in at), tuple(int(n_train[i]) for i in at)
