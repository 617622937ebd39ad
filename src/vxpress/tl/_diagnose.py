"""``vx.tl.diagnose``: is the latent space sound?"""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from scanpy import logging as logg

from vxpress._keys import DEFAULT_KEY, Keys
from vxpress.bridge.diagnosis import diagnose as diagnose_posterior
from vxpress.bridge.find import Model, find_fit
from vxpress.bridge.store import Results, check_adata, own
from vxpress.bridge.stored import stored_posterior


def diagnose(adata: AnnData, model: Model = None, *, key: str = DEFAULT_KEY, copy: bool = False) -> AnnData | None:
    """Judge the latent space of the cells at hand: collapse, unused dimensions, prior gap.

    :func:`fit_vae` does this for its own cells; call it after :func:`encode` or on a subset of cells.

    Parameters
    ----------
    adata
        Cells with a stored posterior.
    model
        Where the fit is: an AnnData, a file, or ``None`` for ``adata`` itself.
    key
        Stem of the fit.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    Returns ``None`` if ``copy=False``, else returns an ``AnnData`` object. Sets the following fields, and logs the verdict:

    ``adata.uns["vae"]["diagnostics"]``
        ``kl_per_dim`` (n_latent,) and ``mutual_information`` in nats (no estimate exceeds ``mutual_information_cap``),
        ``active`` (n_latent,) and ``active_units`` (Burda et al. 2016), ``prior_gap_per_dim`` in nats, and ``verdict``, a
        sentence that begins with healthy, unused dimensions, prior gap, collapsed or under-trained, with the cure.

    Raises
    ------
    KeyError
        If there is no such fit or posterior.

    Examples
    --------
    >>> import vxpress as vx
    >>> adata = vx.datasets.pbmc68k_reduced()
    >>> vx.tl.fit_vae(adata, max_epochs=5)
    >>> vx.tl.diagnose(adata)
    >>> adata.uns["vae"]["diagnostics"]["kl_per_dim"].shape
    (10,)
    """
    check_adata(adata, copy=copy)
    fit = find_fit(adata, model, key)
    keys = Keys.of(key)
    mean_nd, var_nd = stored_posterior(adata, fit, keys)
    held_out = np.zeros(adata.n_obs, dtype=bool)
    if keys.split in adata.obs:
        held_out = np.asarray(adata.obs[keys.split].astype(str) == "validation")
    found = diagnose_posterior(mean_nd, var_nd, held_out, fit.params.train, fit.history, n_steps=fit.params.n_steps)
    adata = own(adata, copy=copy)
    Results(uns={keys.uns: fit.to_uns() | {"diagnostics": found}}).write(adata)
    logg.info(str(found["verdict"]))
    return adata if copy else None
