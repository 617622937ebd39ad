"""The posterior of a fit, read back from an AnnData."""

from __future__ import annotations

import numpy as np
from anndata import AnnData

from vxpress._keys import Keys
from vxpress.bridge.fit import Fit


def stored_posterior(adata: AnnData, fit: Fit, keys: Keys) -> tuple[np.ndarray, np.ndarray]:
    """Posterior mean and variance, float32 (n, d); a ``KeyError`` or ``ValueError`` names the call that writes them."""
    missing = [name for name in (keys.latent, keys.latent_var) if name not in adata.obsm]
    if missing:
        msg = f"adata.obsm lacks {missing}. Write the posterior of these cells with vx.tl.encode(adata, model=...)."
        raise KeyError(msg)
    mean_nd, var_nd = (np.asarray(adata.obsm[name], dtype=np.float32) for name in (keys.latent, keys.latent_var))
    expected = (adata.n_obs, fit.params.model.n_latent)
    if mean_nd.shape != expected or var_nd.shape != expected:
        msg = (
            f"adata.obsm[{keys.latent!r}] has shape {mean_nd.shape} where the fit writes {expected}: it belongs to another "
            "fit. Write it again with vx.tl.encode(adata, model=...)."
        )
        raise ValueError(msg)
    if not (np.isfinite(mean_nd).all() and np.isfinite(var_nd).all() and (var_nd > 0).all()):
        msg = (
            f"adata.obsm[{keys.latent!r}] or [{keys.latent_var!r}] holds values that are no posterior (NaN, or a variance "
            "that is not positive). Write it again with vx.tl.encode(adata, model=...)."
        )
        raise ValueError(msg)
    return mean_nd, var_nd
