"""``vx.tl.impute``: the counts of a modality that cells lack."""

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
from vxpress.bridge.ask.denoising import checked_draws
from vxpress.bridge.ask.imputation import impute_cells, modality_in
from vxpress.bridge.fits.find_fit import Model, find_fit
from vxpress.bridge.fits.modalities import takes_mudata
from vxpress.bridge.fits.results import Results, check_replaceable, has_params, own
from vxpress.bridge.read.adata import check_adata


@entry
@takes_mudata("imputes")
def impute(
    adata: AnnData | MuData,
    modality: str,
    model: Model = None,
    *,
    key: str = DEFAULT_KEY,
    layer: str | Unset | None = UNSET,
    interval: float = 0.9,
    n_draws: int | None = None,
    rng: int | np.random.Generator | None = 0,
    key_added: str | None = None,
    progress: bool | None = None,
    copy: bool = False,
) -> AnnData | MuData | None:
    """Impute the counts of a modality from the other modalities of each cell, with calibrated intervals.

    Counts are drawn from the model given what a cell has of the other modalities. For cells that have the modality, its
    counts are not used, so that they can be compared with the imputed ones. Expected counts are the mean over all draws.
    Intervals end at those quantiles of the draws that enclose the wanted share of the counts of held-out cells of the
    fit (conformal prediction), feature by feature. They hold this share of the counts of new cells of the same kind,
    whether or not the model is right; cells of another tissue or protocol are of another kind. An expected count can be outside
    its interval, if few draws are far larger than the others.

    Parameters
    ----------
    adata
        Cells with at least one of the modalities of the fit: a MuData, or an AnnData with RNA alone.
    modality
        Modality to impute, by its name in the MuData of the fit, for example ``"protein"``. ``"rna"`` gives the modelled
        genes.
    model
        Where the fit is: a MuData, an AnnData, a file, or ``None`` for ``adata`` itself. Intervals can be calibrated only
        with the cells of the fit, that is, with its MuData.
    key
        Name of the fit: the ``key_added`` of the call that made it.
    layer
        Layer with the counts, or ``None`` for ``X``; by default the layer that the fit read.
    interval
        Share of the counts that an interval holds. The default is 0.9.
    n_draws
        Draws of the counts of each cell; by default 100.
    rng
        Seed of the draws, or a numpy generator.
    key_added
        Name under which the results are written; by default the name of the fit and of the modality, ``"vae_protein"``.
    progress
        Whether to show a progress bar. ``None`` shows one once the call has taken five seconds, unless scanpy's
        verbosity is 0; ``True`` shows it at once, ``False`` never.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    Returns ``None`` if ``copy=False``, else returns a ``MuData`` or ``AnnData`` object. Sets the following fields:

    ``mdata.obsm["vae_protein" | key_added]`` : :class:`pandas.DataFrame` (dtype ``float32``)
        Expected counts of every cell, n_obs x features. With ``likelihood`` ``"nb_mixture"`` they include the background;
        :func:`denoise` gives the foreground alone.
    ``mdata.obsm["vae_protein_log1p"]`` : :class:`pandas.DataFrame` (dtype ``float32``)
        Expected log1p of the counts, for comparisons on the log scale: if a cell may have much or little of a protein, it is
        between the two, while the log of the expected count is close to the higher one.
    ``mdata.obsm["vae_protein_lower"]``, ``mdata.obsm["vae_protein_upper"]`` : :class:`pandas.DataFrame` (dtype ``float32``)
        Ends of the interval of each count. Small counts take few values, so their intervals can hold more.
    ``mdata.uns["vae_protein"]``
        ``params``, with ``n_calibrated``, the number of held-out cells that the intervals were calibrated on; 0 if there
        were too few, with a warning.

    Raises
    ------
    KeyError
        If there is no such fit, it does not have the modality, or a column of ``obs`` that it needs is missing.
    ValueError
        If the fit is one of a single modality, modelled genes or features are missing, the matrix does not hold counts,
        ``n_draws`` is too small for ``interval``, or something else is stored under the name of the results.

    References
    ----------
    Gayoso et al., Joint probabilistic modeling of single-cell multi-omic data with totalVI, Nature Methods 2021.
    Chernozhukov, Wüthrich & Zhu, Distributional conformal prediction, PNAS 2021.

    Examples
    --------
    Proteins of half of the cells, simulated from their RNA:

    >>> import anndata as ad, mudata as md, numpy as np, vxpress as vx
    >>> rna = vx.datasets.simulate(400, 60, n_groups=3, rng=0)
    >>> rate = rna.X[:, :5].toarray() * 20 + 2
    >>> counts = np.random.default_rng(0).poisson(rate).astype("float32")
    >>> protein = ad.AnnData(counts, obs=rna.obs[[]])
    >>> protein.var_names = [f"protein_{i}" for i in range(5)]
    >>> mdata = md.MuData({"rna": rna, "protein": protein[:200].copy()})
    >>> vx.tl.fit_vae(mdata, max_epochs=5)
    >>> vx.tl.impute(mdata, "protein", interval=0.8)
    >>> mdata.obsm["vae_protein"].shape
    (400, 5)
    >>> bool((mdata.obsm["vae_protein_lower"] <= mdata.obsm["vae_protein_upper"]).all(axis=None))
    True
    """
    check_adata(adata, copy=copy)
    fit, keys = find_fit(adata, model, key), Keys.of(key)
    name = modality_in(fit, modality)
    check_range("interval", interval, 0.01, 0.999)
    draws = checked_draws(n_draws, interval)
    record = f"{keys.uns}_{modality}" if key_added is None else key_added
    check_name("key_added", record)
    slots = [record, f"{record}_log1p", f"{record}_lower", f"{record}_upper"]
    check_replaceable(adata, record, ours=lambda stored: has_params(stored, "imputed", "interval"), obsm=slots)
    seed = int(seed_of(rng).integers(2**62))
    start = logg.info(f"imputing {modality}")
    with progress_bar("impute", progress):
        found = impute_cells(
            adata, fit, model, keys, name, layer=layer, interval=float(interval), n_draws=draws, seed=seed
        )
    params = {
        "key": key,
        "imputed": modality,
        "interval": float(interval),
        "n_draws": draws,
        "n_calibrated": found.n_calibrated,
    }
    adata = own(adata, copy=copy)
    results = Results(
        obsm=dict(zip(slots, found.tables(adata.obs_names), strict=True)), uns={record: {"params": params}}
    )
    results.write(adata)
    logg.info("    finished", time=start, deep=results.describe())
    return adata if copy else None
