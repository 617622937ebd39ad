"""Check the arguments of functions that decode: genes, names of layers, scale, draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scanpy import logging as logg

from vxpress._checks import check_range
from vxpress._names import each_value
from vxpress._seeds import seed_of
from vxpress._similar import similar_names
from vxpress.bridge.ask.decoded import DENOISING_SEED, Matrix
from vxpress.bridge.fits.fit import Fit
from vxpress.bridge.fits.query import log_library_of
from vxpress.bridge.fits.stored_cells import StoredCells, library_of
from vxpress.bridge.read.adata import check_gene_names
from vxpress.bridge.read.columns import as_mask, is_mask

TargetSum = float | Literal["library"] | None


def named_genes(adata: AnnData, genes: str | Sequence[str] | np.ndarray) -> pd.Index:
    """Return the names of the requested genes; ``genes`` may be a boolean array over ``adata.var``.

    Raises ``ValueError`` if a gene is named twice.
    """
    if is_mask(genes):
        requested = list(adata.var_names[as_mask(genes, adata.var_names, "genes=", of="gene")])
    else:
        requested = each_value(genes)
    names = pd.Index([str(name) for name in requested], dtype=object)
    if not names.is_unique:
        msg = f"genes= names {list(names[names.duplicated()].unique()[:3])} more than once; name each gene once, for example list(dict.fromkeys(genes))."
        raise ValueError(msg)
    return names


def requested_genes(
    adata: AnnData, fit: Fit, genes: str | Sequence[str] | np.ndarray, *, key_added: str | None, copy: bool
) -> np.ndarray:
    """Return the positions of the requested genes among the genes of the fit."""
    if key_added is not None or copy:
        given = f"key_added={key_added!r}" if key_added is not None else "copy=True"
        msg = f"{given} was given with genes=, which returns an AnnData and writes no layer. Omit one of the two."
        raise ValueError(msg)
    return genes_of_fit(adata, fit, genes)


def genes_of_fit(adata: AnnData, fit: Fit, genes: str | Sequence[str] | np.ndarray) -> np.ndarray:
    """Return the positions of the named genes among the genes of the fit; raises ``KeyError`` if it does not have one."""
    names = named_genes(adata, genes)
    position = pd.Index(fit.genes, dtype=object).get_indexer(names)
    if (position < 0).any():
        unknown = list(names[position < 0])
        msg = (
            f"genes= names {len(unknown)} of {len(names)} genes that are unknown to the fit (for example {unknown[:3]})."
            f"{similar_names(unknown, fit.genes)} adata.uns[key]['genes']['names'] lists the genes of the fit."
        )
        raise KeyError(msg)
    return np.asarray(position, dtype=np.int64)


def genes_present(adata: AnnData, fit: Fit) -> tuple[np.ndarray | None, np.ndarray]:
    """Return which genes of the fit are in ``adata`` (None if all are), and their positions in ``adata``."""
    check_gene_names(adata)
    position = np.asarray(adata.var_names.get_indexer(fit.genes), dtype=np.int64)
    present = np.flatnonzero(position >= 0)
    if not len(present):
        msg = (
            f"None of the {len(fit.genes)} genes of the fit is in adata.var_names (for example {list(fit.genes[:3])}). Name "
            "the genes to return: genes=[...]."
        )
        raise ValueError(msg)
    if adata.n_vars > len(present):
        logg.warning(f"{adata.n_vars - len(present)} gene(s) of adata are unknown to the fit and are NaN in the layer.")
    return None if len(present) == len(position) else present, position[present]


def scale_from(adata: AnnData, cells: StoredCells, target_sum: TargetSum) -> np.float32 | np.ndarray:
    """Return the factor that shares are multiplied by: the target sum, or the size factor of each cell, (n, 1) float32."""
    fit = cells.fit
    if isinstance(target_sum, str):
        check_scalable(fit, target_sum)
        if target_sum != "library":
            msg = f"target_sum={target_sum!r} was given; a number, or 'library' for each cell's own size factor, is expected."
            raise ValueError(msg)
        library_n = library_of(adata, cells)
        return library_n.astype(np.float32)[:, None] * _factor(cells, library_n)
    return total_from(fit, target_sum)


def _factor(cells: StoredCells, library_n: np.ndarray) -> np.ndarray:
    """Compute the factor by which further latent blocks multiply the size factor, at their posterior means, (n, 1)."""
    model, log_library_n1 = cells.fit.model.eval(), log_library_of(library_n)
    with torch.no_grad():
        inside_n1 = model.log_library(cells.encoded.posterior(model).mean(), cells.covariates, log_library_n1)
        return (inside_n1 - log_library_n1).exp().numpy()


def total_from(fit: Fit, target_sum: float | None) -> np.float32:
    """Return the sum that the expression of a cell is scaled to: the one given, or that of the fit."""
    if target_sum is not None:
        check_scalable(fit, target_sum)
    target_sum = fit.params.target_sum if target_sum is None else target_sum
    check_range("target_sum", target_sum, 1e-12, 1e12)
    return np.float32(target_sum)


def check_scalable(fit: Fit, target_sum: object) -> None:
    """Raise ``ValueError`` if the decoded values of a fit are not shares, which can be scaled to any sum."""
    if not fit.model.decoder.output.scalable:
        msg = f"target_sum={target_sum!r}: {values_of(fit)} and have no sum to scale to. Leave it out."
        raise ValueError(msg)


def values_of(fit: Fit) -> str:
    """Say what the decoded values of a fit are that are not shares of molecules."""
    likelihood = fit.model.decoder.likelihood
    return f"the values of a {likelihood.__name__} fit are expected {likelihood.observes}"


def draw_seed(rng: int | np.random.Generator | None) -> int:
    """Return the seed of the draws; the default gives the draws of the layer that a fit writes."""
    return int(seed_of(rng).integers(2**62)) if rng != DENOISING_SEED else DENOISING_SEED


def genes_as_anndata(adata: AnnData, fit: Fit, wanted: np.ndarray, matrix: Matrix) -> AnnData:
    """Return the decoded expression of some genes as an AnnData with copies of ``obs`` and ``obsm``."""
    var = pd.DataFrame(index=pd.Index(fit.genes[wanted], dtype=object))
    # anndata copies every type that it accepts, including awkward arrays
    return AnnData(matrix, obs=adata.obs.copy(), var=var, obsm=adata.obsm.copy())
