"""``vx.tl.encode``: encode new cells with a fitted model."""

from __future__ import annotations

from numbers import Integral

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
from vxpress.bridge.ask.encoding import check_enough_new, encode_query
from vxpress.bridge.fits.block_slots import add_posterior
from vxpress.bridge.fits.ensemble import add_ensemble
from vxpress.bridge.fits.find_fit import Model, find_fit
from vxpress.bridge.fits.modalities import takes_mudata
from vxpress.bridge.fits.query import read_query
from vxpress.bridge.fits.results import Results, check_free, own
from vxpress.bridge.fits.stored_cells import stored_split
from vxpress.bridge.read.adata import check_adata
from vxpress.bridge.read.prepare import resolve_device

FINE_TUNE_EPOCHS = 50


@entry
@takes_mudata("cells")
def encode(
    adata: AnnData | MuData,
    model: Model = None,
    *,
    modality: str | None = None,
    key: str = DEFAULT_KEY,
    layer: str | Unset | None = UNSET,
    fine_tune: bool | int = False,
    rng: int | np.random.Generator | None = 0,
    device: str | torch.device = "auto",
    key_added: str | None = None,
    progress: bool | None = None,
    copy: bool = False,
) -> AnnData | MuData | None:
    """Encode cells with a fitted model, without changing the model.

    Any cells can be encoded. A batch, or a category of another covariate, that the fit has not seen is treated as the
    average of the categories that it knows. Modelled genes that are missing in ``adata`` count as not measured, not as
    zero: their expected value under the model, E[log1p x], is filled in and the cell is encoded again, four times. The
    posterior is widened by the share of the Fisher information that these genes would have contributed. Both cases
    raise a warning.

    Parameters
    ----------
    adata
        Cells with raw counts of genes of the fit, in any order, and with its covariates in ``obs``. At least 5 % of the
        modelled genes must be present.
    model
        Where the fit is: an AnnData, an ``.h5ad``, zarr or ``.safetensors`` file, or ``None`` for ``adata`` itself.
    modality
        If ``adata`` is a MuData, the modality to use with a fit of one modality; results are written into it. With a joint
        fit, all modalities are used, cells may lack some, and results are written into the MuData.
    key
        Name of the fit: the ``key_added`` of the call that made it. A ``.safetensors`` file holds a single fit; ``key``
        is then the name under which the results are written.
    layer
        Layer with the counts, or ``None`` for ``adata.X``; by default the layer that the fit read.
    fine_tune
        Whether to train the weights of new categories on their cells, with all other weights frozen (scArches;
        Lotfollahi et al. 2022): ``True`` for up to 50 epochs, or a number of epochs. A tenth of the cells is held out,
        and the state that is best for them is kept. Fine-tuning brings decoded expression closer to the new batch. It
        moves cells in the latent space only if the encoder sees the covariate (``FitOptions(encode_covariates=True)``,
        or an optional covariate); there it improved label transfer where batches differ much. It
        takes seconds instead of a fraction of one, so the default is ``False``.
    rng
        Seed of the fine-tuning, or a numpy generator.
    device
        ``"auto"`` uses CUDA if it is available, else the CPU; or ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
    key_added
        Name under which the results are written; by default the name of the fit.
    progress
        Whether to show a progress bar. ``None`` shows one once the call has taken five seconds, unless scanpy's
        verbosity is 0; ``True`` shows it at once, ``False`` never.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    Returns ``None`` if ``copy=False``, else returns an ``AnnData`` object. Sets the following fields:

    ``adata.obsm["X_vae"]``, ``adata.obsm["X_vae_var"]`` : :class:`numpy.ndarray` (dtype ``float32``)
        Posterior mean and variance, n_obs x n_latent.
    ``adata.obsm["X_vae_ensemble"]``, ``adata.obsm["X_vae_ensemble_var"]`` : :class:`numpy.ndarray` (dtype ``float32``)
        If the fit consists of several (``n_fits``): the posteriors of all of them side by side, as :func:`fit_vae`
        writes them. Every one of them fills in missing genes by its own decoder and, with ``fine_tune``, trains its own
        weights of the new categories.
    ``adata.obsm["X_vae_kept"]``, ``adata.obsm["X_vae_kept_var"]`` : :class:`numpy.ndarray` (dtype ``float32``)
        If the fit has optional covariates, the same with their effects kept. These do not depend on the categories of
        the cells, so they are as good for a category that the fit has not seen.
    ``adata.obs["vae_library"]`` : ``float64``
        Size factor of each cell in molecules, computed as for the cells of the fit. If the size factor is a sum over
        genes and some of these genes are missing, it is the number of counted molecules divided by the share that the
        counted genes have in the decoded cell.
    ``adata.uns["vae"]``
        The fit, extended by the new categories, so that later calls need only these cells.

    Raises
    ------
    KeyError
        If there is no such fit, or a column of ``obs`` that it needs is missing.
    ValueError
        If fewer than 5 % of the modelled genes are present, a covariate is missing in some cells, the matrix does not
        hold counts, or ``fine_tune`` finds fewer than 4 cells with a new category.

    References
    ----------
    Lotfollahi et al., Mapping single-cell data to reference atlases by transfer learning, Nature Biotechnology 2022.
    Rezende, Mohamed & Wierstra, Stochastic backpropagation and approximate inference in deep generative models, ICML 2014
    (missing data: appendix F).

    Examples
    --------
    >>> import vxpress as vx
    >>> adata = vx.datasets.pbmc68k_reduced()
    >>> reference, query = adata[:600].copy(), adata[600:].copy()
    >>> vx.tl.fit_vae(reference, max_epochs=5)
    >>> vx.tl.encode(query, model=reference)
    >>> query.obsm["X_vae"].shape
    (100, 20)

    With half of the genes:

    >>> panel = adata[600:, ::2].copy()
    >>> vx.tl.encode(panel, model=reference)
    >>> bool(panel.obsm["X_vae_var"].mean() > query.obsm["X_vae_var"].mean())
    True
    """
    check_adata(adata, copy=copy)
    fit = find_fit(adata, model, key)
    keys = Keys.of(key) if key_added is None else Keys.of(key_added, "key_added")
    config = fit.params.model
    check_free(
        adata,
        keys,
        config.blocks,
        several=bool(fit.members),
        kept=bool(config.optional),
        perturbed=bool(config.n_perturbations),
    )
    _check_no_other_fit(adata, model, keys)
    max_epochs, generator = _epochs(fine_tune), seed_of(rng)
    torch_device = resolve_device(device)
    start = logg.info("encoding cells")
    labels = bool(max_epochs) and fit.params.model.dispersion == "gene-label"
    with progress_bar("encode", progress):
        query = read_query(adata, fit, layer, labels=labels, incomplete=True, train=bool(max_epochs))
        if max_epochs:
            check_enough_new(query)
        found = encode_query(query, torch_device, max_epochs=max_epochs, rng=generator)
    fit = found.fit
    of_itself = model is None or model is adata
    adata = own(adata, copy=copy)
    results = Results(uns={keys.uns: fit.to_uns()})
    add_posterior(results, fit.model, found.views[0], query.cells, keys, library_n=found.library_n)
    add_ensemble(results, keys, found.views)
    results.drop_earlier(adata, keys)
    if not of_itself:
        results.drop_layers(adata, keys, (keys.normalized, *keys.bounds()))
        results.stale.append(("obs", keys.split))
    results.write(adata)
    logg.info("    finished", time=start, deep=results.describe())
    return adata if copy else None


def _epochs(fine_tune: bool | int) -> int:  # noqa: FBT001 - the value of a keyword
    """Return the maximum number of epochs of fine-tuning, 0 for none."""
    if isinstance(fine_tune, bool):
        return FINE_TUNE_EPOCHS if fine_tune else 0
    if not isinstance(fine_tune, Integral):
        msg = f"fine_tune={fine_tune!r} was given; True, False or a number of epochs is expected."
        raise ValueError(msg)
    check_range("fine_tune", fine_tune, 0, 100_000, integer=True)
    return int(fine_tune)


def _check_no_other_fit(adata: AnnData, model: Model, keys: Keys) -> None:
    """Raise an error if another fit would replace the fit of these cells."""
    split_n = stored_split(adata, keys)
    fitted_here = keys.uns in adata.uns and split_n is not None and (split_n == "train").any()
    if model is None or model is adata or not fitted_here:
        return
    msg = (
        f"adata holds a fit of its own named {keys.uns!r}, which the fit of model= would replace. Choose another name with "
        f"key_added=, or delete it first: del adata.uns[{keys.uns!r}], adata.obs[{keys.split!r}]."
    )
    raise ValueError(msg)
