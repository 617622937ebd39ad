"""``vx.tl.log_likelihood``: the likelihood of each cell under the model."""

from __future__ import annotations

import numpy as np
import torch
from anndata import AnnData
from scanpy import logging as logg

from vxpress._checks import check_range
from vxpress._entry import entry
from vxpress._keys import DEFAULT_KEY, Keys
from vxpress._mudata import MuData
from vxpress._progress import progress_bar
from vxpress._seeds import seed_of
from vxpress._unset import UNSET, Unset
from vxpress.bridge.ask.likelihood import columns_of, score, summary_of
from vxpress.bridge.ask.records import check_own, params_of
from vxpress.bridge.fits.find_fit import Model, find_fit
from vxpress.bridge.fits.modalities import takes_mudata
from vxpress.bridge.fits.results import Results, own
from vxpress.bridge.fits.stored_cells import stored_split, view_of
from vxpress.bridge.read.adata import check_adata
from vxpress.bridge.read.prepare import resolve_device

# below this median effective sample size the bound depends on a few samples
MIN_ESS = 5.0


@entry
@takes_mudata("cells")
def log_likelihood(
    adata: AnnData | MuData,
    model: Model = None,
    *,
    modality: str | None = None,
    key: str = DEFAULT_KEY,
    layer: str | Unset | None = UNSET,
    keep: bool = False,
    n_samples: int = 100,
    rng: int | np.random.Generator | None = 0,
    device: str | torch.device = "auto",
    key_added: str | None = None,
    progress: bool | None = None,
    copy: bool = False,
) -> AnnData | MuData | None:
    r"""Compute the importance-weighted bound on the log likelihood of each cell.

    .. math::

        \log p(x_n \mid s_n, l_n) \;\ge\; \mathbb{E} \Big[ \log \frac1K \sum_{k=1}^K w_{nk} \Big], \qquad
        w_{nk} = \frac{p(x_n \mid z_k, s_n, l_n)\, p(z_k)}{q(z_k \mid x_n, s_n)}, \qquad z_k \sim q

    (:cite:t:`Burda2016`, eq. 8), in nats, summed over the modelled genes and including all constants. Its expectation
    is the ELBO at :math:`K = 1` and rises towards the log likelihood with :math:`K`. Weights are summed in double
    precision and in passes, so memory does not grow with :math:`K`. A latent size factor is sampled together with
    :math:`z`.

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
    keep
        With ``True``, the likelihood without the categories of optional covariates: the view that keeps their effects.
        Only for fits with ``optional_covariate_keys=``; see :func:`fit_vae`. A prior of :func:`fit_prior` was learned in
        the other view, so it does not fit the latent states of this one: compare the views with the prior of the fit.
    n_samples
        Samples per cell, :math:`K`. 100 samples are enough to rank fits and cells. For the value itself, increase the
        number until the value no longer changes.
    rng
        Seed of the samples, or a numpy generator.
    device
        ``"auto"`` uses CUDA if it is available, else the CPU; or ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
    key_added
        Name under which the results are written; by default the name of the fit, followed by ``"_kept"``
        with ``keep``.
    progress
        Whether to show a progress bar. ``None`` shows one once the call has taken five seconds, unless scanpy's
        verbosity is 0; ``True`` shows it at once, ``False`` never.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    Returns ``None`` if ``copy=False``, else returns an ``AnnData`` object. Sets the following fields, all ``float64``:

    ``adata.obs["vae_log_likelihood"]``
        The bound of each cell, in nats.
    ``adata.obs["vae_log_likelihood_se"]``
        Its standard error from the samples by the delta method: the relative error of the mean weight. NaN for one
        sample.
    ``adata.obs["vae_log_likelihood_ess"]``
        Effective sample size :math:`(\sum w)^2 / \sum w^2`, from 1 to ``n_samples``. Near 1, the bound depends on a
        single sample: it is then loose, and its standard error too small.
    ``adata.obs["vae_elbo"]``, ``adata.obs["vae_reconstruction"]``
        The evidence lower bound, and :math:`\mathbb{E}_q \log p(x \mid z)`, from the same samples. Their difference,
        the divergence, is exact if it has a closed form, as with the standard normal prior.
    ``adata.uns["vae_log_likelihood"]``
        ``summary`` and ``params``. ``summary`` is a :class:`pandas.DataFrame` with a row for all cells and, if these
        cells belong to the fit, a row for each part of ``obs["vae_split"]``. Its columns are ``n_cells``, the means of
        the above, ``se``, the standard error of the mean over cells as a sample of cells, ``se_sampling``, the standard
        error from the importance samples alone, and ``ess_median``.

    Raises
    ------
    KeyError
        If there is no such fit, or a column of ``obs`` that it needs is missing.
    ValueError
        If ``keep`` is given for a fit without optional covariates, genes of the fit are missing, a category is unknown to it, or the matrix does not hold counts.

    Notes
    -----
    Training cells score higher than cells that the model has not seen. Compare models on held-out cells, on the same
    genes and with the same size factors. A Gaussian fit gives a density of log values, which is not comparable with
    the likelihood of a count distribution.

    Examples
    --------
    >>> import vxpress as vx
    >>> adata = vx.datasets.pbmc68k_reduced()
    >>> vx.tl.fit_vae(adata, max_epochs=5, denoised=False)
    >>> vx.tl.log_likelihood(adata, n_samples=20)
    >>> summary = adata.uns["vae_log_likelihood"]["summary"]
    >>> list(summary.index)
    ['all', 'train', 'validation']
    >>> bool(summary.loc["all", "log_likelihood"] > summary.loc["all", "elbo"])
    True
    """
    check_adata(adata, copy=copy)
    fit = find_fit(adata, model, key)
    keys = view_of(fit, key, keep=keep)
    prefix = f"{keys.uns}{keys.view}" if key_added is None else Keys.of(key_added, "key_added").uns
    name = f"{prefix}_log_likelihood"
    columns = [name, f"{name}_se", f"{name}_ess", f"{prefix}_elbo", f"{prefix}_reconstruction"]
    check_range("n_samples", n_samples, 1, 10_000_000, integer=True)
    check_own(adata, name, obs=columns)
    seed = int(seed_of(rng).integers(2**62))
    torch_device = resolve_device(device)
    start = logg.info("scoring cells")
    with progress_bar("log_likelihood", progress):
        found = score(adata, fit, layer, n_samples, keep=keep, seed=seed, device=torch_device)
    # if these cells have a fit of their own, their split belongs to that fit and not to one found elsewhere
    own_fit = model is None or model is adata or keys.uns not in adata.uns
    summary = summary_of(found, stored_split(adata, keys) if own_fit else None)
    record = params_of(
        fit, key, n_samples=int(n_samples), keep=keep or None, rng=int(rng) if isinstance(rng, int) else None
    )
    adata = own(adata, copy=copy)
    results = Results(
        obs=dict(zip(columns, columns_of(found).values(), strict=True)),
        uns={name: {"summary": summary, "params": record}},
    )
    results.write(adata)
    low = float(summary.loc["all", "ess_median"])
    if n_samples > 1 and low < MIN_ESS:
        logg.warning(
            f"In half of the cells the effective sample size is {low:.1f} of {n_samples} or less: their bound depends on a few "
            "samples, is loose, and its standard error is too small. Models can be compared at the same n_samples=; for the "
            "value itself, increase n_samples=."
        )
    logg.info("    finished", time=start, deep=results.describe())
    return adata if copy else None
