"""``vx.tl.sample``: draw counts for every cell from its posterior."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scanpy import logging as logg
from scipy import sparse

from vxpress._checks import check_range
from vxpress._entry import entry
from vxpress._keys import DEFAULT_KEY, check_name
from vxpress._progress import progress_bar
from vxpress._seeds import seed_of
from vxpress.bridge.ask.arguments import named_genes
from vxpress.bridge.ask.records import check_own, params_of
from vxpress.bridge.fits.find_fit import Model
from vxpress.bridge.fits.fit import Fit
from vxpress.bridge.fits.query import decoding_covariates, log_library_of
from vxpress.bridge.fits.results import Results, own
from vxpress.bridge.fits.stored_cells import StoredCells, stored_library
from vxpress.bridge.read.adata import check_adata, check_gene_names
from vxpress.core.inference.predictive import predictive_draws


@entry
def sample(
    adata: AnnData,
    model: Model = None,
    *,
    key: str = DEFAULT_KEY,
    n_samples: int = 1,
    genes: str | Sequence[str] | np.ndarray | None = None,
    transform_batch: Hashable | None = None,
    rng: int | np.random.Generator | None = 0,
    key_added: str | None = None,
    progress: bool | None = None,
    copy: bool = False,
) -> AnnData | None:
    r"""Draw new counts for every cell from its stored posterior; the original counts are not needed.

    .. math::

        z_n \sim q(z \mid x_n, s_n), \qquad x'_{ng} \sim p(\,\cdot \mid z_n, s_n, l_n)

    with the cell's own covariates :math:`s` and size factor :math:`l` (the posterior predictive of
    :cite:t:`Lopez2018`). This is **posterior resampling** of the cells in ``adata``: every draw is close to its cell,
    and no new kind of cell can arise. To draw new cells from the prior, use :func:`generate`. ``sc.pp.sample`` is
    something else: it picks a subset of the cells.

    Parameters
    ----------
    adata
        Cells with a stored posterior (:func:`fit_vae` and :func:`encode` write it) and genes of the fit, in any order.
    model
        Where the fit is: an AnnData, an ``.h5ad``, zarr or ``.safetensors`` file, or ``None`` for ``adata`` itself.
    key
        Name of the fit: the ``key_added`` of the call that made it.
    n_samples
        Draws per cell. One draw is written as a layer; several are returned as a new AnnData.
    genes
        Modelled genes to return instead of writing a layer: names, or a boolean array over ``adata.var``. Any modelled
        gene can be named, even if ``adata`` no longer holds it.
    transform_batch
        Batch under which every cell is decoded; by default its own. A category that is a number in ``obs`` may be given
        as a number.
    rng
        Seed of the draws, or a numpy generator. The first of several draws equals the draw of ``n_samples=1``.
    key_added
        Name of the layer; by default ``"vae_sample"``. Not available if an AnnData is returned.
    progress
        Whether to show a progress bar. ``None`` shows one once the call has taken five seconds, unless scanpy's
        verbosity is 0; ``True`` shows it at once, ``False`` never.
    copy
        Return a copy instead of writing to ``adata``. Not available if an AnnData is returned.

    Returns
    -------
    With ``genes`` or ``n_samples`` above 1, an ``AnnData`` object with n_obs x ``n_samples`` cells and the modelled
    genes (``genes`` in the order given, else those of ``adata``): all cells of the first draw, then those of the
    second. ``obs`` is that of the cells, with the cell's name in ``"source"`` and the number of the draw in
    ``"draw"``; nothing is written.

    Otherwise returns ``None`` if ``copy=False``, else returns an ``AnnData`` object. Sets the following fields:

    ``adata.layers["vae_sample" | key_added]`` : :class:`scipy.sparse.csr_matrix` (dtype ``float32``)
        Counts (0 and 1 for a Bernoulli fit). **Genes that are not modelled are empty**, and a warning is raised: the
        fit knows their mean, not their distribution. For a Gaussian fit, a dense array of log values, NaN for these
        genes.
    ``adata.uns["vae_sample" | key_added]``
        ``genes``, the names of the genes that were drawn (``adata[:, adata.uns["vae_sample"]["genes"]]`` selects them),
        and ``params`` with ``drawn_from="posterior"``. A returned AnnData has ``params`` too.

    Raises
    ------
    KeyError
        If there is no such fit, posterior or size factor, or a gene of ``genes`` is not modelled.
    ValueError
        If the batch is unknown to the fit, no gene of ``adata`` is modelled, or another layer has that name.

    Notes
    -----
    If the size factor was inferred (``library="latent"``), its stored posterior mean is used.

    See Also
    --------
    generate : draw new cells from the prior.
    predictive_check : compare the draws with the counts.

    Examples
    --------
    >>> import vxpress as vx
    >>> adata = vx.datasets.pbmc68k_reduced()
    >>> vx.tl.fit_vae(adata, max_epochs=5, denoised=False)
    >>> vx.tl.sample(adata)
    >>> adata.layers["vae_sample"].shape
    (700, 765)

    Three draws of two genes:

    >>> vx.tl.sample(adata, genes=["CD8A", "NKG7"], n_samples=3).shape
    (2100, 2)
    """
    check_adata(adata, copy=copy)
    cells = StoredCells.find(adata, model, key)
    fit, keys = cells.fit, cells.keys
    check_range("n_samples", n_samples, 1, 100_000, integer=True)
    layer = f"{keys.uns}_sample" if key_added is None else key_added
    check_name("key_added", layer)
    returned = genes is not None or n_samples > 1
    if returned and (key_added is not None or copy):
        given = f"key_added={key_added!r}" if key_added is not None else "copy=True"
        msg = f"{given} is not available with genes= or with n_samples= above 1, which return an AnnData and write no layer. Leave one of the two out."
        raise ValueError(msg)
    names = _present(adata, fit) if genes is None else _named(adata, fit, genes)
    if not returned:
        check_own(adata, layer, layers=[layer])
    covariates = decoding_covariates(adata, fit)
    if transform_batch is not None:
        codes = fit.covariates.batch_codes(transform_batch)
        if len(codes) != 1 or isinstance(transform_batch, list):
            msg = f"transform_batch={transform_batch!r} was given; the name of one batch is expected, because each draw is made under one batch."
            raise ValueError(msg)
        (code,) = codes
        covariates = covariates.with_batch(code)
        transform_batch = fit.covariates.batches[code]
    log_library_n1 = log_library_of(stored_library(adata, keys))
    start = logg.info("drawing counts")
    # positions of the requested genes among the modelled ones
    columns = torch.from_numpy(pd.Index(fit.genes[fit.modelled_g], dtype=object).get_indexer(names))
    draws = predictive_draws(
        fit.model,
        torch.from_numpy(cells.mean_nd),
        torch.from_numpy(cells.var_nd),
        covariates,
        log_library_n1,
        n_draws=n_samples,
        seed=int(seed_of(rng).integers(2**62)),
    )
    with progress_bar("sample", progress):
        blocks = [_stored(x_ng[:, columns], discrete=fit.model.decoder.likelihood.discrete) for _, _, x_ng in draws]
    matrix = sparse.vstack(blocks, format="csr") if sparse.issparse(blocks[0]) else np.concatenate(blocks)
    record = params_of(
        fit,
        key,
        drawn_from="posterior",
        transform_batch=transform_batch,
        rng=int(rng) if isinstance(rng, int) else None,
    )
    if returned:
        logg.info("    finished", time=start)
        out = _as_adata(matrix, adata, names, n_samples)
        out.uns[layer] = {"params": record}
        return out
    position = adata.var_names.get_indexer(names)
    if len(names) < adata.n_vars:
        how = "empty" if sparse.issparse(matrix) else "NaN"
        logg.warning(
            f"{adata.n_vars - len(names)} of the {adata.n_vars} genes of adata are not modelled by the fit and are {how} in "
            f"layers[{layer!r}]; adata[:, adata.uns[{layer!r}]['genes']] selects the others."
        )
    adata = own(adata, copy=copy)
    results = Results(
        layers={layer: _place(matrix, position, adata.n_vars)},
        uns={layer: {"genes": names.to_numpy(dtype=object), "params": record}},
    )
    results.write(adata)
    logg.info("    finished", time=start, deep=results.describe())
    return adata if copy else None


def _present(adata: AnnData, fit: Fit) -> pd.Index:
    """Return the names of the modelled genes in ``adata``, in its order."""
    check_gene_names(adata)
    names = adata.var_names[adata.var_names.isin(fit.genes[fit.modelled_g])]
    if not len(names):
        msg = (
            f"None of the {adata.n_vars} genes of adata is modelled by the fit, and only modelled genes can be drawn (for example "
            f"{list(fit.genes[fit.modelled_g][:3])}). Name modelled genes: vx.tl.sample(adata, genes=[...])."
        )
        raise ValueError(msg)
    return names


def _named(adata: AnnData, fit: Fit, genes: str | Sequence[str] | np.ndarray) -> pd.Index:
    """Return the names of the requested genes, after checking that all of them are modelled."""
    names = named_genes(adata, genes)
    if not len(names):
        msg = "genes= names no gene; name at least one, or leave genes= out for all genes."
        raise ValueError(msg)
    unknown = names[~names.isin(fit.genes[fit.modelled_g])]
    if len(unknown):
        msg = (
            f"{len(unknown)} of the {len(names)} genes of genes= are not modelled by the fit (for example {list(unknown[:3])}), "
            "which therefore has no distribution of their counts. It models adata.uns[key]['genes']['names'] where ['modelled'] is "
            "True; vx.tl.denoise gives the mean of the others."
        )
        raise KeyError(msg)
    return names


def _stored(x_ng: torch.Tensor, *, discrete: bool) -> sparse.csr_matrix | np.ndarray:
    return sparse.csr_matrix(x_ng.numpy()) if discrete else x_ng.numpy().copy()


def _place(matrix: sparse.csr_matrix | np.ndarray, position: np.ndarray, n_vars: int) -> sparse.csr_matrix | np.ndarray:
    """Expand the matrix to all genes of ``adata``; its columns belong at ``position``, in increasing order."""
    if isinstance(matrix, np.ndarray):
        out = np.full((len(matrix), n_vars), np.nan, dtype=np.float32)
        out[:, position] = matrix
        return out
    indices = position[matrix.indices].astype(matrix.indices.dtype)
    return sparse.csr_matrix((matrix.data, indices, matrix.indptr), shape=(matrix.shape[0], n_vars))


def _as_adata(matrix: sparse.csr_matrix | np.ndarray, adata: AnnData, names: pd.Index, n_samples: int) -> AnnData:
    """Return the draws as an AnnData with one row per cell and draw."""
    obs = pd.concat([adata.obs] * n_samples)
    obs["source"] = np.tile(adata.obs_names.to_numpy(dtype=object), n_samples)
    obs["draw"] = np.repeat(np.arange(n_samples), adata.n_obs)
    if n_samples > 1:
        obs.index = pd.Index(
            [f"{name}-{draw}" for name, draw in zip(obs["source"], obs["draw"], strict=True)], dtype=object
        )
    return AnnData(matrix, obs=obs, var=pd.DataFrame(index=pd.Index(names, dtype=object)))
