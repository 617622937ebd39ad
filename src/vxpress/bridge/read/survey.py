"""Go once through counts that are not in memory: check every value, and note what later passes need to know."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from anndata import AnnData
from scipy import sparse

from vxpress.bridge.read.complete import check_complete
from vxpress.bridge.read.matrix import canonical, check_counts, get_matrix, matrix_name, single_precision
from vxpress.bridge.read.stored_rows import Arrays, StoredRows, origin, stored_rows
from vxpress.core.data import Counts
from vxpress.core.data.stored import GAP_BYTES, WINDOW_BYTES
from vxpress.core.data.windows import ENTRY
from vxpress.core.progress import parts

# counts that take at most this much memory are loaded
MEMORY_BYTES = WINDOW_BYTES
# bytes that are checked at a time
CHECKED_BYTES = 2**25


class Columns:
    """The choice of columns of a matrix; the number of a column in ``chosen`` is its new place, -1 leaves it empty."""

    def __init__(self, chosen: np.ndarray, n_columns: int) -> None:
        self.n = len(chosen)
        present = np.flatnonzero(chosen >= 0)
        self.place = np.full(n_columns, -1, dtype=np.int32)
        self.place[chosen[present]] = present
        self.all = self.n == n_columns and bool((chosen == np.arange(n_columns)).all())
        self.in_order = bool((np.diff(chosen[present]) > 0).all())

    def of(
        self, indptr: np.ndarray, indices: np.ndarray, data: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the chosen columns of a canonical CSR matrix, also canonical."""
        if self.all:
            return indptr, indices, data
        place = self.place[indices]
        kept = place >= 0
        ends = np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(kept, dtype=np.int64)))
        indptr, indices, data = ends[indptr], place[kept], data[kept]
        if not self.in_order:
            sorted_rows = sparse.csr_matrix((data, indices, indptr), shape=(len(indptr) - 1, self.n)).sorted_indices()
            return sorted_rows.indptr, sorted_rows.indices, sorted_rows.data
        return indptr, indices, data


class ChosenGenes:
    """A reader of some genes of a matrix on disk, for :class:`~vxpress.core.data.Stored`.

    ``clean`` says that the matrix has no repeated or unsorted entries and no stored zeros.
    """

    def __init__(self, rows: StoredRows, columns: Columns, *, clean: bool) -> None:
        self.rows, self.columns, self.clean = rows, columns, clean
        self.n_cells, self.n_genes = rows.n_cells, columns.n
        self.block, self.row_bytes = rows.block, rows.row_bytes

    def read(self, start: int, stop: int) -> Counts:
        """Return the counts of the cells from ``start`` up to ``stop``."""
        return self._chosen(self.rows.arrays(start, stop))

    def read_each(self, spans: Sequence[tuple[int, int]]) -> Iterator[Counts]:
        """Yield the counts of some spans of cells."""
        return map(self._chosen, self.rows.arrays_each(spans))

    def _chosen(self, arrays: Arrays) -> Counts:
        if not self.clean:
            block = canonical(_matrix(arrays, self.rows.n_genes))
            arrays = block.indptr, block.indices, block.data
        indptr, indices, data = self.columns.of(*arrays)
        return Counts(
            torch.from_numpy(np.asarray(indptr, dtype=np.int64)),
            torch.from_numpy(np.asarray(indices, dtype=np.int32)),
            torch.from_numpy(np.asarray(data, dtype=np.float32)),
            self.n_genes,
        )


@dataclass(frozen=True)
class Elsewhere:
    """Counts that stay on disk: their reader, the non-zeros of each cell, the rows of the cells (None: all), and sums of genes."""

    reader: ChosenGenes
    stored_n: np.ndarray
    at: np.ndarray | None
    sums_g: np.ndarray


@dataclass(frozen=True)
class Surveyed:
    """Counts that were on disk, loaded if they are small, and their totals per cell."""

    inside: sparse.csr_matrix | Elsewhere
    outside: sparse.csr_matrix | Elsewhere | None
    inside_n: np.ndarray
    total_n: np.ndarray


def surveyed(
    adata: AnnData, layer: str | None, modelled_g: np.ndarray, genes: np.ndarray | None, *, in_memory: bool
) -> Surveyed | None:
    """Check counts that are not in memory; None if they are. The arguments are those of :func:`read_counts`."""
    shown = origin(adata, layer)
    matrix, at, columns = (get_matrix(adata, layer), None, None) if shown is None else shown
    check_complete(matrix, matrix_name(layer))
    rows = stored_rows(matrix, matrix_name(layer))
    if rows is None:
        return None
    columns = np.arange(rows.n_genes) if columns is None else columns
    chosen = columns if genes is None else np.where(genes >= 0, columns[genes], -1)
    at = at if at is None else at.astype(np.int64)
    limit = None if in_memory else MEMORY_BYTES
    noted = _Noted(adata, matrix_name(layer), limit)
    n_cells = rows.n_cells if at is None else len(at)
    inside = _Genes(rows, chosen[modelled_g], n_cells)
    outside = None if modelled_g.all() else _Genes(rows, chosen[~modelled_g], n_cells)
    for cells, block in noted.blocks(rows, at):
        inside.add(cells, block, limit)
        if outside is not None:
            outside.add(cells, block, limit)
    total_n = inside.total_n if outside is None else inside.total_n + outside.total_n
    return Surveyed(
        inside.found(at, clean=noted.clean),
        None if outside is None else outside.found(at, clean=noted.clean),
        inside.total_n,
        total_n,
    )


