"""Sets of labels that hold the right one with a known probability (conformal prediction, Vovk et al. 2005).

The p-value of a label for a cell is the rank of its probability among held-out cells that have this label: of cells of every
label, a share of at most alpha then has a set without it. A label with too few held-out cells is ranked with other such labels
together, or with all cells if these are too few, too (after Ding et al. 2023).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

ALL = -1


def strata(code_m: np.ndarray, n_labels: int, alpha: float) -> np.ndarray:
    """Return for each label a boolean row over the held-out cells: those with which it is compared, (labels, m)."""
    needed = fewest(alpha)
    size_c = np.bincount(code_m, minlength=n_labels)
    own_cm = code_m == np.arange(n_labels)[:, None]
    rare_m = size_c[code_m] < needed
    together = rare_m if rare_m.sum() >= needed else np.ones(len(code_m), dtype=bool)
    return np.where((size_c >= needed)[:, None], own_cm, together)


def fewest(alpha: float) -> int:
    """Return the number of held-out cells with which a p-value can be as small as ``alpha``."""
    return math.ceil(1.0 / alpha - 1e-9) - 1


def label_p_values(
    log_prob_nc: np.ndarray, held_out_mc: np.ndarray, code_m: np.ndarray, alpha: float, rng: np.random.Generator
) -> np.ndarray:
    """Compute the p-value of every label for every cell, (n, labels); cells are compared at their own label.

    Ties, also with the cell itself, are broken at random, so p-values of the right label are uniform.
    """
    own_m = held_out_mc[np.arange(len(code_m)), code_m]
    among = strata(code_m, log_prob_nc.shape[1], alpha)
    out = np.empty(log_prob_nc.shape)
    for c, chosen_m in enumerate(among):
        out[:, c] = ranks(log_prob_nc[:, c], own_m[chosen_m], rng)
    return out


def ranks(value_n: np.ndarray, among_m: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the share of ``among_m`` and the value itself that is below each value, ties broken at random, in (0, 1)."""
    ordered = np.sort(among_m)
    below = np.searchsorted(ordered, value_n, side="left")
    equal = np.searchsorted(ordered, value_n, side="right") - below
    return np.asarray((below + rng.random(len(value_n)) * (1.0 + equal)) / (len(ordered) + 1.0))


def grouped_ranks(
    value_n: np.ndarray,
    group_n: np.ndarray,
    among_m: np.ndarray,
    group_m: np.ndarray,
    *,
    smallest: int,
    draw: Callable[[int], np.ndarray],
) -> np.ndarray:
    """Return ranks within the group of each value, or among all if the group has fewer than ``smallest`` values to compare with.

    ``draw`` gives numbers in (0, 1) that break ties; constants leave no chance.
    """
    out = np.empty(len(value_n))
    codes, sizes = np.unique(group_m, return_counts=True)
    own_n = np.where(np.isin(group_n, codes[sizes >= smallest]), group_n, ALL)
    for code in np.unique(own_n):
        rows = own_n == code
        ordered = np.sort(among_m if code == ALL else among_m[group_m == code])
        below = np.searchsorted(ordered, value_n[rows], side="left")
        equal = np.searchsorted(ordered, value_n[rows], side="right") - below
        out[rows] = (below + draw(int(rows.sum())) * (1.0 + equal)) / (len(ordered) + 1.0)
    return out
