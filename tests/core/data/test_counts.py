from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

from vxpress.core.covariates import Covariates
from vxpress.core.data import Cells, Counts


def _matrix(n: int = 60, g: int = 17) -> sparse.csr_matrix:
    rng = np.random.default_rng(3)
    x = rng.poisson(0.4, (n, g)).astype(np.float32)
    x[::7] = 0  # cells without molecules: the first one and others
    x[30:33] = 0
    x[:, 5] = 0
    return sparse.csr_matrix(x)


@pytest.mark.parametrize(
    "rows",
    [[0], [4], [0, 7, 14], [30, 31, 32, 29], [5, 5, 0, 5], [59, 0, 58], list(range(60)), list(range(59, -1, -1)), []],
    ids=["empty row", "one row", "empty rows", "run", "repeated", "ends", "all", "reversed", "none"],
)
def test_dense_is_the_matrix(rows: list[int]) -> None:
    x = _matrix()
    dense = Counts.from_scipy(x).dense(torch.tensor(rows, dtype=torch.int64))
    np.testing.assert_array_equal(dense.numpy(), x.toarray()[rows])
    assert dense.dtype == torch.float32


def test_random_rows() -> None:
    rng, x = np.random.default_rng(0), _matrix()
    counts = Counts.from_scipy(x)
    for _ in range(20):
        rows = rng.integers(0, 60, rng.integers(1, 90))
        np.testing.assert_array_equal(counts.dense(torch.from_numpy(rows)).numpy(), x.toarray()[rows])


@pytest.mark.parametrize("shape", [(4, 3), (0, 3), (1, 1)])
def test_a_matrix_without_molecules(shape: tuple[int, int]) -> None:
    counts = Counts.from_scipy(sparse.csr_matrix(shape, dtype=np.float32))
    assert len(counts) == shape[0]
    np.testing.assert_array_equal(counts.dense(torch.arange(shape[0])).numpy(), np.zeros(shape))
    np.testing.assert_array_equal(counts.gene_sums().numpy(), np.zeros(shape[1]))


@pytest.mark.parametrize("dtype", [np.int64, np.float64, np.uint16])
def test_from_scipy_takes_other_dtypes_and_csr_arrays(dtype: type) -> None:
    x = sparse.csr_array(_matrix().astype(dtype))
    np.testing.assert_array_equal(Counts.from_scipy(x).dense(torch.arange(60)).numpy(), x.toarray())


def test_gene_sums() -> None:
    x = _matrix()
    counts = Counts.from_scipy(x)
    np.testing.assert_array_equal(counts.gene_sums().numpy(), x.toarray().sum(0))
    rows = torch.tensor([3, 0, 59, 12])
    np.testing.assert_array_equal(counts.gene_sums(rows).numpy(), x.toarray()[rows].sum(0))


def test_gene_sums_are_exact_beyond_float32() -> None:
    # 2**24 + 1 is the smallest whole number that float32 cannot represent
    x = sparse.csr_matrix(np.array([[2.0**24], [1.0], [1.0]], dtype=np.float32))
    assert float(Counts.from_scipy(x).gene_sums()) == 2**24 + 2


def test_a_batch_keeps_counts_library_and_covariates_together() -> None:
    x = _matrix()
    covariates = Covariates(torch.arange(60)[:, None], torch.arange(60.0)[:, None] / 10, torch.arange(60) * 2)
    cells = Cells(Counts.from_scipy(x), torch.arange(60.0)[:, None], covariates)
    assert len(cells) == 60
    rows = torch.tensor([41, 2, 2])
    batch = cells.batch(rows)
    np.testing.assert_array_equal(batch.x_ng.numpy(), x.toarray()[rows])
    assert batch.log_library_n1[:, 0].tolist() == [41.0, 2.0, 2.0]
    assert batch.covariates.categorical_nk[:, 0].tolist() == [41, 2, 2]
    assert batch.covariates.continuous_nc[:, 0].tolist() == pytest.approx([4.1, 0.2, 0.2])
    assert batch.covariates.label_n is not None
    assert batch.covariates.label_n.tolist() == [82, 4, 4]


def test_entries_are_the_non_zeros_at_their_flat_positions() -> None:
    x, rows = _matrix(), torch.tensor([4, 0, 4, 30, 59, 8])
    where, values = Counts.from_scipy(x).entries(rows)
    flat = x.toarray()[rows].ravel()
    np.testing.assert_array_equal(where.numpy(), np.flatnonzero(flat))
    np.testing.assert_array_equal(values.numpy(), flat[where])
