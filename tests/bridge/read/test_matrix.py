from __future__ import annotations

import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch
from scipy import sparse

from vxpress.bridge.read import panels
from vxpress.bridge.read.counts import read_counts
from vxpress.bridge.read.matrix import MAX_COUNT, canonical, check_counts, row_blocks
from vxpress.core.covariates import Covariates
from vxpress.core.data.counts import PART

X = np.random.default_rng(0).poisson(0.7, (23, 11)).astype(np.float32)
KINDS = {
    "dense": lambda x: x,
    "fortran": np.asfortranarray,
    "csr": sparse.csr_matrix,
    "csc": sparse.csc_matrix,
    "csr_array": sparse.csr_array,
    "csc_array": sparse.csc_array,
    "int64": lambda x: sparse.csr_matrix(x.astype(np.int64)),
    "uint8": lambda x: x.astype(np.uint8),
    "float64": lambda x: x.astype(np.float64),
    "float16": lambda x: x.astype(np.float16),
    "bool": lambda x: x > 0,
}


def _array(counts: object) -> np.ndarray:
    assert isinstance(counts, sparse.csr_matrix)
    return np.asarray(counts.toarray())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_rows", [1, 4, 100])
def test_blocks_concatenate_to_the_matrix(kind: str, n_rows: int) -> None:
    matrix = KINDS[kind](X)
    joined = np.concatenate([block.toarray() for _, block in row_blocks(matrix, n_rows)])
    np.testing.assert_array_equal(joined, (X > 0) if kind == "bool" else X)


@pytest.mark.parametrize("kind", KINDS)
def test_counts_of_a_subset_of_genes(kind: str) -> None:
    modelled = np.arange(11) % 2 == 0
    counts = read_counts(ad.AnnData(KINDS[kind](X)), None, modelled)
    expected = (X > 0).astype(np.float32) if kind == "bool" else X
    assert counts.outside is not None
    np.testing.assert_array_equal(_array(counts.inside), expected[:, modelled])
    np.testing.assert_array_equal(_array(counts.outside), expected[:, ~modelled])
    np.testing.assert_array_equal(counts.inside_n, expected[:, modelled].sum(1))
    np.testing.assert_array_equal(counts.total_n, expected.sum(1))


@pytest.mark.parametrize("kind", ["csr", "csc", "dense"])
def test_backed_reads_as_in_memory(tmp_path: Path, kind: str) -> None:
    ad.AnnData(KINDS[kind](X)).write_h5ad(tmp_path / "x.h5ad")
    backed = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")
    modelled = np.arange(11) < 7
    counts = read_counts(backed, None, modelled)
    np.testing.assert_array_equal(_array(counts.inside), X[:, modelled])
    np.testing.assert_array_equal(counts.total_n, X.sum(1))
    backed.file.close()


def test_unsorted_and_duplicate_entries_are_added_on_a_copy() -> None:
    data, indices, indptr = np.array([1.0, 2.0, 3.0]), np.array([2, 0, 2]), np.array([0, 3])
    matrix = sparse.csr_matrix((data, indices, indptr), shape=(1, 3))
    np.testing.assert_array_equal(canonical(matrix).toarray(), [[2, 0, 4]])
    np.testing.assert_array_equal(matrix.indices, [2, 0, 2])
    np.testing.assert_array_equal(matrix.data, [1, 2, 3])


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16])
def test_duplicates_of_small_types_do_not_overflow(dtype: type[np.integer]) -> None:
    data, indices, indptr = np.array([100, 100, 100], dtype=dtype), np.array([1, 1, 1]), np.array([0, 3])
    row = sparse.csr_matrix((1, 3), dtype=dtype)
    row.data, row.indices, row.indptr = data, indices, indptr
    np.testing.assert_array_equal(canonical(row).toarray(), [[0, 300, 0]])


def test_counts_of_the_right_type_are_not_copied() -> None:
    from vxpress.core.data import Counts

    matrix = sparse.csr_matrix(X)
    counts = read_counts(ad.AnnData(matrix), None, np.ones(11, dtype=bool))
    held = Counts.from_scipy(counts.inside)
    assert np.shares_memory(held.data.numpy(), matrix.data)


def test_genes_are_selected_in_the_requested_order() -> None:
    order = np.array([5, 0, 9])
    counts = read_counts(ad.AnnData(sparse.csr_matrix(X)), None, np.ones(3, dtype=bool), order)
    np.testing.assert_array_equal(_array(counts.inside), X[:, order])


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (0.5, "not whole numbers"),
        (-1.0, "negative"),
        (np.nan, "NaN or infinite"),
        (np.inf, "NaN or infinite"),
        (MAX_COUNT + 2.0, "2\\^24"),
    ],
)
def test_one_bad_value_anywhere_is_found(value: float, match: str) -> None:
    x = X.astype(np.float64)
    x[-1, -1] = value
    with pytest.raises(ValueError, match=match):
        check_counts(sparse.csr_matrix(x), "adata.X")


