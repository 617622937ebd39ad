"""``vx.tl.outliers``: cells unlike those of the fit, with p-values."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from scanpy import logging as logg

from vxpress._checks import check_range
from vxpress._entry import entry
from vxpress._keys import DEFAULT_KEY, Keys, check_name
from vxpress._mudata import MuData
from vxpress._progress import progress_bar
from vxpress._seeds import seed_of
from vxpress._unset import UNSET, Unset
from vxpress.bridge.ask.outliers import choose_cells, find_outliers
from vxpress.bridge.fits.find_fit import Model, find_fit
from vxpress.bridge.fits.modalities import takes_mudata
from vxpress.bridge.fits.results import Results, check_replaceable, own
from vxpress.bridge.fits.training_cells import training_latent
from vxpress.bridge.read.adata import check_adata


@entry
@takes_mudata("cells")
def outliers(
    adata: AnnData | MuData,
    model: Model = None,
    *,
    modality: str | None = None,
    calibration: AnnData | MuData | str | np.ndarray | None = None,
    key: str = DEFAULT_KEY,
    layer: str | Unset | None = UNSET,
    alpha: float = 0.1,
    min_stratum: int = 200,
    randomize_ties: bool = False,
    rng: int | np.random.Generator | None = 0,
    key_added: str | None = None,
    progress: bool | None = None,
    copy: bool = False,
) -> AnnData | MuData | None:
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
    modality
        If ``adata`` is a MuData, the modality to use with a fit of one modality; results are written into it. With a joint
        fit, cells that have RNA are tested: the latent space is that of all modalities, the surprise that of RNA. Results are
        written into the MuData.
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
    cells = choose_cells(adata, calibration, fit, keys)
    latent = training_latent(adata, model, fit, keys)
    start = logg.info("looking for outliers")
    with progress_bar("outliers", progress):
        found = find_outliers(
            adata,
            cells,
            fit,
            layer,
            latent,
            alpha=alpha,
            min_stratum=min_stratum,
            randomize_ties=randomize_ties,
            rng=generator,
        )
    adata = own(adata, copy=copy)
    columns = found.columns(name, alpha, adata.n_obs)
    record = {**found.record, "params": {"key": key, **found.record["params"]}}
    results = Results(obs=columns, uns={name: record})
    results.write(adata)
    logg.info(
        f"    {found.record['n_outliers']} of {found.record['n_tested']} cells are outliers at a false discovery rate of {alpha:g}; finished",
        time=start,
        deep=results.describe(),
    )
    return adata if copy else None


def _check_free(adata: AnnData, name: str) -> None:
    columns = [name, *(f"{name}_{part}" for part in ("score", "pval", "pval_adj", "genes"))]
    check_replaceable(adata, name, ours=lambda stored: "n_calibration" in stored, obs=columns)
