"""Library sizes (molecules per cell over all genes), and their log-normal parameters per batch."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray
from scanpy import logging as logg
from scipy import sparse

from vxpress._entry import entry
from vxpress._keys import LIBRARY_SIZE, check_name
from vxpress._mudata import MuData
from vxpress._progress import progress_bar
from vxpress.bridge.fits.modalities import takes_mudata
from vxpress.bridge.fits.results import Results, check_replaceable, own
from vxpress.bridge.read.adata import check_adata
from vxpress.bridge.read.blockwise import over_blocks
from vxpress.bridge.read.complete import check_complete
from vxpress.bridge.read.matrix import check_counts, get_matrix, matrix_name, naming_other_counts
from vxpress.pp._shared import batch_codes


@entry
@takes_mudata()
def library_size(
    adata: AnnData | MuData,
    *,
    modality: str | None = None,
    layer: str | None = None,
    batch_key: str | None = None,
    key_added: str = LIBRARY_SIZE,
    overwrite: bool = False,
    progress: bool | None = None,
    copy: bool = False,
) -> AnnData | MuData | None:
    """Count the molecules of each cell over all genes in the matrix.

    Call it on the full matrix, before genes are selected: :func:`vxpress.tl.fit_vae` then uses the library size of the
    whole cell even if it models a subset of the genes.
    Matrices may be dense or sparse, in memory or on disk; they are read once, in blocks of rows, and with dask by its workers.

    Parameters
    ----------
    adata
        Annotated matrix with raw counts, cells by genes.
    modality
        If ``adata`` is a MuData, the modality to use, for example ``"rna"``. Results are written into it.
    layer
        Layer with the counts; ``None`` reads ``adata.X``.
    batch_key
        Column of ``adata.obs`` with the batch of each cell. The log-normal parameters are then estimated per batch,
        because sequencing depth differs between batches.
        ``None`` treats all cells as one batch named ``"all"``.
    key_added
        Name of the column in ``adata.obs`` and of the entry in ``adata.uns``.
        The default is the name that the fit reads.
    overwrite
        Whether to replace an existing entry with this name that no earlier call wrote, or that an earlier call wrote
        for another number of genes. Off by default, because a column that came with the data may count genes that are
        no longer in the matrix. An entry from an earlier call with the same number of genes is always replaced.
    progress
        Whether to show a progress bar. ``None`` shows one once the call has taken five seconds, unless scanpy's
        verbosity is 0; ``True`` shows it at once, ``False`` never.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    Returns `None` if `copy=False`, else returns an `AnnData` object.
    Sets the following fields:

    `adata.obs['library_size' | key_added]` : :class:`pandas.Series` (dtype `float64`)
        Molecules per cell.
    `adata.uns['library_size' | key_added]` : :class:`dict`
        `'batches'` (names), `'log_mean'` and `'log_var'` (mean and variance, divisor n, of the natural log of the
        non-empty cells' library sizes, one entry per batch; the prior of a latent library in :cite:p:`Lopez2018`),
        and `'params'`.

    Raises
    ------
    KeyError
        If the layer or the batch column does not exist.
    ValueError
        If the entry exists, is not from an earlier call with the same number of genes, and ``overwrite`` is off; if the
        matrix does not contain counts; if batches are missing; or if a batch has no molecules.

    Examples
    --------
    >>> import vxpress as vx
    >>> adata = vx.datasets.simulate(200, 50, n_batches=2)
    >>> vx.pp.library_size(adata, batch_key="batch", overwrite=True)
    >>> bool((adata.obs["library_size"] == adata.X.sum(axis=1).A1).all())
    True
    >>> adata.uns["library_size"]["log_mean"].shape
    (2,)
    """
    check_adata(adata, copy=copy)
    check_name("key_added", key_added)
    if not overwrite:
        _check_replaceable(adata, key_added)
    codes, batches = batch_codes(adata, batch_key)
    start = logg.info("counting molecules per cell")
    with progress_bar("library_size", progress):
        library_n = _molecules(adata, layer)
    log_mean, log_var = _log_normal(library_n, codes, batches)
    n_empty = int((library_n == 0).sum())
    if n_empty:
        msg = f"{n_empty} cell(s) have no molecules in {matrix_name(layer)}; sc.pp.filter_cells(adata, min_counts=1) removes them."
        warnings.warn(msg, UserWarning, stacklevel=3)

    adata = own(adata, copy=copy)
    given = {"layer": layer, "batch_key": batch_key}
    params = {"n_vars": adata.n_vars} | {name: value for name, value in given.items() if value is not None}
    record = {
        "params": params,
        "batches": np.array(batches),
        "log_mean": log_mean,
        "log_var": log_var,
    }
    Results(obs={key_added: library_n}, uns={key_added: record}).write(adata)
    logg.info(
        "    finished",
        time=start,
        deep=f"added\n    {key_added!r}, molecules per cell (adata.obs)\n"
        f"    {key_added!r}, log-normal parameters per batch (adata.uns)",
    )
    return adata if copy else None


def _check_replaceable(adata: AnnData, name: str) -> None:
    """Raise unless the entry does not exist, or an earlier call with the same number of genes wrote it."""
    check_replaceable(
        adata,
        name,
        ours=_is_record,
        cure="Pass overwrite=True to replace it, or key_added= to choose another name.",
        obs=[name],
    )
    n_vars = adata.uns.get(name, {}).get("params", {}).get("n_vars", adata.n_vars)
    if n_vars != adata.n_vars:
        msg = (
            f"adata.obs[{name!r}] counts the molecules of {n_vars} genes, but adata now has {adata.n_vars} genes. Keep it, or pass "
            "overwrite=True to count the genes in adata, or key_added= to choose another name."
        )
        raise ValueError(msg)


def _is_record(stored: Mapping[str, Any]) -> bool:
    return {"params", "batches", "log_mean", "log_var"} <= set(stored)


def _molecules(adata: AnnData, layer: str | None) -> NDArray[np.float64]:
    """Compute row sums in double precision, and check that the matrix contains counts."""
    of_block = partial(_row_sums, where=matrix_name(layer))
    with naming_other_counts(adata):
        matrix = get_matrix(adata, layer)
        check_complete(matrix, matrix_name(layer))
        blocks = over_blocks(matrix, of_block, what="reading counts")
        return np.concatenate([sums for _, sums in blocks])


def _row_sums(block: sparse.csr_matrix, where: str) -> NDArray[np.float64]:
    check_counts(block, where)
    return np.asarray(block @ np.ones(block.shape[1]))


def _log_normal(
    library_n: NDArray[np.float64], codes: NDArray[np.intp], batches: list[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute mean and variance of the log library size of the non-empty cells of each batch."""
    filled = library_n > 0
    log_n, codes = np.log(library_n[filled]), codes[filled]
    n_b = np.bincount(codes, minlength=len(batches))
    if not n_b.all():
        empty = [name for name, n in zip(batches, n_b, strict=True) if n == 0]
        msg = (
            f"No cell of batch {', '.join(map(repr, empty))} has any molecules, so the log of its library size does not exist. "
            "Remove empty cells with sc.pp.filter_cells(adata, min_counts=1), or pass the layer with counts as layer=."
        )
        raise ValueError(msg)
    mean_b = np.bincount(codes, weights=log_n, minlength=len(batches)) / n_b
    var_b = np.bincount(codes, weights=(log_n - mean_b[codes]) ** 2, minlength=len(batches)) / n_b
    return mean_b, var_b
