"""Intervals of dose-response curves from the sampling errors of the measured changes.

A curve is an amplitude of each gene times one Hill function of the dose for all genes. Its estimates under another sample
of cells are those for curves to which drawn errors of the measured changes are added. How far these estimates are from that
without errors is what the intervals add to the curve of the model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# doses of half effect, in units of the highest dose, and slopes that are tried
HALF_EFFECTS = np.exp(np.linspace(np.log(0.01), np.log(10.0), 19))
SLOPES = np.exp(np.linspace(np.log(0.3), np.log(4.0), 13))


@dataclass(frozen=True)
class Observed:
    """Doses (d,) in units of the highest, with the standard errors (d, genes) of the measured changes at them."""

    dose_d: np.ndarray
    error_dg: np.ndarray


def hill(dose: np.ndarray, half: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """Return the Hill function that is 0 at 0 and 1 at 1; the arguments are broadcast."""
    with np.errstate(divide="ignore"):
        power = np.where(dose > 0, np.exp(slope * np.log(np.maximum(dose, 1e-12))), 0.0)
    return np.asarray(power * (1.0 + half**slope) / (power + half**slope))


def deviations(
    curve_dg: np.ndarray, observed: Observed, dose_x: np.ndarray, n_resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw how estimated curves differ from the one without sampling errors, float64 (resamples, x, genes).

    ``curve_dg`` is the curve at the observed doses. With a single one, its shape is taken as known.
    """
    half, slope = (grid.reshape(-1) for grid in np.meshgrid(HALF_EFFECTS, SLOPES, indexing="ij"))
    several = len(observed.dose_d) > 1
    shape_sd = hill(observed.dose_d, half[:, None], slope[:, None]) if several else np.ones((1, 1))
    shape_sx = hill(dose_x, half[:, None], slope[:, None]) if several else (dose_x / observed.dose_d)[None]
    weight_dg = 1.0 / np.maximum(observed.error_dg, 1e-9) ** 2
    weight_dg[observed.error_dg <= 0] = 0.0
    norm_sg = (shape_sd**2) @ weight_dg
    inverse_sg = np.divide(1.0, norm_sg, out=np.zeros_like(norm_sg), where=norm_sg > 0)

    def estimate(value_dg: np.ndarray) -> np.ndarray:
        along_sg = shape_sd @ (weight_dg * value_dg)
        best = int(np.argmax((along_sg**2 * inverse_sg).sum(1)))
        return np.asarray(shape_sx[best][:, None] * (along_sg[best] * inverse_sg[best]))

    without_xg = estimate(curve_dg)
    out = np.empty((n_resamples, *without_xg.shape))
    for k in range(n_resamples):
        out[k] = estimate(curve_dg + observed.error_dg * rng.standard_normal(curve_dg.shape)) - without_xg
    return out
