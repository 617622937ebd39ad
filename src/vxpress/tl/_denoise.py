"""``vx.tl.denoise``: expression as the model sees it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from scanpy import logging as logg

from vxpress._keys import DEFAULT_KEY, check_name
from vxpress.bridge.find import Model
from vxpress.bridge.fit import Fit
from vxpress.bridge.prepare import check_gene_names, seed_of
from vxpress.bridge.run import DENOISING_DRAWS, DENOISING_SEED, denoised_matrix
from vxpress.bridge.store import Results, check_adata, own
from vxpress.bridge.stored import StoredCells
from vxpress.core.config import check_range


def denoise(
    adata: AnnData,
    model: Model = None,
    *,
    key: str = DEFAULT_KEY,
    genes: str | Sequence[str] | np.ndarray | None = None,
    transform_batch: str | Sequence[str] | None = None,
    target_sum: float | None = None,
    n_draws: int = DENOISING_DRAWS,
    rng: int | np.random.Generator | None = DENOISING_SEED,
    key_added: str | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Write denoised expression, decoded from the stored posterior in chunks; the counts are not needed.

    For some genes of a large matrix, name them: they come back as an AnnData of their own and nothing is written, so
    that the dense matrix of all genes is never built.

    Parameters
    ----------
    adata
        Cells with a stored posterior (:func:`fit_vae` and :func:`encode` write it) and genes of the fit, in any order.
    model
        Where the fit is: an AnnData, a file, or ``None`` for ``adata`` itself.
    key
        Stem of the fit.
    genes
        Genes to return instead of writing a layer: names, or a boolean array over ``adata.var``. Any genes of the fit can
        be named, whether ``adata`` still holds them or not. ``None`` writes the layer of all genes.
    transform_batch
        Batch, or batches to average over, under which every cell is decoded; by default all batches of the fit.
    target_sum
        Sum that each cell is scaled to, over all genes that the size factor counts; by default that of the fit.
    n_draws
        Posterior draws per cell, dealt out evenly over the batches (at least one for each).
    rng
        Seed of the draws, or a numpy generator; the default gives the layer that :func:`fit_vae` writes.
    key_added
        Name of the layer; by default ``"vae_normalized"`` for the default fit, which is replaced. Not with ``genes``.
    copy
        Return a copy instead of writing to ``adata``. Not with ``genes``, which writes nothing.

    Returns
    -------
    With ``genes``, an ``AnnData`` object, cells x ``genes`` in the order given, ready to plot: in ``X`` (dtype ``float32``)
    the columns that the layer would have, with copies of ``obs`` and ``obsm``; ``adata`` stays as it is.

    Otherwise returns ``None`` if ``copy=False``, else returns an ``AnnData`` object. Sets the following fields:

    ``adata.layers["vae_normalized" | key_added]`` : :class:`numpy.ndarray` (dtype ``float32``)
        E_q[rho] x ``target_sum``, n_obs x n_vars, not log-transformed (of a Gaussian fit the expected log value).

    Raises
    ------
    KeyError
        If there is no such fit or posterior, or a gene of ``genes`` is unknown to the fit.
    ValueError
        If a batch is unknown to the fit, none of its genes is there, another layer has that name, or ``genes`` names a gene
        twice or comes with ``key_added`` or ``copy``.

    Examples
    --------
    >>> import vxpress as vx
    >>> adata = vx.datasets.pbmc68k_reduced()
    >>> vx.tl.fit_vae(adata, max_epochs=5, denoised=False)
    >>> vx.tl.denoise(adata)
    >>> adata.layers["vae_normalized"].shape
    (700, 765)

    Two genes only, without the layer:

    >>> vx.tl.denoise(adata, genes=["CD8A", "NKG7"]).shape
    (700, 2)
    """
    check_adata(adata, copy=copy)
    cells = StoredCells.find(adata, model, key)
    fit, keys = cells.fit, cells.keys
    wanted = None if genes is None else _wanted(adata, fit, genes, key_added=key_added, copy=copy)
    position = _positions(adata, fit) if wanted is None else wanted
    present = np.flatnonzero(position >= 0)
    check_range("n_draws", n_draws, 1, 100_000, integer=True)
    if target_sum is not None and fit.params.scale != "composition":
        msg = f"target_sum={target_sum!r}: the values of a Gaussian fit are expected log values and have no sum to scale to."
        raise ValueError(msg)
    target_sum = fit.params.target_sum if target_sum is None else target_sum
    check_range("target_sum", target_sum, 1e-12, 1e12)
    layer = keys.normalized if key_added is None else key_added
    check_name("key_added", layer)
    if wanted is None and layer in adata.layers and layer != keys.normalized:
        msg = f"adata.layers[{layer!r}] stands there already. Choose another key_added=, or delete it first."
        raise ValueError(msg)
    batches = fit.covariates.batch_codes(transform_batch)
    start = logg.info("denoising")
    matrix = denoised_matrix(
        fit.model,
        cells.mean_nd,
        cells.var_nd,
        cells.covariates,
        modelled_g=fit.modelled_g,
        batches=batches,
        target_sum=target_sum,
        n_draws=n_draws,
        seed=int(seed_of(rng).integers(2**62)) if rng != DENOISING_SEED else DENOISING_SEED,
        genes=wanted if wanted is not None or len(present) == len(position) else present,
    )
    if wanted is not None:
        logg.info("    finished", time=start)
        var = pd.DataFrame(index=pd.Index(fit.genes[wanted], dtype=object))
        obsm = {name: value.copy() for name, value in adata.obsm.items()}
        return AnnData(matrix, obs=adata.obs.copy(), var=var, obsm=obsm)
    adata = own(adata, copy=copy)
    results = Results(layers={layer: _place(matrix, position[present], adata.n_vars)})
    results.write(adata)
    logg.info("    finished", time=start, deep=results.describe())
    return adata if copy else None


