from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

import vxpress as vx
from vxpress.bridge.read.blockwise import over_blocks

KINDS = {
    "dense": np.asarray,
    "csr": sparse.csr_matrix,
    "csc": sparse.csc_matrix,
    "csr_array": sparse.csr_array,
    "csc_array": sparse.csc_array,
    "int64": lambda x: sparse.csr_matrix(x.astype(np.int64)),
    "uint16": lambda x: x.astype(np.uint16),
}


def counts(n_obs: int = 60, n_vars: int = 30, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).poisson(1.5, (n_obs, n_vars)).astype(np.float32)


def batched(x: object, *names: str) -> AnnData:
    adata = AnnData(x)
    adata.obs["batch"] = pd.Categorical([names[i % len(names)] for i in range(adata.n_obs)])
    return adata


@pytest.mark.parametrize("kind", KINDS)
def test_every_matrix_gives_the_row_sums(kind: str) -> None:
    x = counts()
    adata = AnnData(KINDS[kind](x))
    assert vx.pp.library_size(adata) is None
    assert adata.obs["library_size"].dtype == np.float64
    np.testing.assert_array_equal(adata.obs["library_size"], x.sum(axis=1))


@pytest.mark.parametrize("kind", ["dense", "csr", "csc"])
def test_backed(kind: str, tmp_path) -> None:
    x = counts()
    AnnData(KINDS[kind](x)).write_h5ad(tmp_path / "a.h5ad")
    adata = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    vx.pp.library_size(adata)
    np.testing.assert_array_equal(adata.obs["library_size"], x.sum(axis=1))
    with pytest.raises(ValueError, match=r"to_memory\(\)"):
        vx.pp.library_size(adata, key_added="other", copy=True)
    with pytest.raises(ValueError, match=r"to_memory\(\)"):
        vx.pp.library_size(adata[:10], key_added="other")
    adata.file.close()


def test_a_view_becomes_actual_and_its_parent_does_not_change() -> None:
    parent = AnnData(counts())
    view = parent[5:25]
    with pytest.warns(UserWarning, match="view"):
        vx.pp.library_size(view)
    assert not view.is_view
    assert "library_size" not in parent.obs
    assert "library_size" not in parent.uns
    np.testing.assert_array_equal(view.obs["library_size"], parent.X[5:25].sum(axis=1))


def test_a_view_without_counts_stays_a_view() -> None:
    parent = AnnData(counts() + 0.5)
    view = parent[5:25]
    # no warning about a copy
    with pytest.raises(ValueError, match="not whole numbers"):
        vx.pp.library_size(view)
    assert view.is_view


def test_sums_are_exact_beyond_single_precision() -> None:
    adata = AnnData(np.array([[2.0**24, 1.0, 2.0], [1.0, 0.0, 0.0]], dtype=np.float32))
    vx.pp.library_size(adata)
    assert adata.obs["library_size"].tolist() == [2.0**24 + 3, 1.0]


def test_log_normal_parameters_are_those_of_each_batch() -> None:
    adata = batched(counts(), "b", "a", "c")
    vx.pp.library_size(adata, batch_key="batch")
    entry = adata.uns["library_size"]
    log_library = np.log(adata.obs["library_size"])
    by_batch = log_library.groupby(adata.obs["batch"], observed=True)
    assert list(entry["batches"]) == ["a", "b", "c"]
    np.testing.assert_allclose(entry["log_mean"], by_batch.mean())
    np.testing.assert_allclose(entry["log_var"], by_batch.var(ddof=0))
    assert entry["params"] == {"n_vars": 30, "batch_key": "batch"}

    vx.pp.library_size(adata, key_added="one")
    assert list(adata.uns["one"]["batches"]) == ["all"]
    np.testing.assert_allclose(adata.uns["one"]["log_mean"], [log_library.mean()])


def test_log_normal_parameters_recover_a_known_library() -> None:
    adata = vx.datasets.simulate(4000, 50, library_mean=5000, library_sd=0.6, n_batches=2)
    vx.pp.library_size(adata, batch_key="batch", overwrite=True)
    entry = adata.uns["library_size"]
    np.testing.assert_allclose(entry["log_mean"] + entry["log_var"] / 2, np.log(5000), atol=0.1)


def test_empty_cells_count_as_zero_and_not_in_the_prior() -> None:
    x = counts()
    x[7] = 0
    adata = AnnData(x)
    with pytest.warns(UserWarning, match="1 cell"):
        vx.pp.library_size(adata)
    filled = np.delete(x.sum(axis=1), 7)
    assert adata.obs["library_size"].iloc[7] == 0
    np.testing.assert_allclose(adata.uns["library_size"]["log_mean"], [np.log(filled).mean()])


