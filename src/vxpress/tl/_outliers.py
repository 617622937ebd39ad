"""``vx.tl.outliers``: cells unlike those of the fit, with p-values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scanpy import logging as logg
from scipy.stats import false_discovery_control, spearmanr

from vxpress._checks import check_range
from vxpress._entry import entry
from vxpress._keys import DEFAULT_KEY, Keys, check_name
from vxpress._progress import progress_bar
from vxpress._seeds import seed_of
from vxpress._unset import UNSET, Unset
from vxpress.bridge.fits.find_fit import Model, find_fit
from vxpress.bridge.fits.fit import Fit
from vxpress.bridge.fits.query import needs_labels, read_query
from vxpress.bridge.fits.results import Results, check_replaceable, own
from vxpress.bridge.fits.training_cells import fitted_cells, training_latent
from vxpress.bridge.read.adata import check_adata
from vxpress.bridge.read.columns import as_mask, find_column
from vxpress.core.inference.anomaly import MAX_REFERENCE, PARTS, Evidence, evidence, neighbor_distance
from vxpress.core.inference.conformal import DepthAndBatch, Score, cross_fitted, p_values, strata

MIN_CALIBRATION = 50
# a cell nearer than SAME to a cell of the fit is that cell, encoded again; a share above MANY is not a coincidence
SAME, MANY = 1e-4, 0.1
RECIPE = (
    "Hold cells out of the fit: held = np.random.default_rng(0).random(adata.n_obs) < 0.2; reference, calibration = "
    "adata[~held].copy(), adata[held].copy(); vx.tl.fit_vae(reference); vx.tl.outliers(query, reference, calibration=calibration)."
)


@entry
def outliers(
    adata: AnnData,
    model: Model = None,
    *,
    calibration: AnnData | str | np.ndarray | None = None,
    key: str = DEFAULT_KEY,
    layer: str | Unset | None = UNSET,
    alpha: float = 0.1,
    min_stratum: int = 200,
    randomize_ties: bool = False,
    rng: int | np.random.Generator | None = 0,
    key_added: str | None = None,
    progress: bool | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Find cells unlike those of the fit: unseen types, doublets, damaged or contaminated cells.

    Four quantities are computed for each cell: the distance to the nearest training cells in the latent space, the
    surprise -log p(x | z, s, l), the part of it that comes from few genes, and the width of the posterior. All of them
    depend on depth and batch even in good cells. Depth and batch are therefore removed by regression on *calibration
    cells*, which were not part of the fit, and the score of each cell is ranked among the scores of the calibration
    cells. This makes the p-value valid even if the model is poor: among cells like the calibration cells, a share of at
    most ``p`` gets a p-value of at most ``p``.

    Parameters
    ----------
    adata
        Cells to test, with raw counts of the genes of the fit and with its covariates in ``obs``. They need not be
        encoded. Cells that the fit was trained on or stopped by (``obs["vae_split"]``) get no p-value.
    model
        Where the fit and its training cells are: the AnnData that was fitted, its ``.h5ad`` or zarr file, or ``None``
        for ``adata`` itself. A ``.safetensors`` file holds no cells and is not enough.
    calibration
        Cells like those of the fit that were not part of the fit, neither for training nor for stopping: an AnnData
        with raw counts, a boolean column of ``adata.obs``, or a boolean array over the cells of ``adata``. At least 50;
        a few hundred or more are better. Outliers among them reduce power, not validity.
    key
        Name of the fit: the ``key_added`` of the call that made it.
    layer
        Layer with the counts in ``adata`` and in the calibration cells, or ``None`` for ``X``; by default the layer
        that the fit read.
    alpha
        False discovery rate at which cells are marked as outliers: the expected share of the marked cells that are like
        the calibration cells.
    min_stratum
        Cells of a batch with at least this many calibration cells are ranked among the calibration cells of that batch,
        all others among all calibration cells. With smaller strata the smallest p-value, 1 / (1 + cells), would be too
        large to survive the correction.
    randomize_ties
        Break ties at random, including the tie of a cell with itself. The p-values of cells like the calibration cells
        are then exactly uniform; by default they may be larger. Use it for checks.
    rng
        Seed of the folds of the calibration cells, of the sample of training cells if there are more than 20,000, and
        of broken ties; or a numpy generator.
    key_added
        Name under which the results are written; by default the name of the fit followed by ``"_outlier"``.
    progress
        Whether to show a progress bar. ``None`` shows one once the call has taken five seconds, unless scanpy's
        verbosity is 0; ``True`` shows it at once, ``False`` never.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    Returns ``None`` if ``copy=False``, else returns an ``AnnData`` object. Sets the following fields:

    ``adata.obs["vae_outlier_score"]`` : ``float64``
        Outlier score; higher is more unusual. Mean about 0 and standard deviation about 1 over calibration cells of any
        depth and batch. NaN for cells without a p-value.
    ``adata.obs["vae_outlier_pval"]`` : ``float64``
        Conformal p-value. NaN for cells of the fit, calibration cells, and cells without counts.
    ``adata.obs["vae_outlier_pval_adj"]`` : ``float64``
        The p-value adjusted by Benjamini-Hochberg over all cells with a p-value.
    ``adata.obs["vae_outlier"]`` : ``bool``
        Whether the adjusted p-value is at most ``alpha``.
    ``adata.obs["vae_outlier_genes"]`` : ``str``
        The three genes with the largest surprise among those counted above their mean; fewer if there are fewer.
    ``adata.uns["vae_outlier"]``
        ``params``; numbers of cells; ``smallest_pval``; ``rho_log_depth``, Spearman's correlation of the score with log
        depth over the calibration cells, which should be about 0; and the ``strata`` with their ``strata_sizes``.

    Raises
    ------
    KeyError
        If there is no such fit, its training cells cannot be found, or a column is missing.
    ValueError
        If there are no or too few calibration cells, or cells of the fit among them; if no cell is left to test; or if
        the matrix does not hold counts.
    TypeError
        If ``adata`` is not an AnnData, or ``calibration`` is of a type that does not select cells.

    Notes
    -----
    Each of the four quantities is standardised to u: its expectation given log depth (a natural cubic spline) and batch
    is subtracted, and the result is divided by its scale given the same. The score is min(2, u_distance) +
    clip(u_surprise, 0, 2) + clip(u_peak, 0, 2) + max(0, u_width), standardised once more in the same way (plus 0.001
    times the first three, so that values beyond 2 are not tied). Scores of calibration cells come from regressions
    without them (ten folds). The p-value is (1 + #{calibration scores >= score}) / (1 + #calibration cells).

    References
    ----------
    Bates, Candès, Lei, Romano & Sesia, Testing for outliers with conformal p-values, Annals of Statistics 2023.
    Benjamini & Hochberg, Controlling the false discovery rate, J. R. Stat. Soc. B 1995.

    Examples
    --------
    >>> import vxpress as vx
    >>> adata = vx.datasets.pbmc68k_reduced()
    >>> reference, calibration, query = adata[:400].copy(), adata[400:600].copy(), adata[600:].copy()
    >>> vx.tl.fit_vae(reference, max_epochs=5, denoised=False)
    >>> vx.tl.outliers(query, reference, calibration=calibration)
    >>> bool(query.obs["vae_outlier_pval"].between(0, 1).all())
    True
    """
    check_adata(adata, copy=copy)
    fit, keys = find_fit(adata, model, key), Keys.of(key)
    name = f"{key}_outlier" if key_added is None else key_added
    check_name("key_added", name)
    _check_free(adata, name)
    check_range("alpha", alpha, 1e-12, 1.0)
    check_range("min_stratum", min_stratum, 1, 1_000_000_000, integer=True)
    generator = seed_of(rng)
    usual, usual_n, test_n = _choose_cells(adata, calibration, fit, keys)
    training_md, validation_md = training_latent(adata, model, fit, keys)
    start = logg.info("looking for outliers")
    if len(training_md) > MAX_REFERENCE:
        training_md = training_md[np.sort(generator.choice(len(training_md), MAX_REFERENCE, replace=False))]
    with progress_bar("outliers", progress):
        known = _Read.of(usual, fit, layer, np.flatnonzero(usual_n), training_md)
        tested = _Read.of(adata, known.fit, layer, np.flatnonzero(test_n), training_md)
    _check_calibration(known, np.concatenate([training_md, validation_md]))
    if not len(tested.rows):
        msg = "None of the cells to test has a count in the modelled genes. Check adata.X and layer=."
        raise ValueError(msg)
    _warn(known, tested, training_md, alpha, min_stratum)
    known_score_n = cross_fitted(known.found.parts_nk, known.at, generator)
    score_n = Score.fit(known.found.parts_nk, known.at).apply(tested.found.parts_nk, tested.at)
    pval_n = p_values(
        score_n,
        tested.at.batch_n,
        known_score_n,
        known.at.batch_n,
        smallest=min_stratum,
        rng=generator if randomize_ties else None,
    )
    adjusted_n = false_discovery_control(pval_n)
    adata = own(adata, copy=copy)
    columns = {f"{name}_score": score_n, f"{name}_pval": pval_n, f"{name}_pval_adj": adjusted_n}
    results = Results(
        obs={column: _spread(values, tested.rows, adata.n_obs) for column, values in columns.items()},
        uns={
            name: _record(known, tested, known_score_n, adjusted_n, fit, alpha=alpha, min_stratum=min_stratum, key=key)
        },
    )
    marked_n = np.zeros(adata.n_obs, dtype=bool)
    marked_n[tested.rows] = adjusted_n <= alpha
    genes = np.full(adata.n_obs, "", dtype=object)
    names = fit.genes[fit.modelled_g][tested.found.genes_nk]
    genes[tested.rows] = [", ".join(row[odd]) for row, odd in zip(names, tested.found.genes_nk >= 0, strict=True)]
    results.obs |= {name: marked_n, f"{name}_genes": genes}
    results.write(adata)
    logg.info(
        f"    {int(marked_n.sum())} of {len(score_n)} cells are outliers at a false discovery rate of {alpha:g}; finished",
        time=start,
        deep=results.describe(),
    )
    return adata if copy else None


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
        part = adata if len(rows) == adata.n_obs else adata[rows]
        if part.isbacked and part.is_view:
            part = part.to_memory()
        query = read_query(part, fit, layer, labels=needs_labels(fit), incomplete=True)
        if query.missing is not None:
            msg = (
                f"{int((~query.missing.observed_g).sum())} of the {len(query.missing.observed_g)} modelled genes are missing, but the "
                "outlier score needs all of them. Pass the full matrix, or fit again on the shared genes."
            )
            raise ValueError(msg)
        fit, cells, library_n = query.fit, query.cells, query.observed_n
        counted = np.flatnonzero(cells.counts.counted_n.numpy() & (library_n > 0))
        found = evidence(fit.model, cells, training_md)
        codes = cells.covariates.categorical_nk
        batch_n = codes[:, 0].numpy() if fit.params.model.has_batch else np.zeros(len(cells), dtype=np.int64)
        at = DepthAndBatch(np.log(np.maximum(library_n, 1e-12)), batch_n)
        found = Evidence(found.parts_nk[counted], found.mean_nd[counted], found.genes_nk[counted])
        return cls(fit, rows[counted], found, at[counted])


def _choose_cells(
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
    key: str,
) -> dict[str, Any]:
    own_strata = strata(known.at.batch_n, min_stratum)
    batches = fit.covariates.batches or ("all",)
    depth_n = known.at.log_depth_n
    varied = np.ptp(depth_n) > 0
    return {
        "params": {
            "key": key,
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


def _spread(values: np.ndarray, rows: np.ndarray, n_obs: int) -> np.ndarray:
    out = np.full(n_obs, np.nan)
    out[rows] = values
    return out


def _check_free(adata: AnnData, name: str) -> None:
    columns = [name, *(f"{name}_{part}" for part in ("score", "pval", "pval_adj", "genes"))]
    check_replaceable(adata, name, ours=lambda stored: "n_calibration" in stored, obs=columns)