def _wanted(
    adata: AnnData, fit: Fit, genes: str | Sequence[str] | np.ndarray, *, key_added: str | None, copy: bool
) -> np.ndarray:
    """Where the genes asked for lie in the fit."""
    if key_added is not None or copy:
        given = f"key_added={key_added!r}" if key_added is not None else "copy=True"
        msg = f"{given} was given with genes=, which returns an AnnData and writes no layer. Leave one of the two out."
        raise ValueError(msg)
    asked = np.atleast_1d(np.asarray(genes))
    if asked.dtype == bool:
        if asked.shape != (adata.n_vars,):
            msg = f"genes= is a boolean array of shape {asked.shape}; ({adata.n_vars},), one value per gene of adata, is expected."
            raise ValueError(msg)
        asked = adata.var_names.to_numpy()[asked]
    names = pd.Index(asked.astype(str), dtype=object)
    if not names.is_unique:
        msg = f"genes= names {list(names[names.duplicated()].unique()[:3])} more than once; name each gene once, for example list(dict.fromkeys(genes))."
        raise ValueError(msg)
    position = pd.Index(fit.genes, dtype=object).get_indexer(names)
    if (position < 0).any():
        msg = (
            f"{int((position < 0).sum())} of the {len(names)} genes of genes= are unknown to the fit (for example "
            f"{list(names[position < 0][:3])}). It knows those in adata.uns[key]['genes']['names']: "
            "genes=[name for name in genes if name in known]."
        )
        raise KeyError(msg)
    return np.asarray(position, dtype=np.int64)


def _positions(adata: AnnData, fit: Fit) -> np.ndarray:
    """Where the genes of the fit lie in ``adata``, -1 for those that it lacks."""
    check_gene_names(adata)
    position = adata.var_names.get_indexer(fit.genes)
    n_present = int((position >= 0).sum())
    if not n_present:
        msg = (
            f"None of the {len(fit.genes)} genes of the fit is in adata.var_names (for example {list(fit.genes[:3])}). Name the "
            "genes to return instead: vx.tl.denoise(adata, genes=[...])."
        )
        raise ValueError(msg)
    if adata.n_vars > n_present:
        logg.warning(f"{adata.n_vars - n_present} gene(s) of adata are unknown to the fit and are NaN in the layer.")
    return position


def _place(matrix: np.ndarray, position: np.ndarray, n_vars: int) -> np.ndarray:
    """Columns in the order of ``adata``; the same array where that is the order of the fit."""
    if len(position) == n_vars and (position == np.arange(n_vars)).all():
        return matrix
    out = np.full((len(matrix), n_vars), np.nan, dtype=np.float32)
    out[:, position] = matrix
    return out
