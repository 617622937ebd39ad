"""Variance of negative binomial Pearson residuals, without computing them for each zero.

The residual of a zero depends on the cell only through its library size.  Sums over cells are therefore computed once
per distinct library size, as if every count were zero, and corrected at the non-zeros while the matrix is read.
The largest residuals of each gene are kept too, so that a few cells alone do not make it variable.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from vxpress.bridge.read.kept import Blocks

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

    share_bg: Floats
    clip_b: Floats
    theta: float


def residual_moments(
    matrix: Any, codes_n: Codes, n_batches: int, *, theta: float, min_cells: int = 1, check: Check
) -> Moments:
    """Compute clipped Pearson residual variances of each gene in each batch, in two steps (Lause et al. 2021).

    Residuals of a gene are also clipped from above to the ``min_cells``-th largest over all batches, or to 0 if that is
    negative, so that cells of a rare type count together even if they are in different batches.

    The first step sums counts, which is exact. The second one sums residuals; its rounding errors depend on the blocks. Counts on disk
    are read in the first step, which keeps them for the second, see :class:`~vxpress.bridge.read.kept.Blocks`.
    """
    blocks = Blocks(matrix, n_rows=_read_rows(matrix.shape[1]))
    library_n, sums_bg, squares_g = _sums(blocks, codes_n, n_batches, check)
    n_b = np.bincount(codes_n, minlength=n_batches)
    share_bg = sums_bg / np.maximum(sums_bg.sum(axis=1, keepdims=True), 1.0)
    null = _Null(share_bg, np.sqrt(n_b), theta)

    first_bg, second_bg = _sums_if_all_zero(null, library_n, codes_n)
    n_genes = share_bg.shape[1]
    largest = _Largest(max(1, min(min_cells, int(MAX_SHARE * codes_n.size))), n_genes)
    # grows while blocks are merged, so that later ones sort less
    floor_g = largest.values_kg[-1]
    of_block = partial(_corrections, null=null, n_kept=len(largest.values_kg), floor_g=floor_g)
    for _, found in blocks.over(of_block, (codes_n, library_n), what="computing residuals"):
        first_bg[found.present] += found.first_pg
        second_bg[found.present] += found.second_pg
        largest.merge(found.largest)
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


def _read_rows(n_genes: int) -> int:
    return max(1, READ_ENTRIES // n_genes)


class _Nonzeros:
    """The non-zeros of a block of rows: cell, gene and count of each, and the batches that occur."""

    def __init__(self, block: sparse.csr_matrix, codes_n: Codes) -> None:
        self.n_rows, self.n_genes = block.shape
        self.cell = np.repeat(np.arange(self.n_rows), np.diff(block.indptr))
        self.x, self.gene = block.data.astype(np.float64), block.indices
        self.present, local = np.unique(codes_n, return_inverse=True)
        self.bin = local[self.cell] * self.n_genes + self.gene

    def sum_by_gene(self, weights: Floats) -> Floats:
        """Sum weights over the cells of each batch that occurs, ``len(present)`` x ``n_genes``."""
        shape = (self.present.size, self.n_genes)
        sums = np.bincount(self.bin, weights=weights, minlength=shape[0] * shape[1])
        return np.asarray(sums, dtype=np.float64).reshape(shape)


@dataclass(frozen=True)
class _BlockSums:
    """Sums of the counts of a block: by cell, by gene in each batch that occurs, and of squares by gene."""

    library_n: Floats
    present: Codes
    sums_pg: Floats
    squares_g: Floats


def _block_sums(block: sparse.csr_matrix, codes_n: Codes, *, check: Check) -> _BlockSums:
    check(block)
    found = _Nonzeros(block, codes_n)
    library_n: Floats = np.asarray(np.bincount(found.cell, weights=found.x, minlength=found.n_rows), dtype=np.float64)
    return _BlockSums(library_n, found.present, found.sum_by_gene(found.x), found.sum_by_gene(found.x**2).sum(axis=0))


def _sums(blocks: Blocks, codes_n: Codes, n_batches: int, check: Check) -> tuple[Floats, Floats, Floats]:
    """Sum molecules per cell and per gene in each batch, and squared counts per gene."""
    n_genes = blocks.matrix.shape[1]
    library_n = np.zeros(codes_n.size)
    sums_bg = np.zeros((n_batches, n_genes))
    squares_g = np.zeros(n_genes)
    of_block = partial(_block_sums, check=check)
    for rows, found in blocks.over(of_block, (codes_n,), what="reading counts"):
        library_n[rows] = found.library_n
        sums_bg[found.present] += found.sums_pg
        squares_g += found.squares_g
    return library_n, sums_bg, squares_g


def _sums_if_all_zero(null: _Null, library_n: Floats, codes_n: Codes) -> tuple[Floats, Floats]:
    """Sum the residuals and their squares over cells, as if every count were zero.

    The squared residual of a zero is ``mu^2 / (mu + mu^2/theta) = 1 / (1/mu + 1/theta)``; empty cells are left out.
    """
    first_bg, second_bg = np.zeros_like(null.share_bg), np.zeros_like(null.share_bg)
    order = np.argsort(codes_n, kind="stable")
    bounds = np.searchsorted(codes_n[order], np.arange(1, len(null.clip_b)))
    for b, cells in enumerate(np.split(order, bounds)):
        sizes = library_n[cells]
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


@dataclass(frozen=True)
class _Corrections:
    """Differences between the residuals of the non-zeros of a block and those with which they were counted as zeros."""

    present: Codes
    first_pg: Floats
    second_pg: Floats
    largest: _Largest


def _corrections(
    block: sparse.csr_matrix, codes_n: Codes, library_n: Floats, *, null: _Null, n_kept: int, floor_g: Floats
) -> _Corrections:
    found = _Nonzeros(block, codes_n)
    batch = codes_n[found.cell]
    clip = null.clip_b[batch]
    mu = library_n[found.cell] * null.share_bg[batch, found.gene]
    sd = np.sqrt(mu + mu**2 / null.theta)
    residual, of_zero = np.clip((found.x - mu) / sd, -clip, clip), np.maximum(-mu / sd, -clip)
    largest = _Largest.of(n_kept, floor_g, found.gene, residual, batch)
    return _Corrections(
        found.present,
        found.sum_by_gene(residual - of_zero),
        found.sum_by_gene(residual**2 - of_zero**2),
        largest,
    )


class _Largest:
    """The ``n_kept`` largest residuals above 0 of each gene over all batches, in decreasing order, and batches."""

    def __init__(self, n_kept: int, n_genes: int) -> None:
        self.values_kg = np.zeros((n_kept, n_genes))
        self.batch_kg = np.zeros((n_kept, n_genes), dtype=np.intp)

    @classmethod
    def of(cls, n_kept: int, floor_g: Floats, gene: NDArray[np.integer], residual: Floats, batch: Codes) -> _Largest:
        """Return the largest of these residuals that are above ``floor_g``."""
        found = cls(n_kept, floor_g.size)
        if n_kept == 1:
            return found
        new = np.flatnonzero(residual > floor_g[gene])
        order = new[np.lexsort((-residual[new], gene[new]))]
        start = np.flatnonzero(np.diff(gene[order], prepend=-1))
        # rank of each residual within its gene
        rank = np.arange(order.size) - np.repeat(start, np.diff(start, append=order.size))
        order, rank = order[rank < n_kept], rank[rank < n_kept]
        found.values_kg[rank, gene[order]] = residual[order]
        found.batch_kg[rank, gene[order]] = batch[order]
        return found

    def merge(self, other: _Largest) -> None:
        """Take the largest residuals of both, in place."""
        depth = len(self.values_kg)
        genes = np.flatnonzero(other.values_kg[0])
        if depth == 1 or not genes.size:
            return
        values = np.vstack([self.values_kg[:, genes], other.values_kg[:, genes]])
        batch = np.vstack([self.batch_kg[:, genes], other.batch_kg[:, genes]])
        best = np.argsort(-values, axis=0, kind="stable")[:depth]
        self.values_kg[:, genes] = np.take_along_axis(values, best, axis=0)
        self.batch_kg[:, genes] = np.take_along_axis(batch, best, axis=0)

    def excess(self, n_batches: int) -> tuple[Floats, Floats]:
        """Compute the excess of sums of residuals and of their squares in each batch over those clipped to the last."""
        last_g = self.values_kg[-1]
        first_bg, second_bg = np.zeros((2, n_batches, last_g.size))
        gene = np.arange(last_g.size)
        for values_g, batch_g in zip(self.values_kg[:-1], self.batch_kg[:-1], strict=True):
            first_bg[batch_g, gene] += values_g - last_g
            second_bg[batch_g, gene] += values_g**2 - last_g**2
        return first_bg, second_bg
