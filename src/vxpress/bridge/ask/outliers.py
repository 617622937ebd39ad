"""Cells unlike those of a fit: calibration cells, evidence, scores and p-values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scanpy import logging as logg
from scipy.stats import false_discovery_control, spearmanr

from vxpress._keys import Keys
from vxpress._unset import Unset
from vxpress.bridge.fits.fit import Fit
from vxpress.bridge.fits.query import needs_labels, read_query
from vxpress.bridge.fits.training_cells import fitted_cells
from vxpress.bridge.read.adata import check_adata
from vxpress.bridge.read.columns import as_mask, find_column
from vxpress.bridge.read.joint import cells_at
from vxpress.core.data import have_counts
from vxpress.core.inference.anomaly import MAX_REFERENCE, PARTS, Evidence, evidence, neighbor_distance
from vxpress.core.inference.conformal import DepthAndBatch, Score, cross_fitted, p_values, strata

MIN_CALIBRATION = 50
# a cell nearer than SAME to a cell of the fit is that cell, encoded again; a share above MANY is not a coincidence
SAME, MANY = 1e-4, 0.1
RECIPE = (
    "Hold cells out of the fit: held = np.random.default_rng(0).random(adata.n_obs) < 0.2; reference, calibration = "
    "adata[~held].copy(), adata[held].copy(); vx.tl.fit_vae(reference); vx.tl.outliers(query, reference, calibration=calibration)."
)


@dataclass(frozen=True)
class Outliers:
    """Scores of the tested cells, their p-values, adjusted p-values and most unusual genes; ``record`` is for ``uns``."""

    rows: np.ndarray
    score_n: np.ndarray
    pval_n: np.ndarray
    adjusted_n: np.ndarray
    genes: list[str]
    record: dict[str, Any]

    def columns(self, name: str, alpha: float, n_obs: int) -> dict[str, np.ndarray]:
        """Return the columns of ``obs``; NaN, False and "" for cells that were not tested."""
        values = {"score": self.score_n, "pval": self.pval_n, "pval_adj": self.adjusted_n}
        columns = {f"{name}_{part}": np.full(n_obs, np.nan) for part in values}
        for part, value in values.items():
            columns[f"{name}_{part}"][self.rows] = value
        marked_n, genes = np.zeros(n_obs, dtype=bool), np.full(n_obs, "", dtype=object)
        marked_n[self.rows], genes[self.rows] = self.adjusted_n <= alpha, self.genes
        return columns | {name: marked_n, f"{name}_genes": genes}


def find_outliers(
    adata: AnnData,
    cells: tuple[AnnData, np.ndarray, np.ndarray],
    fit: Fit,
    layer: str | Unset | None,
    latent: tuple[np.ndarray, np.ndarray],
    *,
    alpha: float,
    min_stratum: int,
    randomize_ties: bool,
    rng: np.random.Generator,
) -> Outliers:
    """Score the cells and compare them with calibration cells.

    ``cells`` come from :func:`choose_cells`, ``latent`` are the posterior means of training and of validation cells.
    """
    usual, usual_n, test_n = cells
    training_md, validation_md = latent
    if len(training_md) > MAX_REFERENCE:
        training_md = training_md[np.sort(rng.choice(len(training_md), MAX_REFERENCE, replace=False))]
    known = _Read.of(usual, fit, layer, np.flatnonzero(usual_n), training_md)
    tested = _Read.of(adata, known.fit, layer, np.flatnonzero(test_n), training_md)
    _check_calibration(known, np.concatenate([training_md, validation_md]))
    if not len(tested.rows):
        msg = "None of the cells to test has a count in the modelled genes. Check adata.X and layer=."
        raise ValueError(msg)
    _warn(known, tested, training_md, alpha, min_stratum)
    known_score_n = cross_fitted(known.found.parts_nk, known.at, rng)
    score_n = Score.fit(known.found.parts_nk, known.at).apply(tested.found.parts_nk, tested.at)
    pval_n = p_values(
        score_n,
        tested.at.batch_n,
        known_score_n,
        known.at.batch_n,
        smallest=min_stratum,
        rng=rng if randomize_ties else None,
    )
    adjusted_n = false_discovery_control(pval_n)
    names = fit.genes[fit.modelled_g][tested.found.genes_nk]
    genes = [", ".join(row[odd]) for row, odd in zip(names, tested.found.genes_nk >= 0, strict=True)]
    record = _record(known, tested, known_score_n, adjusted_n, fit, alpha=alpha, min_stratum=min_stratum)
    return Outliers(tested.rows, score_n, pval_n, adjusted_n, genes, record)


@dataclass(frozen=True)
class _Read:
    """Cells with counts among some rows of an AnnData: their rows, evidence, and depth and batch.

    ``fit`` includes their categories, so other cells that are read with it get comparable codes.
    """

    fit: Fit
    rows: np.ndarray
    found: Evidence
    at: DepthAndBatch

    @classmethod
    def of(
        cls, adata: AnnData, fit: Fit, layer: str | Unset | None, rows: np.ndarray, training_md: np.ndarray
    ) -> _Read:
        part = adata if len(rows) == adata.n_obs else cells_at(adata, rows)
        query = read_query(part, fit, layer, labels=needs_labels(fit), incomplete=True)
        if query.missing is not None:
            msg = (
                f"{int((~query.missing.observed_g).sum())} of the {len(query.missing.observed_g)} modelled genes are missing, but the "
                "outlier score needs all of them. Pass the full matrix, or fit again on the shared genes."
            )
            raise ValueError(msg)
        fit, cells, library_n = query.fit, query.cells, query.observed_n
        counted = np.flatnonzero(have_counts(cells).numpy() & (library_n > 0))
        found = evidence(fit.model, cells, training_md)
        codes = cells.covariates.categorical_nk
        batch_n = codes[:, 0].numpy() if fit.params.model.has_batch else np.zeros(len(cells), dtype=np.int64)
        at = DepthAndBatch(np.log(np.maximum(library_n, 1e-12)), batch_n)
        found = Evidence(found.parts_nk[counted], found.mean_nd[counted], found.genes_nk[counted])
        return cls(fit, rows[counted], found, at[counted])


def choose_cells(
    adata: AnnData, calibration: AnnData | str | np.ndarray | None, fit: Fit, keys: Keys
) -> tuple[AnnData, np.ndarray, np.ndarray]:
    """Return the AnnData with the calibration cells, the mask that selects them, and the mask of the cells to test."""
    fitted_n = fitted_cells(adata, fit, keys)
    if calibration is None:
        msg = f"calibration= is missing: p-values need cells that the fit was neither trained nor stopped on. {RECIPE}"
        raise ValueError(msg)
    if calibration is adata:
        msg = f"calibration= is adata itself; the cells to test and the calibration cells must be different. {RECIPE}"
        raise ValueError(msg)
    if isinstance(calibration, AnnData):
        check_adata(calibration, copy=False)
        usual, usual_n, test_n = calibration, np.ones(calibration.n_obs, dtype=bool), ~fitted_n
    else:
        usual_n = _mask(adata, calibration)
        usual, test_n = adata, ~fitted_n & ~usual_n
    n_fitted = int((fitted_cells(usual, fit, keys) & usual_n).sum())
    if n_fitted:
        msg = (
            f"{n_fitted} of the {int(usual_n.sum())} calibration cells have obs[{keys.split!r}] 'train' or 'validation': the fit "
            f"was trained on or stopped by them, so they look less unusual to it than other cells. {RECIPE}"
        )
        raise ValueError(msg)
    if not test_n.any():
        msg = (
            f"No cell of adata is left to test: {int(fitted_n.sum())} of {adata.n_obs} belong to the fit, the others are calibration "
            f"cells. A p-value needs a fit that has not seen the cell. {RECIPE}"
        )
        raise ValueError(msg)
    return usual, usual_n, test_n


def _mask(adata: AnnData, calibration: str | np.ndarray) -> np.ndarray:
    if isinstance(calibration, str):
        where, given = f"adata.obs[{calibration!r}]", find_column(adata.obs, calibration, argument="calibration")
    elif isinstance(calibration, (np.ndarray, pd.Series, pd.api.extensions.ExtensionArray, list)):
        where, given = "calibration=", calibration
    else:
        msg = f"calibration= takes an AnnData, a boolean column of adata.obs or a boolean array; found {type(calibration).__name__}."
        raise TypeError(msg)
    return as_mask(given, adata.obs_names, where, of="cell")


def _check_calibration(known: _Read, fitted_md: np.ndarray) -> None:
    if len(known.rows) < MIN_CALIBRATION:
        msg = f"{len(known.rows)} calibration cells with counts were found; at least {MIN_CALIBRATION} are expected, and some hundred are better. {RECIPE}"
        raise ValueError(msg)
    _, nearest_n = neighbor_distance(known.found.mean_nd, fitted_md)
    same = nearest_n < SAME
    if same.mean() > MANY:
        msg = (
            f"{int(same.sum())} of the {len(same)} calibration cells have the same latent state as a cell of the fit: they are cells "
            f"that it was trained on or stopped by. {RECIPE}"
        )
        raise ValueError(msg)


def _warn(known: _Read, tested: _Read, training_md: np.ndarray, alpha: float, min_stratum: int) -> None:
    """Warn about limitations of the p-values."""
    _, nearest_n = neighbor_distance(tested.found.mean_nd, training_md)
    if (nearest_n < SAME).mean() > MANY:
        logg.warning(
            f"{int((nearest_n < SAME).sum())} of the {len(nearest_n)} cells to test have the same latent state as a training cell. "
            "Outliers among cells that the fit has seen cannot be detected, because these cells look normal to it."
        )
    unseen = np.setdiff1d(tested.at.batch_n, known.at.batch_n)
    if len(unseen):
        n_cells = int(np.isin(tested.at.batch_n, unseen).sum())
        logg.warning(
            f"{n_cells} cell(s) to test are of a batch without calibration cells and are treated as cells of an average batch: their "
            "p-values are valid only as far as the batch resembles that average."
        )
    n_needed = _n_needed(known, tested, alpha, min_stratum)
    if n_needed > max(1, 0.1 * len(tested.rows)):
        logg.warning(
            f"With {len(known.rows)} calibration cells the smallest p-value is so large that no cell can be marked unless "
            f"{n_needed} of {len(tested.rows)} or more are. Use more calibration cells, or a larger min_stratum=, to make it smaller."
        )


def _smallest(known: _Read, tested: _Read, min_stratum: int) -> np.ndarray:
    """Return the smallest p-value that each cell can get."""
    sizes = pd.Series(known.at.batch_n).value_counts()
    sizes = sizes[np.isin(sizes.index, strata(known.at.batch_n, min_stratum))]
    among_n = pd.Series(tested.at.batch_n).map(sizes).fillna(len(known.rows)).to_numpy()
    return np.asarray(1.0 / (1.0 + among_n))


def _n_needed(known: _Read, tested: _Read, alpha: float, min_stratum: int) -> int:
    """Return the smallest number of outliers that Benjamini-Hochberg can mark."""
    smallest = np.sort(_smallest(known, tested, min_stratum))
    enough = np.flatnonzero(smallest <= alpha * np.arange(1, len(smallest) + 1) / len(smallest))
    return int(enough[0]) + 1 if len(enough) else len(smallest) + 1


def _record(
    known: _Read,
    tested: _Read,
    known_score_n: np.ndarray,
    adjusted_n: np.ndarray,
    fit: Fit,
    *,
    alpha: float,
    min_stratum: int,
) -> dict[str, Any]:
    own_strata = strata(known.at.batch_n, min_stratum)
    batches = fit.covariates.batches or ("all",)
    depth_n = known.at.log_depth_n
    varied = np.ptp(depth_n) > 0
    return {
        "params": {
            "alpha": float(alpha),
            "min_stratum": int(min_stratum),
            "parts": np.array(PARTS, dtype=object),
        },
        "n_calibration": len(known.rows),
        "n_tested": len(tested.rows),
        "n_outliers": int((adjusted_n <= alpha).sum()),
        "smallest_pval": float(_smallest(known, tested, min_stratum).min()),
        "rho_log_depth": float(spearmanr(known_score_n, depth_n).statistic) if varied else 0.0,
        "strata": np.array([*(batches[code] for code in own_strata), "all batches"], dtype=object),
        "strata_sizes": np.array([*(int((known.at.batch_n == code).sum()) for code in own_strata), len(known.rows)]),
    }
