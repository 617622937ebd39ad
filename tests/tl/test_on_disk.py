"""Counts that stay on disk give the results of the same counts in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata.abc import CSRDataset
from scipy import sparse

import vxpress as vx
from vxpress.bridge.read import survey
from vxpress.core.data import Stored

N = 660
QUICK: dict[str, Any] = {"n_latent": 3, "n_hidden": 8, "max_epochs": 2, "rng": 0}


def _cells() -> ad.AnnData:
    """Return cells sorted by batch and group, as concatenated samples are."""
    adata = vx.datasets.simulate(N, 24, n_groups=3, n_batches=2, library_mean=150, rng=1)
    adata.var["chosen"] = np.arange(24) < 18
    order = np.lexsort((adata.obs["group"], adata.obs["batch"]))
    return adata[order].copy()


@pytest.fixture(scope="module")
def memory() -> ad.AnnData:
    adata = _cells()
    known = np.arange(N) % 3 < 2
    fitted = adata[known].copy()
    vx.tl.fit_vae(fitted, batch_key="batch", mask_var="chosen", **QUICK)
    vx.tl.fit_vae(fitted, mask_var="chosen", key_added="other", **QUICK)
    # the cells of the fits, in the AnnData of all
    vx.tl.encode(adata, fitted)
    vx.tl.encode(adata, fitted, key="other")
    adata.uns |= {name: fitted.uns[name] for name in ("vae", "other")}
    split = fitted.obs["vae_split"].astype(object).reindex(adata.obs_names).fillna("query")
    adata.obs["vae_split"] = split.astype("category")
    adata.obs["left"] = (split == "query").to_numpy()
    adata.obs["calibration"] = (split == "query").to_numpy() & (np.arange(N) % 2 == 0)
    return adata


@pytest.fixture(scope="module")
def path(memory: ad.AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("on_disk") / "cells.h5ad"
    memory.write_h5ad(path)
    return path


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave even these few cells on disk, and let windows hold a few of them."""
    monkeypatch.setattr(survey, "MEMORY_BYTES", 0)
    monkeypatch.setitem(Stored.__init__.__kwdefaults__, "limit", 6_000)


@pytest.fixture
def disk(path: Path) -> ad.AnnData:
    return vx.io.open_store(path)


CALLS: dict[str, Callable[[ad.AnnData], Any]] = {
    "encode": lambda a: vx.tl.encode(a, key_added="again"),
    "log_likelihood": lambda a: vx.tl.log_likelihood(a, n_samples=3),
    "predictive_check": lambda a: vx.tl.predictive_check(a, n_draws=2),
    "denoise": lambda a: vx.tl.denoise(a, own_counts=True, n_draws=2, key_added="own"),
    "diagnose": lambda a: vx.tl.diagnose(a, gaps=True, n_cells=20),
    "rank_genes_groups": lambda a: vx.tl.rank_genes_groups(a, "group", n_cells=20, n_draws=2),
    "compare": lambda a: vx.tl.compare(a, models=["vae", "other"], cells="left", n_samples=20, n_cells=200),
    "outliers": lambda a: vx.tl.outliers(a, calibration="calibration", min_stratum=10),
}


def _check_same(found: Any, expected: Any, where: str) -> None:
    if isinstance(expected, Mapping):
        assert set(found) == set(expected), where
        # newer versions of anndata count X among the layers, as None
        for name in [name for name in expected if name is not None]:
            _check_same(found[name], expected[name], f"{where}[{name!r}]")
    elif isinstance(expected, pd.DataFrame):
        pd.testing.assert_frame_equal(found, expected)
    elif isinstance(expected, ad.AnnData):
        for slot in ("obs", "obsm", "layers", "uns"):
            _check_same(getattr(found, slot), getattr(expected, slot), f"{where}.{slot}")
    elif isinstance(expected, np.ndarray):
        np.testing.assert_array_equal(np.asarray(found), expected, where)
    elif sparse.issparse(expected):
        assert (found != expected).nnz == 0, where
    elif isinstance(expected, tuple | list):
        for i, (one, other) in enumerate(zip(found, expected, strict=True)):
            _check_same(one, other, f"{where}[{i}]")
    else:
        assert found == expected or (found != found and expected != expected), where


