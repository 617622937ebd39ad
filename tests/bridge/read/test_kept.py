"""Counts on disk are read once and the blocks kept: the same numbers, up to a budget of memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import sparse

from vxpress.bridge.read import kept
from vxpress.bridge.read.kept import Blocks, Packed
from vxpress.pp import _residuals
from vxpress.pp._residuals import Moments, residual_moments


class OnDisk:
    """A matrix that counts how often each row is read; ``chunks`` says that it is no matrix in memory."""

    chunks = (1, 1)

    def __init__(self, matrix: sparse.csr_matrix) -> None:
        self.matrix, self.shape, self.dtype = matrix, matrix.shape, matrix.dtype
        self.times_n = np.zeros(matrix.shape[0], dtype=int)

    def __getitem__(self, rows: slice) -> sparse.csr_matrix:
        self.times_n[rows] += 1
        return self.matrix[rows]


def counts(dtype: Any = np.float32, largest: int = 7) -> sparse.csr_matrix:
    rng = np.random.default_rng(0)
    x = rng.poisson(0.4, (100, 300))
    x[rng.integers(100, size=5), rng.integers(300, size=5)] = largest
    return sparse.csr_matrix(x.astype(dtype))


def moments(matrix: Any) -> Moments:
    codes = np.arange(100) % 3
    return residual_moments(matrix, codes, 3, theta=100.0, min_cells=3, check=lambda block: None)


def assert_same(left: Moments, right: Moments) -> None:
    for name, values in vars(left).items():
        np.testing.assert_array_equal(values, getattr(right, name), err_msg=name)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_residuals, "READ_ENTRIES", 300 * 8)


@pytest.mark.parametrize("largest", [7, 300, 70_000, 2**24])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint16])
def test_each_row_is_read_once_with_the_numbers_of_memory(dtype: Any, largest: int) -> None:
    x = counts(dtype, min(largest, 60_000) if dtype is np.uint16 else largest)
    stored = OnDisk(x)
    assert_same(moments(stored), moments(x))
    np.testing.assert_array_equal(stored.times_n, 1)


@pytest.mark.parametrize("budget", [0, 4_000])
def test_rows_beyond_the_budget_are_read_again(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "KEPT_BYTES", budget)
    x = counts()
    stored = OnDisk(x)
    assert_same(moments(stored), moments(x))
    assert set(stored.times_n) == ({2} if budget == 0 else {1, 2})
    # those which are kept are the first ones
    assert (np.diff(stored.times_n) >= 0).all()


def test_kept_blocks_are_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "KEPT_BYTES", 4_000)
    blocks = Blocks(OnDisk(counts()), n_rows=8)
    assert len(list(blocks.over(lambda block: block.nnz, what="x"))) == 13
    assert 0 < sum(packed.n_bytes for _, packed in blocks.kept) <= 4_000
    memory = Blocks(counts(), n_rows=8)
    list(memory.over(lambda block: block.nnz, what="x"))
    assert memory.kept == []


@pytest.mark.parametrize("budget", [0, 4_000, 2**30])
def test_chunks_of_dask_are_computed_once(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    da = pytest.importorskip("dask.array")
    monkeypatch.setattr(kept, "KEPT_BYTES", budget)
    # several batches of chunks
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    x = counts()
    stored = OnDisk(x)

    def chunk(block_info: Any = None) -> sparse.csr_matrix:
        (start, stop), _ = block_info[None]["array-location"]
        return stored[start:stop]

    matrix = da.map_blocks(chunk, chunks=((8,) * 12 + (4,), (300,)), dtype=x.dtype, meta=x[:0])
    assert_same(moments(matrix), moments(x))
    assert set(stored.times_n) == {0: {2}, 4_000: {1, 2}, 2**30: {1}}[budget]


@pytest.mark.parametrize(
    ("data", "stored"),
    [
        ([1.0, 255.0], np.uint8),
        ([1.0, 256.0], np.uint16),
        ([1.0, 65_536.0], np.uint32),
        ([1.0, 0.5], np.float64),
        ([1.0, -1.0], np.float64),
        ([1.0, np.nan], np.float64),
        ([1.0, 2.0**33], np.float64),
    ],
)
@pytest.mark.parametrize(("n_genes", "index"), [(256, np.uint8), (257, np.uint16), (65_537, np.uint32)])
def test_a_packed_block_is_small_and_unpacked_equal(data: list[float], stored: Any, n_genes: int, index: Any) -> None:
    block = sparse.csr_matrix((np.array(data), ([0, 2], [0, n_genes - 1])), shape=(3, n_genes))
    packed = Packed(block)
    assert (packed.data.dtype, packed.indices.dtype) == (stored, index)
    assert packed.n_bytes == block.indptr.nbytes + 2 * (np.dtype(stored).itemsize + np.dtype(index).itemsize)
    found = packed.block()
    for name in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(found, name), getattr(block, name))
        assert getattr(found, name).dtype == getattr(block, name).dtype


def test_a_block_without_counts() -> None:
    assert Packed(sparse.csr_matrix((4, 10))).block().shape == (4, 10)
