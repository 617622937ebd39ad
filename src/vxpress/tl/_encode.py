"""``vx.tl.encode``: new cells in a fitted model."""

from __future__ import annotations

import numpy as np
import torch
from anndata import AnnData
from scanpy import logging as logg

from vxpress._keys import DEFAULT_KEY, Keys
from vxpress._unset import UNSET, Unset
from vxpress.bridge.find import Model, find_fit
from vxpress.bridge.prepare import read_query, resolve_device
from vxpress.bridge.store import Results, check_adata, check_free, own
from vxpress.core.posterior import encode as encode_cells


def encode(
    adata: AnnData,
    model: Model = None,
    *,
    key: str = DEFAULT_KEY,
    layer: str | Unset | None = UNSET,
    device: str | torch.device = "auto",
    key_added: str | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Put cells into the latent space of a fitted model, which stays as it is.

    Parameters
    ----------
    adata
        Cells with raw counts of the genes of the fit, in any order, and with its covariates in ``obs``.
    model
        Where the fit is: an AnnData, an ``.h5ad``, zarr or ``.safetensors`` file, or ``None`` for ``adata`` itself.
    key
        Stem of the fit; of a ``.safetensors`` file, which holds one fit, the stem that is written.
    layer
        Layer that holds the counts; left out, the one that the fit read.
    device
        ``"auto"`` takes CUDA where there is one, else the CPU; or ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
    key_added
        Stem of the names that are written; by default that of the fit.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    Returns ``None`` if ``copy=False``, else returns an ``AnnData`` object. Sets the following fields:

    ``adata.obsm["X_vae"]``, ``adata.obsm["X_vae_var"]`` : :class:`numpy.ndarray` (dtype ``float32``)
        Posterior mean and variance, n_obs x n_latent.
    ``adata.obs["vae_library"]`` : ``float64``
        Size factor of each cell, taken as the fit took its own.
    ``adata.uns["vae"]``
        The fit, so that every later call works on these cells alone.

    Raises
    ------
    KeyError
        If there is no such fit, or a column of ``obs`` that it needs is missing.
    ValueError
        If genes of the fit are missing, a category is unknown to it, or the matrix does not hold counts.

    Examples
    --------
    >>> import vxpress as vx
    >>> adata = vx.datasets.pbmc68k_reduced()
    >>> reference, query = adata[:600].copy(), adata[600:].copy()
    >>> vx.tl.fit_vae(reference, max_epochs=5)
    >>> vx.tl.encode(query, model=reference)
    >>> query.obsm["X_vae"].shape
    (100, 10)
    """
    check_adata(adata, copy=copy)
    fit = find_fit(adata, model, key)
    keys = Keys.of(key if key_added is None else key_added)
    check_free(adata, keys)
    _check_no_other_fit(adata, model, keys)
    torch_device = resolve_device(device)
    start = logg.info("encoding cells")
    cells, library_n = read_query(adata, fit, layer)
    fit_model = fit.model.to(torch_device)
    encoded = encode_cells(fit_model, cells.to(torch_device))
    fit_model.cpu()
    if encoded.log_library_n is not None:
        library_n = np.exp(encoded.log_library_n.astype(np.float64))
    adata = own(adata, copy=copy)
    results = Results(
        obs={keys.library: library_n},
        obsm={keys.latent: encoded.mean_nd, keys.latent_var: encoded.var_nd},
        uns={keys.uns: fit.to_uns()},
    )
    if model is not None:
        results.stale = [("layers", name) for name in (keys.normalized, *keys.bounds())] + [("obs", keys.split)]
    results.write(adata)
    logg.info("    finished", time=start, deep=results.describe())
    return adata if copy else None


def _check_no_other_fit(adata: AnnData, model: Model, keys: Keys) -> None:
    """Raise rather than replace the fit of these very cells by another one."""
    fitted_here = keys.uns in adata.uns and keys.split in adata.obs and (adata.obs[keys.split] == "train").any()
    if model is None or model is adata or not fitted_here:
        return
    msg = (
        f"adata holds a fit of its own under {keys.uns!r}, which the one of model= would replace. Choose another name with "
        f"key_added=, or drop it first: del adata.uns[{keys.uns!r}], adata.obs[{keys.split!r}]."
    )
    raise ValueError(msg)