def test_an_entry_is_replaced_only_on_request() -> None:
    adata = AnnData(counts())
    adata.obs["library_size"] = 1.0
    with pytest.raises(ValueError, match=r"overwrite=True.*key_added="):
        vx.pp.library_size(adata)
    assert (adata.obs["library_size"] == 1.0).all()
    vx.pp.library_size(adata, overwrite=True)
    assert (adata.obs["library_size"] > 1.0).all()
    adata.uns["pca"] = {"params": {}}
    with pytest.raises(ValueError, match=r"already holds uns\['pca'\]"):
        vx.pp.library_size(adata, key_added="pca")


def test_copy_leaves_the_original() -> None:
    adata = AnnData(counts())
    out = vx.pp.library_size(adata, copy=True)
    assert out is not None
    assert "library_size" in out.obs
    assert "library_size" not in adata.obs


def test_unused_categories_are_not_batches() -> None:
    adata = batched(counts(), "a", "c")
    adata.obs["batch"] = adata.obs["batch"].cat.set_categories(["a", "b", "c"])
    vx.pp.library_size(adata, batch_key="batch")
    assert list(adata.uns["library_size"]["batches"]) == ["a", "c"]


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        (None, {"layer": "raw"}, KeyError, r"found: .*counts"),
        (None, {"batch_key": "donor"}, KeyError, r"found: .*batch"),
        (None, {"key_added": "a/b"}, ValueError, "without '/'"),
        (None, {"batch_key": "partly"}, ValueError, r"NaN.*3 of 60.*notna"),
        ("log", {}, ValueError, "raw counts"),
        ("negative", {}, ValueError, "negative"),
        ("nan", {}, ValueError, "NaN"),
        ("zero", {}, ValueError, "molecule"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(change, options, error, message) -> None:
    x = counts()
    adata = batched({"log": np.log1p(x), "negative": -x, "nan": x + np.nan, "zero": x * 0}.get(change, x), "a", "b")
    adata.layers["counts"] = x
    adata.obs["partly"] = adata.obs["batch"].where(np.arange(60) >= 3)
    before = set(adata.obs.columns)
    with pytest.raises(error, match=message):
        vx.pp.library_size(adata, **options)
    assert set(adata.obs.columns) == before
    assert not adata.uns


@pytest.mark.parametrize("writer", ["h5ad", "zarr"])
def test_results_are_the_same_after_a_file_round_trip(writer: str, tmp_path) -> None:
    if writer == "zarr":
        pytest.importorskip("zarr")
    adata = batched(counts(), "a", "b")
    vx.pp.library_size(adata, batch_key="batch")
    path = tmp_path / "a"
    getattr(adata, f"write_{writer}")(path)
    back = getattr(ad, f"read_{writer}")(path)
    for name in ("batches", "log_mean", "log_var"):
        np.testing.assert_array_equal(back.uns["library_size"][name], adata.uns["library_size"][name])
    np.testing.assert_array_equal(back.obs["library_size"], adata.obs["library_size"])


@pytest.mark.parametrize("kind", ["sparse", "dense", "genes in chunks"])
def test_dask_arrays(kind: str) -> None:
    da = pytest.importorskip("dask.array")
    x = counts()
    array = da.from_array(x, chunks=(7, 3 if kind == "genes in chunks" else x.shape[1]))
    if kind != "dense":
        array = array.map_blocks(sparse.csr_matrix)
    adata = AnnData(array)
    vx.pp.library_size(adata)
    np.testing.assert_array_equal(adata.obs["library_size"], x.sum(axis=1))


def test_every_chunk_of_a_dask_array_is_computed_once() -> None:
    da = pytest.importorskip("dask.array")
    x, computed = counts(), []

    def read(block: np.ndarray) -> np.ndarray:
        computed.append(len(block))
        return block

    adata = AnnData(da.from_array(x, chunks=(7, -1)).map_blocks(read, dtype=x.dtype, meta=x[:0]))
    vx.pp.library_size(adata)
    assert sum(computed) == len(x)
    assert max(computed) == 7


def test_bad_dask_arrays_name_the_cure() -> None:
    da = pytest.importorskip("dask.array")
    x = counts()
    adata = AnnData(da.from_array(x / 3, chunks=(7, -1)), layers={"raw": da.from_array(x, chunks=(7, -1))})
    with pytest.raises(
        ValueError, match=r"not whole numbers .*adata.layers\['raw'\] holds whole numbers: pass layer='raw'"
    ):
        vx.pp.library_size(adata)
    unknown = da.from_array(x, chunks=(7, -1))[da.from_array(np.ones(len(x), bool), chunks=7)]
    with pytest.raises(ValueError, match="compute_chunk_sizes"):
        list(over_blocks(unknown, np.sum, what="x"))
