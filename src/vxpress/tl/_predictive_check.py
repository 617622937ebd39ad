"""``vx.tl.predictive_check``: compare counts with what the model would draw."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from scanpy import logging as logg

from vxpress._checks import check_range
from vxpress._entry import entry
from vxpress._keys import DEFAULT_KEY, Keys
from vxpress._mudata import MuData
from vxpress._progress import progress_bar
from vxpress._seeds import seed_of
from vxpress._unset import UNSET, Unset
from vxpress.bridge.ask.predictive_check import check_counts
from vxpress.bridge.ask.records import check_own, params_of
from vxpress.bridge.fits.find_fit import Model, find_fit
from vxpress.bridge.fits.modalities import takes_mudata
from vxpress.bridge.fits.results import Results, own
from vxpress.bridge.read.adata import check_adata


@entry
@takes_mudata("cells")
def predictive_check(
    adata: AnnData | MuData,
    model: Model = None,
    *,
    modality: str | None = None,
    key: str = DEFAULT_KEY,
    layer: str | Unset | None = UNSET,
    n_draws: int = 25,
    rng: int | np.random.Generator | None = 0,
    progress: bool | None = None,
    copy: bool = False,
) -> AnnData | MuData | None:
    r"""Compare counts with their posterior predictive distribution: means, variances, zeros and interval coverage.

    For each gene over cells and for each cell over genes, the observed mean, variance and share of zeros are written
    next to the values expected of counts drawn from the model (:func:`sample`). Given :math:`z` the expected values
    are exact, so only :math:`z` is drawn.

    Coverage is the share of counts inside the central 50 % and 90 % intervals of their own predictive distribution,
    averaged over the draws of :math:`z`. No set of whole numbers holds exactly 90 % of a distribution. A count
    :math:`x` therefore represents the interval from :math:`F(x - 1)` to :math:`F(x)`, and the part of this interval
    inside 0.05 to 0.95 is counted: the expected value of the randomised transform (:cite:t:`Czado2009`). A calibrated
    distribution covers 50 % and 90 %; a distribution with too little spread covers less.

    Parameters
    ----------
    adata
        Cells with raw counts of the genes of the fit, in any order, and with its covariates in ``obs``. A stored
        posterior is not needed. A fit with a dispersion per label also needs the labels.
    model
        Where the fit is: an AnnData, an ``.h5ad``, zarr or ``.safetensors`` file, or ``None`` for ``adata`` itself.
    modality
        If ``adata`` is a MuData, the modality to use with a fit of one modality; results are written into it. With a joint
        fit, all modalities are used, and results are written into the MuData.
    key
        Name of the fit: the ``key_added`` of the call that made it.
    layer
        Layer with the counts, or ``None`` for ``adata.X``; by default the layer that the fit read.
    n_draws
        Draws of :math:`z` per cell (and of a latent size factor). Only :math:`z` is random, so a few are enough.
    rng
        Seed of the draws, or a numpy generator.
    progress
        Whether to show a progress bar. ``None`` shows one once the call has taken five seconds, unless scanpy's
        verbosity is 0; ``True`` shows it at once, ``False`` never.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    Returns ``None`` if ``copy=False``, else returns an ``AnnData`` object. Sets the following field:

    ``adata.uns["vae_predictive_check"]`` : :class:`dict`
        ``genes`` and ``cells``, each a :class:`pandas.DataFrame` of the modelled genes or the cells, with ``mean``,
        ``variance``, ``zero_fraction``, the same with ``_predicted``, ``coverage_50`` and ``coverage_90``;
        ``coverage``, a :class:`pandas.DataFrame` with the rows ``50`` and ``90`` (per cent) and the columns
        ``nominal``, ``all`` entries, and ``expressed`` entries, those with a predicted probability of a zero below one
        half; ``pit``, the histogram of the transform of the expressed entries in twentieths, which is 1 throughout for
        a calibrated distribution; ``n_expressed``, their number; and ``params``. Units are molecules; for a Gaussian
        fit :math:`\log(1 + 10^4 x / l)`, for a Bernoulli fit detections.

    Raises
    ------
    KeyError
        If there is no such fit, or a column of ``obs`` that it needs is missing.
    ValueError
        If genes of the fit are missing, a category is unknown to it, or the matrix does not hold counts.

    Notes
    -----
    The posterior of a cell has been computed from the same counts. Coverage may therefore be slightly above nominal
    even for a true model, the more so the fewer genes are modelled. Most entries are zeros that any distribution
    expects and covers: read the coverage of expressed entries. If the size factor is the sum of the modelled genes,
    the predicted mean of a cell equals the observed mean by construction.

    See Also
    --------
    vxpress.pl.predictive_check : plot the result.

    Examples
    --------
    >>> import vxpress as vx
    >>> adata = vx.datasets.pbmc68k_reduced()
    >>> vx.tl.fit_vae(adata, max_epochs=5, denoised=False)
    >>> vx.tl.predictive_check(adata, n_draws=5)
    >>> adata.uns["vae_predictive_check"]["coverage"].columns.to_list()
    ['nominal', 'all', 'expressed']
    """
    check_adata(adata, copy=copy)
    fit = find_fit(adata, model, key)
    name = f"{Keys.of(key).uns}_predictive_check"
    check_range("n_draws", n_draws, 1, 100_000, integer=True)
    check_own(adata, name)
    seed = int(seed_of(rng).integers(2**62))
    start = logg.info("checking the posterior predictive distribution")
    with progress_bar("predictive_check", progress):
        found = check_counts(adata, fit, layer, n_draws=n_draws, seed=seed)
    record = params_of(fit, key, n_draws=int(n_draws), rng=int(rng) if isinstance(rng, int) else None)
    adata = own(adata, copy=copy)
    results = Results(uns={name: {**found, "params": record}})
    results.write(adata)
    inside = ", ".join(
        f"{share:.1%} in the {level} % interval" for level, share in found["coverage"]["expressed"].items()
    )
    logg.info(f"    coverage of the {found['n_expressed']} entries expected to be expressed: {inside}")
    logg.info("    finished", time=start, deep=results.describe())
    return adata if copy else None
