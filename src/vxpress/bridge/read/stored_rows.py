"""Rows of count matrices that are not in memory: of ``.h5ad`` and zarr stores, and dask arrays."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from anndata import AnnData
from anndata.abc import CSCDataset, CSRDataset
from scipy import sparse

from vxpress.bridge.read.annbatch import SeveralPlaces, annbatch_reads
from vxpress.bridge.read.opened import on_disk, store_of
from vxpress.bridge.read.zarr_codecs import fast_codecs

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]

# neighbouring rows that are read together: a stored chunk, if it is compressed, within these limits
LEAST_BLOCK, MOST_BLOCK = 128, 1024
# most bytes that annbatch is asked for at a time
TOGETHER_BYTES = 2**25
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
        with self.readable(start, stop):
            found = self.fetch(start, stop)
        if isinstance(found, tuple):
            return found
        csr = _as_csr(found, self.n_genes)
        return csr.indptr, csr.indices, csr.data

    def arrays_each(self, spans: Sequence[tuple[int, int]]) -> Iterator[Arrays]:
        """Yield the arrays of some spans of rows, each from its first row to before its last."""
        return (self.arrays(start, stop) for start, stop in spans)

    @contextmanager
    def readable(self, start: int, stop: int) -> Iterator[None]:
        """Turn any error of reading these rows into one that names them."""
        try:
            yield
        except Exception as error:
            msg = (
                f"Rows {start} to {stop - 1} of {self.where} could not be read: {type(error).__name__}: {error}. The file has to stay "
                "open and unchanged while it is in use; open it again if it was closed, moved or written."
            )
            raise RuntimeError(msg) from error


class _CsrRows(StoredRows):
    """A CSR matrix in a group of an HDF5 or zarr store."""

    def __init__(self, matrix: Any, where: str) -> None:
        super().__init__(matrix, where)
        group = matrix.group
        self.indptr = np.asarray(group["indptr"][...], dtype=np.int64)
        with fast_codecs():
            self.indices, self.data = group["indices"], group["data"]
        self.block, self.row_bytes = layout(group, self.n_cells)

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
        last = self._last
        if last is None or last[0] != i:
            # in this thread, which reads ahead of the computations
            chunk = self.matrix.blocks[i].compute(scheduler="synchronous")
            # several threads read, each of them its own chunk
            self._last = last = i, sparse.csr_matrix(chunk if sparse.issparse(chunk) else np.asarray(chunk))
        return last[1]


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


class _AnnbatchRows(StoredRows):
    """CSR matrices in zarr stores one below the other, of which annbatch reads many places at the same time."""

    def __init__(self, matrix: Any, where: str, parts: list[CSRDataset]) -> None:
        super().__init__(matrix, where)
        layouts = [layout(part.group, part.shape[0]) for part in parts]
        self.block, self.row_bytes = max(block for block, _ in layouts), max(size for _, size in layouts)
        with self.readable(0, self.n_cells):
            self.reader = SeveralPlaces(parts)

    def fetch(self, start: int, stop: int) -> Any:
        return self.reader.read([(start, stop)])

    def arrays_each(self, spans: Sequence[tuple[int, int]]) -> Iterator[Arrays]:
        for some in _batched(spans, max(1, int(TOGETHER_BYTES / self.row_bytes))):
            with self.readable(some[0][0], some[-1][1]):
                found = self.reader.read(some)
            first = 0
            for start, stop in some:
                indptr = found.indptr[first : first + stop - start + 1]
                stored = slice(int(indptr[0]), int(indptr[-1]))
                yield indptr - indptr[0], found.indices[stored], found.data[stored]
                first += stop - start


def stored_rows(matrix: Any, where: str) -> StoredRows | None:
    """Return the rows of a matrix that is not in memory; None for one that is, and for a small one stored by columns.

    ``ValueError`` is raised for a large matrix that is stored by columns.
    """
    if isinstance(matrix, CSCDataset):
        _check_columns(matrix, where)
        return None
    if not on_disk(matrix):
        return None
    stored = [matrix] if not hasattr(matrix, "dask") else [part.matrix for part in store_of(matrix) or ()]
    if stored and annbatch_reads(stored):
        return _AnnbatchRows(matrix, where, [part for part in stored if part.shape[0]])
    if isinstance(matrix, CSRDataset):
        return _CsrRows(matrix, where)
    if not hasattr(matrix, "dask"):
        return _DenseRows(matrix, where)
    parts = [stored_rows(part, where) for part in stored]
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


def layout(group: Any, n_rows: int) -> tuple[int, float]:
    """Return the rows of a block of a stored CSR matrix, and the mean bytes of a row."""
    indices, data = group["indices"], group["data"]
    mean = max(1.0, data.shape[0] / max(1, n_rows))
    block = _block(data.chunks[0] / mean) if _compressed(data) else LEAST_BLOCK
    return block, mean * (indices.dtype.itemsize + data.dtype.itemsize)


def _batched(spans: Sequence[tuple[int, int]], most: int) -> Iterator[list[tuple[int, int]]]:
    """Yield spans in groups of at most ``most`` rows, or of one span."""
    some: list[tuple[int, int]] = []
    n = 0
    for start, stop in spans:
        if some and n + stop - start > most:
            yield some
            some, n = [], 0
        some.append((start, stop))
        n += stop - start
    if some:
        yield some


def _block(rows: float) -> int:
    return int(min(MOST_BLOCK, max(LEAST_BLOCK, rows)))


def _compressed(array: Any) -> bool:
    """Whether reading a part of a chunk takes the time of all of it; so it is for every chunk of a zarr array."""
    if array.chunks is None:
        return False
    return not hasattr(array, "compression") or array.compression is not None
