from __future__ import annotations

import numpy as np
import pytest
from numba import njit

from vxpress.core.kernels.sparse_rows import _gather


@njit
def compiled(at: np.ndarray, values: np.ndarray, table: np.ndarray, out: np.ndarray) -> None:
    _gather(at, values, table, out)


@pytest.mark.parametrize("width", [1, 15, 16, 64, 128, 131, 300])
@pytest.mark.parametrize("n", [0, 1, 37])
def test_weighted_rows_are_added_in_order_to_what_is_there(n: int, width: int) -> None:
    rng = np.random.default_rng(0)
    table, values = rng.normal(size=(50, width)).astype(np.float32), rng.normal(size=n + 2).astype(np.float32)
    at = rng.integers(0, 50, n + 2).astype(np.int32)
    before = rng.normal(size=(3, width)).astype(np.float32)
    out = before.copy()
    # slices that do not begin at the start of their arrays
    compiled(at[1 : n + 1], values[1 : n + 1], table, out[1])
    np.testing.assert_array_equal(out[[0, 2]], before[[0, 2]])
    exact = before[1] + values[1 : n + 1].astype(np.float64) @ table[at[1 : n + 1]].astype(np.float64)
    np.testing.assert_allclose(out[1], exact, rtol=1e-5, atol=1e-5)
