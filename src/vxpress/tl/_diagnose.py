"""``vx.tl.diagnose``: check the latent space of a fit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from anndata import AnnData
from scanpy import logging as logg

from vxpress._checks import check_range
from vxpress._entry import entry
from vxpress._keys import DEFAULT_KEY
from vxpress._mudata import MuData
from vxpress._progress import progress_bar
from vxpress._seeds import seed_of
from vxpress._unset import UNSET, Unset
from vxpress.bridge.fits.find_fit import Model
from vxpress.bridge.fits.modalities import takes_mudata
from vxpress.bridge.fits.results import Results, own
from vxpress.bridge.fits.stored_cells import StoredCells
from vxpress.bridge.health.covariates import warn_of_covariates
from vxpress.bridge.health.diagnose_fit import diagnose_stored
from vxpress.bridge.read.adata import check_adata
from vxpress.bridge.read.columns import get_categories
from vxpress.bridge.read.prepare import as_tuple


@entry
@takes_mudata("cells")
def diagnose(
    adata: AnnData | MuData,
    model: Model = None,
    *,
    modality: str | None = None,
    key: str = DEFAULT_KEY,
    gaps: bool | None = None,
    n_cells: int = 100,
    biology_keys: Sequence[str] = (),
    layer: str | Unset | None = UNSET,
    rng: int | np.random.Generator | None = 0,
    progress: bool | None = None,
    copy: bool = False,
) -> AnnData | MuData | None:
    """Check the latent space of the cells in ``adata``: collapse, overfitting, prior gap, empty dimensions.

    :func:`fit_vae` runs this check on its own cells, with fewer cells refined one by one. Call ``diagnose`` for more
    precise gaps, after :func:`encode`, or for a subset of the cells.

    Parameters
    ----------
    adata
        Cells with a stored posterior.
    model
        Where the fit is: an AnnData, an ``.h5ad``, zarr or ``.safetensors`` file, or ``None`` for ``adata`` itself.
    modality
        If ``adata`` is a MuData, the modality to use with a fit of one modality; results are written into it. With a joint
        fit, all modalities are used, and results are written into the MuData.
    key
        Name of the fit: the ``key_added`` of the call that made it.
    gaps
        Whether to compute the quantities that need counts. ``None`` computes them if ``adata`` has the counts;
        otherwise the values that the fit has of its own cells are kept. ``True`` raises an error if there are no
        counts.
    n_cells
        Number of cells whose posterior is refined for the gaps, held-out cells if there are any: about a second per
        hundred cells.
    biology_keys
        Categorical columns of ``obs`` that the fit did not receive and whose effect should stay in the latent space, such
        as the condition: a warning is raised if a covariate of the fit determines one of them, since correcting for the
        covariate then removes its effect. Cells without a value are left out.
    layer
        Layer with the counts, or ``None`` for ``adata.X``; by default the layer that the fit read.
    rng
        Seed of these cells and of the noise, or a numpy generator.
    progress
        Whether to show a progress bar. ``None`` shows one once the call has taken five seconds, unless scanpy's
        verbosity is 0; ``True`` shows it at once, ``False`` never.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    Returns ``None`` if ``copy=False``, else returns an ``AnnData`` object. Logs the verdict and sets the following
    field:

    ``adata.uns["vae"]["diagnostics"]``
        Values are in nats per cell unless noted otherwise, and of held-out cells if there are any:

        ``verdict``
            A sentence that begins with healthy, prior gap, overfitted, collapsed or under-trained, and names a remedy.
            A healthy fit may have empty dimensions, which the data do not need. Fits of release 0.1 then say unused
            dimensions. Do not use a collapsed or under-trained fit. Clusters of an overfitted fit are fine, but
            its predictions for new cells are less accurate. A prior gap matters only for cells drawn from the prior.
        ``kl_per_dim`` (n_latent,), ``kl``, ``kl_se``
            Divergence of the posterior from the prior; ``kl`` is the sum over dimensions. Under a prior other than N(0,
            I) a single dimension has no divergence of its own. ``kl_per_dim`` is then the divergence from the normal
            distribution with the mean and variance of the aggregate posterior in that dimension, and ``kl`` is sampled,
            with the standard error ``kl_se``. Otherwise ``kl_se`` is 0. A further latent variable, which
            ``FitOptions(blocks=)`` switches on, adds ``kl_`` and its name.
        ``active`` (n_latent,), ``active_units``, ``active_units_kl``
            Dimensions in which the posterior mean varies by more than 0.01 over cells (Burda et al. 2016), their
            number, and the number of dimensions whose ``kl_per_dim`` exceeds 0.01.
        ``mutual_information``, ``mutual_information_cap``
            Mutual information of z and the cell (Hoffman & Johnson 2016), and the largest value that can be estimated:
            the log of the number of cells.
        ``prior_gap_per_dim``, ``prior_gap_per_dim_low``
            Divergence of the aggregate posterior from the prior, per dimension, and its lower 95 % bound; see
            :func:`vxpress.metrics.prior_gap`.
        ``decoder_response`` (n_latent,)
            Share of a cell's molecules that moves to other genes when the dimension goes from 2 sd below its mean to 2
            sd above it.
        ``generalisation_gap``, ``generalisation_gap_share``, ``generalisation_gap_low``
            How much worse the model describes held-out cells than training cells of similar depth; the same as a share
            of the held-out ELBO; and the lower 95 % bound of that share.
        ``elbo``, ``amortisation_gap``, ``inference_gap``, ``kl_encoder``, ``kl_refined``, ``n_probed``
            For ``n_probed`` cells: their ELBO; its increase when the posterior of each cell is refined separately, by
            100 steps of Adam with the decoder fixed (Cremer et al. 2018); IWAE with 100 samples minus ELBO; and the
            divergence from the prior of the encoder's posterior and of the refined one.
        ``covariates``
            Only for fits with categorical covariates: a dictionary of columns, drawn by :func:`vxpress.pl.covariates`.

            - ``name``, ``n_categories``: the covariates, the batch first.
            - ``worth``, ``low``, ``high``, ``p``, ``n_compared``: what knowing the covariate is worth, in nats per held-out
              cell, with its 95 % interval (Student's t over cells), p-value and number of cells. It is the ELBO of a cell
              under its own category minus the mean under the categories of other held-out cells with the same categories in
              all other covariates. The p-value is that of 999 permutations among these cells. At most 512 cells are used.
              NaN if no two cells differ in this covariate alone. Without validation cells, these columns are absent.
            - ``associated_by``, ``associated``, ``association``: only if there are such pairs. How far a covariate
              determines another one, the labels of the fit, or a column of ``biology_keys``: 0 if independent, 1 if every
              category has a single value. It is the uncertainty coefficient (Theil 1970), adjusted for chance. A warning
              is raised from 0.6.

    Raises
    ------
    KeyError
        If there is no such fit or posterior, or no column that ``biology_keys`` names.
    ValueError
        If ``gaps=True`` and the matrix does not hold the counts of the fit, or a column of ``biology_keys`` is not
        categorical.

    References
    ----------
    Burda, Grosse & Salakhutdinov, Importance weighted autoencoders, ICLR 2016.
    Hoffman & Johnson, ELBO surgery, NIPS workshop 2016.
    Cremer, Li & Duvenaud, Inference suboptimality in variational autoencoders, ICML 2018.
    Theil, On the estimation of relationships involving qualitative variables, American Journal of Sociology 1970.

    Examples
    --------
    >>> import vxpress as vx
    >>> adata = vx.datasets.pbmc68k_reduced()
    >>> vx.tl.fit_vae(adata, max_epochs=5)
    >>> vx.tl.diagnose(adata, n_cells=20)
    >>> found = adata.uns["vae"]["diagnostics"]
    >>> found["kl_per_dim"].shape, found["decoder_response"].shape
    ((20,), (20,))
    >>> bool(found["inference_gap"] > 0)
    True
    """
    check_adata(adata, copy=copy)
    check_range("n_cells", n_cells, 1, 1_000_000, integer=True)
    if not (gaps is None or isinstance(gaps, bool)):
        msg = f"gaps={gaps!r} was given; True, False or None is expected."
        raise ValueError(msg)
    biology = as_tuple(biology_keys)
    for name in biology:
        get_categories(adata.obs, name, argument="biology_keys", gaps=True)
    seed = int(seed_of(rng).integers(2**31))
    stored = StoredCells.find(adata, model, key)
    if biology and not stored.fit.covariates.categorical:
        logg.warning(
            "biology_keys= has no effect: the fit has no categorical covariates that could determine these columns. Leave it out, or "
            "fit with batch_key= or categorical_covariate_keys=."
        )
    with progress_bar("diagnose", progress):
        found = diagnose_stored(adata, stored, layer, gaps=gaps, n_probed=n_cells, biology_keys=biology, seed=seed)
    adata = own(adata, copy=copy)
    Results(uns={stored.keys.uns: stored.fit.to_uns() | {"diagnostics": found}}).write(adata)
    logg.info(str(found["verdict"]))
    warn_of_covariates(found, stored.fit.params.batch_key, n_steps=stored.fit.params.n_steps)
    return adata if copy else None
