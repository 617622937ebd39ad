"""Paths between two points of the latent space, and how densely cells lie along them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

# cells that a density is an average over, and cells of each end that are moved along, at most
MAX_CELLS, MAX_PROBES = 10_000, 200
# cells that densities are compared with: those of the ends if at least so many, else so many of all
MIN_REFERENCE, MAX_REFERENCE = 20, 2_000
_BLOCK = 256
_PARALLEL = 1e-6


def linear_path(start_d: np.ndarray, end_d: np.ndarray, position_s: np.ndarray) -> np.ndarray:
    """Points on the straight line, (s, d); ``position_s`` runs from 0 to 1."""
    t = np.asarray(position_s)[:, None]
    return np.asarray((1.0 - t) * start_d + t * end_d)


def spherical_path(start_d: np.ndarray, end_d: np.ndarray, position_s: np.ndarray) -> np.ndarray:
    """Points on an arc around the origin, (s, d): direction turns evenly, and the norm changes evenly (Shoemake 1985).

    A straight line between two draws of N(0, I) passes nearer to the origin than either; the arc does not.
    """
    norms = np.linalg.norm(start_d), np.linalg.norm(end_d)
    if min(norms) == 0.0:
        msg = "method='spherical' turns around the origin, and one end lies there. Use method='linear'."
        raise ValueError(msg)
    cosine = float(np.clip(start_d @ end_d / (norms[0] * norms[1]), -1.0, 1.0))
    if cosine < -1.0 + _PARALLEL:
        msg = "method='spherical' knows no way around: the ends lie opposite each other across the origin. Use method='linear'."
        raise ValueError(msg)
    angle = np.arccos(cosine)
    if angle < _PARALLEL:
        return linear_path(start_d, end_d, position_s)
    t = np.asarray(position_s)[:, None]
    direction = (np.sin((1.0 - t) * angle) * (start_d / norms[0]) + np.sin(t * angle) * (end_d / norms[1])) / np.sin(
        angle
    )
    return np.asarray(((1.0 - t) * norms[0] + t * norms[1]) * direction)


@dataclass(frozen=True)
class Crowd:
    """Cells whose posteriors make the density, and of each end some that are moved along the path, by their rows."""

    mean_nd: np.ndarray
    var_nd: np.ndarray
    probes: tuple[np.ndarray, np.ndarray]

    @classmethod
    def choose(
        cls, mean_nd: np.ndarray, var_nd: np.ndarray, ends: Sequence[np.ndarray], rng: np.random.Generator
    ) -> Crowd:
        """At most ``MAX_CELLS`` of the cells, and ``MAX_PROBES`` of the rows of each end among them."""
        n = len(mean_nd)
        picked = [np.sort(rng.permutation(rows)[:MAX_PROBES]) for rows in ends]
        rows = np.arange(n)
        if n > MAX_CELLS:
            rows = np.union1d(rng.permutation(n)[:MAX_CELLS], np.concatenate(picked))
        first, second = (np.searchsorted(rows, part) for part in picked)
        return cls(mean_nd[rows], var_nd[rows], (first, second))

    def own_density(self, z_md: np.ndarray, row_m: np.ndarray) -> np.ndarray:
        """Log density of points under the mean of the posteriors of all cells but that of ``row_m`` each, nats (m,).

        A cell's own posterior would make every cell look dense.
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
        """Own densities to compare with: of the cells of both ends, or where these are few of cells all over."""
        if min(len(rows) for rows in self.probes) >= MIN_REFERENCE:
            rows = np.concatenate(self.probes)
        else:
            n = len(self.mean_nd)
            rows = np.unique(np.linspace(0, n - 1, min(n, MAX_REFERENCE)).astype(int))
        return self.own_density(self.mean_nd[rows], rows)

    def percentiles(self, path_sd: np.ndarray, position_s: np.ndarray) -> np.ndarray:
        """How dense it is, in per cent of the reference, around the cells of the ends when moved along the path, (s,).

        The median over cells of each end; in between the ends, the two weighted by position.  A path of means runs along the
        middle of populations, which is denser than any typical cell's place: moved cells are like with like.
        """
        reference, out = self.reference(), np.zeros(len(path_sd))
        for rows, at, weight_s in zip(self.probes, (0, -1), (1.0 - position_s, position_s), strict=True):
            moved = self.mean_nd[rows][None] + (path_sd - path_sd[at])[:, None]
            log_q = self.own_density(moved.reshape(-1, path_sd.shape[1]), np.tile(rows, len(path_sd)))
            shares = percentile_among(log_q.reshape(len(path_sd), len(rows)), reference)
            out += weight_s * np.median(shares, axis=1)
        return out


def percentile_among(value_s: np.ndarray, reference_r: np.ndarray) -> np.ndarray:
    """Share of the reference below each value, in per cent."""
    return np.asarray(100.0 * np.searchsorted(np.sort(reference_r), value_s) / len(reference_r))
