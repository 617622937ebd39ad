"""Results written into the store: all of them or none, and matrices on disk stay as they are."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import vxpress as vx

pytest.importorskip("dask")
zarr = pytest.importorskip("zarr")
FORMATS = ("h5ad", "zarr2", "zarr3", "collection")


@pytest.fixture(params=("h5ad", "zarr3", "collection"))
def path(request: pytest.FixtureRequest, stores: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of a store of each format."""
    source = stores[request.param]
    (shutil.copytree if source.is_dir() else shutil.copy2)(source, tmp_path / source.name)
    return tmp_path / source.name


def add_results(adata: ad.AnnData, number: int = 1) -> None:
    """Add an entry to every slot, each with the same number."""
    n = adata.n_obs
    adata.obs["number"] = np.full(n, number)
    adata.obs["text"] = [f"{number}"] * n
    adata.var["number"] = number
    adata.obsm["X_vae"] = np.full((n, 3), number, np.float32)
    adata.layers["denoised"] = np.full(adata.shape, number, np.float32)
    adata.obsp["graph"] = sparse.eye(n, format="csr") * number
    adata.uns["fit"] = {"number": number, "weights": {"w": np.full(5, number)}}


def numbers(adata: ad.AnnData) -> set[float]:
    """Return the number in every slot."""
    whole = adata.to_memory()
    found: list[Any] = [whole.obs["number"].to_numpy(), whole.obs["text"].astype(int), whole.var["number"].to_numpy()]
    found += [whole.obsm["X_vae"], whole.layers["denoised"], whole.obsp["graph"].data]
    found += [[whole.uns["fit"]["number"]], whole.uns["fit"]["weights"]["w"]]
    return {float(value) for part in found for value in np.ravel(part)}


def assert_counts(adata: ad.AnnData, cells: ad.AnnData) -> None:
    whole = adata.to_memory()
    assert (whole.X != cells.X).nnz == 0
    np.testing.assert_array_equal(whole.layers["dense"], cells.layers["dense"])
    assert list(whole.obs_names) == list(cells.obs_names)


def test_the_store_holds_what_the_object_holds(path, cells):
    adata = vx.io.open_store(path, "r+")
    add_results(adata)
    if "collection" not in path.name:
        del adata.obsm["X_pca"], adata.uns["note"]
    vx.io.write_results(adata)
    opened = vx.io.open_store(path)
    assert numbers(opened) == {1.0}
    assert set(opened.obsm) == set(adata.obsm)
    assert set(opened.uns) == set(adata.uns)
    assert_counts(opened, cells)
    assert opened.obs["batch"].dtype == "category"
    # the object can be used, and written again
    assert_counts(adata, cells)
    add_results(adata, 2)
    vx.io.write_results(adata)
    assert numbers(vx.io.open_store(path)) == {2.0}
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("path", FORMATS, indirect=True)
def test_anndata_reads_the_store(path, cells):
    adata = vx.io.open_store(path, "r+")
    add_results(adata)
    vx.io.write_results(adata)
    if path.suffix == ".h5ad":
        assert_counts(ad.read_h5ad(path), cells)
    elif "collection" not in path.name:
        found = ad.read_zarr(path)
        assert_counts(found, cells)
        assert numbers(found) == {1.0}
        # as metadata of all entries at the root say
        assert zarr.open_consolidated(str(path))["layers/denoised"].shape == cells.shape
    else:
        parts = [ad.AnnData(X=sparse.csr_matrix(part.X)) for part in _members(path)]
        assert (sparse.vstack([part.X for part in parts]) != cells.X).nnz == 0


def _members(path: Path) -> list[ad.AnnData]:
    group = zarr.open_group(str(path), mode="r")
    return [ad.io.read_elem(group[f"dataset_{i}"]) for i in range(3)]


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_copies_are_complete(path, cells, tmp_path, suffix):
    adata = vx.io.open_store(path)
    add_results(adata)
    target = tmp_path / f"copy{suffix}"
    vx.io.write_results(adata, target)
    found = ad.read_h5ad(target) if suffix == ".h5ad" else ad.read_zarr(target)
    assert_counts(found, cells)
    assert numbers(found) == {1.0}
    assert "number" not in vx.io.open_store(path).obs
    with pytest.raises(FileExistsError, match="overwrite=True"):
        vx.io.write_results(adata, target)
    add_results(adata, 3)
    vx.io.write_results(adata, target, overwrite=True)
    assert numbers(vx.io.open_store(target)) == {3.0}
    # copies share no file with the original
    if suffix == ".zarr":
        files = {file.stat().st_ino for file in path.rglob("*") if file.is_file()} if path.is_dir() else set()
        assert not files & {file.stat().st_ino for file in target.rglob("*") if file.is_file()}


