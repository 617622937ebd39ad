"""Predictions without a latent space: they change the mean profile of a group by that of other groups.

Each is a method of its own, and a floor for the others: a model that is no better has learned nothing of use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np

from vxpress.bridge.ask.perturbation.base import Method, Moved, unmoved
from vxpress.bridge.ask.perturbation.cells import PerturbedCells

# of the ridge regression, in units of the mean squared distance of control profiles from their mean; the last is the mean
PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0, np.inf)


class Floor(Method):
    """A prediction of the change of the mean profile of a group, float64 (genes,)."""

    name: ClassVar[str]

    def predict(self, cells: PerturbedCells, rows: np.ndarray, group: int, learn_from: Sequence[int]) -> Moved:
        return unmoved(cells, rows, self.change(cells, group, learn_from))

    @classmethod
    def available(cls, cells: PerturbedCells, group: int, learn_from: Sequence[int]) -> bool:
        """Return whether the change can be computed."""
        return len(learn_from) > 0

    @classmethod
    def change(cls, cells: PerturbedCells, group: int, learn_from: Sequence[int]) -> np.ndarray:
        """Return the change of the mean of log1p(1e4 x / l)."""
        raise NotImplementedError


class Control(Floor):
    """No change."""

    name = "control"
    needs_target = False

    @classmethod
    def available(cls, cells: PerturbedCells, group: int, learn_from: Sequence[int]) -> bool:
        return True

    @classmethod
    def change(cls, cells: PerturbedCells, group: int, learn_from: Sequence[int]) -> np.ndarray:
        return np.zeros(len(cells.genes))


class MeanShift(Floor):
    """The mean change of the other groups, each with the same weight."""

    name = "mean_shift"

    @classmethod
    def change(cls, cells: PerturbedCells, group: int, learn_from: Sequence[int]) -> np.ndarray:
        return np.mean([cells.change(other) for other in others(group, learn_from)], axis=0)


class Ridge(Floor):
    """A ridge regression of the change on the control profile over the other groups.

    Its penalty is the one that predicts each of these groups best from the rest.
    """

    name = "ridge"

    @classmethod
    def change(cls, cells: PerturbedCells, group: int, learn_from: Sequence[int]) -> np.ndarray:
        known = others(group, learn_from)
        profiles = np.stack([cells.control(other).mean_g for other in known])
        changes = np.stack([cells.change(other) for other in known])
        return ridge_at(profiles, changes, cells.control(group).mean_g, best_penalty(profiles, changes))


class AdditiveMean(Floor):
    """For a combination, the sum of the changes under its single perturbations: in the group, else the mean of other groups."""

    name = "additive_mean"
    needs_target = False

    @classmethod
    def available(cls, cells: PerturbedCells, group: int, learn_from: Sequence[int]) -> bool:
        populations = cells.populations
        parts = populations.parts()
        return len(parts) > 1 and all(
            populations.groups_with(populations.control, populations.alone(part)) for part in parts
        )

    def check(self, cells: PerturbedCells) -> None:
        populations = cells.populations
        parts = populations.parts()
        if len(parts) < 2:
            msg = f"method='additive_mean' adds the effects of single perturbations, but target={populations.target!r} is not a combination such as 'A+B'. Use method='mean_shift'."
            raise ValueError(msg)
        missing = [part for part in parts if not populations.groups_with(populations.control, populations.alone(part))]
        if missing:
            msg = f"method='additive_mean' needs cells with each single perturbation of target={populations.target!r}; obs[{populations.perturbation_key!r}] has none with {missing} in a group with control cells."
            raise ValueError(msg)

    @classmethod
    def change(cls, cells: PerturbedCells, group: int, learn_from: Sequence[int]) -> np.ndarray:
        populations = cells.populations
        total = np.zeros(len(cells.genes))
        for part in map(populations.alone, populations.parts()):
            known = populations.groups_with(populations.control, part)
            known = (group,) if group in known else known
            total += np.mean([cells.change(other, part) for other in known], axis=0)
        return total


FLOORS: tuple[type[Floor], ...] = (Control, MeanShift, Ridge, AdditiveMean)


def others(group: int, learn_from: Sequence[int]) -> list[int]:
    """Return the groups to learn from without the group itself, or the group if there is no other."""
    return [other for other in learn_from if other != group] or list(learn_from)


def ridge_at(profiles: np.ndarray, changes: np.ndarray, at_g: np.ndarray, penalty: float) -> np.ndarray:
    """Predict a change at the profile ``at_g`` by ridge regression on profiles, (groups, genes), through their mean.

    ``penalty`` is in units of the mean squared distance of the profiles from their mean; infinity gives the mean change.
    """
    mean_g, change_g = profiles.mean(0), changes.mean(0)
    centred = profiles - mean_g
    gram = centred @ centred.T
    unit = float(np.trace(gram)) / len(gram)
    if len(gram) < 2 or unit == 0 or np.isinf(penalty):
        return np.asarray(change_g)
    weights = np.linalg.solve(gram + penalty * unit * np.eye(len(gram)), centred @ (at_g - mean_g))
    return np.asarray(change_g + weights @ (changes - change_g))


def _as_it_is(profile_g: np.ndarray, change_g: np.ndarray) -> np.ndarray:
    return change_g


def best_penalty(
    profiles: np.ndarray, changes: np.ndarray, as_change: Callable[[np.ndarray, np.ndarray], np.ndarray] = _as_it_is
) -> float:
    """Return the penalty with the least squared error when each group is predicted from the others; 1 for two groups.

    ``as_change`` makes a change of the mean profile from a control profile and what is predicted there.
    """
    if len(profiles) < 3:
        return 1.0
    errors = np.zeros(len(PENALTIES))
    for k, (at_g, truth_g) in enumerate(zip(profiles, changes, strict=True)):
        rest = np.delete(profiles, k, 0), np.delete(changes, k, 0)
        for i, penalty in enumerate(PENALTIES):
            found_g = as_change(at_g, ridge_at(*rest, at_g, penalty))
            errors[i] += float(np.square(found_g - as_change(at_g, truth_g)).sum())
    return PENALTIES[int(np.argmin(errors))]
