"""Read count matrices of any type in row blocks and check every value once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
from anndata import AnnData
from anndata.abc import CSCDataset
from scipy import sparse

from vxpress.bridge.read.complete import check_complete
from vxpress.core.data import without_stored_zeros
from vxpress.core.data.counts import PART
from vxpress.core.progress import parts

MAX_COUNT = 2**24
# counts that were normalised and scaled back differ from whole numbers by at most this, plus its square times their size
NEARLY = 1e-3
# number of rows checked to find another matrix with counts
LOOKED_AT = 200
BLOCK_ENTRIES = 32_000_000


class NoCountsError(ValueError):
    """A matrix holds values that are no counts; another one may hold them."""


Block: TypeAlias = tuple[slice, sparse.csr_matrix]


def get_matrix(adata: AnnData, layer: str | None) -> Any:
    """Return ``adata.X`` or a layer, unchanged."""
    if layer is None:
        if adata.X is None:
            msg = f"adata.X is empty. Pass layer= to name the layer that holds the counts.{_elsewhere(adata)}"
            raise ValueError(msg)
        return _readable(adata.X, layer)
    names = [name for name in adata.layers if name is not None]
    if layer not in names:
        msg = f"layer={layer!r} is not in adata.layers (found: {names or 'none'}). Pass layer=None to read adata.X.{_elsewhere(adata)}"
        raise KeyError(msg)
    return _readable(adata.layers[layer], layer)


def _readable(matrix: Any, layer: str | None) -> Any:
    """Return the matrix; raises ``ValueError`` if its HDF5 file was closed."""
    stored = getattr(matrix, "group", matrix)
    if type(stored).__module__.startswith("h5py.") and not stored:
        msg = (
            f"The HDF5 file that {matrix_name(layer)} is read from was closed. It has to stay open as long as the AnnData is used; open it "
            "again: adata = vx.io.open_store(path)."
        )
        raise ValueError(msg)
    return matrix


def matrix_name(layer: str | None) -> str:
    """Return the name of the matrix in messages."""
    return "adata.X" if layer is None else f"adata.layers[{layer!r}]"


def row_blocks(matrix: Any, n_rows: int | None = None, first: int = 0) -> Iterator[Block]:
    """Yield canonical CSR blocks of consecutive rows from the row ``first`` on; the matrix itself is never changed.

    ``matrix`` is a numpy array, a scipy sparse matrix or array, or a backed HDF5 or zarr one. A backed CSC matrix is read
    whole, because its rows are not stored contiguously.
    """
    n, g = matrix.shape
    if first >= n:
        return
    if isinstance(matrix, CSCDataset):
        matrix = matrix.to_memory()
    if sparse.issparse(matrix) and matrix.format != "csr":
        matrix = (matrix.astype(np.float32) if matrix.dtype.itemsize < 4 else matrix).tocsr()
    step = n_rows or max(1, BLOCK_ENTRIES // max(1, g))
    for start in range(first, n, step):
        rows = slice(start, min(start + step, n))
        yield rows, canonical(matrix[rows])


def count_blocks(
    adata: AnnData, layer: str | None, cut: Callable[[Any], Iterable[Block]] = row_blocks
) -> Iterator[Block]:
    """Yield rows and counts of a matrix in the blocks of ``cut``; the values of each are checked, and reading is a stage."""
    where, matrix = matrix_name(layer), get_matrix(adata, layer)
    check_complete(matrix, where)
    for (rows, block), progress in parts(cut(matrix), "reading counts", adata.n_obs):
        progress.done = rows.stop
        check_counts(block, where, adata)
        yield rows, block


def canonical(block: Any) -> sparse.csr_matrix:
    """Convert to a CSR matrix of non-zeros only, with sorted, unique indices and a dtype safe for arithmetic.

    Stored zeros, which remain for example after masking genes, are dropped. The data are copied if anything changes.
    """
    if hasattr(block, "compute"):
        block = block.compute()
    if not sparse.issparse(block):
        block = np.asarray(block)
    if block.dtype.kind not in "biuf":
        msg = f"Counts must be real numbers; found dtype {block.dtype}."
        raise ValueError(msg)
    if block.dtype.itemsize < 4:
        # small types overflow when duplicate entries are added up
        block = block.astype(np.float32)
    out = sparse.csr_matrix(block)
    # check a new matrix object over the same arrays, because scipy caches the answer on the object
    fresh = sparse.csr_matrix((out.data, out.indices, out.indptr), shape=out.shape)
    copied = not fresh.has_canonical_format
    if copied:
        fresh = fresh.copy()
        fresh.sum_duplicates()
    return without_stored_zeros(fresh, in_place=copied)


def single_precision(block: sparse.csr_matrix) -> sparse.csr_matrix:
    """Convert the values to float32; other arrays are shared, where ``astype`` copies them."""
    return sparse.csr_matrix(
        (block.data.astype(np.float32, copy=False), block.indices, block.indptr), shape=block.shape
    )


@contextmanager
def naming_other_counts(adata: AnnData) -> Iterator[None]:
    """Add to an error of :func:`check_counts` that was raised elsewhere where in ``adata`` counts can be found."""
    try:
        yield
    except NoCountsError as error:
        msg = f"{error}{_elsewhere(adata)}"
        raise NoCountsError(msg) from None


def check_counts(block: sparse.csr_matrix, where: str, adata: AnnData | None = None) -> None:
    """Raise ``ValueError`` unless every entry is a whole number from 0 to 2^24.

    If ``adata`` is given, the message names where in it counts can be found.
    """
    data = block.data
    if all(_are_counts(data[start : start + PART]) for start in range(0, data.size, PART)):
        return
    floats = data.dtype.kind == "f"
    if floats and not np.isfinite(data).all():
        n_bad = int((~np.isfinite(data)).sum())
        msg = f"{where} holds {n_bad} value(s) that are NaN or infinite; counts are expected. Remove these cells or genes, or pass layer= to name the layer with raw counts.{_elsewhere(adata)}"
        raise NoCountsError(msg)
    off = np.abs(data - np.rint(data)) if floats else np.zeros(1)
    low, high = data.min(), data.max()
    if off.any() and (off <= NEARLY + NEARLY**2 * np.abs(data)).all():
        msg = (
            f"{where} holds {int((off > 0).sum())} value(s) that are whole numbers except for rounding errors (for example "
            f"{data[np.argmax(off)]!s}); raw counts are expected. Round them: {where} = np.rint({where})."
        )
        raise ValueError(msg)
    if low < 0:
        msg = f"{where} holds negative values (smallest: {low:g}); counts are expected. It looks scaled or centred: pass layer= to name the layer with raw counts.{_elsewhere(adata)}"
        raise NoCountsError(msg)
    if off.any():
        example = data[np.argmax(off > 0)]
        msg = f"{where} holds {int((off > 0).sum())} value(s) that are not whole numbers (for example {example!s}); raw counts are expected, but these look normalised or log-transformed. Pass layer= to name the layer with raw counts, for example layer='counts', or read the file again if no copy of the counts was kept. Counts corrected for ambient RNA (SoupX, DecontX) must be rounded first: {where} = np.rint({where}).{_elsewhere(adata)}"
        raise NoCountsError(msg)
    if high > MAX_COUNT:
        msg = f"{where} holds a count of {high:g}, above 2^24 = {MAX_COUNT}, where single precision no longer distinguishes consecutive whole numbers. Check the matrix, or drop the gene with adata[:, adata.var_names != ...]."
        raise ValueError(msg)


def _are_counts(data: np.ndarray) -> bool:
    """Return whether some values, at least one, are whole numbers from 0 to 2^24."""
    whole = data.dtype.kind != "f" or np.array_equal(np.rint(data), data)
    return whole and bool(data.min() >= 0) and bool(data.max() <= MAX_COUNT)


def _elsewhere(adata: AnnData | None) -> str:
    """Name where an AnnData holds whole numbers, and the call that uses them as counts; empty if nowhere."""
    if adata is None:
        return ""
    layers = [name for name in _layers_of_user(adata) if _seem_counts(adata.layers[name])]
    if layers:
        return f" adata.layers[{layers[0]!r}] holds whole numbers: pass layer={layers[0]!r}."
    if adata.raw is not None and _seem_counts(adata.raw.X):
        return (
            " adata.raw holds whole numbers: counts = adata.raw.to_adata() gives an AnnData with all genes of raw; "
            "adata.layers['counts'] = adata.raw[:, adata.var_names].X gives a layer with the genes of adata, for layer='counts'."
        )
    return ""


def _layers_of_user(adata: AnnData) -> list[str]:
    """Return the layers but those of ``vx.tl.sample``, whose whole numbers are drawn; each has a record of its name."""
    records = {name for name, value in adata.uns.items() if isinstance(value, Mapping) and "params" in value}
    return [name for name in adata.layers if name is not None and name not in records]


def _seem_counts(matrix: Any) -> bool:
    """Return whether the first rows of a matrix hold only whole numbers of at least 0, and some above 0."""
    try:
        data = next(row_blocks(matrix[:LOOKED_AT]))[1].data
    except (ValueError, TypeError, StopIteration):
        return False
    return bool(data.size and (data >= 0).all() and (data == np.rint(data)).all() and data.any())