def test_the_largest_count_is_accepted() -> None:
    check_counts(sparse.csr_matrix(np.array([[float(MAX_COUNT), 0.0]])), "adata.X")


def test_complex_and_text_are_refused() -> None:
    with pytest.raises(ValueError, match="real numbers"):
        canonical(np.array([["a"]]))
    with pytest.raises(ValueError, match="real numbers"):
        canonical(np.array([[1j]]))


def _log_values() -> ad.AnnData:
    adata = ad.AnnData(sparse.csr_matrix(np.log1p(X)))
    adata.raw = ad.AnnData(sparse.csr_matrix(X))
    return adata


def test_the_error_names_other_places_with_counts() -> None:
    adata, everything = _log_values(), np.ones(11, dtype=bool)
    with pytest.raises(ValueError, match=r"adata\.raw\.to_adata\(\)"):
        read_counts(adata, None, everything)
    adata.layers["counts"] = X
    with pytest.raises(ValueError, match=r"pass layer='counts'\.$"):
        read_counts(adata, None, everything)
    adata.X = X - X.mean(0)
    with pytest.raises(ValueError, match=r"negative.*pass layer='counts'\.$"):
        read_counts(adata, None, everything)
    adata.layers["counts"] = adata.layers["counts"] / 3
    adata.raw = ad.AnnData(np.log1p(X))
    with pytest.raises(ValueError, match=r"name the layer with raw counts\.$"):
        read_counts(adata, None, everything)


def test_counts_in_raw_are_named_where_a_layer_is_asked_for() -> None:
    with pytest.raises(KeyError, match=r"layer='raw' is not in adata\.layers.*adata\.raw\.to_adata\(\)"):
        read_counts(_log_values(), "raw", np.ones(11, dtype=bool))


def test_corrected_counts_can_be_rounded_as_the_message_says() -> None:
    adata = ad.AnnData(sparse.csr_matrix(0.93 * X))
    with pytest.raises(ValueError, match=r"ambient RNA.*adata\.X = np\.rint\(adata\.X\)"):
        read_counts(adata, None, np.ones(11, dtype=bool))
    adata.X = np.rint(adata.X)
    np.testing.assert_array_equal(_array(read_counts(adata, None, np.ones(11, dtype=bool)).inside), np.rint(0.93 * X))


def test_the_layer_of_the_message_holds_the_counts() -> None:
    adata = _log_values()
    adata.layers["counts"] = adata.raw[:, adata.var_names].X
    np.testing.assert_array_equal(_array(read_counts(adata, "counts", np.ones(11, dtype=bool)).inside), X)


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array])
def test_rounding_errors_are_shown_and_the_suggested_call_removes_them(kind: Callable) -> None:
    x = X.astype(np.float64)
    size = x.sum(1, keepdims=True)
    back = np.expm1(np.log1p(x / size * 1e4)) * size / 1e4
    assert 0 < abs(back - x).max() < 1e-6
    adata = ad.AnnData(kind(back))
    with pytest.raises(ValueError, match="rounding errors") as error:
        read_counts(adata, None, np.ones(11, dtype=bool))
    shown, call = re.search(r"for example ([^)]*)\).*Round them: (.*)\.$", str(error.value)).groups()  # type: ignore[union-attr]
    assert float(shown) in back
    assert float(shown) != round(float(shown))
    exec(call, {"adata": adata, "np": np})
    np.testing.assert_array_equal(_array(read_counts(adata, None, np.ones(11, dtype=bool)).inside), X)


def test_fractions_are_no_rounding_errors() -> None:
    with pytest.raises(ValueError, match=r"normalised.*"):
        check_counts(sparse.csr_matrix(np.array([[1.0, 2.0000001, 3.25]])), "adata.X")


@pytest.mark.parametrize("layer", [None, "count"])
def test_a_missing_matrix_names_the_layer_that_holds_counts(layer: str | None) -> None:
    adata = ad.AnnData(X, layers={"log": np.log1p(X), "counts": X})
    if layer is None:
        adata.X = None
    with pytest.raises((ValueError, KeyError)) as caught:
        read_counts(adata, layer, np.ones(11, dtype=bool))
    assert "adata.layers['counts'] holds whole numbers: pass layer='counts'" in caught.value.args[0]


