"""Genes measured in some batches only: found, fitted without taking them for zeros, and encoded for new panels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import vxpress as vx

N, G = 360, 40
FIT: dict[str, Any] = {"n_latent": 3, "n_hidden": 16, "max_epochs": 15, "batch_size": 64, "denoised": False}
OPTIONS = vx.tl.FitOptions(learning_rate=0.01)
# genes that the panels "a" and "b" lack; the panel "c" has all
LACKING = {"a": slice(30, 40), "b": slice(0, 10)}


def simulate() -> tuple[ad.AnnData, np.ndarray]:
    """Return cells of three panels and the counts that they would have had of all genes."""
    rng = np.random.default_rng(2)
    group, panel = np.arange(N) % 3, np.array(list("abc"))[np.arange(N) // 3 % 3]
    rate = np.full((N, G), 4.0)
    for k in range(3):
        rate[group == k, 13 * k : 13 * k + 13] *= 4
    whole = rng.poisson(rate).astype("f4")
    counts = whole.copy()
    for name, genes in LACKING.items():
        counts[panel == name, genes] = 0
    obs = pd.DataFrame(
        {"group": pd.Categorical([f"g{k}" for k in group]), "panel": pd.Categorical(panel)},
        index=[f"cell_{i}" for i in range(N)],
    )
    var = pd.DataFrame(index=[f"gene_{i}" for i in range(G)])
    return ad.AnnData(sparse.csr_matrix(counts), obs=obs, var=var), whole


@pytest.fixture(scope="module")
def _fitted_panels() -> tuple[ad.AnnData, np.ndarray]:
    adata, whole = simulate()
    vx.pp.gene_panels(adata, "panel")
    vx.tl.fit_vae(adata, panel_key="panel", options=OPTIONS, **FIT)
    return adata, whole


@pytest.fixture
def whole(_fitted_panels: tuple[ad.AnnData, np.ndarray]) -> np.ndarray:
    return _fitted_panels[1]


@pytest.fixture
def fitted_panels(_fitted_panels: tuple[ad.AnnData, np.ndarray]) -> ad.AnnData:
    return _fitted_panels[0].copy()


def between_panels(latent_nd: np.ndarray, obs: pd.DataFrame) -> float:
    """Return the distance of panels of a group, in units of the distance of groups."""
    means = pd.DataFrame(latent_nd).groupby([obs["group"].to_numpy(), obs["panel"].to_numpy()]).mean()
    groups = means.groupby(level=0).mean()
    within = np.sqrt(((means - groups.reindex(means.index, level=0)) ** 2).sum(axis=1)).mean()
    return float(within / np.sqrt(((groups - groups.mean()) ** 2).sum(axis=1)).mean())


def test_panels_are_found(fitted_panels: ad.AnnData) -> None:
    expected = np.ones((G, 3), bool)
    expected[LACKING["a"], 0] = expected[LACKING["b"], 1] = False
    table = fitted_panels.varm["gene_panels"]
    assert list(table.columns) == ["a", "b", "c"]
    np.testing.assert_array_equal(table.to_numpy(), expected)


def test_a_rare_gene_without_counts_is_measured() -> None:
    adata, _ = simulate()
    counts = adata.X.toarray()
    counts[:, 20] = np.arange(N) == 0
    adata.X = counts
    vx.pp.gene_panels(adata, "panel")
    assert adata.varm["gene_panels"].iloc[20].all()
    # by a stricter rule it is not
    vx.pp.gene_panels(adata, "panel", min_expected=0.1)
    assert not adata.varm["gene_panels"].iloc[20].all()


def test_cells_of_different_panels_lie_together(fitted_panels: ad.AnnData) -> None:
    plain = fitted_panels.copy()
    vx.tl.fit_vae(plain, options=OPTIONS, key_added="plain", **FIT)
    with_panels, without = (between_panels(each, plain.obs) for each in (plain.obsm["X_vae"], plain.obsm["plain"]))
    assert with_panels < 0.5 * without


def test_genes_outside_the_panel_are_decoded(fitted_panels: ad.AnnData, whole: np.ndarray) -> None:
    adata = fitted_panels
    vx.tl.denoise(adata)
    lacks = (adata.obs["panel"] == "a").to_numpy()
    expected = whole / whole.sum(1, keepdims=True)
    for group in ("g0", "g1", "g2"):
        here = (adata.obs["group"] == group).to_numpy()
        found = adata.layers["vae_normalized"][here & lacks].mean(0) / 1e4
        np.testing.assert_allclose(found[LACKING["a"]], expected[here].mean(0)[LACKING["a"]], rtol=0.3)


def test_encoding_the_cells_of_the_fit_gives_their_posterior(fitted_panels: ad.AnnData, tmp_path: Path) -> None:
    fitted_panels.write_h5ad(tmp_path / "cells.h5ad")
    again = ad.read_h5ad(tmp_path / "cells.h5ad")
    vx.tl.encode(again, key_added="again")
    np.testing.assert_allclose(again.obsm["again"], fitted_panels.obsm["X_vae"], atol=1e-5)


def test_a_new_panel_of_fewer_genes(fitted_panels: ad.AnnData) -> None:
    chosen = (fitted_panels.obs["panel"] == "c").to_numpy()
    query = fitted_panels[chosen, 5:35].copy()
    query.obs["panel"] = "new"
    del query.obsm["X_vae"], query.obsm["X_vae_var"], query.uns["vae"], query.obs["vae_split"], query.obs["vae_library"]
    del query.varm["gene_panels"]
    vx.tl.encode(query, fitted_panels)
    found, expected = query.obsm["X_vae"], fitted_panels.obsm["X_vae"][chosen]
    for d in np.flatnonzero(expected.std(0) > 0.3):
        assert np.corrcoef(found[:, d], expected[:, d])[0, 1] > 0.9
    # the fit of the query knows the panel
    assert list(query.uns["vae"]["covariates"]["panels"]["names"]) == ["a", "b", "c", "new"]
    vx.tl.encode(query, key_added="again")
    np.testing.assert_allclose(query.obsm["again"], found, atol=1e-6)
    known = query.copy()
    known.obs["panel"] = "a"
    with pytest.raises(ValueError, match=r"5 genes of the panel 'a' are missing.*another name"):
        vx.tl.encode(known, fitted_panels, key_added="third")


def test_new_cells_have_the_panel_that_their_size_factor_counts(fitted_panels: ad.AnnData) -> None:
    adata = fitted_panels
    new = vx.tl.generate(adata, 300)
    table = adata.varm["gene_panels"]
    counted = table[new.obs["panel"].astype(str)].to_numpy().T
    library = new.obs["vae_library"].to_numpy()
    assert set(new.obs["panel"]) == {"a", "b", "c"}
    assert (new.X.multiply(counted).sum(1).A1 / library).mean() == pytest.approx(1.0, abs=0.03)
    assert (new.X.sum(1).A1 / library).mean() > 1.1
    # counts of the other genes do not count when these cells are encoded
    again = ad.AnnData(new.X, obs=new.obs[["panel"]].copy(), var=new.var)
    vx.tl.encode(again, adata)
    np.testing.assert_allclose(again.obs["vae_library"], new.X.multiply(counted).sum(1).A1)
    # a model without cells is enough, as with other covariates
    assert set(vx.tl.generate(adata[:0], 5, covariates={"panel": "b"}, library=200).obs["panel"]) == {"b"}
    path = vx.tl.interpolate(adata, "g0", "g1", groupby="group", n_steps=3)
    assert path.shape == (3, G)


def test_fits_that_score_other_genes_are_not_compared(fitted_panels: ad.AnnData) -> None:
    options: dict[str, Any] = FIT | {"max_epochs": 1, "validation_fraction": 0.6}
    adata = fitted_panels
    vx.tl.fit_vae(adata, panel_key="panel", key_added="one", **options)
    vx.tl.fit_vae(adata, panel_key="panel", key_added="same", **options | {"n_hidden": 8})
    vx.tl.fit_vae(adata, key_added="without", **options)
    adata.varm["gene_panels"] = adata.varm["gene_panels"].assign(a=True)
    vx.tl.fit_vae(adata, panel_key="panel", key_added="other", **options)
    vx.tl.compare(adata, ["one", "same"])
    for name in ("without", "other"):
        with pytest.raises(ValueError, match=r"different genes for measured.*panel_key="):
            vx.tl.compare(adata, ["one", name])


def test_messages(fitted_panels: ad.AnnData) -> None:
    adata = fitted_panels
    table = adata.varm["gene_panels"]
    changes: list[tuple[Any, type[Exception], str]] = [
        (table.rename(columns={"a": "other"}), KeyError, r"no column for the panel 'a'"),
        (table.astype(float) * 0.5, ValueError, r"one boolean for each gene"),
        (table.to_numpy(), TypeError, r"of type ndarray"),
        (table.assign(a=False), ValueError, r"The panel 'a' has none of the modelled genes"),
        (
            table.assign(c=table["a"]),
            ValueError,
            r"the panel 'c' did not measure 'gene_30', but its cells have \d+ counts",
        ),
        (table & ~table.index.isin(["gene_3"])[:, None], ValueError, r"measured in no panel.*'gene_3'"),
    ]
    for value, error, message in changes:
        adata.varm["gene_panels"] = value
        with pytest.raises(error, match=message):
            vx.tl.fit_vae(adata, panel_key="panel", key_added="other", **FIT)
    del adata.varm["gene_panels"]
    with pytest.raises(KeyError, match=r"vx\.pp\.gene_panels\(adata, 'panel'\) finds them"):
        vx.tl.fit_vae(adata, panel_key="panel", key_added="other", **FIT)
    adata.varm["gene_panels"] = np.ones((G, 2))
    del adata.uns["gene_panels"]
    with pytest.raises(ValueError, match=r"already holds varm\['gene_panels'\]"):
        vx.pp.gene_panels(adata, "panel")
    adata.obs["one"] = "x"
    with pytest.raises(ValueError, match="the panel 'x' only"):
        vx.pp.gene_panels(adata, "one")


def test_a_gene_outside_the_model_that_no_panel_measured_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    adata, _ = simulate()
    counts = adata.X.toarray()
    counts[:, :2] = 0
    adata.X = counts
    adata.varm["gene_panels"] = pd.DataFrame(dict.fromkeys("abc", np.arange(G) >= 2), index=adata.var_names)
    adata.var["modelled"] = np.arange(G) >= 7
    said: list[str] = []
    monkeypatch.setattr("scanpy.logging.warning", said.append)
    vx.tl.fit_vae(adata, panel_key="panel", mask_var="modelled", **FIT | {"max_epochs": 1})
    assert any(one.startswith("2 genes outside the model (mask_var=) are measured in no panel") for one in said)


def test_a_column_that_counts_genes_of_some_panels_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    adata, _ = simulate()
    vx.pp.gene_panels(adata, "panel")
    adata.obs["total"] = adata.X.sum(1).A1
    adata.var["modelled"] = np.arange(G) >= 7
    said: list[str] = []
    monkeypatch.setattr("scanpy.logging.warning", said.append)
    for library, expected in (("total", True), ("observed", False)):
        said.clear()
        vx.tl.fit_vae(adata, panel_key="panel", mask_var="modelled", library=library, **FIT | {"max_epochs": 1})
        assert any("do not compare between panels" in one for one in said) == expected
