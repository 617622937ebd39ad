"""Proteins of a joint fit: imputed with intervals, without background, and compared between groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest

import vxpress as vx

pytestmark = [
    pytest.mark.filterwarnings("ignore:The inplace keyword"),
]
N, N_PROTEINS = 400, 4
# of the background, and of the foreground of the protein of each group
LOW, HIGH = 4.0, 120.0


def simulate() -> tuple[mudata.MuData, np.ndarray, np.ndarray]:
    """Three groups of cells, each with a protein of its own and a fourth without foreground; the second batch lacks proteins.

    Returns the cells, their counts of proteins, and whether a count is one of the foreground.
    """
    rng = np.random.default_rng(1)
    code = np.arange(N) % 3
    foreground = np.column_stack([code == k for k in range(3)] + [np.zeros(N, bool)])
    rate = np.ones((N, 30)) * 3.0
    for k in range(3):
        rate[code == k, 10 * k : 10 * k + 10] *= 5.0
    obs = {"group": pd.Categorical([f"group_{k}" for k in code]), "batch": pd.Categorical(rng.choice(["a", "b"], N))}
    rna = ad.AnnData(rng.poisson(rate).astype("f4"), obs=pd.DataFrame(obs, index=[f"cell_{i}" for i in range(N)]))
    rna.var_names = [f"gene_{i}" for i in range(30)]
    counts = rng.poisson(np.where(foreground, HIGH, LOW) * rng.gamma(20.0, 1 / 20.0, (N, N_PROTEINS))).astype("f4")
    protein = ad.AnnData(counts, obs=pd.DataFrame(index=rna.obs_names))
    protein.var_names = [f"protein_{k}" for k in range(N_PROTEINS)]
    has = (rna.obs["batch"] == "a").to_numpy()
    return mudata.MuData({"rna": rna, "protein": protein[has].copy()}), counts, foreground


@pytest.fixture(scope="module")
def _fitted_proteins() -> tuple[mudata.MuData, np.ndarray, np.ndarray]:
    mdata, counts, foreground = simulate()
    options = vx.tl.FitOptions(screen_covariates=False, learning_rate=0.01)
    vx.tl.fit_vae(
        mdata, "batch", n_latent=3, n_hidden=16, max_epochs=25, batch_size=64, validation_fraction=0.2, options=options
    )
    return mdata, counts, foreground


@pytest.fixture
def cells(_fitted_proteins: tuple[mudata.MuData, np.ndarray, np.ndarray]) -> mudata.MuData:
    return _fitted_proteins[0].copy()


@pytest.fixture
def counts(_fitted_proteins: tuple[mudata.MuData, np.ndarray, np.ndarray]) -> np.ndarray:
    return _fitted_proteins[1]


@pytest.fixture
def foreground(_fitted_proteins: tuple[mudata.MuData, np.ndarray, np.ndarray]) -> np.ndarray:
    return _fitted_proteins[2]


def lacks(cells: mudata.MuData) -> np.ndarray:
    return ~np.isin(cells.obs_names, cells.mod["protein"].obs_names)


def test_counts_of_the_batch_without_proteins_are_imputed(cells: mudata.MuData, counts: np.ndarray) -> None:
    vx.tl.impute(cells, "protein", interval=0.9)
    mean, lower, upper = (cells.obsm[f"vae_protein{end}"] for end in ("", "_lower", "_upper"))
    assert list(mean.columns) == list(cells.mod["protein"].var_names)
    assert list(mean.index) == list(cells.obs_names)
    params = cells.uns["vae_protein"]["params"]
    validation = (cells.obs["vae_split"] == "validation").to_numpy() & ~lacks(cells)
    assert params["n_calibrated"] == validation.sum() > 19
    found, truth = mean.to_numpy()[lacks(cells)], counts[lacks(cells)]
    for k in range(3):
        assert np.corrcoef(np.log1p(found[:, k]), np.log1p(truth[:, k]))[0, 1] > 0.8
    inside = (truth >= lower.to_numpy()[lacks(cells)]) & (truth <= upper.to_numpy()[lacks(cells)])
    assert 0.8 < inside.mean() <= 1.0


def test_the_counts_of_a_cell_do_not_enter_its_own_imputation(cells: mudata.MuData) -> None:
    vx.tl.impute(cells, "protein")
    rna = cells.mod["rna"].copy()
    vx.tl.impute(rna, "protein", cells)
    at = pd.Index(cells.obs_names).get_indexer(rna.obs_names)
    for end in ("", "_lower", "_upper"):
        np.testing.assert_allclose(
            rna.obsm[f"vae_protein{end}"], cells.obsm[f"vae_protein{end}"].iloc[at], rtol=1e-4, atol=1e-4
        )


def test_a_wider_interval_holds_the_narrower_one(cells: mudata.MuData) -> None:
    vx.tl.impute(cells, "protein", interval=0.5)
    narrow = [cells.obsm[f"vae_protein_{end}"].to_numpy() for end in ("lower", "upper")]
    vx.tl.impute(cells, "protein", interval=0.9)
    wide = [cells.obsm[f"vae_protein_{end}"].to_numpy() for end in ("lower", "upper")]
    assert (wide[0] <= narrow[0] + 1e-5).all()
    assert (wide[1] >= narrow[1] - 1e-5).all()


def test_rna_from_proteins(cells: mudata.MuData) -> None:
    alone = mudata.MuData({"protein": cells.mod["protein"].copy()})
    alone.obs["batch"] = cells.mod["rna"].obs["batch"].reindex(alone.obs_names)
    vx.tl.impute(alone, "rna", cells, key_added="genes")
    genes, group = alone.obsm["genes"], cells.mod["rna"].obs["group"].reindex(alone.obs_names)
    assert list(genes.columns) == list(cells.mod["rna"].var_names)
    measured = cells.mod["rna"][alone.obs_names].to_df()
    for name in group.unique():
        here = (group == name).to_numpy()
        assert np.corrcoef(np.log1p(genes[here].mean()), np.log1p(measured[here].mean()))[0, 1] > 0.9


def test_a_model_from_a_file_has_no_cells_to_calibrate_on(
    cells: mudata.MuData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("scanpy.logging.warning", said.append)
    vx.save_model(cells, tmp_path / "fit.safetensors")
    rna = cells.mod["rna"].copy()
    vx.tl.impute(rna, "protein", tmp_path / "fit.safetensors")
    assert rna.uns["vae_protein"]["params"]["n_calibrated"] == 0
    assert any("not calibrated" in one for one in said)
    again = cells.mod["rna"].copy()
    vx.tl.impute(again, "protein", cells)
    # only the intervals need the cells of the fit
    np.testing.assert_allclose(rna.obsm["vae_protein"], again.obsm["vae_protein"], rtol=1e-4)


def test_results_are_replaced_and_those_of_others_are_not(cells: mudata.MuData) -> None:
    vx.tl.impute(cells, "protein")
    vx.tl.impute(cells, "protein", interval=0.8)
    assert cells.uns["vae_protein"]["params"]["interval"] == 0.8
    cells.obsm["mine"] = np.ones((cells.n_obs, 2))
    with pytest.raises(ValueError, match=r"already holds obsm\['mine'\]"):
        vx.tl.impute(cells, "protein", key_added="mine")


def test_a_file_keeps_the_tables(cells: mudata.MuData, tmp_path: Path) -> None:
    vx.tl.impute(cells, "protein")
    cells.write(tmp_path / "cells.h5mu")
    again = mudata.read(tmp_path / "cells.h5mu")
    pd.testing.assert_frame_equal(
        again.obsm["vae_protein"], cells.obsm["vae_protein"], check_names=False, check_index_type=False,
        check_column_type=False,
    )  # fmt: skip
    vx.tl.impute(again, "protein")


def test_the_layer_of_proteins_is_without_background(cells: mudata.MuData, foreground: np.ndarray) -> None:
    has = ~lacks(cells)
    layer = cells.mod["protein"].layers["vae_normalized"]
    assert layer.shape == cells.mod["protein"].shape
    np.testing.assert_allclose(np.median(layer[foreground[has]]), HIGH, rtol=0.3)
    assert np.median(layer[~foreground[has]]) < LOW
    vx.tl.denoise(cells, modality="protein", key_added="again")
    np.testing.assert_allclose(cells.mod["protein"].layers["again"], layer, rtol=1e-5)
    few = vx.tl.denoise(cells, modality="protein", genes=["protein_2"])
    assert few is not None
    assert few.shape == (cells.n_obs, 1)


def test_proteins_are_ranked(cells: mudata.MuData) -> None:
    vx.tl.rank_genes_groups(cells, "group", modality="protein", delta=1.0)
    ranked = cells.mod["protein"].uns["rank_genes_groups"]
    assert "rank_genes_groups" not in cells.uns
    groups = list(cells.mod["rna"].obs["group"].cat.categories)
    for k, group in enumerate(groups):
        table = pd.DataFrame({name: ranked[name][group] for name in ("names", "scores", "logfoldchanges", "pvals_adj")})
        table = table.set_index("names")
        assert table.index[0] == f"protein_{k}"
        assert table["pvals_adj"].iloc[0] < 1e-3
        # background alone is not different
        assert table.loc["protein_3", "pvals_adj"] > 0.05
    vx.tl.rank_genes_groups(cells, "group", modality="protein", use_counts=False)
    for k, group in enumerate(groups):
        assert ranked["names"][group][0] == f"protein_{k}"


def test_groups_may_be_a_column_of_the_mudata(cells: mudata.MuData) -> None:
    vx.tl.rank_genes_groups(cells, "group")
    expected = cells.mod["rna"].uns["rank_genes_groups"]
    cells.obs["mine"] = cells.mod["rna"].obs["group"].reindex(cells.obs_names).to_numpy()
    vx.tl.rank_genes_groups(cells, "mine")
    found = cells.mod["rna"].uns["rank_genes_groups"]
    np.testing.assert_array_equal(found["scores"], expected["scores"])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: vx.tl.impute(m, "proteins"), KeyError, r"'proteins' is not one of the modalities.*'protein'"),
        (lambda m: vx.tl.impute(m, "protein", interval=1.0), ValueError, r"interval=1.0"),
        (lambda m: vx.tl.impute(m, "protein", n_draws=5), ValueError, r"n_draws=5 is too small"),
        (lambda m: vx.tl.impute(m, "protein", key="other"), KeyError, r"holds no fit of several modalities"),
        (lambda m: vx.tl.impute(m.mod["rna"], "protein"), KeyError, r"holds no fit"),
        (lambda m: vx.tl.log_likelihood(m, modality="protein"), ValueError, r"takes one of \['rna'\]"),
        (
            lambda m: vx.tl.denoise(m, modality="protein", target_sum="library"),
            ValueError,
            r"have no sum to scale to",
        ),
        (lambda m: vx.tl.denoise(m, modality="protein", own_counts=True), ValueError, r"needs a fit with likelihood"),
    ],
)
def test_messages(cells: mudata.MuData, call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(cells)


def test_a_fit_of_one_modality_imputes_no_other(adata: ad.AnnData, quick: dict) -> None:
    vx.tl.fit_vae(adata, **quick)
    with pytest.raises(ValueError, match="one of a single modality"):
        vx.tl.impute(adata, "protein")


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_cells_without_counts_of_proteins_are_not_compared(cells: mudata.MuData, value: float) -> None:
    left = cells.mod["protein"].obs_names[40:]
    lacking = mudata.MuData({"rna": cells.mod["rna"].copy(), "protein": cells.mod["protein"][left].copy()})
    lacking.obs["group"] = cells.obs["group"] = cells.mod["rna"].obs["group"]
    lacking.uns["vae"] = cells.uns["vae"]
    for name in ("X_vae", "X_vae_var"):
        lacking.obsm[name] = cells.obsm[name]
    for name in ("vae_split", "vae_library"):
        lacking.obs[name] = cells.obs[name]
    cells.mod["protein"].X[:40] = value
    for one in (lacking, cells):
        vx.tl.rank_genes_groups(one, "group", modality="protein", use_counts=True)
    found, expected = (
        pd.DataFrame(one.mod["protein"].uns["rank_genes_groups"]["scores"]).to_numpy() for one in (cells, lacking)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_results_have_the_name_of_the_modality(cells: mudata.MuData) -> None:
    parts = {"gex": cells.mod["rna"].copy(), "cell-surface protein": cells.mod["protein"].copy()}
    for part in parts.values():
        for name in [name for name in part.layers if name is not None]:
            del part.layers[name]
    mdata = mudata.MuData(parts)
    vx.tl.fit_vae(mdata, n_latent=2, n_hidden=4, max_epochs=1, denoised=False)
    for name in parts:
        vx.tl.impute(mdata, name, n_draws=20)
        assert f"vae_{name}" in mdata.obsm