def test_matrices_that_were_not_read_are_not_written_again(stores, tmp_path):
    path = tmp_path / "a.zarr"
    shutil.copytree(stores["zarr3"], path)
    data = path / "X" / "data" / "c" / "0"
    before = data.stat().st_ino
    adata = vx.io.open_store(path, "r+")
    add_results(adata)
    vx.io.write_results(adata)
    assert data.stat().st_ino == before


def test_backed_and_lazy_objects(stores, cells, tmp_path):
    path = tmp_path / "a.h5ad"
    shutil.copy2(stores["h5ad"], path)
    backed = ad.read_h5ad(path, backed="r+")
    add_results(backed)
    vx.io.write_results(backed)
    assert numbers(vx.io.open_store(path)) == {1.0}
    # it is backed by the new file
    backed.obs["number"] = 4
    np.testing.assert_array_equal(backed.X[:3].toarray(), cells.X[:3].toarray())
    backed.file.close()
    pytest.importorskip("xarray")
    lazy = ad.experimental.read_lazy(path)
    vx.io.write_results(lazy, tmp_path / "lazy.zarr")
    assert numbers(vx.io.open_store(tmp_path / "lazy.zarr")) == {1.0}


def test_large_arrays_are_written_in_blocks_of_rows(stores, tmp_path, monkeypatch):
    for name, size in (("LARGE_BYTES", 100), ("CHUNK_BYTES", 2000), ("BLOCK_BYTES", 7000)):
        monkeypatch.setattr(f"vxpress.bridge.fits.store_writing.{name}", size)
    for kind in ("h5ad", "zarr2", "zarr3"):
        adata = vx.io.open_store(stores[kind])
        layer = np.random.default_rng(0).normal(size=adata.shape).astype(np.float32)
        np.save(tmp_path / "layer.npy", layer)
        adata.layers["new"] = np.load(tmp_path / "layer.npy", mmap_mode="r")
        target = tmp_path / f"{kind}{stores[kind].suffix}"
        vx.io.write_results(adata, target)
        opened = vx.io.open_store(target)
        np.testing.assert_array_equal(opened.layers["new"].compute(), layer)


def _killed_writer(write: Callable[[int], None], seconds: float) -> None:
    """Let a child process write with growing numbers, and kill it after a time."""
    child = os.fork()
    if child == 0:
        try:
            for number in range(1, 10_000):
                write(number)
        finally:
            os._exit(1)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_killed_writer_leaves_the_old_or_the_new_store(path, cells):
    adata = vx.io.open_store(path, "r+")
    add_results(adata, 0)
    vx.io.write_results(adata)

    def write(number: int) -> None:
        add_results(adata, number)
        vx.io.write_results(adata)

    draw = random.Random(0)
    for _ in range(3):
        _killed_writer(write, draw.uniform(0.0, 0.5))
        opened = vx.io.open_store(path)
        assert len(numbers(opened)) == 1
        assert_counts(opened, cells)
    vx.io.write_results(adata)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_failed_write_changes_nothing(path):
    adata = vx.io.open_store(path, "r+")
    add_results(adata)
    vx.io.write_results(adata)
    add_results(adata, 2)
    adata.uns["wrong"] = object()
    with pytest.raises(Exception, match="object"):
        vx.io.write_results(adata)
    assert numbers(vx.io.open_store(path)) == {1.0}
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_errors_name_the_call_that_works(stores, cells, tmp_path):
    with pytest.raises(ValueError, match=r"not opened from a store .* path='results.h5ad'"):
        vx.io.write_results(cells.copy())
    opened = vx.io.open_store(stores["zarr3"])
    with pytest.raises(ValueError, match=r"opened for reading only. Open it with vx.io.open_store\(path, 'r\+'\)"):
        vx.io.write_results(opened)
    with pytest.raises(ValueError, match=r"should end in .h5ad or .zarr"):
        vx.io.write_results(opened, tmp_path / "a.txt")
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        vx.io.write_results(opened, tmp_path / "no" / "a.zarr")
    (tmp_path / "file.zarr").write_text("")
    with pytest.raises(FileExistsError, match=r"is a file, which .zarr is not"):
        vx.io.write_results(opened, tmp_path / "file.zarr", overwrite=True)
    part = vx.io.open_store(stores["zarr3"], "r+")
    part._inplace_subset_obs(np.arange(5))
    with pytest.raises(ValueError, match=r"5 cells x 60 genes, but .* has 160 x 60"):
        vx.io.write_results(part)