@pytest.mark.parametrize("name", CALLS)
def test_calls_give_the_same_bits(name: str, memory: ad.AnnData, disk: ad.AnnData) -> None:
    memory = memory.copy()
    found, expected = (CALLS[name](adata) for adata in (disk, memory))
    assert isinstance(disk.X, CSRDataset)
    _check_same(found, expected, name)
    _check_same(disk, memory, "adata")


def test_a_fit_of_counts_on_disk_is_as_good_whatever_their_order(path: Path, disk: ad.AnnData) -> None:
    loaded = ad.read_h5ad(path)
    settings = QUICK | {"max_epochs": 8, "n_hidden": 16}
    for adata in (disk, loaded):
        vx.tl.fit_vae(adata, batch_key="batch", mask_var="chosen", **settings)
    assert isinstance(disk.X, CSRDataset)
    # held-out cells are drawn over the whole file, by the same seed
    pd.testing.assert_series_equal(disk.obs["vae_split"], loaded.obs["vae_split"])
    bounds = [float(a.uns["vae"]["history"]["elbo_validation"][-1]) for a in (disk, loaded)]
    assert bounds[0] == pytest.approx(bounds[1], rel=0.02)
    readout = [np.asarray(a.layers["vae_normalized"])[:, ~a.var["chosen"]].mean(0) for a in (disk, loaded)]
    np.testing.assert_allclose(*readout, rtol=0.1)


def test_loaded_counts_give_the_bits_of_counts_in_memory(
    path: Path, disk: ad.AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, loaded = vx.io.open_store(path), ad.read_h5ad(path)
    vx.tl.fit_vae(disk, batch_key="batch", options=vx.tl.FitOptions(source="resident"), **QUICK)
    vx.tl.fit_vae(loaded, batch_key="batch", **QUICK)
    monkeypatch.setattr(survey, "MEMORY_BYTES", 10**8)
    vx.tl.fit_vae(small, batch_key="batch", **QUICK)
    for adata in (disk, small):
        assert adata.uns["vae"]["sha256"] == loaded.uns["vae"]["sha256"]
        np.testing.assert_array_equal(adata.obsm["X_vae"], loaded.obsm["X_vae"])


def test_labels_are_learned_from_counts_on_disk(path: Path, disk: ad.AnnData) -> None:
    loaded = ad.read_h5ad(path)
    options = vx.tl.FitOptions(source="stored")
    for adata in (disk, loaded):
        adata.obs["label"] = adata.obs["group"].astype(object).where(np.arange(N) % 4 > 0, "?")
        vx.tl.fit_vae(adata, labels_key="label", unlabeled_category="?", options=options, **QUICK)
        vx.tl.annotate(adata)
    found, expected = ([c for c in a.obs if c.startswith("vae_label")] for a in (disk, loaded))
    assert found == expected
    agreement = (disk.obs["vae_label"].astype(str) == loaded.obs["vae_label"].astype(str)).mean()
    assert agreement > 0.8


@pytest.mark.parametrize("source", ["memory", "disk"])
def test_gene_panels(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adata = _cells()
    first = (adata.obs["batch"] == adata.obs["batch"].iloc[0]).to_numpy()
    # genes of the model and outside it that one batch lacks
    lacks = np.isin(np.arange(24), [0, 1, 2, 18, 19])
    counts = adata.X.toarray()
    counts[np.ix_(first, lacks)] = 0
    adata.X = sparse.csr_matrix(counts)
    names = adata.obs["batch"].cat.categories
    adata.varm["gene_panels"] = pd.DataFrame(
        {name: ~lacks if name == adata.obs["batch"].iloc[0] else np.ones(24, bool) for name in names},
        index=adata.var_names,
    )
    expected = counts[:, (np.arange(24) < 18) | ~lacks].sum(1)
    if source == "disk":
        adata.write_h5ad(tmp_path / "panels.h5ad")
        adata = vx.io.open_store(tmp_path / "panels.h5ad")
    else:
        monkeypatch.setattr(survey, "MEMORY_BYTES", 2**28)
    vx.tl.fit_vae(adata, panel_key="batch", mask_var="chosen", **QUICK)
    np.testing.assert_allclose(adata.obs["vae_library"], expected)
    vx.tl.encode(adata, key_added="again")
    np.testing.assert_allclose(adata.obs["again_library"], expected)
    np.testing.assert_allclose(adata.obsm["again"], adata.obsm["X_vae"], atol=1e-4)
