"""Counts that are read by windows: the same cells as in memory, read once, and never more than a few of them in memory."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch

from vxpress.core.data import Cells, Counts, Stored, gene_sums, walk
from vxpress.core.data.windows import ENTRY

MakeCells = Callable[..., Cells]
CPU = torch.device("cpu")
N = 600


class Recorded:
    """A reader of counts in memory that notes what is read."""

    def __init__(self, cells: Cells, block: int = 10) -> None:
        self.counts, self.n_cells, self.n_genes = cells.counts, len(cells), cells.n_genes
        # so large that no cells between two others are read along
        self.block, self.row_bytes = block, 1e6
        self.read_rows: list[tuple[int, int]] = []
        self.threads: set[str] = set()
        self.fails_at: int | None = None

    def read(self, start: int, stop: int) -> Counts:
        if self.fails_at is not None and start <= self.fails_at < stop:
            msg = "the disk is gone"
            raise RuntimeError(msg)
        self.read_rows.append((start, stop))
        self.threads.add(threading.current_thread().name)
        return self.counts.take(torch.arange(start, stop))

    def times_read(self) -> np.ndarray:
        """Return how often each cell was read."""
        times = np.zeros(self.n_cells, dtype=int)
        for start, stop in self.read_rows:
            times[start:stop] += 1
        return times


@pytest.fixture
def cells(make_cells: MakeCells) -> Cells:
    return make_cells(N)


def _stored(cells: Cells, *, n_windows: int = 6, block: int = 10, at: np.ndarray | None = None) -> Stored:
    """Return a source of which ``n_windows`` windows hold all cells."""
    lengths = cells.counts.indptr.diff().numpy()
    log_library_n1, covariates = cells.log_library_n1, cells.covariates
    if at is not None:
        lengths, log_library_n1, covariates = lengths[at], log_library_n1[at], covariates[torch.from_numpy(at)]
    limit = ENTRY * len(cells.counts.data) // n_windows
    return Stored(Recorded(cells, block), lengths, log_library_n1, covariates, at=at, limit=limit)


def _reader(source: Stored) -> Recorded:
    assert isinstance(source.reader, Recorded)
    return source.reader


def test_an_epoch_gives_the_counts_of_its_cells_and_reads_each_once(cells: Cells) -> None:
    source = _stored(cells)
    parts = source.sampler(torch.arange(N), 25, 0).epoch()
    for part, batch in zip(parts, source.batches(parts), strict=True):
        expected = cells.batch(part)
        assert torch.equal(batch.x_ng, expected.x_ng)
        assert torch.equal(batch.log_library_n1, expected.log_library_n1)
        assert torch.equal(batch.rows, part)
    assert (_reader(source).times_read() == 1).all()
    # all but the first window were read ahead
    assert _reader(source).threads == {"MainThread", "vxpress-reader"}


@pytest.mark.parametrize("dense", [False, True])
def test_a_walk_reads_each_cell_once_in_long_stretches(cells: Cells, dense: bool) -> None:
    source = _stored(cells)
    x_ng = torch.cat([batch.counts.dense().clone() for _, batch in walk(source, size=7, dense=dense)])
    assert torch.equal(x_ng, cells.batch(torch.arange(N)).x_ng)
    assert (_reader(source).times_read() == 1).all()
    assert len(_reader(source).read_rows) < N / 7


def test_any_order_of_cells_may_be_read(cells: Cells) -> None:
    source = _stored(cells)
    parts = list(torch.randint(N, (400,), generator=torch.Generator().manual_seed(0)).split(30))
    for part, batch in zip(parts, source.batches(parts), strict=True):
        assert torch.equal(batch.x_ng, cells.batch(part).x_ng)
    repeated = torch.tensor([7, 7, 0])
    assert torch.equal(source.batch(repeated).x_ng, cells.batch(repeated).x_ng)
    assert torch.equal(gene_sums(source), gene_sums(cells))


def test_minibatches_that_are_sent_ahead_are_the_same(cells: Cells) -> None:
    # what a GPU gets; on the processor nothing is sent
    source = _stored(cells)
    parts = list(source.sampler(torch.arange(N), 25, 0).epoch())
    for part, batch in zip(parts, source._sent(parts), strict=True):
        assert torch.equal(batch.x_ng, cells.batch(part).x_ng)
        assert torch.equal(torch.stack(batch.entries()), torch.stack(cells.batch(part).entries()))
    assert (_reader(source).times_read() == 1).all()


def test_kept_cells_are_read_once_and_more_than_a_window_are_not_kept(cells: Cells) -> None:
    source, kept = _stored(cells), torch.arange(0, N, 10)
    source.keep(kept)
    before = len(_reader(source).read_rows)
    for _ in range(3):
        for part, batch in walk(source, kept, 16):
            assert torch.equal(batch.x_ng, cells.batch(kept[part]).x_ng)
    assert len(_reader(source).read_rows) == before
    other = _stored(cells)
    other.keep(torch.arange(0, N, 2))
    assert _reader(other).read_rows == []


def test_cells_that_fit_in_a_window_are_read_once_for_all_epochs(cells: Cells) -> None:
    source = _stored(cells, n_windows=1)
    sampler = source.sampler(torch.arange(N), 25, 0)
    for _ in range(3):
        for batch in source.batches(sampler.epoch()):
            len(batch)
    assert (_reader(source).times_read() == 1).all()


def test_few_windows_are_in_memory(cells: Cells) -> None:
    source, entries = _stored(cells, n_windows=10), []
    # of other tests, held here so that their places in memory are not used again
    others = [c for c in gc.get_objects() if type(c) is Counts]
    for i, batch in enumerate(source.batches(source.sampler(torch.arange(N), 60, 0).epoch())):
        len(batch)
        if i % 10 != 3:
            continue
        # the class of an object may be one that warns, so it is not asked for itself
        known = set(map(id, others))
        matrices = {id(c): c for c in gc.get_objects() if type(c) is Counts and id(c) not in known}
        entries.append(sum(len(c.data) for c in matrices.values()))
        del matrices
    # the one in use and the next, each at most a quarter larger than the limit
    assert max(entries) <= 2.6 * len(cells.counts.data) / 10


@pytest.mark.parametrize("n_windows", [1, 6, N])
def test_parts_are_in_memory_if_they_are_small(cells: Cells, n_windows: int) -> None:
    source, rows = _stored(cells, n_windows=n_windows), torch.tensor([5, 3, 3, 599])
    taken = source.take(rows)
    assert isinstance(taken, Stored) == (n_windows == N)
    assert torch.equal(taken.batch(torch.arange(4)).x_ng, cells.batch(rows).x_ng)
    assert torch.equal(taken.take(torch.tensor([3, 0])).load().dense(torch.arange(2)), cells.batch(rows[[3, 0]]).x_ng)
    assert torch.equal(taken.load().dense(torch.arange(4)), cells.batch(rows).x_ng)
    assert torch.equal(taken.log_library_n1, cells.log_library_n1[rows])


def test_rows_of_the_reader_may_be_chosen(cells: Cells) -> None:
    at = np.random.default_rng(0).permutation(N)[:200]
    source = _stored(cells, at=at)
    for part, batch in walk(source, size=9):
        assert torch.equal(batch.x_ng, cells.batch(torch.from_numpy(at[part])).x_ng)


def test_blocks_are_those_of_the_reader_if_rows_are_chosen(cells: Cells) -> None:
    source = _stored(cells, at=np.random.default_rng(0).permutation(N))
    parts = source.sampler(torch.arange(N), 25, 0).epoch()
    for part, batch in zip(parts, source.batches(parts), strict=True):
        assert source.at is not None
        assert torch.equal(batch.x_ng, cells.batch(torch.from_numpy(source.at[part.numpy()])).x_ng)
    assert (_reader(source).times_read() == 1).all()
    assert len(_reader(source).read_rows) <= N / 10


def test_other_covariates_share_what_was_read(cells: Cells) -> None:
    source = _stored(cells, n_windows=1)
    source.batch(torch.arange(N))
    before = len(_reader(source).read_rows)
    source.with_library(source.log_library_n1 + 1).batch(torch.arange(3))
    assert len(_reader(source).read_rows) == before


def test_sums_that_are_known_are_not_read_again(cells: Cells) -> None:
    source = _stored(cells)
    source._sums_g = gene_sums(cells).numpy()
    most = torch.arange(40, N)
    assert torch.equal(gene_sums(source), gene_sums(cells))
    assert torch.equal(gene_sums(source, most), gene_sums(cells, most))
    # those of the few other cells were subtracted
    assert _reader(source).times_read()[:40].tolist() == [1] * 40
    assert _reader(source).times_read()[40:].sum() == 0
    few = torch.tensor([3, 3, 9])
    assert torch.equal(gene_sums(source, few), gene_sums(cells, few))
    assert torch.equal(gene_sums(source.take(most), few), gene_sums(cells, most[few]))


def test_an_error_of_the_reader_is_raised_where_the_cells_are_needed(cells: Cells) -> None:
    source = _stored(cells)
    _reader(source).fails_at = 500
    batches = source.batches(list(torch.arange(N).split(10)))
    for _ in range(30):
        next(batches)
    with pytest.raises(RuntimeError, match="the disk is gone"):
        list(batches)


def test_counts_that_changed_since_they_were_checked_are_an_error(cells: Cells) -> None:
    source = _stored(cells)
    source.stored_n = source.stored_n.copy()
    source.stored_n[321] += 1
    with pytest.raises(RuntimeError, match="the data were changed in the meantime"):
        gene_sums(source)


def test_no_thread_is_left_behind_by_an_epoch_that_ends_early(cells: Cells) -> None:
    source = _stored(cells)
    batches = source.batches(list(torch.arange(N).split(10)))
    next(iter(batches))
    del batches
    gc.collect()
    assert not any(thread.name == "vxpress-reader" for thread in threading.enumerate())