class _Noted:
    """Reads and checks all rows, and notes whether they are stored in the form that is used."""

    def __init__(self, adata: AnnData, where: str, limit: int | None) -> None:
        self.adata, self.where, self.limit, self.clean = adata, where, limit, True

    def blocks(self, rows: StoredRows, at: np.ndarray | None) -> Iterator[tuple[np.ndarray, sparse.csr_matrix]]:
        """Yield numbers of cells and their checked rows, in the order of the rows on disk."""
        order = None if at is None else np.argsort(at, kind="stable")
        n_cells = rows.n_cells if at is None else len(at)
        step = max(rows.block, int(CHECKED_BYTES / max(1.0, rows.row_bytes)))
        starts = range(0, n_cells, step)
        for start, progress in parts(starts, "reading counts", n_cells):
            stop = min(start + step, n_cells)
            progress.done = stop
            cells = np.arange(start, stop) if order is None else order[start:stop]
            yield cells, self.checked(rows, cells if at is None else at[cells])

    def checked(self, rows: StoredRows, wanted: np.ndarray) -> sparse.csr_matrix:
        """Read rows whose numbers do not decrease."""
        gap = max(1, int(GAP_BYTES / max(1.0, rows.row_bytes)))
        blocks = []
        for part in np.split(wanted, np.flatnonzero(np.diff(wanted) > gap) + 1):
            first, stop = int(part[0]), int(part[-1]) + 1
            stored = _matrix(rows.arrays(first, stop), rows.n_genes)
            block = canonical(stored)
            self.clean = self.clean and block.nnz == stored.nnz and _same_order(block, stored)
            blocks.append(block if np.array_equal(part, np.arange(first, stop)) else block[part - first])
        joined = blocks[0] if len(blocks) == 1 else sparse.vstack(blocks, format="csr")
        check_counts(joined, self.where, self.adata)
        return joined


class _Genes:
    """Some genes of all cells: totals, and the counts themselves as long as they are small."""

    def __init__(self, rows: StoredRows, chosen: np.ndarray, n_cells: int) -> None:
        self.rows, self.columns = rows, Columns(chosen, rows.n_genes)
        self.total_n = np.zeros(n_cells)
        self.stored_n = np.zeros(n_cells, dtype=np.int32)
        self.sums_g = np.zeros(len(chosen))
        self.loaded: list[tuple[np.ndarray, sparse.csr_matrix]] | None = []
        self.n_bytes = 0

    def add(self, cells: np.ndarray, block: sparse.csr_matrix, limit: int | None) -> None:
        """Note the counts of some cells."""
        arrays = self.columns.of(block.indptr, block.indices, block.data)
        own = _matrix(arrays, self.columns.n)
        self.total_n[cells] = np.asarray(own.sum(1, dtype=np.float64)).reshape(-1)
        self.stored_n[cells] = np.diff(own.indptr)
        self.sums_g += np.bincount(own.indices, own.data, minlength=self.columns.n)
        self.n_bytes += ENTRY * own.nnz
        if limit is not None and self.n_bytes > limit:
            self.loaded = None
        if self.loaded is not None:
            self.loaded.append((cells, single_precision(own)))

    def found(self, at: np.ndarray | None, *, clean: bool) -> sparse.csr_matrix | Elsewhere:
        """Return the counts."""
        if self.loaded is None:
            return Elsewhere(ChosenGenes(self.rows, self.columns, clean=clean), self.stored_n, at, self.sums_g)
        joined = sparse.vstack([block for _, block in self.loaded], format="csr")
        return joined if at is None else joined[np.argsort(np.concatenate([cells for cells, _ in self.loaded]))]


def _matrix(arrays: tuple[np.ndarray, np.ndarray, np.ndarray], n_genes: int) -> sparse.csr_matrix:
    indptr, indices, data = arrays
    return sparse.csr_matrix((data, indices, indptr), shape=(len(indptr) - 1, n_genes))


def _same_order(block: sparse.csr_matrix, stored: sparse.csr_matrix) -> bool:
    return block.indices is stored.indices or bool(np.array_equal(block.indices, stored.indices))
