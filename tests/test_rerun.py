"""Running a cell again gives the same result again, and nothing that is somebody else's is written over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from scipy import sparse

import vxpress as vx

SLOTS = ("obs", "var", "obsm", "varm", "obsp", "layers", "uns")


def contents(adata: AnnData) -> dict[tuple[str, str], Any]:
    """Everything in an AnnData, by slot and name."""
    return {(slot, name): getattr(adata, slot)[name] for slot in SLOTS for name in getattr(adata, slot)}


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal to the bit."""
    if isinstance(a, Mapping):
        return isinstance(b, Mapping) and set(a) == set(b) and all(same(a[k], b[k]) for k in a)
    if sparse.issparse(a):
        return sparse.issparse(b) and a.shape == b.shape and (a != b).nnz == 0
    if isinstance(a, pd.DataFrame | pd.Series):
        return type(a) is type(b) and a.equals(b)
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype.kind == "f":
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=True)
    return a.dtype == b.dtype and np.array_equal(a, b)


def differences(before: Mapping[Any, Any], after: Mapping[Any, Any]) -> set[tuple[str, str]]:
    """Slots and names that one has and the other has not, or with another value."""
    return {at for at in {*before, *after} if at not in before or at not in after or not same(before[at], after[at])}


def fit(adata: AnnData, **settings: Any) -> None:
    vx.tl.fit_vae(adata, "batch", n_latent=3, n_hidden=8, max_epochs=2, batch_size=64, **settings)


CALLS: dict[str, Callable[[AnnData], Any]] = {
    "library_size": lambda adata: vx.pp.library_size(adata, key_added="molecules"),
    "highly_variable_genes": lambda adata: vx.pp.highly_variable_genes(adata, n_top_genes=20, batch_key="batch"),
    "highly_variable_genes of scanpy": lambda adata: vx.pp.highly_variable_genes(
        adata, n_top_genes=20, flavor="pearson_residuals"
    ),
    "neighbors": lambda adata: vx.pp.neighbors(adata, n_draws=2),
    "fit_vae": lambda adata: fit(adata, key_added="again", options=vx.tl.FitOptions(decoder="linear")),
    "fit_prior": lambda adata: vx.tl.fit_prior(adata, "mixture", max_steps=200, key_added="mixed"),
    "encode": lambda adata: vx.tl.encode(adata, key_added="again"),
    "denoise": lambda adata: vx.tl.denoise(adata, key_added="smooth"),
    "denoise with an interval": lambda adata: vx.tl.denoise(adata, key_added="smooth", interval=0.5, n_draws=4),
    "rank_genes_groups": lambda adata: vx.tl.rank_genes_groups(adata, "group"),
    "counterfactual": lambda adata: vx.tl.counterfactual(adata, "batch", "batch_1"),
    "sample": vx.tl.sample,
    "predictive_check": lambda adata: vx.tl.predictive_check(adata, n_draws=2),
    "log_likelihood": lambda adata: vx.tl.log_likelihood(adata, n_samples=2),
    "cluster_stability": lambda adata: vx.tl.cluster_stability(adata, "group"),
}


@pytest.fixture
def ready(fitted: AnnData, monkeypatch: pytest.MonkeyPatch) -> AnnData:
    """A fit, with what some calls need from earlier ones, and nothing that one of the calls has written."""
    # a prior of few steps is kept whatever it gains
    monkeypatch.setattr("vxpress.bridge.health.learn_prior.MARGIN", -1e9)
    del fitted.var["highly_variable"]
    n = fitted.n_obs
    fitted.obsp["edge_frequency"] = sparse.csr_matrix(np.eye(n, k=1) + np.eye(n, k=-1), dtype=np.float32)
    return fitted


@pytest.mark.parametrize("name", CALLS)
def test_a_call_made_again_gives_the_same_bits_and_replaces_nothing_else(name, ready):
    if name == "neighbors":
        del ready.obsp["edge_frequency"]
    call, before, once = CALLS[name], contents(ready), ready.copy()
    call(once)
    first = contents(once.copy())
    call(once)
    assert differences(first, contents(once)) == set()

    written = sorted(differences(before, first) - set(before))
    assert written
    for slot, key in written:
        value = first[slot, key]
        taken = ready.copy()
        getattr(taken, slot)[key] = (
            "mine" if slot == "uns" else value * 0 if sparse.issparse(value) else np.zeros(np.shape(value))
        )
        foreign = contents(taken.copy())
        with pytest.raises(ValueError, match=rf"(?s)\b{slot}\[['\"]{key}['\"]\].*(key_added=|another name)"):
            call(taken)
        assert differences(foreign, contents(taken)) == set()


