"""Molecules per cell over all genes, and their log-normal parameters per batch."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray
from scanpy import logging as logg

from vxpress._keys import LIBRARY_SIZE
from vxpress._progress import progress_bar
from vxpress.bridge.matrix import check_counts, get_matrix, place, row_blocks
from vxpress.bridge.store import check_adata, own
from vxpress.core.progress import parts
from vxpress.pp._shared import batch_codes


def library_size(
    adata: AnnData,
    *,
    layer: str | None = None,
    batch_key: str | None = None,
    key_added: str = LIBRARY_SIZE,
    overwrite: bool = False,
    progress: bool | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Count the molecules of each cell over all genes present.

    Run it on the full matrix, before genes are selected: :func:`vxpress.tl.fit_vae` then uses the size of the whole
    cell even where it models a subset of the genes.
    Works on dense and sparse matrices, in memory or backed, one block of rows at a time.

    Parameters
    ----------
    adata
        Annotated matrix with raw counts, cells by genes.
    layer
        Layer that holds the counts; ``None`` reads ``adata.X``.
    batch_key
        Column of ``adata.obs`` that names the batch; the log-normal parameters are then those of each batch, since
        sequencing depth differs between them.
        ``None`` treats all cells as one batch named ``"all"``.
    key_added
        Name of the column in ``adata.obs`` and of the entry in ``adata.uns``.
        The default is the one that the fit looks for.
    overwrite
        Whether an entry of this name may be replaced; off by default, since a column that came with the data may
        count genes that are no longer in the matrix.
    progress
        Whether to show a progress bar. ``None`` shows one once the call has taken five seconds, unless scanpy's verbosity
        is 0; ``True`` shows it at once, ``False`` never.
    copy
        Whether to return a copy instead of writing to ``adata``.

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
        If the entry exists and ``overwrite`` is off, if the matrix does not hold counts, if batches are missing, or
        if a batch holds no molecule at all.

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
    _check_key(adata, key_added, overwrite=overwrite)
    codes, batches = batch_codes(adata, batch_key)
    start = logg.info("counting molecules per cell")
    with progress_bar("library_size", progress):
        library_n = _molecules(get_matrix(adata, layer), place(layer))
    log_mean, log_var = _log_normal(library_n, codes, batches)
    n_empty = int((library_n == 0).sum())
    if n_empty:
        msg = f"{n_empty} cell(s) hold no molecule in {place(layer)}; sc.pp.filter_cells(adata, min_counts=1) removes them."
        warnings.warn(msg, UserWarning, stacklevel=2)

    adata = own(adata, copy=copy)
    given = {"layer": layer, "batch_key": batch_key}
    params = {"n_vars": adata.n_vars} | {name: value for name, value in given.items() if value is not None}
    adata.obs[key_added] = library_n
    adata.uns[key_added] = {
        "params": params,
        "batches": np.array(batches),
        "log_mean": log_mean,
        "log_var": log_var,
    }
    logg.info(
        "    finished",
        time=start,
        deep=f"added\n    {key_added!r}, molecules per cell (adata.obs)\n"
        f"    {key_added!r}, log-normal parameters per batch (adata.uns)",
    )
    return adata if copy else None


def _check_key(adata: AnnData, key_added: str, *, overwrite: bool) -> None:
    if not key_added or "/" in key_added:
        msg = f"key_added={key_added!r} was given; a name without '/' is expected, since files use it as a path."
        raise ValueError(msg)
    taken = [name for name in ("obs", "uns") if key_added in getattr(adata, name)]
    if taken and not overwrite:
        places = " and ".join(f"adata.{name}[{key_added!r}]" for name in taken)
        msg = f"{places} exists already. Pass overwrite=True to replace it, or key_added= to choose another name."
        raise ValueError(msg)


def _molecules(matrix: Any, where: str) -> NDArray[np.float64]:
    """Row sums in double precision of a matrix that is checked to hold counts."""
    sums = []
    for (rows, block), progress in parts(row_blocks(matrix), "reading counts", matrix.shape[0]):
        progress.done = rows.start
        check_counts(block, where)
        sums.append(block @ np.ones(block.shape[1]))
    return np.concatenate(sums)


def _log_normal(
    library_n: NDArray[np.float64], codes: NDArray[np.intp], batches: list[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and variance of the log library of the non-empty cells of each batch."""
    filled = library_n > 0
    log_n, codes = np.log(library_n[filled]), codes[filled]
    n_b = np.bincount(codes, minlength=len(batches))
    if not n_b.all():
        empty = [name for name, n in zip(batches, n_b, strict=True) if n == 0]
        msg = (
            f"No cell of batch {', '.join(map(repr, empty))} holds a molecule, so its library has no log. Remove the "
            "empty cells with sc.pp.filter_cells(adata, min_counts=1), or pass layer= to name the counts."
        )
        raise ValueError(msg)
    mean_b = np.bincount(codes, weights=log_n, minlength=len(batches)) / n_b
    var_b = np.bincount(codes, weights=(log_n - mean_b[codes]) ** 2, minlength=len(batches)) / n_b
    return mean_b, var_b
