"""The predicted change of a group: as decoded, rescaled by what left-out groups show, and averaged with an anchor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from vxpress.bridge.ask.perturbation.anchor import anchor_of
from vxpress.bridge.ask.perturbation.base import Method, Moved
from vxpress.bridge.ask.perturbation.cells import PerturbedCells
from vxpress.bridge.ask.perturbation.decoding import paired_change, part_of, some
from vxpress.bridge.ask.perturbation.refit import Refitter
from vxpress.core.progress import steps

# groups that are left out at most, with any method and with a costly one, and cells that each group needs
MOST_GROUPS, MOST_IF_COSTLY, FEWEST_CELLS = 20, 3, 10
# the decoded change is multiplied by at most this
LARGEST_SCALE = 2.0


@dataclass(frozen=True)
class Target:
    """The change of the mean profile that the predicted cells shall have, and by how much it differs from the decoded one."""

    change_g: np.ndarray
    more_g: np.ndarray


@dataclass
class Predictor:
    """A method with its weight of the anchor. Changes of left-out groups are decoded once and kept."""

    cells: PerturbedCells
    method: Method
    anchor: float
    rescale: bool
    refitter: Refitter | None = None
    _left_out: dict[int, np.ndarray] = field(default_factory=dict)

    @property
    def weight(self) -> float:
        """Weight of the anchor."""
        return self.anchor if self.method.follows_observed(self.cells) else 0.0

    @property
    def checked(self) -> list[int]:
        """The groups that are left out, one at a time: those with enough cells, of many some."""
        cells, populations = self.cells, self.cells.populations
        names = populations.control, populations.target
        enough = [
            group
            for group in populations.learned_from
            if min(cells.profile(name, group).n for name in names) >= FEWEST_CELLS
        ]
        most = MOST_IF_COSTLY if self.method.costly else MOST_GROUPS
        if len(enough) > most:
            order = np.random.default_rng([self.method.seed, 2]).permutation(enough)
            enough = sorted(int(group) for group in order[:most])
        return enough if len(enough) > 1 else []

    def rest(self, group: int) -> tuple[int, ...]:
        """Return the groups to learn from if one is left out."""
        return tuple(other for other in self.cells.populations.learned_from if other != group)

    def left_out(self) -> dict[int, np.ndarray]:
        """Return the decoded change of each group that is left out, predicted from the others."""
        for group in steps([g for g in self.checked if g not in self._left_out], "leaving groups out"):
            rows = self._some(group)
            cells, method = self.cells, self.method
            if self.refitter is not None and method.in_latent_space:
                cells, method = self.refitter.without(group), method.anew()
            moved = method.predict(cells, rows, group, self.rest(group))
            self._left_out[group] = self._decoded(cells, rows, moved)
        return self._left_out

    def scale(self, without: int | None = None) -> float:
        """Return the factor of decoded changes that fits the observed changes of left-out groups best; 1 without any."""
        if not self.rescale or not self.method.follows_observed(self.cells):
            return 1.0
        pairs = [(found, self.cells.change(group)) for group, found in self.left_out().items() if group != without]
        square = sum(float(found @ found) for found, _ in pairs)
        if square == 0:
            return 1.0
        return float(np.clip(sum(float(found @ truth) for found, truth in pairs) / square, 0.0, LARGEST_SCALE))

    def target(self, rows: np.ndarray, group: int, moved: Moved, learn_from: Sequence[int]) -> Target:
        """Return what the change of a group shall be; ``moved`` are its control cells ``rows``."""
        at = some(rows, self.method.seed)
        decoded_g = paired_change(self.cells, rows[at], part_of(moved, at), seed=self.method.seed)
        change_g = self._blended(group, decoded_g, learn_from) if moved.change_g is None else moved.change_g
        # no gene falls below zero; the change of a floor is stated as it is
        possible_g = np.maximum(change_g, -self.cells.control(group).mean_g)
        return Target(possible_g if moved.change_g is None else change_g, possible_g - decoded_g)

    def left_out_change(self, group: int) -> np.ndarray:
        """Return the change of a left-out group that this predictor gives."""
        found = self.left_out()[group]
        return self._blended(group, found, self.rest(group), left_out=True) if self.method.in_latent_space else found

    def _blended(
        self, group: int, decoded_g: np.ndarray, learn_from: Sequence[int], *, left_out: bool = False
    ) -> np.ndarray:
        scaled_g = self.scale(group if left_out else None) * decoded_g
        anchor = anchor_of(self.cells, group, learn_from) if self.weight else None
        if anchor is None:
            return scaled_g
        weight: float | np.ndarray = self.weight
        if self.method.weighs_genes and anchor.variance_g is not None:
            weight = anchor.weight(scaled_g, self.weight)
        return np.asarray((1.0 - weight) * scaled_g + weight * anchor.change_g)

    def _some(self, group: int) -> np.ndarray:
        rows = self.cells.populations.controls(group)
        return rows[some(rows, self.method.seed)]

    def _decoded(self, cells: PerturbedCells, rows: np.ndarray, moved: Moved) -> np.ndarray:
        if moved.change_g is not None:
            return moved.change_g
        return paired_change(cells, rows, moved, seed=self.method.seed)
