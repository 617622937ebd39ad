"""Cells whose counts stay where they are stored: a few of them are in memory at a time, the next ones are read ahead."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from vxpress.core.covariates import Covariates
from vxpress.core.data.batch import Batch, Rows
from vxpress.core.data.counts import Counts
from vxpress.core.data.prefetch import prefetched
from vxpress.core.data.resident import Cells
from vxpress.core.data.sampler import ByBlock, Sampler
from vxpress.core.data.source import Source
from vxpress.core.data.windows import ENTRY, Assembly, Window, stretches, window_ends

# bytes of a window: two of them are in memory at a time, and the cells that are kept
WINDOW_BYTES = 256 * 2**20
# a window may be larger than the cells that are shuffled together by this factor
SPARE = 1.25
# unneeded bytes between two cells that are read along, and most bytes that are read at a time
GAP_BYTES, PIECE_BYTES = 2**16, 2**23


class Reader(Protocol):
    """Counts of neighbouring cells, from a file or from elsewhere; every value was checked before.

    ``block`` is the number of neighbouring cells that are read in about the time of one, ``row_bytes`` how many bytes are read
    for a cell on average.
    """

    n_cells: int
    n_genes: int
    block: int
    row_bytes: float

    def read(self, start: int, stop: int) -> Counts:
        """Return the counts of the cells from ``start`` up to ``stop``, on the processor; any thread may call it."""


@runtime_checkable
class ReaderOfSeveral(Reader, Protocol):
    """A reader that can read several places at the same time."""

    def read_each(self, spans: Sequence[tuple[int, int]]) -> Iterator[Counts]:
        """Yield the counts of some spans of cells, each from its first cell to before its last; they increase."""


class _Memory:
    """What is in memory of the counts of a reader: the window that was used last, and the cells that are kept."""

    def __init__(self) -> None:
        self.last: Window | None = None
        self.kept: Window | None = None
        self.lock = threading.Lock()

    def windows(self) -> list[Window]:
        return [window for window in (self.kept, self.last) if window is not None]


class Stored(Source):
    """Counts that a :class:`Reader` reads; ``stored_n`` (n,) are the non-zeros of each cell.

    A sequence of minibatches is cut into windows of at most ``limit`` bytes. While one window is in use, a thread reads the next.
    Rows that the window before already holds are copied from it. By default a training visits cells by blocks
    (:class:`ByBlock`), as many of them at a time as fill a window. ``at`` (n,) are the rows of the reader, by default all.
    ``sums_g`` are the sums of each gene over the cells, if they are known.
    """

    in_memory = False

    def __init__(
        self,
        reader: Reader,
        stored_n: np.ndarray,
        log_library_n1: Tensor,
        covariates: Covariates,
        *,
        at: np.ndarray | None = None,
        sums_g: np.ndarray | None = None,
        limit: int = WINDOW_BYTES,
    ) -> None:
        self.reader, self.stored_n, self.at, self.limit = reader, stored_n, at, limit
        self.log_library_n1, self.covariates = log_library_n1, covariates
        self._sums_g, self._memory = sums_g, _Memory()

    @classmethod
    def of(cls, counts: Counts, log_library_n1: Tensor, covariates: Covariates, device: torch.device) -> Stored:
        """Return a source that reads from memory, in the order and the windows of one that reads from a file."""
        lengths = counts.indptr.diff().numpy()
        return cls(_InMemory(counts), lengths, log_library_n1.to(device), covariates.to(device))

    @property
    def n_genes(self) -> int:
        """Number of genes."""
        return self.reader.n_genes

    @property
    def n_bytes(self) -> int:
        """Memory that all counts would take."""
        return ENTRY * int(self.stored_n.sum(dtype=np.int64))

    @property
    def counted_n(self) -> Tensor:
        return torch.from_numpy(self.stored_n > 0)

    @property
    def sums_g(self) -> Tensor | None:
        return None if self._sums_g is None else torch.from_numpy(self._sums_g.copy()).to(self.device)

    # order

    def sampler(self, rows: Tensor, n_minibatches: int, seed: int) -> Sampler:
        """Return an order by blocks."""
        block, windows = self.reader.block, max(1.0, self.n_bytes / self.limit)
        buffer = max(1, int(self.reader.n_cells / block / windows)) if windows > 1 else self.reader.n_cells
        places = None if self.at is None else torch.from_numpy(self.at)
        return ByBlock(rows, n_minibatches, seed, block=block, buffer=buffer, places=places)

    def keep(self, rows: Tensor) -> None:
        """Keep these cells in memory if they take at most the bytes of a window."""
        wanted = rows.cpu().numpy()
        if ENTRY * int(self.stored_n[wanted].sum(dtype=np.int64)) <= self.limit:
            self._memory.kept = self._load(wanted)

    # reading

    def read(self, rows: Tensor) -> Rows:
        wanted = rows.cpu().numpy()
        window = self._load(wanted)
        self._memory.last = window
        return self._rows(window, wanted)

    def load(self, rows: Tensor | None = None) -> Counts:
        wanted = np.arange(len(self)) if rows is None else rows.cpu().numpy()
        window = self._load(wanted)
        at = window.places(self._positions(wanted))
        if len(at) == len(window.rows) and bool((np.diff(at) == 1).all()):
            return window.counts
        return window.counts.take(torch.from_numpy(at))

    def batches(self, parts: Iterable[Tensor]) -> Iterator[Batch]:
        """Yield minibatches; the next window is read while they are used, and a GPU gets the next one while it computes."""
        if self.device.type == "cpu":
            return self.sparse_batches(parts)
        return self._sent(list(parts))

    def _sent(self, parts: list[Tensor]) -> Iterator[Batch]:
        reads = self._in_windows(parts)
        for rows, counts in prefetched(lambda _: next(reads), parts, self.n_genes, self.device):
            yield Batch(counts, rows, self.log_library_n1[rows], self.covariates[rows])

    def sparse_batches(self, parts: Iterable[Tensor]) -> Iterator[Batch]:
        parts = list(parts)
        for rows, counts in zip(parts, self._in_windows(parts), strict=True):
            yield Batch(counts, rows, self.log_library_n1[rows], self.covariates[rows])

    def _in_windows(self, parts: list[Tensor]) -> Iterator[Rows]:
        """Yield the counts of each part, from windows of which the next one is read ahead."""
        wanted = _on_host(parts)
        blocks = [self._positions(part) // self.reader.block for part in wanted]
        sizes = [ENTRY * int(self.stored_n[part].sum(dtype=np.int64)) for part in wanted]
        ends = window_ends(blocks, sizes, int(SPARE * self.limit))
        ahead: _Ahead | None = None
        start = 0
        try:
            for i, end in enumerate(ends):
                rows = _window_rows(wanted, blocks, start, end)
                window = self._load(rows) if ahead is None else ahead.result()
                self._memory.last, ahead = window, None
                if i + 1 < len(ends):
                    ahead = _Ahead(self, _window_rows(wanted, blocks, end, ends[i + 1]), window)
                for part in wanted[start:end]:
                    yield self._rows(window, part)
                start = end
        finally:
            if ahead is not None:
                ahead.join()

    def _positions(self, rows: np.ndarray) -> np.ndarray:
        return rows if self.at is None else self.at[rows]

    def _rows(self, window: Window, rows: np.ndarray) -> Rows:
        return Rows(torch.from_numpy(window.places(self._positions(rows))), window.counts)

    def _load(self, rows: np.ndarray, before: Window | None = None) -> Window:
        """Return a window that holds these cells; those in memory, or in the window ``before``, are not read."""
        positions, index = np.unique(self._positions(rows), return_index=True)
        near = self._memory.windows() + ([] if before is None else [before])
        for window in near:
            if window.holds(positions).all():
                return window
        assembly = Assembly(positions, self.stored_n[rows[index]], self.n_genes)
        missing = np.ones(len(positions), dtype=bool)
        for window in near:
            found = np.flatnonzero(missing & window.holds(positions))
            if len(found):
                assembly.fill(found, window.counts, window.places(positions[found]))
                missing[found] = False
        with self._memory.lock:
            self._read_into(assembly, np.flatnonzero(missing))
        return assembly.window()

    def _read_into(self, assembly: Assembly, at: np.ndarray) -> None:
        """Read the rows ``at`` of a window, in long stretches."""
        rows, reader = assembly.rows[at], self.reader
        gap, longest = (max(1, int(size / max(1.0, reader.row_bytes))) for size in (GAP_BYTES, PIECE_BYTES))
        places = list(stretches(rows, gap, max(longest, reader.block)))
        spans = [(int(rows[part.start]), int(rows[part.stop - 1]) + 1) for part in places]
        for part, (start, stop), counts in zip(places, spans, _each(reader, spans), strict=True):
            if len(counts) != stop - start or not assembly.fill(at[part], counts, rows[part] - start):
                msg = (
                    f"The counts of the cells {start} to {stop - 1} are not those that were read before: the data were changed in the "
                    "meantime. Start again, and let nothing else write to them."
                )
                raise RuntimeError(msg)

    # parts

    def take(self, rows: Tensor) -> Source:
        """Return some of the cells, in memory if they take at most a quarter of a window."""
        wanted = rows.cpu().numpy()
        if ENTRY * int(self.stored_n[wanted].sum(dtype=np.int64)) <= self.limit // 4:
            return Cells(self.load(rows), self.log_library_n1[rows], self.covariates[rows]).to(self.device)
        taken = self.with_library(self.log_library_n1[rows]).with_covariates(self.covariates[rows])
        taken._sums_g = None
        taken.stored_n, taken.at = self.stored_n[wanted], self._positions(wanted)
        return taken


class _Ahead(threading.Thread):
    """A thread that loads one window."""

    def __init__(self, source: Stored, rows: np.ndarray, before: Window) -> None:
        super().__init__(name="vxpress-reader", daemon=True)
        self._source, self._wanted, self._before = source, rows, before
        self._found: Window | None = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._found = self._source._load(self._wanted, self._before)
        except BaseException as error:  # noqa: BLE001 - raised where the window is needed
            self._error = error

    def result(self) -> Window:
        """Wait for the window; an error of the thread is raised here."""
        self.join()
        if self._error is not None:
            raise self._error
        assert self._found is not None  # noqa: S101 - there was no error
        return self._found


class _InMemory:
    """A reader of counts in memory."""

    def __init__(self, counts: Counts) -> None:
        self.counts = counts
        self.n_cells, self.n_genes = len(counts), counts.n_genes
        self.block, self.row_bytes = 128, ENTRY * len(counts.data) / max(1, len(counts))

    def read(self, start: int, stop: int) -> Counts:
        first, last = int(self.counts.indptr[start]), int(self.counts.indptr[stop])
        indptr = self.counts.indptr[start : stop + 1] - first
        return Counts(indptr, self.counts.indices[first:last], self.counts.data[first:last], self.n_genes)


def _each(reader: Reader, spans: Sequence[tuple[int, int]]) -> Iterator[Counts]:
    if isinstance(reader, ReaderOfSeveral):
        return reader.read_each(spans)
    return (reader.read(start, stop) for start, stop in spans)


def _on_host(parts: list[Tensor]) -> list[np.ndarray]:
    """Return row numbers as arrays; each copy from a device waits for it, so there is only one."""
    if not parts or parts[0].device.type == "cpu":
        return [part.numpy() for part in parts]
    return [part.numpy() for part in torch.cat(parts).cpu().split([len(part) for part in parts])]


def _window_rows(parts: list[np.ndarray], blocks: list[np.ndarray], start: int, end: int) -> np.ndarray:
    """Return the rows of a window: its minibatches, and those of the next one that are in the same blocks."""
    rows = parts[start:end]
    if end < len(parts):
        rows = [*rows, parts[end][np.isin(blocks[end], np.concatenate(blocks[start:end]))]]
    return np.concatenate(rows)
