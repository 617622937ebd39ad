"""``vx.tl.denoise``: expression as the model sees it."""

from __future__ import annotations

from collections.abc import Sequence

from anndata import AnnData
from scanpy import logging as logg

from vxpress._keys import DEFAULT_KEY, Keys
from vxpress.bridge.find import Model, find_fit
from vxpress.bridge.fit import Fit
from vxpress.bridge.prepare import as_tuple
from vxpress.bridge.run import DENOISING_DRAWS, denoised_matrix
from vxpress.bridge.store import Results, check_adata, own
from vxpress.bridge.stored import stored_posterior


def denoise(
    adata: AnnData,
    model: Model = None,
    *,
    key: str = DEFAULT_KEY,
    transform_batch: str | Sequence[str] | None = None,
    target_sum: float | None = None,
    n_draws: int = DENOISING_DRAWS,
    rng: int = 0,
    key_added: str | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Write denoised expression, decoded from the stored posterior in chunks; the counts are not needed.

    Parameters
    ----------
    adata
        Cells with a stored posterior (:func:`fit_vae` and :func:`encode` write it) on the genes of the fit.
    model
        Where the fit is: an AnnData, a file, or ``None`` for ``adata`` itself.
    key
        Stem of the fit.
    transform_batch
        Batch, or batches to average over, under which every cell is decoded; by default all batches of the fit.
    target_sum
        Sum that each cell is scaled to, over all genes; by default that of the fit.
    n_draws
        Posterior draws per cell, dealt out evenly over the batches (at least one for each).
    rng
        Seed of the draws.
    key_added
        Name of the layer; by default ``"vae_normalized"`` for the default fit.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    Returns ``None`` if ``copy=False``, else returns an ``AnnData`` object. Sets the following fields:

    ``adata.layers["vae_normalized" | key_added]`` : :class:`numpy.ndarray` (dtype ``float32``)
        E_q[rho] x ``target_sum``, n_obs x n_vars, not log-transformed (of a Gaussian fit the expected log value).

    Raises
    ------
    KeyError
        If there is no such fit or posterior.
    ValueError
        If a batch is unknown to the fit, or ``adata`` has other genes.

    Examples
    --------
    >>> import vxpress as vx
    >>> adata = vx.datasets.pbmc68k_reduced()
    >>> vx.tl.fit_vae(adata, max_epochs=5, denoised=False)
    >>> vx.tl.denoise(adata)
    >>> adata.layers["vae_normalized"].shape
    (700, 765)
    """
    check_adata(adata, copy=copy)
    fit = find_fit(adata, model, key)
    keys = Keys.of(key)
    mean_nd, var_nd = stored_posterior(adata, fit, keys)
    if list(adata.var_names) != list(fit.genes):
        msg = f"adata has {adata.n_vars} genes in another order or number than the {len(fit.genes)} of the fit; pass adata[:, genes_of_the_fit].copy()."
        raise ValueError(msg)
    if n_draws < 1:
        msg = f"n_draws={n_draws!r} should be at least 1."
        raise ValueError(msg)
    target_sum = fit.params.target_sum if target_sum is None else float(target_sum)
    if not 0.0 < target_sum < float("inf"):
        msg = f"target_sum={target_sum!r} should be a finite number above 0."
        raise ValueError(msg)
    batches = _batch_codes(fit, transform_batch)
    start = logg.info("denoising")
    matrix = denoised_matrix(
        fit.model,
        mean_nd,
        var_nd,
        fit.covariates.read(adata.obs),
        modelled_g=fit.modelled_g,
        batches=batches,
        target_sum=target_sum,
        n_draws=n_draws,
        seed=rng,
    )
    adata = own(adata, copy=copy)
    results = Results(layers={keys.normalized if key_added is None else key_added: matrix})
    results.write(adata)
    logg.info("    finished", time=start, deep=results.describe())
    return adata if copy else None


def _batch_codes(fit: Fit, transform_batch: str | Sequence[str] | None) -> tuple[int, ...]:
    known = fit.covariates.batches
    if transform_batch is None:
        return tuple(range(len(known)))
    names = as_tuple(transform_batch)
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        msg = f"transform_batch={transform_batch!r}: the fit knows the batches {list(known)}. Name one or more of these, or fit with batch_key=."
        raise ValueError(msg)
    return tuple(known.index(name) for name in names)
