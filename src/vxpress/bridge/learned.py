"""Which categories had enough training cells for the fit to have learned them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# below this, decoding under a category is no better than leaving it out; chosen in benchmarks/small_batches.py
MIN_CELLS = 10
SHOWN = 5


def learned(n_train: Sequence[int]) -> np.ndarray:
    """Which categories have so many training cells, boolean; all of them where none has."""
    enough = np.asarray(n_train, dtype=np.int64) >= MIN_CELLS
    return enough if enough.any() else np.ones(len(enough), dtype=bool)


def with_cells(names: Sequence[str], n_train: Sequence[int]) -> str:
    """Categories and their training cells in words, the first few of them."""
    shown = ", ".join(f"{name!r} ({n})" for name, n in list(zip(names, n_train, strict=True))[:SHOWN])
    more = len(names) - SHOWN
    return shown + (f" and {more} more" if more > 0 else "")


def few(names: Sequence[str], n_train: Sequence[int]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The categories with too few training cells, and how many these are."""
    at = [i for i, n in enumerate(n_train) if n < MIN_CELLS]
    return tuple(names[i] for i in at), tuple(int(n_train[i]) for i in at)
