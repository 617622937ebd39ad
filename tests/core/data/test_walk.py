from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import sparse

from vxpress.core.covariates import Covariates
from vxpress.core.data import Cells, Counts, Source, gene_sums, have_counts, place, walk
from vxpress.core.progress import Stage, watched

MakeCells = Callable[..., Cells]
CPU = torch.device("cpu")


def _of(x: np.ndarray) -> Cells:
    n = len(x)
    return Cells(
        Counts.from_scipy(sparse.csr_matrix(x)),
        torch.zeros(n, 1),
        Covariates(torch.zeros(n, 0, dtype=torch.int64), torch.zeros(n, 0)),
    )


@pytest.mark.parametrize("source", ["resident", "streamed"])
@pytest.mark.parametrize("size", [1, 7, 20, 100])
@pytest.mark.parametrize("dense", [True, False])
def test_a_walk_visits_the_rows_in_order(make_cells: MakeCells, source: str, size: int, dense: bool) -> None:
    cells = make_cells(40)
    rows = torch.randperm(40, generator=torch.Generator().manual_seed(1))[:20]
    x_ng, at = torch.full((20, 20), torch.nan), []
    for part, batch in walk(place(cells, CPU, source), rows, size, dense=dense):
        at.append(len(batch))
        x_ng[part] = batch.x_ng
        assert torch.equal(batch.rows, rows[part])
    assert max(at) == min(size, 20)
    assert torch.equal(x_ng, cells.counts.dense(rows))


def test_a_walk_over_all_cells_reports_its_batches(make_cells: MakeCells) -> None:
    seen: list[Stage] = []

    class Watcher:
        def begin(self, stage: Stage) -> None:
            seen.append(stage)

        def end(self, stage: Stage) -> None:
            assert stage.done == 4

    with watched(Watcher()):
        found = list(walk(make_cells(40), size=12, stage="reading"))
    assert [(part.start, part.stop) for part, _ in found] == [(0, 12), (12, 24), (24, 36), (36, 40)]
    assert [(stage.what, stage.total) for stage in seen] == [("reading", 4)]


def test_a_walk_over_no_cells_ends_at_once(make_cells: MakeCells) -> None:
    assert list(walk(make_cells(4), torch.empty(0, dtype=torch.int64))) == []


def test_gene_sums_count_repeated_rows_once(make_cells: MakeCells) -> None:
    cells = make_cells(60)
    x = cells.counts.dense(torch.arange(60)).double()
    assert torch.equal(gene_sums(cells), x.sum(0))
    rows = torch.tensor([3, 0, 59, 12, 3])
    assert torch.equal(gene_sums(cells, rows), x[[0, 3, 12, 59]].sum(0))
    assert torch.equal(gene_sums(cells, rows[:0]), torch.zeros(20, dtype=torch.float64))


def test_gene_sums_are_exact_beyond_float32() -> None:
    # 2**24 + 1 is the smallest whole number that float32 cannot represent
    assert float(gene_sums(_of(np.array([[2.0**24], [1.0], [1.0]], dtype=np.float32)))) == 2**24 + 2


def test_cells_with_counts_are_found() -> None:
    x = np.zeros((5, 3), dtype=np.float32)
    x[1, 2] = x[4] = 1.0
    assert have_counts(_of(x)).tolist() == [False, True, False, False, True]


def test_statistics_read_batches_of_the_source_alone(make_cells: MakeCells, monkeypatch: pytest.MonkeyPatch) -> None:
    cells, largest = make_cells(2500), 0
    read = Cells.read

    def noted(self: Source, rows: torch.Tensor) -> object:
        nonlocal largest
        largest = max(largest, len(rows))
        return read(self, rows)  # type: ignore[arg-type]

    monkeypatch.setattr(Cells, "read", noted)
    gene_sums(cells)
    have_counts(cells)
    assert largest == 1024
