"""Decode predicted cells: the change of their mean profile, their expected counts, and counts paired with the observed ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse

from vxpress.bridge.ask.perturbation.base import Moved, covariates_of
from vxpress.bridge.ask.perturbation.cells import PerturbedCells
from vxpress.core.blocks import Point
from vxpress.core.covariates import Covariates
from vxpress.core.inference.paired import blocks, paired_counts, scaled, spread
from vxpress.core.inference.posterior import Encoded
from vxpress.core.likelihoods import Likelihood

# largest number of cells of a group from which its mean change is decoded, and draws of each
FEW, DRAWS = 300, 2
# log factors of the rate of a gene are kept within this, and are searched in so many steps
LARGEST_FACTOR, STEPS, LARGEST_STEP = 12.0, 8, 2.0
# a mean of log1p counts below this is a gene without molecules
NOTHING = 1e-9


@dataclass(frozen=True)
class Decoder:
    """The distributions of some cells at one point, in blocks of rows."""

    cells: PerturbedCells
    rows: np.ndarray
    encoded: Encoded
    covariates: Covariates

    @classmethod
    def before(cls, cells: PerturbedCells, rows: np.ndarray) -> Decoder:
        """Return the distributions of cells as they are."""
        return cls(cells, rows, cells.encoded[rows], covariates_of(cells, rows))

    @classmethod
    def after(cls, cells: PerturbedCells, rows: np.ndarray, moved: Moved) -> Decoder:
        """Return the distributions of cells under the perturbation."""
        return cls(cells, rows, moved.encoded, moved.covariates)

    def at(self, part: slice, log_factor_g: torch.Tensor | None = None) -> Likelihood:
        """Return the distributions of a block at the posterior means."""
        model = self.cells.fit.model.eval()
        point: Point = {name: torch.from_numpy(self.encoded.mean[name][part]) for name in model.decoded_blocks}
        covariates = self.covariates[torch.arange(part.start, part.stop)]
        log_library = self.cells.log_library_n1[torch.from_numpy(self.rows[part])]
        return scaled(model, point, covariates, log_library, log_factor_g)

    def mean_profile(self, log_factor_g: np.ndarray | None = None) -> np.ndarray:
        """Compute the mean over cells of E[log1p(1e4 x / l)], float64 (genes,)."""
        factor = None if log_factor_g is None else torch.from_numpy(log_factor_g.astype(np.float32))
        total = np.zeros(len(self.cells.genes))
        for _, part in blocks(len(self.rows), len(self.cells.genes), "decoding"):
            scale = torch.from_numpy(self.cells.scale(self.rows[part]).astype(np.float32))
            total += self.at(part, factor).expected_scaled_log1p(scale).double().sum(0).numpy()
        return total / len(self.rows)


def some(rows: np.ndarray, seed: int) -> np.ndarray:
    """Return positions of at most ``FEW`` of the rows."""
    if len(rows) <= FEW:
        return np.arange(len(rows))
    return np.sort(np.random.default_rng([seed, 1]).permutation(len(rows))[:FEW])


def part_of(moved: Moved, at: np.ndarray) -> Moved:
    """Return some of the moved cells."""
    return Moved(moved.encoded[at], moved.covariates[torch.from_numpy(at)], moved.change_g)


def paired_change(cells: PerturbedCells, rows: np.ndarray, moved: Moved, *, seed: int) -> np.ndarray:
    """Compute the change of the mean profile from observed counts to paired ones, so that errors of the model cancel."""
    before, after = Decoder.before(cells, rows), Decoder.after(cells, rows, moved)
    total = np.zeros(len(cells.genes))
    for block, part in blocks(len(rows), len(cells.genes), "decoding"):
        scale_n1 = cells.scale(rows[part])
        x_ng = _observed(cells, rows[part])
        first, second = before.at(part), after.at(part)
        for draw in range(DRAWS):
            paired = paired_counts(x_ng, first, second, spread(*x_ng.shape, seed, block, draw))
            total += np.log1p(paired.numpy() * scale_n1).sum(0) / DRAWS
        total -= np.log1p(x_ng.numpy() * scale_n1).sum(0)
    return total / len(rows)


def factors_for(cells: PerturbedCells, rows: np.ndarray, moved: Moved, more_g: np.ndarray) -> np.ndarray:
    """Find the log factors of the rates of genes that add ``more_g`` to the decoded mean profile of the moved cells."""
    after = Decoder.after(cells, rows, moved)
    found_g = after.mean_profile()
    wanted_g = np.maximum(found_g + more_g, NOTHING)
    factor_g = np.zeros(len(more_g))
    step_g = np.clip(np.log(wanted_g / np.maximum(found_g, NOTHING)), -LARGEST_STEP, LARGEST_STEP)
    for _ in range(STEPS):
        factor_g, earlier_g = np.clip(factor_g + step_g, -LARGEST_FACTOR, LARGEST_FACTOR), found_g
        found_g = after.mean_profile(factor_g)
        if np.abs(found_g - wanted_g).max() < 1e-4:
            break
        # the logarithm of the mean is nearly linear in the factor; its slope is 1 for rare genes and smaller for others
        slope_g = np.log(np.maximum(found_g, NOTHING) / np.maximum(earlier_g, NOTHING))
        slope_g = np.where(np.abs(step_g) > 1e-6, slope_g / np.where(step_g == 0, 1.0, step_g), 1.0)
        step_g = np.log(wanted_g / np.maximum(found_g, NOTHING)) / np.clip(slope_g, 0.1, 1.0)
        step_g = np.clip(step_g, -LARGEST_STEP, LARGEST_STEP)
    return factor_g


def decode(
    cells: PerturbedCells, rows: np.ndarray, moved: Moved, log_factor_g: np.ndarray | None, *, seed: int
) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Return counts of the predicted cells paired with the observed ones, and expected counts, float32 (n, genes)."""
    before, after = Decoder.before(cells, rows), Decoder.after(cells, rows, moved)
    factor = None if log_factor_g is None else torch.from_numpy(log_factor_g.astype(np.float32))
    mean_ng = np.empty((len(rows), len(cells.genes)), dtype=np.float32)
    drawn = []
    for block, part in blocks(len(rows), len(cells.genes), "drawing counts"):
        x_ng = _observed(cells, rows[part])
        here = after.at(part, factor)
        paired = paired_counts(x_ng, before.at(part), here, spread(*x_ng.shape, seed, block))
        drawn.append(sparse.csr_matrix(paired.numpy()))
        mean_ng[part] = here.mean.numpy()
    return sparse.vstack(drawn, format="csr"), mean_ng


def _observed(cells: PerturbedCells, rows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(cells.counts[rows].toarray().astype(np.float32))
