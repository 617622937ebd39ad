"""Windows of cells that are in memory at a time, and where a sequence of minibatches is cut into them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vxpress.core.data.counts import Counts

# bytes of a non-zero: gene and value
ENTRY = 8
# a window of the cells in order, where larger ones have no advantage, is this share of the largest
SMALL = 1 / 8
# rows are copied one stretch after another if a stretch has at least this many on average
FEW = 3


@dataclass(frozen=True, eq=False)
class Window:
    """Counts of some cells: row numbers (m,), sorted and unique, and the matrix with one row for each."""

    rows: np.ndarray
    counts: Counts

    def places(self, rows: np.ndarray) -> np.ndarray:
        """Return the rows of the matrix that hold these cells, which have to be among them."""
        if self._contiguous:
            return np.asarray(rows - self.rows[0])
        return np.searchsorted(self.rows, rows)

    def holds(self, rows: np.ndarray) -> np.ndarray:
        """Return which of these cells are in the window, bool."""
        if not len(self.rows):
            return np.zeros(len(rows), dtype=bool)
        if self._contiguous:
            return np.asarray((rows >= self.rows[0]) & (rows <= self.rows[-1]))
        at = np.searchsorted(self.rows, rows)
        return np.asarray(self.rows[np.minimum(at, len(self.rows) - 1)] == rows)

    @property
    def _contiguous(self) -> bool:
        return len(self.rows) > 0 and int(self.rows[-1] - self.rows[0]) + 1 == len(self.rows)


class Assembly:
    """A window that is filled with rows from several matrices; ``stored_n`` are the non-zeros of each row."""

    def __init__(self, rows: np.ndarray, stored_n: np.ndarray, n_genes: int) -> None:
        self.rows, self.n_genes = rows, n_genes
        self.indptr = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(stored_n, out=self.indptr[1:])
        self.indices = np.empty(self.indptr[-1], dtype=np.int32)
        self.data = np.empty(self.indptr[-1], dtype=np.float32)

    def fill(self, at: np.ndarray, counts: Counts, rows: np.ndarray) -> bool:
        """Copy ``rows`` of a matrix to the places ``at``, both increasing; False if their lengths are not the expected ones."""
        indptr, indices, data = counts.numpy()
        lengths = indptr[rows + 1] - indptr[rows]
        if not np.array_equal(lengths, self.indptr[at + 1] - self.indptr[at]):
            return False
        cuts = np.flatnonzero((np.diff(rows) != 1) | (np.diff(at) != 1)) + 1
        if len(cuts) > len(rows) // FEW:
            self._gather(self.indptr[at], lengths, counts, indptr[rows])
            return True
        begins, ends = np.r_[0, cuts], np.r_[cuts, len(rows)] - 1
        bounds = (self.indptr[at[begins]], self.indptr[at[ends] + 1], indptr[rows[begins]], indptr[rows[ends] + 1])
        for first, last, begin, end in zip(*(bound.tolist() for bound in bounds), strict=True):
            self.indices[first:last], self.data[first:last] = indices[begin:end], data[begin:end]
        return True

    def _gather(self, into: np.ndarray, lengths: np.ndarray, counts: Counts, of: np.ndarray) -> None:
        """Copy rows from the positions ``of`` to ``into`` at once, which is faster if few of them are neighbours."""
        _, indices, data = counts.numpy()
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        to, source = np.repeat(into, lengths) + within, np.repeat(of, lengths) + within
        self.indices[to], self.data[to] = indices[source], data[source]

    def window(self) -> Window:
        """Return the window once all rows are filled."""
        indptr, indices, data = map(torch.from_numpy, (self.indptr, self.indices, self.data))
        return Window(self.rows, Counts(indptr, indices, data, self.n_genes))


def stretches(rows: np.ndarray, gap: int, longest: int) -> Iterator[slice]:
    """Yield slices of sorted rows that are read together: those with at most ``gap`` other rows in between."""
    if not len(rows):
        return
    ends = np.flatnonzero(np.diff(rows) > gap + 1) + 1
    for start, stop in zip(np.r_[0, ends], np.r_[ends, len(rows)], strict=True):
        at = start
        while at < stop:
            until = min(stop, int(np.searchsorted(rows, rows[at] + longest)))
            yield slice(int(at), until)
            at = until


def window_ends(blocks: Sequence[np.ndarray], sizes: Sequence[int], limit: int) -> list[int]:
    """Cut a sequence of minibatches into windows of at most ``limit`` bytes (at least one minibatch); return where each ends.

    ``blocks`` are the blocks of neighbouring cells that each minibatch reads, ``sizes`` the bytes of its cells. A cut is made where
    few blocks are needed both before it and later than in the next minibatch: these would be read twice. Of equally good ones, that
    with the fewest blocks on both sides is taken, and of these the first that makes a window of an eighth of the limit.
    """
    n = len(blocks)
    last = np.full(1 + max((int(b.max()) for b in blocks if len(b)), default=0), -1, dtype=np.int64)
    first = np.full(len(last), n, dtype=np.int64)
    for i, of_part in enumerate(blocks):
        last[of_part] = i
    for i in range(n - 1, -1, -1):
        first[blocks[i]] = i
    needed = (_open(first, last - 1, n), _open(first, last, n))
    until = np.cumsum(sizes)
    ends, start, before = [], 0, 0
    while start < n:
        stop = max(start + 1, int(np.searchsorted(until, before + limit, side="right")))
        bytes_at = until[start:stop] - before
        best = np.arange(stop - start)
        for shared in needed:
            cost = shared[start:stop][best] / np.maximum(bytes_at[best], 1)
            best = best[cost == cost.min()]
        large = best[bytes_at[best] >= SMALL * limit]
        end = start + 1 + int(large[0] if len(large) else best[-1])
        ends.append(end)
        start, before = end, int(until[end - 1])
    return ends


def _open(first: np.ndarray, last: np.ndarray, n: int) -> np.ndarray:
    """Count, for each of n minibatches, the intervals that begin with it or before and end later, (n,)."""
    some = last > first
    return np.cumsum(np.bincount(first[some], minlength=n) - np.bincount(last[some], minlength=n))
