"""Which cells are held out: a random share of them, the same of every category."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def split_cells(
    n: int, validation_fraction: float, rng: np.random.Generator, codes_nk: Ints | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Train and validation rows, each sorted; at least one validation cell unless the fraction is 0.

    ``codes_nk`` are the categories of the cells, (n, k), the batch first.  A batch gets its share of the validation cells
    to within one cell, and so do the other categories within a batch: cells are put in a random order, sorted by their
    categories, and taken at equal distances, so that every cell of a common category is as likely as any other.  A category
    of fewer than 1 / fraction cells is trained on whole, as long as the others are half of the cells, and any category
    keeps one training cell.
    """
    order = rng.permutation(n)
    n_validation = min(max(1, round(validation_fraction * n)), n - 1) if validation_fraction > 0 else 0
    if codes_nk is None or codes_nk.shape[1] == 0 or n_validation == 0:
        held_out = order[:n_validation]
    else:
        pool = _pool(order, codes_nk, validation_fraction, n_validation)
        # by the first column, then by the second, and so on; what is equal stays in random order
        pool = pool[np.lexsort(codes_nk[pool].T[::-1])]
        n_validation = min(n_validation, len(pool))
        held_out = pool[((rng.random() + np.arange(n_validation)) * len(pool) / n_validation).astype(np.int64)]
    kept = np.ones(n, dtype=bool)
    kept[held_out] = False
    return np.flatnonzero(kept), np.sort(held_out)


def _pool(order: Ints, codes_nk: Ints, fraction: float, n_validation: int) -> Ints:
    """The cells that may be held out, in the order given."""
    needed, rare = np.zeros((2, len(order)), dtype=bool)
    for code_n in codes_nk[order].T:
        _, first, category, size = np.unique(code_n, return_index=True, return_inverse=True, return_counts=True)
        needed[first] = True
        rare |= size[category.reshape(-1)] * fraction < 1
    common = order[~needed & ~rare]
    # rare categories are spared unless too large a part of the others would be held out for them
    if n_validation <= min(2 * fraction, (1 + fraction) / 2) * len(common):
        return common
    spare = order[~needed]
    return spare if len(spare) else order
