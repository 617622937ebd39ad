"""Groups in which a few genes have many molecules: the effect on other genes, and comparisons without it."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import sparse

import vxpress as vx
from vxpress.core.inference.composition import displacement, relative, typical_log2_fold
from vxpress.core.inference.differential import Contrast, Evidence, Units

QUICK: dict[str, Any] = {"n_cells": 50, "n_draws": 2}
N_GENES, LOADED, CHANGED = 200, 4, 10


def _cells(loaded_share: float) -> ad.AnnData:
    """Two types of 80 cells; in "secreting" the first 4 genes hold a share of the molecules, the next 10 are up fourfold."""
    rng = np.random.default_rng(0)
    base = 0.5 + rng.gamma(2.0, 1.0, N_GENES)
    base[:LOADED] = 0.01
    profiles = np.stack([base, base])
    profiles[1, LOADED : LOADED + CHANGED] *= 4
    profiles /= profiles.sum(1, keepdims=True)
    profiles[1] *= 1 - loaded_share
    profiles[1, :LOADED] = loaded_share / LOADED
    kind = np.repeat([0, 1], 80)
    x = rng.poisson(profiles[kind] / profiles[kind].sum(1, keepdims=True) * 3000).astype(np.float32)
    adata = ad.AnnData(sparse.csr_matrix(x), var=pd.DataFrame(index=[f"gene{i}" for i in range(N_GENES)]))
    adata.obs["type"] = pd.Categorical(np.array(["other", "secreting"])[kind])
    vx.tl.fit_vae(adata, n_latent=2, n_hidden=16, max_epochs=20, batch_size=40, denoised=False)
    return adata


@pytest.fixture(scope="module")
def _loaded() -> ad.AnnData:
    return _cells(0.5)


@pytest.fixture
def loaded(_loaded: ad.AnnData) -> ad.AnnData:
    """Half of the molecules of one type are on four genes."""
    return _loaded.copy()


def _found(adata: ad.AnnData, group: str = "secreting", **arguments: Any) -> pd.DataFrame:
    vx.tl.rank_genes_groups(adata, "type", **QUICK, **arguments)
    return sc.get.rank_genes_groups_df(adata, group).set_index("names").loc[adata.var_names]


def test_half_of_the_molecules_on_four_genes_raises_a_warning(loaded: ad.AnnData, warned: list[str]) -> None:
    found = _found(loaded)
    unchanged = found.iloc[LOADED + CHANGED :]
    # the problem: shares of all other genes are halved
    assert np.median(unchanged["logfoldchanges"]) < -0.8
    (said,) = [text for text in warned if "sum to one" in text]
    assert sum(f"gene{i}" in said for i in range(LOADED)) == 3
    assert "'secreting'" in said
    assert "relative_to='median'" in said


@pytest.mark.parametrize("relative_to", ["median", [f"gene{i}" for i in range(50, 60)]])
def test_compared_with_the_typical_gene_the_others_do_not_change(
    loaded: ad.AnnData, warned: list[str], relative_to: Any
) -> None:
    for group, sign in (("secreting", 1), ("other", -1)):
        found = _found(loaded, group, relative_to=relative_to)
        changed, unchanged = found.iloc[LOADED : LOADED + CHANGED], found.iloc[LOADED + CHANGED :]
        assert abs(np.median(unchanged["logfoldchanges"])) < 0.1
        assert (unchanged["pvals_adj"] < 0.05).mean() <= 0.02
        np.testing.assert_allclose(changed["logfoldchanges"], 2 * sign, atol=0.4)
        assert (changed["pvals_adj"] < 0.05).all()
    assert not any("sum to one" in text for text in warned)
    params = loaded.uns["rank_genes_groups"]["params"]
    assert params["shift"].shape == (2,)
    np.testing.assert_allclose(params["shift"][0], -params["shift"][1], atol=0.05)


def test_comparison_with_the_typical_gene_without_counts(loaded: ad.AnnData, warned: list[str]) -> None:
    found = _found(loaded, use_counts=False, relative_to="median")
    assert abs(np.median(found["logfoldchanges"].iloc[LOADED + CHANGED :])) < 0.15
    _found(loaded, use_counts=False)
    assert any("sum to one" in text for text in warned)


def test_ordinary_types_raise_no_warning(warned: list[str]) -> None:
    adata = _cells(0.03)
    warned.clear()
    _found(adata)
    assert not warned


def test_clusters_of_blood_cells_raise_no_warning(warned: list[str]) -> None:
    adata = vx.datasets.pbmc68k_reduced()
    vx.tl.fit_vae(adata, max_epochs=1, denoised=False)
    warned.clear()
    vx.tl.rank_genes_groups(adata, "bulk_labels", n_cells=20, n_draws=1)
    assert not warned


def test_a_threshold_above_the_displacement_raises_no_warning(loaded: ad.AnnData, warned: list[str]) -> None:
    _found(loaded, delta=2.0)
    assert not warned


@pytest.mark.parametrize(
    ("relative_to", "error", "match"),
    [
        ("mean", ValueError, "'library', 'median' or a list"),
        ("gene1", ValueError, r"relative_to=\['gene1'\]"),
        ([], ValueError, "names no gene"),
        (["gene1", "nobody"], KeyError, "nobody"),
        (3, TypeError, "list of genes"),
    ],
)
def test_bad_references_are_refused(loaded: ad.AnnData, relative_to: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        vx.tl.rank_genes_groups(loaded, "type", relative_to=relative_to, **QUICK)
    assert "rank_genes_groups" not in loaded.uns


def test_displacement_of_other_genes_by_a_few() -> None:
    """Rates .5 and .1 of one gene leave .5 and .9 to all others."""
    group, stratum = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    units = Units(np.arange(4), group, stratum, stratum, np.array([10, 30, 20, 40]))
    exposure = np.array([[100.0], [900.0], [300.0], [50.0]]) * np.ones(101)
    rate = np.full((4, 101), 0.009)
    rate[:2], rate[:, 0] = 0.005, [0.5, 0.5, 0.1, 0.1]
    evidence = Evidence(units, exposure * rate * 100, exposure * 100, exposure, np.ones(101))
    contrast = Contrast.of(units, 0, 1)
    found = displacement(evidence, contrast)
    assert found.gene_k[0] == 0
    # two genes of 101 are few; the second one adds its own share
    np.testing.assert_allclose([found.share_up, found.share_down], [0.505, 0.109])
    np.testing.assert_allclose(found.log2, np.log2(0.495 / 0.891))
    np.testing.assert_allclose(typical_log2_fold(evidence, contrast), np.log2(5 / 9))
    np.testing.assert_allclose(typical_log2_fold(evidence, contrast, np.array([0])), np.log2(5))
    after = relative(evidence, contrast, np.log2(5 / 9))
    np.testing.assert_allclose(typical_log2_fold(after, contrast), 0, atol=1e-12)
