"""P-values from scores of cells: regress out depth and batch, then rank among held-out cells.

A conformal p-value is the rank of a cell among calibration cells that were not used in any fit. It is uniform for a
cell exchangeable with them, for any score (Vovk et al. 2005; Bates et al. 2023).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vxpress.core.inference.anomaly import combined

FOLDS = 10
# ridge penalty: each batch shift is shrunk as by this many cells without effect, so that few cells create none
BATCH_PENALTY = 5.0
# knots of the spline in log depth, as quantiles (Harrell 2015, table 2.3)
KNOTS = (0.05, 0.35, 0.65, 0.95)
POOLED = -1


@dataclass(frozen=True)
class DepthAndBatch:
    """Technical variables on which a score may depend: log depth and the code of the batch, each (n,)."""

    log_depth_n: np.ndarray
    batch_n: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> DepthAndBatch:
        return DepthAndBatch(self.log_depth_n[rows], self.batch_n[rows])


@dataclass(frozen=True)
class Regression:
    """Location and scale of some quantities as functions of depth and batch.

    Location and log scale are linear in a natural cubic spline of log depth with four knots, and in one shrunken shift
    per batch. Depths outside the range of the fit are set to its nearest end.
    """

    knots: np.ndarray
    range: tuple[float, float]
    batches: np.ndarray
    location: np.ndarray
    log_scale: np.ndarray

    @classmethod
    def fit(cls, values_nk: np.ndarray, at: DepthAndBatch) -> Regression:
        """Fit by least squares with a ridge penalty on the batches.

        The log scale is fitted to log absolute residuals.
        """
        knots = np.quantile(at.log_depth_n, KNOTS)
        limits = float(at.log_depth_n.min()), float(at.log_depth_n.max())
        empty = np.zeros((0, 0))
        start = cls(knots, limits, np.unique(at.batch_n), empty, empty)
        x_np = start._design(at)
        n_shifts = len(start.batches)
        ridge = np.full(x_np.shape[1], 1e-6)
        ridge[x_np.shape[1] - n_shifts :] = BATCH_PENALTY
        gram = x_np.T @ x_np + np.diag(ridge)
        location = np.linalg.solve(gram, x_np.T @ values_nk)
        residual = values_nk - x_np @ location
        # the floor prevents single small residuals from dominating the logarithm
        size = np.abs(residual)
        floor = 0.05 * size.mean(0) + 1e-12
        log_scale = np.linalg.solve(gram, x_np.T @ np.log(size + floor))
        unit = residual / np.exp(x_np @ log_scale)
        log_scale[0] += 0.5 * np.log(np.mean(unit**2, axis=0) + 1e-12)
        return cls(knots, limits, start.batches, location, log_scale)

    def apply(self, values_nk: np.ndarray, at: DepthAndBatch) -> np.ndarray:
        """Subtract the location from the values and divide by the scale."""
        x_np = self._design(at)
        return (values_nk - x_np @ self.location) / np.exp(x_np @ self.log_scale)

    def _design(self, at: DepthAndBatch) -> np.ndarray:
        low, high = self.range
        t = np.clip(at.log_depth_n, low, high)
        k = self.knots
        columns = [np.ones(len(t)), (t - k[1]) / max(high - low, 1e-12)]
        last, before = k[-1], k[-2]
        if (np.diff(k) > 1e-9).all():
            columns += [
                (
                    _cube(t - k[j])
                    - (_cube(t - before) * (last - k[j]) - _cube(t - last) * (before - k[j])) / (last - before)
                )
                / (last - k[0]) ** 3
                for j in range(len(k) - 2)
            ]
        if len(self.batches) > 1:
            columns += [(at.batch_n == code).astype(np.float64) for code in self.batches]
        else:
            columns += [np.zeros(len(t))] * len(self.batches)
        return np.stack(columns, axis=1)


def _cube(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0.0) ** 3


@dataclass(frozen=True)
class Score:
    """One number per cell from its evidence: standardise each part, combine them, and standardise the result."""

    parts: Regression
    total: Regression

    @classmethod
    def fit(cls, values_nk: np.ndarray, at: DepthAndBatch) -> Score:
        parts = Regression.fit(values_nk, at)
        total = combined(parts.apply(values_nk, at))[:, None]
        return cls(parts, Regression.fit(total, at))

    def apply(self, values_nk: np.ndarray, at: DepthAndBatch) -> np.ndarray:
        """Compute scores, (n,); over cells like those of the fit, mean about 0 and standard deviation about 1."""
        total = combined(self.parts.apply(values_nk, at))[:, None]
        return np.asarray(self.total.apply(total, at)[:, 0])


def cross_fitted(values_nk: np.ndarray, at: DepthAndBatch, rng: np.random.Generator) -> np.ndarray:
    """Compute the score of each cell with a regression fitted without it, comparable with the scores of new cells."""
    n = len(values_nk)
    fold_n = rng.permutation(np.arange(n) % FOLDS)
    out = np.empty(n)
    for fold in range(FOLDS):
        held = fold_n == fold
        if held.any():
            rows, rest = np.flatnonzero(held), np.flatnonzero(~held)
            out[rows] = Score.fit(values_nk[rest], at[rest]).apply(values_nk[rows], at[rows])
    return out


def strata(batch_n: np.ndarray, smallest: int) -> np.ndarray:
    """Return the codes of batches with at least ``smallest`` cells.

    Their cells are ranked within the batch, others overall.
    """
    codes, sizes = np.unique(batch_n, return_counts=True)
    return np.asarray(codes[sizes >= smallest])


def p_values(
    score_n: np.ndarray,
    batch_n: np.ndarray,
    calibration_m: np.ndarray,
    calibration_batch_m: np.ndarray,
    *,
    smallest: int,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """Compute conformal p-values, (n,), within the batch or overall.

    They are (1 + #{calibration >= score}) / (1 + #calibration).
    With ``rng``, ties are broken at random, including the tie of the cell with itself. P-values are then exactly
    uniform instead of conservative.
    """
    own = strata(calibration_batch_m, smallest)
    stratum_n = np.where(np.isin(batch_n, own), batch_n, POOLED)
    out = np.empty(len(score_n))
    for code in np.unique(stratum_n):
        rows = stratum_n == code
        among = np.sort(calibration_m if code == POOLED else calibration_m[calibration_batch_m == code])
        greater = len(among) - np.searchsorted(among, score_n[rows], side="right")
        at_least = len(among) - np.searchsorted(among, score_n[rows], side="left")
        if rng is None:
            out[rows] = (1.0 + at_least) / (len(among) + 1.0)
        else:
            u = 1.0 - rng.random(int(rows.sum()))
            out[rows] = (greater + u * (1.0 + at_least - greater)) / (len(among) + 1.0)
    return out
