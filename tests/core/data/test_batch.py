from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy import sparse

from vxpress.core.covariates import Covariates
from vxpress.core.data import Batch, Cells, Counts, Rows

MakeCells = Callable[..., Cells]


def test_a_batch_keeps_counts_library_and_covariates_together(make_cells: MakeCells) -> None:
    n = torch.arange(60)
    cells = Cells(make_cells(60).counts, n[:, None] * 1.0, Covariates(n[:, None], n[:, None] / 10, n * 2))
    assert len(cells) == 60
    rows = torch.tensor([41, 2, 2])
    batch = cells.batch(rows)
    assert len(batch) == 3
    assert torch.equal(batch.x_ng, cells.counts.dense(n)[rows])
    assert batch.log_library_n1[:, 0].tolist() == [41.0, 2.0, 2.0]
    assert batch.covariates.categorical_nk[:, 0].tolist() == [41, 2, 2]
    assert batch.covariates.continuous_nc[:, 0].tolist() == pytest.approx([4.1, 0.2, 0.2])
    assert batch.covariates.label_n is not None
    assert batch.covariates.label_n.tolist() == [82, 4, 4]


@pytest.mark.parametrize("assembled", [False, True])
def test_a_repeated_batch_is_that_of_repeated_rows(make_cells: MakeCells, assembled: bool) -> None:
    cells, rows = make_cells(30, n_batches=2), torch.tensor([4, 29, 4, 0])
    batch = cells.assembled(rows, cells.batch(rows).x_ng) if assembled else cells.batch(rows)
    mine, expected = batch.repeated(3), cells.batch(rows.repeat(3))
    assert torch.equal(mine.rows, expected.rows)
    assert torch.equal(mine.x_ng, expected.x_ng)
    assert torch.equal(mine.counts.dense(), expected.x_ng)
    assert torch.equal(mine.log_library_n1, expected.log_library_n1)
    assert torch.equal(mine.covariates.categorical_nk, expected.covariates.categorical_nk)
    assert batch.repeated(1) is batch


def test_repeating_copies_no_matrix_and_gathers_once(make_cells: MakeCells, monkeypatch: pytest.MonkeyPatch) -> None:
    cells, gathered, dense = make_cells(30), [], Counts.dense

    def noted(self: Counts, rows: torch.Tensor, *others: Any) -> torch.Tensor:
        gathered.append(len(rows))
        return dense(self, rows, *others)

    monkeypatch.setattr(Counts, "dense", noted)
    batch = cells.batch(torch.arange(5))
    first, second = batch.repeated(2), batch.repeated(3)
    assert first.counts.matrix is second.counts.matrix is cells.counts
    assert len(first.x_ng) == 10
    assert len(second.x_ng) == 15
    assert gathered == [5]


def test_dense_counts_alone_will_do(make_cells: MakeCells) -> None:
    cells, rows = make_cells(30), torch.tensor([9, 3, 9])
    cells.counts.data[int(cells.counts.indptr[3]) : int(cells.counts.indptr[4])] = 0.0
    expected = cells.batch(rows)
    counts = Rows(rows, None, expected.x_ng)
    assert counts.n_genes == 20
    assert counts.n_stored().tolist() == [int((x > 0).sum()) for x in expected.x_ng]
    where, values = counts.entries()
    x_ng = torch.zeros(60)
    x_ng[where] = values
    assert torch.equal(x_ng.view(3, 20), expected.x_ng)
    out = torch.ones(3, 20)
    counts.dense(out)
    assert torch.equal(out, expected.x_ng)
    assert counts.stored[1].indices.dtype == cells.counts.indices.dtype


def test_a_batch_may_own_a_small_matrix_with_its_rows_in_any_order(make_cells: MakeCells) -> None:
    cells, rows = make_cells(30), torch.tensor([9, 3, 9])
    own = Counts.from_scipy(sparse.csr_matrix(cells.counts.dense(torch.tensor([3, 9])).numpy()))
    counts = Rows(torch.tensor([1, 0, 1]), own)
    batch = Batch(counts, rows, cells.log_library_n1[rows], cells.covariates[rows])
    expected = cells.batch(rows)
    assert torch.equal(batch.x_ng, expected.x_ng)
    assert torch.equal(counts.n_stored(), expected.counts.n_stored())
    for a, b in zip(batch.entries(), expected.entries(), strict=True):
        assert torch.equal(a, b)
