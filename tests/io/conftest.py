"""Stores of the same cells in every format."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from anndata.io import write_elem
from scipy import sparse

FORMATS = ("h5ad", "zarr2", "zarr3", "collection")


def write(adata: ad.AnnData, folder: Path, kind: str) -> Path:
    """Write ``adata`` in one of the formats; a collection is cut after 50 and 90 cells."""
    import zarr

    if kind == "h5ad":
        adata.write_h5ad(folder / "a.h5ad")
        return folder / "a.h5ad"
    path = folder / f"{kind}.zarr"
    group = zarr.open_group(str(path), mode="w", zarr_format=2 if kind == "zarr2" else 3)
    if kind == "collection":
        for i, cells in enumerate((slice(0, 50), slice(50, 90), slice(90, None))):
            write_elem(group, f"dataset_{i}", adata[cells].copy())
    else:
        write_elem(group, "/", adata)
        zarr.consolidate_metadata(group.store)
    return path


@pytest.fixture(scope="session")
def cells(_simulated: ad.AnnData) -> ad.AnnData:
    pytest.importorskip("dask")
    pytest.importorskip("zarr")
    adata = ad.AnnData(_simulated.X, obs=_simulated.obs[["batch", "age"]].copy(), var=_simulated.var[[]].copy())
    adata.X = sparse.csr_matrix(adata.X)
    adata.layers["dense"] = adata.X.toarray() * 2
    adata.layers["csc"] = sparse.csc_matrix(adata.X)
    adata.obsm["X_pca"] = np.random.default_rng(0).normal(size=(adata.n_obs, 3)).astype(np.float32)
    adata.obs["batch"] = adata.obs["batch"].astype("category")
    adata.uns["note"] = {"weights": np.arange(3.0), "text": "x"}
    return adata


@pytest.fixture(scope="session")
def stores(cells: ad.AnnData, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same cells in each format."""
    return {kind: write(cells, tmp_path_factory.mktemp("stores"), kind) for kind in FORMATS}
