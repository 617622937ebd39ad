"""Choice of the held-out cells: a random share of the cells, the same for every category."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def split_cells(
    n: int, validation_fraction: float, rng: np.random.Generator, codes_nk: Ints | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Split cells into training and validation rows, each sorted.

    There is at least one validation cell unless the fraction is 0. ``codes_nk`` are the categories of the cells, (n,
    k), the batch first. Each batch has its share of the validation cells to within one cell, and so have the other
    categories within a batch: cells are put in random order, sorted by their categories, and chosen at equal distances.
    Every cell of a common category is equally likely to be chosen. All cells of a category with fewer than 1 / fraction
    cells are training cells, as long as the other categories make up half of the cells. Every category keeps at least
    one training cell, unless every cell is the only one of a category.
    """
    order = rng.permutation(n)
    n_validation = min(max(1, round(validation_fraction * n)), n - 1) if validation_fraction > 0 else 0
    if codes_nk is None or codes_nk.shape[1] == 0 or n_validation == 0:
        held_out = order[:n_validation]
    else:
        pool = _pool(order, codes_nk, validation_fraction, n_validation)
        # sort by the first column, then by the second, and so on; equal cells stay in random order
        pool = pool[np.lexsort(codes_nk[pool].T[::-1])]
        n_validation = min(n_validation, len(pool))
        held_out = pool[((rng.random() + np.arange(n_validation)) * len(pool) / n_validation).astype(np.int64)]
    kept = np.ones(n, dtype=bool)
    kept[held_out] = False
    return np.flatnonzero(kept), np.sort(held_out)


def _pool(order: Ints, codes_nk: Ints, fraction: float, n_validation: int) -> Ints:
    """Return the cells that may be held out, in the order given."""
    needed, rare = np.zeros((2, len(order)), dtype=bool)
    for code_n in codes_nk[order].T:
        _, first, category, size = np.unique(code_n, return_index=True, return_inverse=True, return_counts=True)
        needed[first] = True
        rare |= size[category.reshape(-1)] * fraction < 1
    common = order[~needed & ~rare]
    # rare categories are not held out unless this would take too large a share of the others
    if n_validation <= min(2 * fraction, (1 + fraction) / 2) * len(common):
        return common
    spare = order[~needed]
    return spare if len(spare) else order
