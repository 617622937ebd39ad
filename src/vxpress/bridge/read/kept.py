"""Go over counts on disk several times, but read them once: the blocks of the first time are kept as far as they fit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, Generic, TypeVar

import numpy as np
from scipy import sparse

from vxpress.bridge.read.blockwise import CHUNKS_PER_CORE, is_dask, results_from
from vxpress.bridge.read.opened import on_disk
from vxpress.core.progress import parts
from vxpress.core.threads import number, same_bits

R = TypeVar("R")

# A non-zero takes 3 bytes if there are at most 65,536 genes and no count is above 255, so about 350 million of them fit:
# a million cells with 350 detected genes each. The memory of a call does not depend on the number of cells beyond that.
KEPT_BYTES = 2**30


class Blocks:
    """The blocks of rows of a matrix, over which :meth:`over` goes as often as it is called, each time in the same order.

    Blocks of a matrix that is not in memory are kept the first time, the first ones up to :data:`KEPT_BYTES`. Only the others are
    read again. A function gets an equal block in either case, so its results are the same.
    """

    def __init__(self, matrix: Any, *, n_rows: int | None = None) -> None:
        self.matrix, self.n_rows = matrix, n_rows
        self.kept: list[tuple[slice, Packed]] = []
        self.first_time = on_disk(matrix)

    def over(
        self, function: Callable[..., R], per_row: Sequence[np.ndarray] = (), *, what: str
    ) -> Iterator[tuple[slice, R]]:
        """Yield the rows of each block and ``function(block, *values)``; see :func:`~vxpress.bridge.read.blockwise.over_blocks`.

        The first call has to be followed to its end.
        """
        if self.first_time:
            self.first_time = False
            results = self._keeping(function, per_row)
        else:
            after = self.kept[-1][0].stop if self.kept else 0
            results = chain(
                self._from_kept(function, per_row),
                results_from(self.matrix, function, per_row, n_rows=self.n_rows, first=after),
            )
        for (rows, result), progress in parts(results, what, self.matrix.shape[0]):
            progress.done = rows.stop
            yield rows, result

    def _keeping(self, function: Callable[..., R], per_row: Sequence[np.ndarray]) -> Iterator[tuple[slice, R]]:
        packing, left = _Packing(function), KEPT_BYTES
        for rows, (result, packed) in results_from(self.matrix, packing, per_row, n_rows=self.n_rows):
            if not packing.full and packed is not None:
                left -= packed.n_bytes
                # from here on no block is kept, so that those which are kept are the first ones
                packing.full = left < 0
                if not packing.full:
                    self.kept.append((rows, packed))
            yield rows, result

    def _from_kept(self, function: Callable[..., R], per_row: Sequence[np.ndarray]) -> Iterator[tuple[slice, R]]:
        if is_dask(self.matrix):
            yield from self._in_threads(function, per_row)
            return
        for rows, packed in self.kept:
            yield rows, function(packed.block(), *(values[rows] for values in per_row))

    def _in_threads(self, function: Callable[..., R], per_row: Sequence[np.ndarray]) -> Iterator[tuple[slice, R]]:
        """Compute in threads of this process, because the kept blocks are here and not where dask read them."""
        import dask

        apply = dask.delayed(_on_packed, pure=False)
        step = CHUNKS_PER_CORE * (os.cpu_count() or 1)
        for first in range(0, len(self.kept), step):
            some = self.kept[first : first + step]
            tasks = [apply(packed, function, *(values[rows] for values in per_row)) for rows, packed in some]
            yield from zip(
                (rows for rows, _ in some), dask.compute(*tasks, scheduler="threads", num_workers=number()), strict=True
            )


class Packed:
    """A block of counts in the smallest types that hold them exactly; :meth:`block` returns an equal one."""

    def __init__(self, block: sparse.csr_matrix) -> None:
        self.shape, self.dtype, self.index_dtype = block.shape, block.data.dtype, block.indices.dtype
        self.indptr = block.indptr
        self.indices = block.indices.astype(np.min_scalar_type(max(0, self.shape[1] - 1)))
        self.data = _smallest(block.data)

    @property
    def n_bytes(self) -> int:
        """Memory that it takes."""
        return int(self.indptr.nbytes + self.indices.nbytes + self.data.nbytes)

    def block(self) -> sparse.csr_matrix:
        """Return the block."""
        arrays = self.data.astype(self.dtype), self.indices.astype(self.index_dtype), self.indptr
        return sparse.csr_matrix(arrays, shape=self.shape)


def _smallest(data: np.ndarray) -> np.ndarray:
    """Return whole numbers in the smallest unsigned type, and any other values as a copy."""
    if data.size and data.min() >= 0 and data.max() < 2**32:
        small: np.ndarray = data.astype(np.min_scalar_type(int(data.max())))
        if small.itemsize < data.itemsize and np.array_equal(small, data):
            return small
    return data.copy()


class _Packing(Generic[R]):
    """A function of a block that also returns the block packed, until ``full``; in processes, as of when it was sent."""

    def __init__(self, function: Callable[..., R]) -> None:
        self.function, self.full = function, False

    def __call__(self, block: sparse.csr_matrix, *values: np.ndarray) -> tuple[R, Packed | None]:
        return self.function(block, *values), None if self.full else Packed(block)


@same_bits
def _on_packed(packed: Packed, function: Callable[..., R], *values: np.ndarray) -> R:
    return function(packed.block(), *values)
