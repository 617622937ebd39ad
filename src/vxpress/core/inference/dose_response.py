"""Dose-response curves from measured changes, and their intervals.

A curve is an amplitude of each gene times one Hill function of the dose for all genes. How much curves would differ with other
cells follows from estimates after drawn errors of the measured changes were added to them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# doses of half effect, in units of the highest dose, and slopes that are tried
HALF_EFFECTS = np.exp(np.linspace(np.log(0.01), np.log(10.0), 19))
SLOPES = np.exp(np.linspace(np.log(0.3), np.log(4.0), 13))


@dataclass(frozen=True)
class Observed:
    """Doses (d,) in units of the highest, 0 first, with the standard errors (d, genes) of the means of cells at them."""

    dose_d: np.ndarray
    error_dg: np.ndarray


def hill(dose: np.ndarray, half: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """Return the Hill function that is 0 at 0 and 1 at 1; the arguments are broadcast."""
    with np.errstate(divide="ignore"):
        power = np.where(dose > 0, np.exp(slope * np.log(np.maximum(dose, 1e-12))), 0.0)
    return np.asarray(power * (1.0 + half**slope) / (power + half**slope))


class Curves:
    """Least squares estimates of curves from means at the observed doses: amplitudes, and one shape for all genes.

    The level without the perturbation is estimated too, so that the error of the control cells, which all measured changes
    share, is not taken for an effect that is the same at all doses. With a single dose above 0, the shape is taken as linear.
    """

    def __init__(self, observed: Observed, dose_x: np.ndarray) -> None:
        half, slope = (grid.reshape(-1) for grid in np.meshgrid(HALF_EFFECTS, SLOPES, indexing="ij"))
        self.observed = observed
        if len(observed.dose_d) > 2:
            self.at_observed, self.at_requested = (
                hill(dose, half[:, None], slope[:, None]) for dose in (observed.dose_d, dose_x)
            )
        else:
            self.at_observed, self.at_requested = (
                part[None] / observed.dose_d[-1] for part in (observed.dose_d, dose_x)
            )
        self.weight_dg = 1.0 / np.maximum(observed.error_dg, 1e-9) ** 2
        self.weight_dg[observed.error_dg <= 0] = 0.0
        self.total_g = np.maximum(self.weight_dg.sum(0), 1e-300)
        self.level_sg = self.at_observed @ self.weight_dg / self.total_g
        norm_sg = (self.at_observed**2) @ self.weight_dg - self.level_sg**2 * self.total_g
        self.variance_sg = np.divide(1.0, norm_sg, out=np.zeros_like(norm_sg), where=norm_sg > 0)

    def estimate(self, change_dg: np.ndarray) -> tuple[int, np.ndarray]:
        """Return the best shape and the amplitude of each gene, that at the highest dose.

        ``change_dg`` are means at the observed doses, less any number for each gene.
        """
        weighted_dg = self.weight_dg * change_dg
        along_sg = self.at_observed @ weighted_dg - self.level_sg * weighted_dg.sum(0)
        best = int(np.argmax((along_sg**2 * self.variance_sg).sum(1)))
        return best, along_sg[best] * self.variance_sg[best]

    def curve(self, shape: int, amplitude_g: np.ndarray) -> np.ndarray:
        """Return the curves at the requested doses, (x, genes)."""
        return np.asarray(self.at_requested[shape][:, None] * amplitude_g)

    def deviations(self, shape: int, amplitude_g: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draw how estimates from other cells differ if these curves are true, float64 (n, x, genes)."""
        true_dg = self.at_observed[shape][:, None] * amplitude_g
        without_xg = self.curve(*self.estimate(true_dg))
        error_dg = self.observed.error_dg
        draws = (self.estimate(true_dg + error_dg * rng.standard_normal(true_dg.shape)) for _ in range(n))
        return np.stack([self.curve(*drawn) - without_xg for drawn in draws])
