"""Rows of count matrices that are not in memory: of ``.h5ad`` and zarr stores, and dask arrays."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from anndata import AnnData
from anndata.abc import CSCDataset, CSRDataset
from scipy import sparse

from vxpress.bridge.read.opened import on_disk, store_of

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]

# neighbouring rows that are read together: a stored chunk, if it is compressed, within these limits
LEAST_BLOCK, MOST_BLOCK = 128, 1024
# a matrix by columns is read whole up to this size in memory
CSC_BYTES = 2**30


class StoredRows(ABC):
    """Consecutive rows of a matrix (``n_cells``, ``n_genes``) that is not in memory; ``where`` names it in messages.

    ``block`` is the number of neighbouring rows that are read in about the time of one, ``row_bytes`` how many bytes are read
    for a row on average.
    """

    n_cells: int
    n_genes: int
    block: int
    row_bytes: float

    def __init__(self, matrix: Any, where: str) -> None:
        self.n_cells, self.n_genes = map(int, matrix.shape)
        self.where = where

    @abstractmethod
    def fetch(self, start: int, stop: int) -> Any:
        """Read some rows: a CSR matrix, its three arrays, or a dense array."""

    def arrays(self, start: int, stop: int) -> Arrays:
        """Return ``indptr``, ``indices`` and ``data`` of the rows from ``start`` up to ``stop``, as they are stored."""
        try:
            found = self.fetch(start, stop)
        except Exception as error:
            msg = (
                f"Rows {start} to {stop - 1} of {self.where} could not be read: {type(error).__name__}: {error}. The file has to stay "
                "open and unchanged while it is in use; open it again if it was closed, moved or written."
            )
            raise RuntimeError(msg) from error
        if isinstance(found, tuple):
            return found
        csr = _as_csr(found, self.n_genes)
        return csr.indptr, csr.indices, csr.data


class _CsrRows(StoredRows):
    """A CSR matrix in a group of an HDF5 or zarr store."""

    def __init__(self, matrix: Any, where: str) -> None:
        super().__init__(matrix, where)
        group = matrix.group
        self.indptr = np.asarray(group["indptr"][...], dtype=np.int64)
        self.indices, self.data = group["indices"], group["data"]
        mean = max(1.0, float(self.indptr[-1]) / max(1, self.n_cells))
        self.row_bytes = mean * (self.indices.dtype.itemsize + self.data.dtype.itemsize)
        self.block = _block(self.data.chunks[0] / mean) if _compressed(self.data) else LEAST_BLOCK

    def fetch(self, start: int, stop: int) -> Arrays:
        first, last = int(self.indptr[start]), int(self.indptr[stop])
        return self.indptr[start : stop + 1] - first, self.indices[first:last], self.data[first:last]


class _DenseRows(StoredRows):
    """A dense array in an HDF5 or zarr store."""

    def __init__(self, matrix: Any, where: str) -> None:
        super().__init__(matrix, where)
        self.matrix = matrix
        self.row_bytes = float(self.n_genes * matrix.dtype.itemsize)
        self.block = _block(matrix.chunks[0] if getattr(matrix, "chunks", None) else 1)

    def fetch(self, start: int, stop: int) -> Any:
        return self.matrix[start:stop]


class _DaskRows(StoredRows):
    """A dask array, of which whole chunks are computed; the one that was used last is kept."""

    def __init__(self, matrix: Any, where: str) -> None:
        super().__init__(matrix, where)
        if len(matrix.chunks[1]) > 1:
            matrix = matrix.rechunk({1: -1})
        self.matrix, self.ends = matrix, np.cumsum(matrix.chunks[0])
        self.block = max(1, max(matrix.chunks[0], default=1))
        # of a sparse chunk only the non-zeros, of which the number is unknown
        self.row_bytes = float(self.n_genes * matrix.dtype.itemsize)
        self._last: tuple[int, Any] | None = None

    def fetch(self, start: int, stop: int) -> Any:
        first, last = np.searchsorted(self.ends, [start, stop - 1], side="right")
        found = []
        for i in range(int(first), int(last) + 1):
            begin = int(self.ends[i - 1]) if i else 0
            found.append(self._chunk(i)[max(0, start - begin) : stop - begin])
        if len(found) == 1:
            return found[0]
        return sparse.vstack(found, format="csr")

    def _chunk(self, i: int) -> sparse.csr_matrix:
        if self._last is None or self._last[0] != i:
            # in this thread, which reads ahead of the computations
            chunk = self.matrix.blocks[i].compute(scheduler="synchronous")
            self._last = i, sparse.csr_matrix(chunk if sparse.issparse(chunk) else np.asarray(chunk))
        return self._last[1]


class _Joined(StoredRows):
    """Matrices one below the other, such as those of a collection."""

    def __init__(self, matrix: Any, where: str, parts: list[StoredRows]) -> None:
        super().__init__(matrix, where)
        self.parts, self.ends = parts, np.cumsum([part.n_cells for part in parts])
        self.block = max(part.block for part in parts)
        self.row_bytes = float(np.average([part.row_bytes for part in parts], weights=[part.n_cells for part in parts]))

    def fetch(self, start: int, stop: int) -> Any:
        first, last = np.searchsorted(self.ends, [start, stop - 1], side="right")
        found = []
        for i in range(int(first), int(last) + 1):
            part, begin = self.parts[i], int(self.ends[i]) - self.parts[i].n_cells
            found.append(part.fetch(max(0, start - begin), min(part.n_cells, stop - begin)))
        if len(found) == 1:
            return found[0]
        return sparse.vstack([_as_csr(part, self.n_genes) for part in found], format="csr")


def stored_rows(matrix: Any, where: str) -> StoredRows | None:
    """Return the rows of a matrix that is not in memory; None for one that is, and for a small one stored by columns.

    ``ValueError`` is raised for a large matrix that is stored by columns.
    """
    if isinstance(matrix, CSCDataset):
        _check_columns(matrix, where)
        return None
    if not on_disk(matrix):
        return None
    if isinstance(matrix, CSRDataset):
        return _CsrRows(matrix, where)
    if not hasattr(matrix, "dask"):
        return _DenseRows(matrix, where)
    parts = [stored_rows(part.matrix, where) for part in store_of(matrix) or ()]
    found = [part for part in parts if part is not None]
    return _Joined(matrix, where, found) if found and len(found) == len(parts) else _DaskRows(matrix, where)


def origin(adata: AnnData, layer: str | None) -> tuple[Any, np.ndarray | None, np.ndarray | None] | None:
    """Return the matrix on disk of which a view of an AnnData shows some rows and columns, and their numbers (None: all).

    None if ``adata`` is not a view, or if that matrix is in memory.
    """
    whole = adata._adata_ref if adata.is_view else None
    if whole is None:
        return None
    matrix = whole.X if layer is None else whole.layers.get(layer)
    if not on_disk(matrix) or isinstance(matrix, CSCDataset):
        return None
    return matrix, _numbers(adata._oidx, whole.n_obs), _numbers(adata._vidx, whole.n_vars)


def _numbers(index: Any, n: int) -> np.ndarray | None:
    """Return the numbers that an index of a view selects; None if it selects all in order."""
    numbers = np.arange(n)[index]
    return None if len(numbers) == n and bool((numbers == np.arange(n)).all()) else np.atleast_1d(numbers)


def _check_columns(matrix: Any, where: str) -> None:
    n_bytes = math.prod(matrix.group["data"].shape) * (matrix.dtype.itemsize + matrix.group["indices"].dtype.itemsize)
    if n_bytes > CSC_BYTES:
        msg = (
            f"{where} is stored by genes (CSC), {n_bytes / 1e9:.1f} GB: to read some cells, all of it would have to be read. Store it once "
            "by cells (CSR): adata = adata.to_memory(); adata.X = adata.X.tocsr(); adata.write_h5ad(path)."
        )
        raise ValueError(msg)


def _as_csr(found: Any, n_genes: int) -> sparse.csr_matrix:
    if isinstance(found, tuple):
        indptr, indices, data = found
        return sparse.csr_matrix((data, indices, indptr), shape=(len(indptr) - 1, n_genes))
    return sparse.csr_matrix(found if sparse.issparse(found) else np.asarray(found))


def _block(rows: float) -> int:
    return int(min(MOST_BLOCK, max(LEAST_BLOCK, rows)))


def _compressed(array: Any) -> bool:
    """Whether reading a part of a chunk takes the time of all of it; so it is for every chunk of a zarr array."""
    if array.chunks is None:
        return False
    return not hasattr(array, "compression") or array.compression is not None