def test_compare_and_outliers_replace_their_own_only(fitted):
    seen = fitted[fitted.obs["vae_split"] == "train"].copy()
    new = vx.datasets.simulate(400, 60, n_groups=3, n_batches=2, library_mean=300, rng=2)
    new.obs["age"] = 50.0
    tested, calibration = new[:100].copy(), new[100:].copy()
    calls = (
        lambda adata: vx.tl.outliers(adata, seen, calibration=calibration),
        lambda adata: vx.tl.compare(adata, {"a": fitted, "b": fitted}, n_samples=10),
    )
    for call, adata, (slot, key) in zip(
        calls, (tested, new), (("obs", "vae_outlier"), ("uns", "vae_compare")), strict=True
    ):
        taken = adata.copy()
        call(adata)
        first = contents(adata.copy())
        call(adata)
        assert differences(first, contents(adata)) == set()
        getattr(taken, slot)[key] = "mine"
        with pytest.raises(ValueError, match="key_added="):
            call(taken)


# what has scanpy's names


def test_what_scanpy_wrote_is_replaced_as_scanpy_replaces_it(fitted):
    del fitted.var["highly_variable"]
    log = fitted.copy()
    sc.pp.log1p(log)
    sc.pp.highly_variable_genes(log, n_top_genes=10)
    fitted.var, fitted.uns["hvg"] = log.var, log.uns["hvg"]
    vx.pp.highly_variable_genes(fitted, n_top_genes=20)
    assert fitted.var["highly_variable"].sum() == 20
    assert "dispersions" not in fitted.var
    sc.pp.neighbors(fitted, use_rep="X_vae")
    vx.pp.neighbors(fitted, n_draws=0)
    assert fitted.uns["neighbors"]["params"]["distance"] == "likelihood"
    sc.tl.rank_genes_groups(log, "group")
    fitted.uns["rank_genes_groups"] = log.uns["rank_genes_groups"]
    vx.tl.rank_genes_groups(fitted, "group")
    assert fitted.uns["rank_genes_groups"]["params"]["method"] == "vae"


def test_columns_of_an_earlier_selection_do_not_stay(adata):
    vx.pp.highly_variable_genes(adata, n_top_genes=20, batch_key="batch")
    assert "highly_variable_nbatches" in adata.var
    vx.pp.highly_variable_genes(adata, n_top_genes=20)
    assert "highly_variable_nbatches" not in adata.var


def test_a_library_of_more_genes_is_kept(adata):
    del adata.obs["library_size"]
    vx.pp.library_size(adata)
    fewer = adata[:, :30].copy()
    whole = fewer.obs["library_size"].copy()
    with pytest.raises(ValueError, match=r"60 genes, but adata now has 30 genes.*overwrite=True"):
        vx.pp.library_size(fewer)
    assert fewer.obs["library_size"].equals(whole)
    vx.pp.library_size(fewer, overwrite=True)
    assert (fewer.obs["library_size"] < whole).any()


def test_the_ends_of_an_interval_that_are_not_ours_stay(fitted):
    mine = np.zeros(fitted.shape)
    fitted.layers["smooth_lower"] = mine
    vx.tl.denoise(fitted, key_added="smooth")
    vx.tl.denoise(fitted, key_added="smooth")
    assert np.array_equal(fitted.layers["smooth_lower"], mine)
    with pytest.raises(ValueError, match="smooth_lower"):
        vx.tl.denoise(fitted, key_added="smooth", interval=0.5, n_draws=4)
    del fitted.layers["smooth_lower"]
    vx.tl.denoise(fitted, key_added="smooth", interval=0.5, n_draws=4)
    vx.tl.denoise(fitted, key_added="smooth")
    assert "smooth_lower" not in fitted.layers


def test_a_record_that_only_looks_like_one_is_somebody_elses(fitted):
    for params in (3, "denoised", ["denoised", "cluster_key"], None):
        fitted.uns["smooth"] = {"params": params}
        with pytest.raises(ValueError, match="smooth"):
            vx.tl.denoise(fitted, key_added="smooth")
        with pytest.raises(ValueError, match="smooth"):
            vx.tl.sample(fitted, key_added="smooth")


# fits


def test_a_fit_that_replaces_a_fit_says_so(adata, warned):
    fit(adata)
    assert [line for line in warned if "replaced" in line] == []
    fit(adata, key_added="other")
    assert [line for line in warned if "replaced" in line] == []
    fit(adata)
    (said,) = [line for line in warned if "replaced" in line]
    assert "adata.uns['vae'] (batch_key='batch', 2 epochs)" in said
    assert "key_added=" in said
