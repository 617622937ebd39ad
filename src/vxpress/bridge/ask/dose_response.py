"""Predicted change of expression along the dose of a perturbation, with measured changes next to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd
import torch
from scanpy import logging as logg

from vxpress.bridge.ask.perturbation.anchor import Anchor
from vxpress.bridge.ask.perturbation.base import Moved, covariates_of
from vxpress.bridge.ask.perturbation.cells import PerturbedCells, Profile, profile_of
from vxpress.bridge.ask.perturbation.decoding import Decoder, some
from vxpress.bridge.read.perturbations import PerturbationTable
from vxpress.core.inference import dose_response as estimates
from vxpress.core.progress import steps

# populations with fewer cells are not measured
FEWEST = 5
# relative difference of doses that are the same; they are stored in single precision
NEAR = 1e-4


@dataclass(frozen=True)
class Curves:
    """Doses in the units of ``obs``, (x,), the change there with its interval, (x, genes), and the measured change.

    The measured change and its standard error are NaN where ``n_cells`` (x,) is 0.
    """

    dose_x: np.ndarray
    change_xg: np.ndarray
    low_xg: np.ndarray
    high_xg: np.ndarray
    measured_xg: np.ndarray
    error_xg: np.ndarray
    n_cells_x: np.ndarray

    def table(self, genes: Sequence[str], at: np.ndarray, *, low: float, high: float) -> pd.DataFrame:
        """Return a row for each gene and dose; doses outside ``low`` to ``high`` are extrapolated."""
        parts = []
        for name, g in zip(genes, at, strict=True):
            parts.append(
                pd.DataFrame(
                    {
                        "gene": name,
                        "dose": self.dose_x,
                        "change": self.change_xg[:, g],
                        "low": self.low_xg[:, g],
                        "high": self.high_xg[:, g],
                        "measured": self.measured_xg[:, g],
                        "measured_error": self.error_xg[:, g],
                        "n_cells": self.n_cells_x,
                        "extrapolated": (self.dose_x > high * (1 + NEAR))
                        | ((self.dose_x > 0) & (self.dose_x < low * (1 - NEAR))),
                    }
                )
            )
        return pd.concat(parts, ignore_index=True)

    def at(self, rows: np.ndarray) -> Curves:
        """Return some of the doses."""
        return Curves(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def curves(
    cells: PerturbedCells,
    table: PerturbationTable,
    name: str,
    dose_x: np.ndarray,
    *,
    level: float,
    n_resamples: int,
    seed: int,
) -> Curves:
    """Decode control cells along the dose of a perturbation alone.

    The curve is fitted to the changes at all observed doses, so that it does not depend on the doses to return.
    """
    p = table.names.index(name)
    needed = np.append(observed_doses(cells, table, name), table.high[p])
    more = [dose for dose in needed if not np.isclose(dose_x, dose, rtol=NEAR, atol=0.0).any()]
    wanted_x, dose_x = dose_x, np.unique(np.append(dose_x, more))
    controls = cells.populations.controls()
    rows = controls[some(controls, seed)]
    before_g = Decoder.before(cells, rows).mean_profile()
    change_xg = np.zeros((len(dose_x), len(cells.genes)))
    own = covariates_of(cells, rows)
    for i in steps(range(len(dose_x)), "decoding doses"):
        dose_p = torch.zeros(len(table.names))
        dose_p[p] = float(dose_x[i] / table.high[p])
        if dose_x[i] > 0:
            moved = Moved(cells.encoded[rows], own.with_doses(dose_p))
            change_xg[i] = Decoder.after(cells, rows, moved).mean_profile() - before_g
    measured_xg, error_xg, n_cells_x = _measured(cells, table, p, dose_x)
    control = cells.control(0)
    none_g = np.sqrt(control.var_g / control.n)
    own_xg = np.sqrt(np.maximum(error_xg**2 - none_g**2, 0.0))
    seen = np.flatnonzero((n_cells_x > 0) & (dose_x > 0))
    low_xg = high_xg = np.full_like(change_xg, np.nan)
    if len(seen):
        fitted = estimates.Curves(
            estimates.Observed(np.append(0.0, dose_x[seen] / table.high[p]), np.vstack((none_g, own_xg[seen]))),
            dose_x / table.high[p],
        )
        shape, amplitude_g = fitted.estimate(np.vstack((np.zeros_like(none_g), measured_xg[seen])))
        at_highest = Anchor(amplitude_g, fitted.variance_sg[shape])
        weight_g = at_highest.weight(change_xg[np.argmin(np.abs(dose_x - table.high[p]))], 0.5)
        change_xg += weight_g * (fitted.curve(shape, amplitude_g) - change_xg)
        spread = fitted.deviations(shape, amplitude_g, n_resamples, np.random.default_rng(seed))
        tail = (1.0 - level) / 2
        low_xg, high_xg = (change_xg + np.quantile(spread, q, axis=0) for q in (tail, 1.0 - tail))
    else:
        logg.warning(
            f"adata has no dose of {name!r} alone in {FEWEST} cells or more, so the curves have no intervals. Pass the cells of the fit."
        )
    found = Curves(dose_x, change_xg, low_xg, high_xg, measured_xg, error_xg, n_cells_x)
    return found.at(np.isin(dose_x, wanted_x))


def observed_doses(cells: PerturbedCells, table: PerturbationTable, name: str) -> np.ndarray:
    """Return the different doses of a perturbation alone, in the units of ``obs``, in increasing order."""
    p = table.names.index(name)
    return np.unique(_alone(cells, p)) * table.high[p]


def _alone(cells: PerturbedCells, p: int) -> np.ndarray:
    """Return the scaled doses of the cells with a perturbation alone."""
    dose_np = _doses(cells)
    return np.asarray(dose_np[((dose_np > 0).sum(1) == 1) & (dose_np[:, p] > 0), p])


def _doses(cells: PerturbedCells) -> np.ndarray:
    dose_np = cells.covariates.dose_np
    assert dose_np is not None  # noqa: S101 - the fit has perturbations
    return dose_np.double().numpy()


def _measured(
    cells: PerturbedCells, table: PerturbationTable, p: int, dose_x: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the measured change at each dose, its standard error, and the number of cells."""
    dose_np = _doses(cells)
    alone = (dose_np > 0).sum(1) <= 1
    control = cells.control(0)
    change_xg, error_xg = np.full((2, len(dose_x), len(cells.genes)), np.nan)
    n_x = np.zeros(len(dose_x), dtype=np.int64)
    for i, dose in enumerate(dose_x / table.high[p]):
        at = np.flatnonzero(alone & np.isclose(dose_np[:, p], dose, rtol=NEAR, atol=0.0)) if dose > 0 else ()
        if len(at) >= FEWEST:
            found: Profile = profile_of(cells.counts[at], cells.scale(np.asarray(at)))
            change_xg[i], n_x[i] = found.mean_g - control.mean_g, len(at)
            error_xg[i] = np.sqrt(found.var_g / found.n + control.var_g / control.n)
    return change_xg, error_xg, n_x
