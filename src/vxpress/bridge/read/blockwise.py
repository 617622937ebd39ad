"""Apply a function to the counts of all cells in blocks of rows: one after the other, or with dask on its workers."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from scipy import sparse

from vxpress.bridge.read.matrix import canonical, row_blocks
from vxpress.core.progress import parts
from vxpress.core.threads import same_bits

R = TypeVar("R")
# chunks of a dask array that are computed together, per processor: enough to keep all busy, few enough for a flat memory
CHUNKS_PER_CORE = 4


def over_blocks(
    matrix: Any, function: Callable[..., R], per_row: Sequence[np.ndarray] = (), *, n_rows: int | None = None, what: str
) -> Iterator[tuple[slice, R]]:
    """Yield the rows of each block and ``function(block, *values)``, in order; reading is a stage named ``what``.

    ``block`` is a canonical CSR matrix of at most ``n_rows`` rows, ``values`` are the entries of ``per_row`` at its rows. For a dask
    array a block is a chunk, and the function runs where dask computes: in threads, or in the processes of a cluster. It then
    travels there, so it is a function of a module, or a partial of one.
    """
    results = results_from(matrix, function, per_row, n_rows=n_rows)
    for (rows, result), progress in parts(results, what, matrix.shape[0]):
        progress.done = rows.stop
        yield rows, result


def results_from(
    matrix: Any, function: Callable[..., R], per_row: Sequence[np.ndarray], *, n_rows: int | None, first: int = 0
) -> Iterator[tuple[slice, R]]:
    """Yield the same without a stage, from the row ``first`` on, with which a block begins."""
    if is_dask(matrix):
        return _over_chunks(matrix, function, per_row, first)
    blocks = row_blocks(matrix, n_rows, first)
    return ((rows, function(block, *(values[rows] for values in per_row))) for rows, block in blocks)


def is_dask(matrix: Any) -> bool:
    """Return whether a matrix is a dask array; dask is not imported."""
    return hasattr(matrix, "dask") and hasattr(matrix, "chunks")


def chunk_edges(matrix: Any) -> np.ndarray:
    """Return the rows at which the chunks of a dask array begin, and their end; raises ``ValueError`` if they are unknown."""
    sizes = matrix.chunks[0]
    if any(math.isnan(size) for size in sizes):
        msg = (
            "The sizes of the chunks of this dask array are unknown. Compute them first: adata.X.compute_chunk_sizes()."
        )
        raise ValueError(msg)
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def _over_chunks(
    matrix: Any, function: Callable[..., R], per_row: Sequence[np.ndarray], first_row: int
) -> Iterator[tuple[slice, R]]:
    import dask

    apply = dask.delayed(_on_chunk, pure=False)
    edges = chunk_edges(matrix)
    step = CHUNKS_PER_CORE * (os.cpu_count() or 1)
    for first in range(int(np.searchsorted(edges, first_row)), len(edges) - 1, step):
        last = min(first + step, len(edges) - 1)
        # only these chunks are part of the graph that is computed
        blocks = matrix.blocks[first:last].to_delayed()
        rows = [slice(int(edges[i]), int(edges[i + 1])) for i in range(first, last)]
        tasks = [
            apply(list(row), function, *(values[where] for values in per_row))
            for row, where in zip(blocks, rows, strict=True)
        ]
        yield from zip(rows, dask.compute(*tasks), strict=True)


@same_bits
def _on_chunk(columns: list[Any], function: Callable[..., R], *values: np.ndarray) -> R:
    """Apply the function to rows whose genes may be in several chunks."""
    block = columns[0]
    if len(columns) > 1:
        block = sparse.hstack(columns, format="csr") if sparse.issparse(block) else np.hstack(columns)
    return function(canonical(block), *values)
