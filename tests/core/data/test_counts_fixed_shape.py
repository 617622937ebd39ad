"""Counts as read on a GPU: all rows padded to the same length."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import nn

from vxpress.core.covariates import indicators
from vxpress.core.data import Counts


def _matrix() -> sparse.csr_matrix:
    rng = np.random.default_rng(5)
    x = rng.poisson(rng.gamma(0.3, 2.0, size=(40, 17))).astype(np.float32)
    x[[0, 13, 39]] = 0.0
    x[7] = np.arange(1, 18)
    return sparse.csr_matrix(x)


@pytest.mark.parametrize(
    "rows", [[0], [7], [0, 13, 39], [5, 5, 0, 5], list(range(40)), list(range(39, -1, -1)), []], ids=str
)
def test_padded_rows_are_the_matrix(rows: list[int]) -> None:
    x, rows_n = _matrix(), torch.tensor(rows, dtype=torch.int64)
    counts = Counts.from_scipy(x)
    np.testing.assert_array_equal(counts.padded_dense(rows_n).numpy(), x.toarray()[rows])
    where, values = counts.padded_entries(rows_n)
    assert where.shape == values.shape == (len(rows) * 17,)
    assert float(values.sum()) == x.toarray()[rows].sum()


@pytest.mark.parametrize("shape", [(4, 3), (1, 1)])
def test_padded_rows_of_a_matrix_without_molecules(shape: tuple[int, int]) -> None:
    counts = Counts.from_scipy(sparse.csr_matrix(shape, dtype=np.float32))
    assert counts.max_row == 0
    np.testing.assert_array_equal(counts.padded_dense(torch.arange(shape[0])).numpy(), np.zeros(shape))


def test_the_longest_row() -> None:
    assert Counts.from_scipy(_matrix()).max_row == 17
    assert Counts.from_scipy(sparse.csr_matrix((0, 3), dtype=np.float32)).max_row == 0


def test_indicators_are_torchs_one_hot() -> None:
    code_n = torch.tensor([3, 0, 4, 4, 1])
    expected = nn.functional.one_hot(code_n, 6).to(torch.float32)
    assert torch.equal(indicators(code_n, 6, torch.float32), expected)
