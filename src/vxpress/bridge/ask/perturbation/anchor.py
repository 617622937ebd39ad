"""The change that a group is expected to have from other groups alone, on the scale of log fold changes.

A gene that is expressed more changes by more molecules, but often by the same factor. So factors are carried over from
group to group, by a ridge regression on the control profile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from vxpress.bridge.ask.perturbation.cells import PerturbedCells
from vxpress.bridge.ask.perturbation.floors import best_penalty, parts_of, ridge_at

# added to mean expression per 10,000 molecules, so that factors of genes with hardly any molecules are near 1
PSEUDO = 0.1


def anchor_change(cells: PerturbedCells, group: int, learn_from: Sequence[int]) -> np.ndarray | None:
    """Return the expected change of the mean profile, float64 (genes,); None if no group says anything about it.

    It is the observed change for a group that may be learned from.
    """
    populations = cells.populations
    if group in learn_from:
        return cells.change(group)
    profile_g = cells.control(group).mean_g
    if learn_from:
        return changed_by(profile_g, _factor(cells, group, learn_from))
    parts = parts_of(populations)
    total = np.zeros(len(cells.genes))
    for part in parts:
        known = populations.groups_with(populations.control, part)
        if len(parts) < 2 or not known:
            return None
        known = (group,) if group in known else known
        total += np.mean([_log_factor(cells, other, part) for other in known], axis=0)
    return changed_by(profile_g, total)


def changed_by(profile_g: np.ndarray, log_factor_g: np.ndarray) -> np.ndarray:
    """Return the change of a mean profile whose genes are multiplied by a factor each."""
    return np.asarray(np.log1p(np.maximum((_level(profile_g)) * np.exp(log_factor_g) - PSEUDO, 0.0)) - profile_g)


def _level(profile_g: np.ndarray) -> np.ndarray:
    return np.asarray(np.expm1(profile_g) + PSEUDO)


def _log_factor(cells: PerturbedCells, group: int, perturbation: str) -> np.ndarray:
    treated, control = cells.profile(perturbation, group).mean_g, cells.control(group).mean_g
    return np.asarray(np.log(_level(treated) / _level(control)))


def _factor(cells: PerturbedCells, group: int, learn_from: Sequence[int]) -> np.ndarray:
    profiles = np.stack([cells.control(other).mean_g for other in learn_from])
    factors = np.stack([_log_factor(cells, other, cells.populations.target) for other in learn_from])
    as_change: Callable[[np.ndarray, np.ndarray], np.ndarray] = changed_by
    return ridge_at(profiles, factors, cells.control(group).mean_g, best_penalty(profiles, factors, as_change))
