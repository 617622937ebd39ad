"""Stores opened without reading their matrices: the same cells as in memory."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata.abc import CSCDataset, CSRDataset
from anndata.io import write_elem
from scipy import sparse

import vxpress as vx
from vxpress.bridge.read.opened import opened_from, store_of

pytest.importorskip("dask")
zarr = pytest.importorskip("zarr")

FORMATS = ("h5ad", "zarr2", "zarr3", "collection")


@pytest.mark.parametrize("kind", FORMATS)
def test_matrices_stay_on_disk_and_equal_those_in_memory(cells, stores, kind):
    opened = vx.io.open_store(stores[kind])
    for matrix in (opened.X, opened.layers["dense"], opened.layers["csc"]):
        assert isinstance(matrix, (CSRDataset, CSCDataset)) or hasattr(matrix, "dask")
    assert isinstance(opened.obs, pd.DataFrame)
    pd.testing.assert_frame_equal(opened.obs, cells.obs, check_dtype=False, check_index_type=False)
    assert opened.obs["batch"].dtype == "category"
    assert list(opened.var_names) == list(cells.var_names)
    np.testing.assert_array_equal(opened.obsm["X_pca"], cells.obsm["X_pca"])
    np.testing.assert_array_equal(opened.uns["note"]["weights"], [0.0, 1.0, 2.0])
    whole = opened.to_memory()
    np.testing.assert_array_equal(whole.X.toarray(), cells.X.toarray())
    np.testing.assert_array_equal(whole.layers["dense"], cells.layers["dense"])
    np.testing.assert_array_equal(sparse.csr_matrix(whole.layers["csc"]).toarray(), cells.X.toarray())


def test_parts_cover_all_rows_in_order(cells, stores):
    opened = vx.io.open_store(stores["collection"])
    parts = store_of(opened.X)
    assert parts is not None
    assert [(part.start, part.stop) for part in parts] == [(0, 50), (50, 90), (90, 160)]
    np.testing.assert_array_equal(parts.read(45, 95).toarray(), cells.X[45:95].toarray())
    np.testing.assert_array_equal(parts.parts[1].matrix[2:4].toarray(), cells.X[52:54].toarray())
    # what is computed from it is no matrix of the store
    assert store_of(opened.X + opened.X) is None
    assert store_of(np.ones((2, 2))) is None


@pytest.mark.parametrize("kind", FORMATS)
def test_dense_matrices_travel_to_other_processes(cells, stores, kind):
    array = vx.io.open_store(stores[kind]).layers["dense"]
    assert store_of(array) is not None
    there = pickle.loads(pickle.dumps(array))
    np.testing.assert_array_equal(there[40:60].compute(), cells.layers["dense"][40:60])


def test_large_annotations_stay_on_disk(cells, stores, monkeypatch):
    monkeypatch.setattr("vxpress.bridge.read.opening.MAX_LOADED_BYTES", 100)
    for kind in ("zarr3", "collection"):
        opened = vx.io.open_store(stores[kind])
        assert hasattr(opened.obsm["X_pca"], "dask")
        np.testing.assert_array_equal(opened.obsm["X_pca"].compute(), cells.obsm["X_pca"])


def test_the_store_is_remembered_for_the_opened_object_only(stores):
    path = stores["h5ad"]
    opened = vx.io.open_store(path, "r+")
    store = opened_from(opened)
    assert store is not None
    assert (store.path, store.mode, store.kind) == (path.resolve(), "r+", "h5ad")
    assert opened_from(opened[:10]) is None
    assert opened_from(opened.to_memory()) is None
    backed = ad.read_h5ad(path, backed="r")
    found = opened_from(backed)
    assert found is not None
    assert (found.path, found.mode) == (path, "r")
    backed.file.close()


def test_categories_of_a_collection_are_those_of_all_parts(cells, tmp_path):
    path = tmp_path / "c.zarr"
    group = zarr.open_group(str(path), mode="w", zarr_format=3)
    for i, name in enumerate(("late", "early")):
        part = cells[i * 10 : i * 10 + 10].copy()
        part.obs["sample"] = pd.Categorical([name] * 10)
        part.obs[f"only_{i}"] = 1.0
        write_elem(group, f"dataset_{i}", part)
    part.obs_names += "-again"
    # in the order of their numbers
    write_elem(group, "dataset_10", part)
    opened = vx.io.open_store(path)
    assert list(opened.obs["sample"].cat.categories) == ["late", "early"]
    assert list(opened.obs["sample"]) == ["late"] * 10 + ["early"] * 20
    assert int(opened.obs["only_1"].isna().sum()) == 10


def _empty_group(path: Path) -> None:
    zarr.open_group(str(path), mode="w")


def _other_genes(path: Path) -> None:
    group = zarr.open_group(str(path), mode="w", zarr_format=3)
    for i in range(2):
        var = pd.DataFrame(index=[f"g{i}", "g2"])
        write_elem(group, f"dataset_{i}", ad.AnnData(np.ones((3, 2), np.float32), var=var))


@pytest.mark.parametrize(
    ("name", "make", "error", "message"),
    [
        ("no.h5ad", lambda path: None, FileNotFoundError, "does not exist"),
        ("text.h5ad", lambda path: path.write_text("x"), ValueError, "text.h5ad cannot be opened as an AnnData"),
        ("empty.zarr", _empty_group, ValueError, "neither an AnnData nor a collection"),
        ("genes.zarr", _other_genes, ValueError, "'dataset_0' and 'dataset_1' have different genes"),
        ("folder.zarr", lambda path: path.mkdir(), ValueError, "cannot be opened as an AnnData"),
    ],
)
def test_errors_say_what_was_found(
    tmp_path: Path, name: str, make: Callable[[Path], object], error: type[Exception], message: str
) -> None:
    make(tmp_path / name)
    with pytest.raises(error, match=message):
        vx.io.open_store(tmp_path / name)


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="mode='w' is not known; choose one of 'r', 'r\\+'"):
        vx.io.open_store(tmp_path / "a.h5ad", "w")
    with pytest.raises(TypeError, match="path= takes a path"):
        vx.io.open_store(3)


@pytest.mark.parametrize("name", ["cells.h5mu", "cells.zarr"])
def test_a_stored_mudata_is_refused_with_the_call_that_reads_it(cells, tmp_path, name):
    md = pytest.importorskip("mudata")
    mdata = md.MuData({"rna": ad.AnnData(cells.X.copy(), obs=cells.obs[[]].copy(), var=cells.var[[]].copy())})
    path = tmp_path / name
    (mdata.write if path.suffix == ".h5mu" else mdata.write_zarr)(path)
    with pytest.raises(ValueError, match=r"is a MuData.*mudata\.read_h5mu"):
        vx.io.open_store(path)
