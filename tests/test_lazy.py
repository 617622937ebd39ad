"""Lazy AnnData: public functions read their annotations into memory, and give the results of the same cells in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import vxpress as vx
from vxpress._lazy import is_lazy, read_annotations

pytest.importorskip("dask")
pytest.importorskip("xarray")
pytest.importorskip("zarr")
h5py = pytest.importorskip("h5py")

FORMATS = ("h5ad", "zarr")


@pytest.fixture(scope="module")
def cells(_fitted: ad.AnnData) -> ad.AnnData:
    adata = _fitted.copy()
    adata.X = sparse.csr_matrix(adata.X)
    adata.obs["text"] = pd.Categorical(["x", "y"] * (adata.n_obs // 2))
    adata.obs["flag"] = pd.array([True, None] * (adata.n_obs // 2), dtype="boolean")
    adata.obsm["frame"] = pd.DataFrame({"a": np.arange(adata.n_obs)}, index=adata.obs_names)
    adata.uns["kinds"] = {
        "names": np.array(["u", "v"], dtype=object),
        "values": np.ones((2, 3)),
        "table": pd.DataFrame({"t": [1]}),
    }
    adata.uns["category"] = pd.Categorical(["b", "a", "b"])
    return adata


@pytest.fixture(scope="module")
def paths(cells: ad.AnnData, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("lazy")
    cells.write_h5ad(folder / "a.h5ad")
    cells.write_zarr(folder / "a.zarr")
    return {kind: folder / f"a.{kind}" for kind in FORMATS}


@pytest.fixture(params=FORMATS)
def lazy(request: pytest.FixtureRequest, paths: dict[str, Path]) -> ad.AnnData:
    return ad.experimental.read_lazy(paths[request.param])


def assert_equal_annotations(found: ad.AnnData, cells: ad.AnnData) -> None:
    options: dict[str, Any] = {
        "check_dtype": False,
        "check_index_type": False,
        "check_names": False,
        "check_like": True,
    }
    # categories as values: xarray drops those without cells
    obs, expected = (
        each.obs.astype({name: object for name, kind in each.obs.dtypes.items() if kind == "category"})
        for each in (found, cells)
    )
    pd.testing.assert_frame_equal(obs, expected, **options)
    pd.testing.assert_frame_equal(found.var, cells.var, **options)
    np.testing.assert_array_equal(found.obsm["X_vae"], cells.obsm["X_vae"])
    assert found.obsm["frame"]["a"].tolist() == cells.obsm["frame"]["a"].tolist()
    assert found.uns["kinds"]["names"].tolist() == ["u", "v"]
    assert found.uns["kinds"]["names"].dtype == object
    np.testing.assert_array_equal(found.uns["kinds"]["values"], np.ones((2, 3)))
    assert list(found.uns["category"]) == ["b", "a", "b"]
    assert isinstance(found.uns["vae"]["params"]["model"], dict)


def test_annotations_are_read_and_matrices_are_not(lazy, cells):
    assert is_lazy(lazy)
    read_annotations([lazy])
    assert not is_lazy(lazy)
    assert_equal_annotations(lazy, cells)
    assert hasattr(lazy.X, "dask")
    assert hasattr(lazy.layers["vae_normalized"], "dask")


@pytest.mark.parametrize("kind", FORMATS)
def test_names_that_were_not_read(paths, cells, kind):
    lazy = ad.experimental.read_lazy(paths[kind], load_annotation_index=False)
    read_annotations([[lazy], 3, None])
    assert_equal_annotations(lazy, cells)


def test_views_become_actual(lazy, cells):
    view = lazy[10:40]
    with pytest.warns(UserWarning, match="Received a view"):
        read_annotations([{"model": view}])
    assert not view.is_view
    assert is_lazy(lazy)
    assert_equal_annotations(view, cells[10:40].copy())
    np.testing.assert_array_equal(view.X.compute().toarray(), cells.X[10:40].toarray())


def test_large_arrays_stay_on_disk(lazy, monkeypatch):
    monkeypatch.setattr("vxpress._lazy.MAX_BYTES", 100)
    read_annotations([lazy])
    assert hasattr(lazy.obsm["X_vae"], "dask")
    assert not is_lazy(lazy)


def test_calls_give_the_results_of_cells_in_memory(lazy, cells):
    expected = cells.copy()
    for adata in (lazy, expected):
        vx.pp.library_size(adata, overwrite=True)
        vx.tl.encode(adata, key_added="again")
    np.testing.assert_array_equal(lazy.obs["library_size"], expected.obs["library_size"])
    np.testing.assert_allclose(lazy.obsm["again"], expected.obsm["again"], rtol=1e-5, atol=1e-6)
    few: Any = [vx.tl.denoise(adata, genes=["gene_0", "gene_7"]) for adata in (lazy, expected)]
    np.testing.assert_allclose(few[0].X, few[1].X, rtol=1e-5)


def test_a_lazy_model_encodes_other_cells(lazy, cells):
    query = cells[:30].copy()
    del query.uns["vae"], query.obsm["X_vae"], query.obsm["X_vae_var"]
    del query.obs["vae_split"], query.obs["vae_library"], query.layers["vae_normalized"]
    vx.tl.encode(query, lazy)
    np.testing.assert_allclose(query.obsm["X_vae"], cells.obsm["X_vae"][:30], rtol=1e-4, atol=1e-5)


def test_a_closed_file_is_named(paths):
    file = h5py.File(paths["h5ad"], "r")
    lazy = ad.experimental.read_lazy(file)
    file.close()
    with pytest.raises(ValueError, match=r"open h5py.File, this file has to stay open"):
        vx.pp.library_size(lazy)
    opened = vx.io.open_store(paths["h5ad"])
    opened.X.group.file.close()
    with pytest.raises(ValueError, match=r"HDF5 file that adata.X is read from was closed.*open_store"):
        vx.pp.library_size(opened, overwrite=True)


def test_data_on_disk_cannot_be_copied(paths):
    for path in paths.values():
        with pytest.raises(ValueError, match=r"copy=True cannot copy adata.X, which is on disk.*to_memory\(\)"):
            vx.pp.library_size(vx.io.open_store(path), overwrite=True, copy=True)
        opened = vx.io.open_store(path)
        del opened.var["highly_variable"]
        with pytest.raises(ValueError, match=r"subset=True needs the matrix in memory, .*to_memory\(\)"):
            vx.pp.highly_variable_genes(opened, n_top_genes=5, subset=True)
