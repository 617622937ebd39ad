"""Which categories had enough training cells for the fit to have learned them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# below this, what is decoded under a category is farther off than the average of the others; benchmarks/small_batches.py
MIN_CELLS = 30
SHOWN = 5


def learned(n_train: Sequence[int]) -> np.ndarray:
    """Which categories have so many training cells, boolean; all with any where the others hold most of the cells."""
    n = np.asarray(n_train, dtype=np.int64)
    enough = n >= MIN_CELLS
    if 2 * n[enough].sum() <= n.sum():
        enough = n > 0
    return enough if enough.any() else np.ones(len(n), dtype=bool)


def with_cells(names: Sequence[str], n_train: Sequence[int]) -> str:
    """Categories and their training cells in words, the first few of them."""
    shown = ", ".join(f"{name!r} ({n})" for name, n in list(zip(names, n_train, strict=True))[:SHOWN])
    more = len(names) - SHOWN
    return shown + (f" and {more} more" if more > 0 else "")


def few(names: Sequence[str], n_train: Sequence[int]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The categories with too few training cells, and how many these are."""
    at = [i for i, n in enumerate(n_train) if n < MIN_CELLS]
    return tuple(names[i] for i in at), tuple(int(n_train[i]) for i in at)