def test_drawn_counts_are_not_named_as_counts() -> None:
    adata = ad.AnnData(np.log1p(X), layers={"vae_sample": X}, uns={"vae_sample": {"params": {"key": "vae"}}})
    with pytest.raises(ValueError, match=r"look normalised") as caught:
        read_counts(adata, None, np.ones(11, dtype=bool))
    assert "vae_sample" not in str(caught.value)
    adata.layers["counts"] = X
    with pytest.raises(ValueError, match=r"pass layer='counts'"):
        read_counts(adata, None, np.ones(11, dtype=bool))


def test_canonical_float_counts_are_not_copied() -> None:
    matrix = sparse.csr_matrix(X)
    counts = read_counts(ad.AnnData(matrix), None, np.ones(11, dtype=bool))
    cells = counts.cells(torch.zeros(23, 1), Covariates(torch.zeros(23, 0, dtype=torch.int64), torch.zeros(23, 0)))
    indptr, indices, data = cells.load().numpy()
    assert np.shares_memory(data, matrix.data)
    assert np.shares_memory(indices, matrix.indices)
    assert indptr.dtype == np.int64


@pytest.mark.parametrize(
    ("change", "copies"),
    [
        (lambda x: x, 0.0),
        # of 12 bytes per entry, 4 are converted
        (lambda x: x.astype(np.float64), 1 / 3),
        (lambda x: x.astype(np.int64), 1 / 3),
    ],
)
def test_reading_takes_little_memory_above_the_counts(
    change: Callable[[sparse.csr_matrix], sparse.csr_matrix], copies: float
) -> None:
    matrix = change(sparse.csr_matrix(np.random.default_rng(0).poisson(3.0, (5_000, 400)).astype(np.float32)))
    assert matrix.nnz > 4 * PART
    # scipy may convert the values for it
    adata, total = ad.AnnData(matrix), matrix.sum()
    tracemalloc.start()
    counts = read_counts(adata, None, np.ones(400, dtype=bool))
    assert counts.inside_g.sum() == total
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < (copies + 0.2) * (matrix.data.nbytes + matrix.indices.nbytes)


def test_stored_zeros_and_unsorted_entries_are_mended_on_one_copy() -> None:
    data, indices = np.ones(2_000_000, dtype=np.float32), np.tile(np.arange(1_000, dtype=np.int32)[::-1], 2_000)
    data[::7] = 0.0
    matrix = sparse.csr_matrix((data, indices, np.arange(2_001) * 1_000), shape=(2_000, 1_000))
    tracemalloc.start()
    found = canonical(matrix)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.nnz == np.count_nonzero(data)
    assert peak < 1.5 * (data.nbytes + indices.nbytes)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
@pytest.mark.parametrize("at", [0, PART - 1, PART, 2 * PART])
def test_every_value_is_checked(dtype: type[np.generic], at: int) -> None:
    data = np.ones(2 * PART + 1, dtype=dtype)
    block = sparse.csr_matrix((data, np.arange(len(data)), np.array([0, len(data)])), shape=(1, len(data)))
    check_counts(block, "adata.X")
    wrong: list[tuple[float, str]] = [(-1, "negative"), (2**24 + 1 if dtype != np.float32 else 2**24 + 2, "above 2")]
    if np.issubdtype(dtype, np.floating):
        wrong += [(1.5, "not whole"), (np.nan, "NaN"), (np.inf, "NaN or infinite")]
    for value, message in wrong:
        data[at] = value
        with pytest.raises(ValueError, match=message):
            check_counts(block, "adata.X")


def test_sums_of_genes_are_exact_beyond_single_precision() -> None:
    x = np.array([[2.0**24, 0.0], [1.0, 0.0], [1.0, 0.0]], dtype=np.float32)
    counts = read_counts(ad.AnnData(sparse.csr_matrix(x)), None, np.ones(2, dtype=bool))
    np.testing.assert_array_equal(counts.inside_g, [2**24 + 2, 0])


def test_sums_of_panels_are_exact_and_may_be_made_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    x, code_n = X * 2**20, np.arange(23) % 3
    expected = [x[code_n == p].astype(np.float64).sum(0) for p in range(3)]
    for rows in (panels.ROWS, 5):
        monkeypatch.setattr(panels, "ROWS", rows)
        np.testing.assert_array_equal(panels.panel_sums(sparse.csr_matrix(x), code_n, 3), expected)


@pytest.mark.parametrize("shape", [(1, 1), (3_000, 700), (3, 400_000)])
def test_sums_of_cells_are_those_of_dense_counts(shape: tuple[int, int]) -> None:
    x = sparse.random(*shape, 0.5, format="csr", dtype=np.float32, random_state=np.random.default_rng(0))
    x.data = np.ceil(100 * x.data)
    x.data[::3] = 0
    counts = read_counts(ad.AnnData(x), None, np.ones(shape[1], dtype=bool))
    np.testing.assert_array_equal(counts.total_n, x.astype(np.float64).toarray().sum(1))
