"""Variance of negative binomial Pearson residuals, without computing them for each zero.

The residual of a zero depends on the cell only through its library size.  Sums over cells are therefore computed once
per distinct library size, as if every count were zero, and corrected at the non-zeros while the matrix is read.
The largest residuals of each gene are kept too, so that a few cells alone do not make it variable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from vxpress._progress import parts
from vxpress.bridge.read.matrix import row_blocks

Floats = NDArray[np.float64]
Codes = NDArray[np.intp]
# raises if a block of the matrix does not contain counts
Check: TypeAlias = Callable[[sparse.csr_matrix], None]

# entries of a matrix block; about ten double-precision temporaries of its non-zeros exist at once
READ_ENTRIES = 2**23
# entries of a block of residuals of zeros: fits in the cache of the processor
ZERO_ENTRIES = 2**17
# largest share of cells whose residuals are clipped by min_cells
MAX_SHARE = 0.1


@dataclass(frozen=True)
class Moments:
    """Moments of the counts over all cells, and of their residuals within each batch.

    ``eligible_bg`` marks the genes that can be ranked in a batch: those expressed in it, if it has at least two cells.
    """

    means_g: Floats
    variances_g: Floats
    residual_variances_bg: Floats
    eligible_bg: NDArray[np.bool_]


@dataclass(frozen=True)
class _Null:
    """The null model of the residuals: ``mu = library x share``, ``var = mu + mu^2 / theta``, and clipping limits."""

    library_n: Floats
    share_bg: Floats
    clip_b: Floats
    theta: float


def residual_moments(
    matrix: Any, codes_n: Codes, n_batches: int, *, theta: float, min_cells: int = 1, check: Check
) -> Moments:
    """Compute clipped Pearson residual variances of each gene in each batch, in two passes (Lause et al. 2021).

    Residuals of a gene are also clipped from above to the ``min_cells``-th largest over all batches, or to 0 if that is
    negative, so that cells of a rare type count together even if they are in different batches.
    """
    library_n, sums_bg, squares_g = _sums(matrix, codes_n, n_batches, check)
    n_b = np.bincount(codes_n, minlength=n_batches)
    share_bg = sums_bg / np.maximum(sums_bg.sum(axis=1, keepdims=True), 1.0)
    null = _Null(library_n, share_bg, np.sqrt(n_b), theta)

    first_bg, second_bg = _sums_if_all_zero(null, codes_n)
    largest = _Largest(max(1, min(min_cells, int(MAX_SHARE * codes_n.size))), share_bg.shape[1])
    for block in _nonzeros(matrix, codes_n):
        residual, of_zero = _residuals(null, block, codes_n)
        first_bg[block.present] += block.sum_by_gene(residual - of_zero)
        second_bg[block.present] += block.sum_by_gene(residual**2 - of_zero**2)
        largest.see(block, residual, codes_n)
    first, second = largest.excess(n_batches)
    first_bg, second_bg = first_bg - first, second_bg - second
    variances_bg = second_bg / n_b[:, None] - (first_bg / n_b[:, None]) ** 2

    n = codes_n.size
    means_g = sums_bg.sum(axis=0) / n
    return Moments(
        means_g=means_g,
        variances_g=np.maximum(squares_g - n * means_g**2, 0.0) / max(n - 1, 1),
        residual_variances_bg=np.maximum(variances_bg, 0.0),
        eligible_bg=(sums_bg > 0) & (n_b[:, None] > 1),
    )


@dataclass(frozen=True)
class _Nonzeros:
    """The non-zeros of a block of rows: cell, gene and count of each, and the batches that occur."""

    rows: slice
    cell: Codes
    gene: NDArray[np.integer]
    x: Floats
    present: Codes
    bin: Codes
    n_genes: int

    def sum_by_gene(self, weights: Floats) -> Floats:
        """Sum weights over the cells of each batch that occurs, ``len(present)`` x ``n_genes``."""
        shape = (self.present.size, self.n_genes)
        sums = np.bincount(self.bin, weights=weights, minlength=shape[0] * shape[1])
        return np.asarray(sums, dtype=np.float64).reshape(shape)


def _nonzeros(matrix: Any, codes_n: Codes, check: Check | None = None) -> Iterator[_Nonzeros]:
    """Read the matrix in blocks; ``check`` may raise an error for a block."""
    n_genes = matrix.shape[1]
    what = "computing residuals" if check is None else "reading counts"
    blocks = row_blocks(matrix, max(1, READ_ENTRIES // n_genes))
    for (rows, block), progress in parts(blocks, what, codes_n.size):
        progress.done = rows.start
        if check is not None:
            check(block)
        cell = np.repeat(np.arange(rows.start, rows.stop), np.diff(block.indptr))
        x, gene = block.data.astype(np.float64), block.indices
        present, local = np.unique(codes_n[rows], return_inverse=True)
        yield _Nonzeros(rows, cell, gene, x, present, local[cell - rows.start] * n_genes + gene, n_genes)


def _sums(matrix: Any, codes_n: Codes, n_batches: int, check: Check) -> tuple[Floats, Floats, Floats]:
    """Sum molecules per cell and per gene in each batch, and squared counts per gene."""
    n_genes = matrix.shape[1]
    library_n = np.zeros(codes_n.size)
    sums_bg = np.zeros((n_batches, n_genes))
    squares_g = np.zeros(n_genes)
    for block in _nonzeros(matrix, codes_n, check):
        n_rows = block.rows.stop - block.rows.start
        library_n[block.rows] = np.bincount(block.cell - block.rows.start, weights=block.x, minlength=n_rows)
        sums_bg[block.present] += block.sum_by_gene(block.x)
        squares_g += block.sum_by_gene(block.x**2).sum(axis=0)
    return library_n, sums_bg, squares_g


def _sums_if_all_zero(null: _Null, codes_n: Codes) -> tuple[Floats, Floats]:
    """Sum the residuals and their squares over cells, as if every count were zero.

    The squared residual of a zero is ``mu^2 / (mu + mu^2/theta) = 1 / (1/mu + 1/theta)``; empty cells are left out.
    """
    first_bg, second_bg = np.zeros_like(null.share_bg), np.zeros_like(null.share_bg)
    order = np.argsort(codes_n, kind="stable")
    bounds = np.searchsorted(codes_n[order], np.arange(1, len(null.clip_b)))
    for b, cells in enumerate(np.split(order, bounds)):
        sizes = null.library_n[cells]
        size, weight = np.unique(sizes[sizes > 0], return_counts=True)
        genes = np.flatnonzero(null.share_bg[b])
        step = max(1, ZERO_ENTRIES // max(1, genes.size))
        for start in range(0, size.size, step):
            part = slice(start, start + step)
            square = np.outer(1.0 / size[part], 1.0 / null.share_bg[b, genes])
            square += 1.0 / null.theta
            np.reciprocal(square, out=square)
            np.minimum(square, null.clip_b[b] ** 2, out=square)
            second_bg[b, genes] += weight[part] @ square
            first_bg[b, genes] -= weight[part] @ np.sqrt(square, out=square)
    return first_bg, second_bg


def _residuals(null: _Null, block: _Nonzeros, codes_n: Codes) -> tuple[Floats, Floats]:
    """Compute the residuals of the non-zeros of a block, and the residuals with which they were counted as zeros."""
    batch = codes_n[block.cell]
    clip = null.clip_b[batch]
    mu = null.library_n[block.cell] * null.share_bg[batch, block.gene]
    sd = np.sqrt(mu + mu**2 / null.theta)
    return np.clip((block.x - mu) / sd, -clip, clip), np.maximum(-mu / sd, -clip)


class _Largest:
    """The ``n_kept`` largest residuals above 0 of each gene over all batches, in decreasing order, and batches."""

    def __init__(self, n_kept: int, n_genes: int) -> None:
        self.values_kg = np.zeros((n_kept, n_genes))
        self.batch_kg = np.zeros((n_kept, n_genes), dtype=np.intp)

    def see(self, block: _Nonzeros, residual: Floats, codes_n: Codes) -> None:
        """Update the largest residuals with those of a block."""
        depth = len(self.values_kg)
        if depth == 1:
            return
        new = np.flatnonzero(residual > self.values_kg[-1, block.gene])
        order = new[np.lexsort((-residual[new], block.gene[new]))]
        genes, start = np.unique(block.gene[order], return_index=True)
        # rank of each residual within its gene
        rank = np.arange(order.size) - np.repeat(start, np.diff(start, append=order.size))
        order, rank = order[rank < depth], rank[rank < depth]
        column = np.searchsorted(genes, block.gene[order])
        values, batch = (np.concatenate([kept[:, genes], np.zeros_like(kept[:, genes])]) for kept in self._kept())
        values[depth + rank, column] = residual[order]
        batch[depth + rank, column] = codes_n[block.cell[order]]
        best = np.argsort(-values, axis=0, kind="stable")[:depth]
        for kept, candidates in zip(self._kept(), (values, batch), strict=True):
            kept[:, genes] = np.take_along_axis(candidates, best, axis=0)

    def _kept(self) -> tuple[Floats, Codes]:
        return self.values_kg, self.batch_kg

    def excess(self, n_batches: int) -> tuple[Floats, Floats]:
        """Compute the excess of sums of residuals and of their squares in each batch over those clipped to the last."""
        last_g = self.values_kg[-1]
        first_bg, second_bg = np.zeros((2, n_batches, last_g.size))
        gene = np.arange(last_g.size)
        for values_g, batch_g in zip(self.values_kg[:-1], self.batch_kg[:-1], strict=True):
            first_bg[batch_g, gene] += values_g - last_g
            second_bg[batch_g, gene] += values_g**2 - last_g**2
        return first_bg, second_bg
