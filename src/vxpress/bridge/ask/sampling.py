"""Draw counts for cells from their posteriors: which genes, the draws, and their form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse

from vxpress.bridge.ask.arguments import named_genes
from vxpress.bridge.fits.fit import Fit
from vxpress.bridge.fits.query import log_library_of
from vxpress.bridge.fits.stored_cells import StoredCells
from vxpress.bridge.read.adata import check_gene_names
from vxpress.bridge.read.covariates import Batches
from vxpress.core.covariates import Covariates
from vxpress.core.inference.predictive import predictive_draws

Matrix: TypeAlias = sparse.csr_matrix | np.ndarray


def one_batch(fit: Fit, covariates: Covariates, transform_batch: Batches) -> tuple[Covariates, str]:
    """Return the covariates with all cells in one batch of the fit, and its name."""
    codes = fit.covariates.batch_codes(transform_batch)
    if len(codes) != 1 or isinstance(transform_batch, list):
        msg = f"transform_batch={transform_batch!r} was given; the name of one batch is expected, because each draw is made under one batch."
        raise ValueError(msg)
    (code,) = codes
    return covariates.with_batch(code), fit.covariates.batches[code]


def draw_counts(
    cells: StoredCells, covariates: Covariates, library_n: np.ndarray, names: pd.Index, *, n_draws: int, seed: int
) -> Matrix:
    """Draw counts of the named genes, one row per cell and draw, all cells of a draw in a row; CSR if they are discrete."""
    fit = cells.fit
    # positions of the requested genes among the modelled ones
    columns = torch.from_numpy(pd.Index(fit.genes[fit.modelled_g], dtype=object).get_indexer(names))
    draws = predictive_draws(
        fit.model,
        cells.encoded,
        covariates,
        log_library_of(library_n),
        n_draws=n_draws,
        seed=seed,
    )
    blocks = [_stored(x_ng[:, columns], discrete=fit.model.decoder.likelihood.discrete) for _, _, x_ng in draws]
    return sparse.vstack(blocks, format="csr") if sparse.issparse(blocks[0]) else np.concatenate(blocks)


def _stored(x_ng: torch.Tensor, *, discrete: bool) -> sparse.csr_matrix | np.ndarray:
    return sparse.csr_matrix(x_ng.numpy()) if discrete else x_ng.numpy().copy()


def modelled_genes_present(adata: AnnData, fit: Fit) -> pd.Index:
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


def modelled_genes_named(adata: AnnData, fit: Fit, genes: str | Sequence[str] | np.ndarray) -> pd.Index:
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


def spread_over_genes(
    matrix: sparse.csr_matrix | np.ndarray, position: np.ndarray, n_vars: int
) -> sparse.csr_matrix | np.ndarray:
    """Expand the matrix to all genes of ``adata``; its columns belong at ``position``, in increasing order."""
    if isinstance(matrix, np.ndarray):
        out = np.full((len(matrix), n_vars), np.nan, dtype=np.float32)
        out[:, position] = matrix
        return out
    indices = position[matrix.indices].astype(matrix.indices.dtype)
    return sparse.csr_matrix((matrix.data, indices, matrix.indptr), shape=(matrix.shape[0], n_vars))


def draws_as_anndata(
    matrix: sparse.csr_matrix | np.ndarray, adata: AnnData, names: pd.Index, n_samples: int
) -> AnnData:
    """Return the draws as an AnnData with one row per cell and draw."""
    obs = pd.concat([adata.obs] * n_samples)
    obs["source"] = np.tile(adata.obs_names.to_numpy(dtype=object), n_samples)
    obs["draw"] = np.repeat(np.arange(n_samples), adata.n_obs)
    if n_samples > 1:
        obs.index = pd.Index(
            [f"{name}-{draw}" for name, draw in zip(obs["source"], obs["draw"], strict=True)], dtype=object
        )
    return AnnData(matrix, obs=obs, var=pd.DataFrame(index=pd.Index(names, dtype=object)))
