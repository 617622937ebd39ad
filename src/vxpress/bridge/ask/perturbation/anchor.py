"""The change that a group is expected to have from other groups alone, on the scale of log fold changes.

A gene that is expressed more changes by more molecules, but often by the same factor. So factors are carried over from
group to group, by a ridge regression on the control profile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vxpress.bridge.ask.perturbation.cells import PerturbedCells
from vxpress.bridge.ask.perturbation.floors import best_penalty, ridge_at

# added to mean expression per 10,000 molecules, so that factors of genes with hardly any molecules are near 1
PSEUDO = 0.1
# a combination is determined by others if their sum differs from it by no more
UNDETERMINED = 1e-6
# standard errors by which a measured change has to differ from the decoded one to be believed whatever was decoded
SURE = 3.0


@dataclass(frozen=True)
class Anchor:
    """The expected change of the mean profile, and its sampling variance if it is known, each float64 (genes,)."""

    change_g: np.ndarray
    variance_g: np.ndarray | None = None

    def weight(self, decoded_g: np.ndarray, weight: float) -> np.ndarray:
        """Return the weight of this change in an average with the decoded one, gene by gene.

        The errors of the decoded change are taken to be as large as the change itself, or as what was measured beyond three
        standard errors, and ``weight``, 0.5 if none is preferred, multiplies the odds.
        """
        assert self.variance_g is not None  # noqa: S101 - the caller checks it
        left_g = np.square(self.change_g - decoded_g)
        spread_g = np.maximum(np.square(decoded_g), np.where(left_g > SURE**2 * self.variance_g, left_g, 0.0))
        own_g, other_g = weight * spread_g, (1.0 - weight) * self.variance_g
        total_g = own_g + other_g
        return np.asarray(np.divide(own_g, total_g, out=np.full(len(own_g), weight), where=total_g > 0))


def anchor_of(cells: PerturbedCells, group: int, learn_from: Sequence[int]) -> Anchor | None:
    """Return the expected change of a group; None if no group says anything about it.

    It is the observed change for a group that may be learned from. For a target that no group has, the changes by its parts are
    added.
    """
    populations = cells.populations
    if group in learn_from:
        treated, control = cells.profile(populations.target, group), cells.control(group)
        return Anchor(cells.change(group), treated.var_g / treated.n + control.var_g / control.n)
    profile_g = cells.control(group).mean_g
    if learn_from:
        return Anchor(changed_by(profile_g, _factor(cells, group, learn_from)))
    of_parts = _added(cells, group)
    if of_parts is None:
        found = [_added(cells, other) for other in populations.groups_with(populations.control)]
        known = [anchor.change_g for anchor in found if anchor is not None]
        of_parts = Anchor(np.mean(known, axis=0)) if known else None
    return of_parts


def _added(cells: PerturbedCells, group: int) -> Anchor | None:
    """Return the sum of the changes by the parts of the target; None if the conditions of a group do not determine it.

    The changes by single perturbations are those that add up to the observed ones of all conditions best, by least squares
    with the numbers of cells as weights. So other combinations with the same parts count too.
    """
    populations = cells.populations
    of = {
        name: populations.parts(name)
        for name in populations.perturbations
        if name not in (populations.control, populations.target) and populations.rows(name, group).size
    }
    if not populations.controls(group).size:
        return None
    wanted = set(populations.parts())
    names = sorted({part for parts in of.values() if wanted & set(parts) for part in parts})
    chosen = [name for name, parts in of.items() if set(parts) <= set(names)]
    if not chosen or not wanted <= set(names):
        return None
    design = np.array([[part in of[name] for part in names] for name in chosen], dtype=np.float64)
    root_n = np.sqrt([cells.profile(name, group).n for name in chosen])[:, None]
    target = np.array([part in wanted for part in names], dtype=np.float64)
    weight = (target @ np.linalg.pinv(root_n * design)) * root_n[:, 0]
    if np.abs(weight @ design - target).max() > UNDETERMINED:
        return None
    profiles, control = [cells.profile(name, group) for name in chosen], cells.control(group)
    variance_g = sum((w**2 * p.var_g / p.n for w, p in zip(weight, profiles, strict=True)), np.zeros(len(cells.genes)))
    variance_g += weight.sum() ** 2 * control.var_g / control.n
    return Anchor(weight @ np.stack([cells.change(group, name) for name in chosen]), variance_g)


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
