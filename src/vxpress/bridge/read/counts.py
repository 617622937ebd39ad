"""Read the counts of a fit: modelled genes, other genes, and molecules per cell."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from anndata import AnnData
from scipy import sparse
from torch import Tensor

from vxpress.bridge.read.matrix import PART, Block, canonical, count_blocks, row_blocks, single_precision
from vxpress.bridge.read.survey import Elsewhere, surveyed
from vxpress.core import rule
from vxpress.core.covariates import Covariates
from vxpress.core.data import Cells, Counts, Source, Stored


@dataclass(frozen=True)
class CountData:
    """Counts of the modelled genes and of the other genes (None if there are none), and their totals per cell.

    Counts that stay on disk are :class:`Elsewhere`.
    """

    inside: sparse.csr_matrix | Elsewhere
    outside: sparse.csr_matrix | Elsewhere | None
    inside_n: np.ndarray
    total_n: np.ndarray

    @cached_property
    def inside_g(self) -> np.ndarray:
        """Sum of each modelled gene over all cells, float64."""
        if isinstance(self.inside, Elsewhere):
            return self.inside.sums_g
        return self._matrix.sums_g.numpy()

    @cached_property
    def _matrix(self) -> Counts:
        """The counts of the modelled genes in memory, with their sums once these are known."""
        assert not isinstance(self.inside, Elsewhere)  # noqa: S101 - the callers handle the others
        return Counts.from_scipy(self.inside)

    @property
    def n_genes(self) -> int:
        """Number of modelled genes."""
        return len(self.inside.sums_g) if isinstance(self.inside, Elsewhere) else int(self.inside.shape[1])

    def cells(self, log_library_n1: Tensor, covariates: Covariates) -> Source:
        """Return the cells with the counts of the modelled genes."""
        rule.reads(len(log_library_n1), self.n_genes)
        if isinstance(self.inside, Elsewhere):
            return _source(self.inside, log_library_n1, covariates)
        return Cells(self._matrix, log_library_n1, covariates)

    def cells_outside(self, log_library_n1: Tensor, covariates: Covariates) -> Source | None:
        """Return the cells with the counts of the other genes, or None if there are none."""
        return None if self.outside is None else _source(self.outside, log_library_n1, covariates)


def _source(counts: sparse.csr_matrix | Elsewhere, log_library_n1: Tensor, covariates: Covariates) -> Source:
    if isinstance(counts, Elsewhere):
        return Stored(counts.reader, counts.stored_n, log_library_n1, covariates, at=counts.at, sums_g=counts.sums_g)
    return Cells(Counts.from_scipy(counts), log_library_n1, covariates)


def read_counts(
    adata: AnnData,
    layer: str | None,
    modelled_g: np.ndarray,
    genes: np.ndarray | None = None,
    *,
    in_memory: bool = False,
) -> CountData:
    """Read and check the counts; ``genes`` selects columns, then ``modelled_g`` marks the modelled genes among them.

    A column is empty if its entry of ``genes`` is -1. Every value is checked once. The user's matrix is never changed. It is
    not copied if it is canonical CSR in memory and all its genes are modelled. Counts on disk that take more than
    :data:`~vxpress.bridge.read.survey.MEMORY_BYTES` stay there, unless ``in_memory``.
    """
    stored = surveyed(adata, layer, modelled_g, genes, in_memory=in_memory)
    if stored is not None:
        return CountData(stored.inside, stored.outside, stored.inside_n, stored.total_n)
    blocks: list[tuple[sparse.csr_matrix, sparse.csr_matrix | None, np.ndarray, np.ndarray]] = []
    all_modelled = bool(modelled_g.all())
    for _, block in count_blocks(adata, layer, _whole_or_blocks):
        picked = block if genes is None else _pick(block, genes)
        inside = picked if all_modelled else picked[:, modelled_g]
        outside = None if all_modelled else picked[:, ~modelled_g]
        inside_n = _sums(inside)
        blocks.append(
            (
                single_precision(inside),
                None if outside is None else single_precision(outside),
                inside_n,
                inside_n if outside is None else inside_n + _sums(outside),
            )
        )
    return CountData(
        _stack([b[0] for b in blocks]),
        None if all_modelled else _stack([b[1] for b in blocks]),
        np.concatenate([b[2] for b in blocks]),
        np.concatenate([b[3] for b in blocks]),
    )


def _whole_or_blocks(matrix: Any) -> Iterable[Block]:
    """Return a sparse matrix in memory as a single block, which need not be copied."""
    return [(slice(0, matrix.shape[0]), canonical(matrix))] if sparse.issparse(matrix) else row_blocks(matrix)


def _pick(block: sparse.csr_matrix, genes: np.ndarray) -> sparse.csr_matrix:
    present = np.flatnonzero(genes >= 0)
    found = block[:, genes[present]].sorted_indices()
    if len(present) == len(genes):
        return found
    indices = present.astype(found.indices.dtype, copy=False)[found.indices]
    return sparse.csr_matrix((found.data, indices, found.indptr), shape=(block.shape[0], len(genes)))


def _sums(block: sparse.csr_matrix) -> np.ndarray:
    """Return the sum of every row, float64; a part of the values is converted at a time, unlike in scipy 1.18."""
    indptr, sums, start = block.indptr, np.zeros(block.shape[0]), 0
    while start < len(sums):
        stop = max(start + 1, int(np.searchsorted(indptr, int(indptr[start]) + PART, "right")) - 1)
        filled = start + np.flatnonzero(np.diff(indptr[start : stop + 1]))
        if len(filled):
            part = block.data[indptr[start] : indptr[stop]]
            sums[filled] = np.add.reduceat(part, indptr[filled] - indptr[start], dtype=np.float64)
        start = stop
    return sums


def _stack(blocks: list) -> sparse.csr_matrix:
    return blocks[0] if len(blocks) == 1 else sparse.vstack(blocks, format="csr")
