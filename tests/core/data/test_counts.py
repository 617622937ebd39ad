from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

from vxpress.core.data import Counts


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


@pytest.mark.parametrize("dtype", [np.int64, np.float64, np.uint16])
def test_from_scipy_takes_other_dtypes_and_csr_arrays(dtype: type) -> None:
    x = sparse.csr_array(_matrix().astype(dtype))
    np.testing.assert_array_equal(Counts.from_scipy(x).dense(torch.arange(60)).numpy(), x.toarray())


def test_entries_are_the_non_zeros_at_their_flat_positions() -> None:
    x, rows = _matrix(), torch.tensor([4, 0, 4, 30, 59, 8])
    where, values = Counts.from_scipy(x).entries(rows)
    flat = x.toarray()[rows].ravel()
    np.testing.assert_array_equal(where.numpy(), np.flatnonzero(flat))
    np.testing.assert_array_equal(values.numpy(), flat[where])


def test_sums_of_genes_are_exact_and_move_with_the_counts() -> None:
    x = np.full((3, 2), 2.0**23 + 1, dtype=np.float32)
    counts = Counts.from_scipy(sparse.csr_matrix(x))
    assert counts.sums_g.tolist() == [3 * 2**23 + 3] * 2
    assert counts.sums_g.dtype == torch.float64
    assert counts.to(torch.device("cpu")) is counts
    assert Counts.from_scipy(sparse.csr_matrix((0, 2), dtype=np.float32)).sums_g.tolist() == [0.0, 0.0]