def test_a_store_that_is_gone(path):
    adata = vx.io.open_store(path, "r+")
    (shutil.rmtree if path.is_dir() else Path.unlink)(path)
    for target in (None, path.with_name(f"other{path.suffix}")):
        with pytest.raises(FileNotFoundError, match=r"does not exist any more\. Put it back"):
            vx.io.write_results(adata, target)


def test_results_of_a_collection_that_changed_are_not_read(stores, tmp_path):
    path = tmp_path / "c.zarr"
    shutil.copytree(stores["collection"], path)
    adata = vx.io.open_store(path, "r+")
    add_results(adata)
    vx.io.write_results(adata)
    shutil.rmtree(path / "dataset_2")
    opened = vx.io.open_store(path)
    assert opened.n_obs == 90
    assert "number" not in opened.obs
    assert isinstance(opened.obs, pd.DataFrame)


def test_of_several_processes_the_first_one_writes(stores, tmp_path, monkeypatch):
    adata = vx.io.open_store(stores["h5ad"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    vx.io.write_results(adata, tmp_path / "a.h5ad")
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("RANK", "0")
    vx.io.write_results(adata, tmp_path / "a.h5ad")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.h5ad"]


def test_a_zarr_store_is_written_without_warnings(stores, tmp_path):
    adata = vx.io.open_store(stores["zarr3"])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Consolidated metadata")
        vx.io.write_results(adata, tmp_path / "written.zarr")


@pytest.mark.parametrize(("mode", "call"), [("r", "write_results(adata, path)"), ("r+", "write_results(adata).")])
def test_results_of_a_backed_anndata_come_with_the_call_that_saves_them(stores, tmp_path, monkeypatch, mode, call):
    path = tmp_path / "cells.h5ad"
    shutil.copy2(stores["h5ad"], path)
    adata = ad.read_h5ad(path, backed=mode)
    said: list[str] = []
    monkeypatch.setattr("vxpress.bridge.fits.results.logg.warning", said.append)
    vx.pp.library_size(adata)
    assert len(said) == 1
    assert call in said[0]
    vx.io.write_results(adata, *([tmp_path / "written.h5ad"] if mode == "r" else []))
    adata.file.close()


@pytest.mark.parametrize("kind", ["h5ad", "zarr3"])
@pytest.mark.parametrize("part", ["X", "layers"])
def test_a_file_that_a_lazy_anndata_reads_from_is_not_replaced(
    kind: str, part: str, stores: dict[str, Path], tmp_path: Path
) -> None:
    h5py = pytest.importorskip("h5py")
    path = tmp_path / stores[kind].name
    (shutil.copytree if stores[kind].is_dir() else shutil.copy2)(stores[kind], path)
    lazy = ad.experimental.read_lazy(h5py.File(path) if kind == "h5ad" else path)
    if part == "layers":
        lazy.X = None
    before = vx.io.open_store(path).to_memory().X.toarray()
    with pytest.raises(ValueError, match=rf"{path.name} is where adata.{part}.*_fitted{path.suffix}'"):
        vx.io.write_results(lazy, path, overwrite=True)
    np.testing.assert_array_equal(vx.io.open_store(path).to_memory().X.toarray(), before)
    other = path.with_name(f"other{path.suffix}")
    vx.io.write_results(lazy, other)
    assert vx.io.open_store(other).n_obs == lazy.n_obs
