"""How far one categorical variable determines another."""

from __future__ import annotations

import numpy as np


def determined(of_n: np.ndarray, by_n: np.ndarray) -> float:
    """Compute how far codes ``of_n`` are determined by codes ``by_n``, 0 (independent) to 1 (determined); NaN if constant.

    It is the uncertainty coefficient I(of; by) / H(of) (Theil 1970), adjusted for chance as the adjusted mutual information is
    (Vinh et al. 2010): the mutual information of independent variables, to first order (rows - 1)(columns - 1) / 2n (Miller
    1955), is subtracted from both. Unlike Cramer's V, it has a direction: a donor determines its condition, but not
    the reverse.
    """
    _, of_n = np.unique(of_n, return_inverse=True)
    _, by_n = np.unique(by_n, return_inverse=True)
    n = len(of_n)
    if n == 0 or of_n.max() == 0:
        return float("nan")
    shape = int(by_n.max()) + 1, int(of_n.max()) + 1
    _, joint_n = np.unique(by_n.astype(np.int64) * shape[1] + of_n, return_counts=True)
    of, by, joint = (_entropy(n_k) for n_k in (np.bincount(of_n), np.bincount(by_n), joint_n))
    if joint - by <= 1e-9:
        return 1.0
    chance = (shape[0] - 1) * (shape[1] - 1) / (2 * n)
    known, most = of + by - joint - chance, of - chance
    return float(np.clip(known / most, 0.0, 1.0)) if most > 0 else 0.0


def _entropy(n_k: np.ndarray) -> float:
    share = n_k[n_k > 0] / n_k.sum()
    return float(-(share * np.log(share)).sum())
