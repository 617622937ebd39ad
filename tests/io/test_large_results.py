"""Results larger than memory: in files while they are computed, and in the store afterwards."""

from __future__ import annotations

import shutil
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

import vxpress as vx

pytest.importorskip("dask")
pytest.importorskip("zarr")
FORMATS = ("h5ad", "zarr3", "collection")
FIT = {"max_epochs": 1, "n_latent": 2, "n_hidden": 8, "denoised": False}


@pytest.fixture(scope="module")
def fitted(cells: ad.AnnData) -> ad.AnnData:
    adata = ad.AnnData(cells.X, obs=cells.obs.copy(), var=cells.var.copy())
    adata.var["highly_variable"] = np.arange(adata.n_vars) < 50
    vx.tl.fit_vae(adata, **FIT)
    return adata


@pytest.fixture(params=FORMATS)
def path(request: pytest.FixtureRequest, stores: dict[str, Path], fitted: ad.AnnData, tmp_path: Path) -> Path:
    """A store with a fit."""
    source = stores[request.param]
    (shutil.copytree if source.is_dir() else shutil.copy2)(source, tmp_path / source.name)
    adata = vx.io.open_store(tmp_path / source.name, "r+")
    adata.obs, adata.var, adata.uns = fitted.obs, fitted.var, dict(fitted.uns)
    for name in fitted.obsm:
        adata.obsm[name] = fitted.obsm[name]
    vx.io.write_results(adata)
    return tmp_path / source.name


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vxpress.core.data.rows.MEMORY_BYTES", 1000)
    monkeypatch.setattr("vxpress.bridge.fits.store_saving.LARGE_RESULT", 10_000)


def test_layers_go_to_a_store_opened_for_writing(path, fitted, small_memory):
    expected = fitted.copy()
    vx.tl.denoise(expected, n_draws=2, interval=None)
    adata = vx.io.open_store(path, "r+")
    adata.obs["own"] = 1.0
    vx.tl.denoise(adata, n_draws=2)
    assert hasattr(adata.layers["vae_normalized"], "dask")
    np.testing.assert_array_equal(adata.layers["vae_normalized"].compute(), expected.layers["vae_normalized"])
    opened = vx.io.open_store(path)
    np.testing.assert_array_equal(opened.layers["vae_normalized"].compute(), expected.layers["vae_normalized"])
    # with everything else that was in memory
    assert "own" in opened.obs
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    # again, over the layer that is on disk
    vx.tl.denoise(adata, n_draws=1)
    assert (adata.layers["vae_normalized"].compute() != expected.layers["vae_normalized"]).any()


def test_layers_of_a_store_opened_for_reading_are_in_files(path, fitted, small_memory):
    expected = fitted.copy()
    vx.tl.denoise(expected, n_draws=2)
    adata = vx.io.open_store(path)
    vx.tl.denoise(adata, n_draws=2)
    assert isinstance(adata.layers["vae_normalized"], np.memmap)
    np.testing.assert_array_equal(adata.layers["vae_normalized"], expected.layers["vae_normalized"])
    assert "vae_normalized" not in vx.io.open_store(path).layers


def test_a_store_that_cannot_be_written_leaves_everything_as_it_was(path, small_memory, monkeypatch):
    adata = vx.io.open_store(path, "r+")

    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vxpress.bridge.fits.store_saving.write_store", full)
    with pytest.raises(OSError, match="No space left"):
        vx.tl.denoise(adata, n_draws=1)
    assert "vae_normalized" not in adata.layers


def test_the_layer_of_a_fit(path, small_memory):
    adata = vx.io.open_store(path, "r+")
    vx.tl.fit_vae(adata, **(FIT | {"denoised": True}))
    assert hasattr(adata.layers["vae_normalized"], "dask")
    opened = vx.io.open_store(path)
    np.testing.assert_array_equal(opened.layers["vae_normalized"].compute(), adata.layers["vae_normalized"].compute())
    np.testing.assert_array_equal(opened.obsm["X_vae"], adata.obsm["X_vae"])
    vx.tl.diagnose(opened)
