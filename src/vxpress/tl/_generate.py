"""``vx.tl.generate``: new cells from the prior."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from scanpy import logging as logg

from vxpress._checks import check_range
from vxpress._entry import entry
from vxpress._keys import DEFAULT_KEY, Keys
from vxpress._mudata import MuData
from vxpress._progress import progress_bar
from vxpress._seeds import seed_of
from vxpress.bridge.ask.generation import Labels
from vxpress.bridge.ask.new_cells import NewCells
from vxpress.bridge.ask.records import params_of
from vxpress.bridge.fits.find_fit import Model, find_fit
from vxpress.bridge.fits.modalities import takes_mudata
from vxpress.bridge.read.adata import check_anndata


@entry
@takes_mudata()
def generate(
    adata: AnnData | MuData,
    n_obs: int | None = None,
    *,
    modality: str | None = None,
    labels: Labels = None,
    covariates: Mapping[str, Any] | None = None,
    library: float | np.ndarray | pd.Series | Literal["prior"] | None = None,
    n_neighbors: int | None = 15,
    model: Model = None,
    key: str = DEFAULT_KEY,
    rng: int | np.random.Generator | None = 0,
    progress: bool | None = None,
) -> AnnData:
    r"""Generate new cells by drawing latent states from the prior and counts from the decoder.

    .. math::

        z_m \sim p(z \mid c_m), \qquad x_{mg} \sim p(\,\cdot \mid z_m, s_m, l_m)

    with the label :math:`c` if the prior is conditional on labels, covariates :math:`s` and size factor :math:`l`
    :cite:p:`Kingma2014,Lopez2018`. This is **generation**: :math:`z` comes from the prior, not from the posterior of a
    cell. To resample existing cells around their latent states, use :func:`sample`.

    The quality of generated cells depends on the prior. The prior of a plain fit is N(0, I), which also covers the
    empty space between cell types. Learn a better prior first; this takes seconds and leaves encoder and decoder as
    they are: ``vx.tl.fit_prior(adata)``, or ``vx.tl.fit_prior(adata, condition_key="cell_type")`` to generate cells of
    a given type.

    If size factor or covariates are not given, each new cell copies them from a real cell, drawn among the
    ``n_neighbors`` nearest to its :math:`z` that have its label and the given categories. Cell types differ in both, so
    generated cells would be easy to recognise if these values were drawn without regard to :math:`z`.

    Parameters
    ----------
    adata
        The cells of the fit, with their posterior and size factors. A model without cells (:func:`~vxpress.load_model`)
        is enough if ``library`` and all covariates are given.
    n_obs
        Number of new cells; 1,000 by default, unless ``labels`` determines it.
    modality
        If ``adata`` is a MuData, the modality to use, for example ``"rna"``.
    labels
        Labels of the new cells, if the prior was learned with labels: one label for all cells; one label per cell; or
        the number of cells per label, ``{"B cell": 500, "NK cell": 200}`` or ``adata.obs["cell_type"].value_counts()``.
        By default labels are drawn with their shares among the cells of the fit. A category that is a number in ``obs``
        may be given as a number.
    covariates
        Values of covariates of the fit, by column: one value for all new cells, or an array with one value per cell.
        Gene panels (``panel_key=``) are one of them: the size factor of a cell counts the genes of its panel.
        A category that is a number in ``obs`` may be given as a number.
    library
        Size factor, in molecules: one for all cells, or one per cell. ``"prior"`` draws it from its log-normal prior,
        only for a fit with ``library="latent"``; this is the default for such a model without cells.
    n_neighbors
        Number of nearest real cells from which size factor and covariates are drawn. ``None`` uses all cells with the
        same label and categories, at any distance.
    model
        Where the fit is: an AnnData, an ``.h5ad``, zarr or ``.safetensors`` file, or ``None`` for ``adata`` itself.
    key
        Name of the fit: the ``key_added`` of the call that made it.
    rng
        Seed of all draws, or a numpy generator.
    progress
        Whether to show a progress bar. ``None`` shows one once the call has taken five seconds, unless scanpy's
        verbosity is 0; ``True`` shows it at once, ``False`` never.

    Returns
    -------
    An ``AnnData`` object with ``n_obs`` new cells and the **modelled genes** (for other genes the fit knows a mean, but
    no distribution):

    ``X`` : :class:`scipy.sparse.csr_matrix` (dtype ``float32``)
        Counts; 0 and 1 for a Bernoulli fit. For a Gaussian fit a dense array with values of log(1 + 10,000 x / l),
        **not counts**; ``uns`` records this under ``"scale"``.
    ``obs["vae_library"]``
        Size factor. If only some of the genes are modelled, it counts the molecules of all genes and exceeds the row
        sums.
    ``obs["vae_split"]``
        ``"generated"``, which still marks the new cells after :func:`anndata.concat` with the cells of the fit.
    ``obs``
        A column for each covariate of the fit, and for the labels of the prior.
    ``obsm["X_vae"]`` : :class:`numpy.ndarray`
        The drawn :math:`z`, ready for ``sc.pp.neighbors(use_rep="X_vae")``. These are draws, not posterior means:
        posterior means of real cells spread a little less.
    ``uns["vae_generate"]``
        ``"params"``: ``drawn_from="prior"``, the kind of prior, and the settings.

    Raises
    ------
    KeyError
        If there is no such fit, the cells lack posterior or size factors, or a covariate does not belong to the fit.
    ValueError
        If the prior has no labels, a label or category is unknown, numbers of cells disagree, or there are no cells to
        draw size factors or covariates from.

    See Also
    --------
    sample : draw counts around the cells of ``adata``.
    vxpress.metrics.two_sample_auroc : test whether a classifier can distinguish new cells from real ones.

    Examples
    --------
    >>> import vxpress as vx
    >>> adata = vx.datasets.pbmc68k_reduced()
    >>> vx.tl.fit_vae(adata, max_epochs=5, categorical_covariate_keys=["phase"], denoised=False)
    >>> new = vx.tl.generate(adata, 200, covariates={"phase": "S"})
    >>> new.shape, new.obs["vae_split"].iloc[0], new.uns["vae_generate"]["params"]["drawn_from"]
    ((200, 765), 'generated', 'prior')
    """
    check_anndata(adata)
    fit, keys = find_fit(adata, model, key), Keys.of(key)
    if n_obs is not None:
        check_range("n_obs", n_obs, 1, 100_000_000, integer=True)
    if n_neighbors is not None:
        check_range("n_neighbors", n_neighbors, 1, 1_000_000, integer=True)
    new = NewCells.requested(adata, fit, n_obs=n_obs, labels=labels, covariates=covariates, library=library)
    generator = seed_of(rng)
    start = logg.info(f"generating {new.n} cells from the prior")
    with progress_bar("generate", progress):
        cells = new.draw(adata, keys, n_neighbors, generator)
    params = params_of(
        fit,
        key,
        drawn_from="prior",
        prior=fit.params.model.prior.name,
        condition_key=fit.condition_key,
        scale="counts" if fit.model.decoder.likelihood.discrete else fit.params.scale,
        n_neighbors=None if n_neighbors is None else int(n_neighbors),
        rng=int(rng) if isinstance(rng, int) else None,
    )
    logg.info("    finished", time=start)
    cells.uns[f"{keys.uns}_generate"] = {"params": params}
    return cells
