"""The density of cells along a path through the latent space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

# largest number of cells in a density, and of cells of each end that are moved along the path
MAX_CELLS, MAX_PROBES = 10_000, 200
# reference cells for densities: the cells of the ends if there are at least this many, else up to this many of all
# cells
MIN_REFERENCE, MAX_REFERENCE = 20, 2_000
_BLOCK = 256


@dataclass(frozen=True)
class CellDensity:
    """Cells whose posteriors define the density, and rows of some cells of each end that are moved along the path."""

    mean_nd: np.ndarray
    var_nd: np.ndarray
    probes: tuple[np.ndarray, np.ndarray]

    @classmethod
    def choose(
        cls, mean_nd: np.ndarray, var_nd: np.ndarray, endpoints: Sequence[np.ndarray], rng: np.random.Generator
    ) -> CellDensity:
        """Choose at most ``MAX_CELLS`` of the cells, including at most ``MAX_PROBES`` of the rows of each end."""
        n = len(mean_nd)
        picked = [np.sort(rng.permutation(rows)[:MAX_PROBES]) for rows in endpoints]
        rows = np.arange(n)
        if n > MAX_CELLS:
            rows = np.union1d(rng.permutation(n)[:MAX_CELLS], np.concatenate(picked))
        first, second = (np.searchsorted(rows, part) for part in picked)
        return cls(mean_nd[rows], var_nd[rows], (first, second))

    def own_density(self, z_md: np.ndarray, row_m: np.ndarray) -> np.ndarray:
        """Compute the log density of points under the mean posterior of all cells except ``row_m`` each, in nats (m,).

        With its own posterior, every cell would appear to be in a dense region.
        """
        precision, scaled = 1.0 / self.var_nd, self.mean_nd / self.var_nd
        constant = -0.5 * ((self.mean_nd * scaled).sum(1) + np.log(2 * np.pi * self.var_nd).sum(1))
        out = np.empty(len(z_md))
        for start in range(0, len(z_md), _BLOCK):
            z, own = z_md[start : start + _BLOCK], row_m[start : start + _BLOCK]
            log_q = z @ scaled.T - 0.5 * (z**2) @ precision.T + constant
            log_q[np.arange(len(z)), own] = -np.inf
            out[start : start + _BLOCK] = logsumexp(log_q, axis=1) - np.log(len(self.mean_nd) - 1)
        return out

    def reference(self) -> np.ndarray:
        """Compute reference densities: of the cells of both ends or, if these are few, of cells from all rows."""
        if min(len(rows) for rows in self.probes) >= MIN_REFERENCE:
            rows = np.concatenate(self.probes)
        else:
            n = len(self.mean_nd)
            rows = np.unique(np.linspace(0, n - 1, min(n, MAX_REFERENCE)).astype(int))
        return self.own_density(self.mean_nd[rows], rows)

    def percentiles(self, path_sd: np.ndarray, position_s: np.ndarray) -> np.ndarray:
        """Compute the percentile of the density around the cells of the ends when these are moved along the path, (s,).

        Percentiles are relative to the reference. The value is the median over the cells of each end, and between the
        ends the mean of both weighted by position. The path itself runs along the middle of populations, where density
        is higher than around a typical cell; moving the cells makes the comparison fair.
        """
        reference, out = self.reference(), np.zeros(len(path_sd))
        for rows, at, weight_s in zip(self.probes, (0, -1), (1.0 - position_s, position_s), strict=True):
            moved = self.mean_nd[rows][None] + (path_sd - path_sd[at])[:, None]
            log_q = self.own_density(moved.reshape(-1, path_sd.shape[1]), np.tile(rows, len(path_sd)))
            shares = percentile_among(log_q.reshape(len(path_sd), len(rows)), reference)
            out += weight_s * np.median(shares, axis=1)
        return out


def percentile_among(value_s: np.ndarray, reference_r: np.ndarray) -> np.ndarray:
    """Compute the share of the reference below each value, in per cent."""
    return np.asarray(100.0 * np.searchsorted(np.sort(reference_r), value_s) / len(reference_r))
