"""Calls with a joint fit of a MuData, and figures of it: each against a second way to the same values."""

from __future__ import annotations

from typing import Any

import anndata as ad
import matplotlib.pyplot as plt
import mudata
import numpy as np
import pandas as pd
import pytest

import vxpress as vx

pytestmark = [
    pytest.mark.filterwarnings("ignore:The inplace keyword"),
    pytest.mark.filterwarnings("ignore:Cannot join columns:UserWarning"),
]

FIT: dict[str, Any] = {"n_latent": 3, "n_hidden": 8, "max_epochs": 1, "batch_size": 128, "denoised": False}
FIT |= {"modalities": {"rna": "nb", "protein": "nb_mixture"}}
LABELS = {"labels_key": "group", "unlabeled_category": "none"}


@pytest.fixture(scope="module")
def raw() -> mudata.MuData:
    """RNA of 640 cells; proteins, in another order, of all but the first 40 of them, and of 10 cells without RNA."""
    rna = vx.datasets.simulate(640, 30, n_groups=3, n_batches=2, library_mean=200, rng=1)
    names = [*reversed(rna.obs_names[40:]), *(f"other{i}" for i in range(10))]
    counts = np.random.default_rng(3).poisson(5.0, (len(names), 4)).astype(np.float32)
    protein = ad.AnnData(counts, obs=pd.DataFrame(index=names), var=pd.DataFrame(index=[f"p{i}" for i in range(4)]))
    mdata = mudata.MuData({"rna": rna, "protein": protein})
    for name, other in (("batch", "batch_0"), ("group", "none")):
        mdata.obs[name] = rna.obs[name].astype(str).reindex(mdata.obs_names, fill_value=other)
    mdata.obs["usual"] = np.arange(mdata.n_obs) % 2 == 0
    return mdata


@pytest.fixture(scope="module")
def _stored(raw: mudata.MuData) -> mudata.MuData:
    mdata = raw.copy()
    vx.tl.fit_vae(mdata, "batch", validation_fraction=0.5, **LABELS, **FIT)
    vx.tl.fit_vae(mdata, "batch", validation_fraction=0.5, key_added="other", rng=1, **FIT)
    return mdata


@pytest.fixture
def cells(_stored: mudata.MuData) -> mudata.MuData:
    return _stored.copy()


@pytest.fixture(autouse=True)
def _close() -> Any:
    yield
    plt.close("all")


def test_figures_are_those_of_the_cells_as_an_anndata(cells: mudata.MuData) -> None:
    plain = ad.AnnData(obs=cells.obs[["batch", "group"]], obsm=dict(cells.obsm), uns=dict(cells.uns))
    for name in ("kl", "history"):
        draw = getattr(vx.pl, name)
        found, expected = draw(cells, show=False), draw(plain, show=False)
        assert [bar.get_height() for bar in found.patches] == [bar.get_height() for bar in expected.patches]
        for one, other in zip(found.lines, expected.lines, strict=True):
            np.testing.assert_array_equal(one.get_xydata(), other.get_xydata())
        assert len(found.lines) > 0
    for name in ("posterior", "covariates"):
        draw = getattr(vx.pl, name)
        found, expected = (np.ravel(draw(each, show=False)) for each in (cells, plain))
        assert [ax.get_title() for ax in found] == [ax.get_title() for ax in expected]


def test_cells_are_coloured_by_the_features_of_a_modality_and_by_columns(cells: mudata.MuData) -> None:
    axes: Any = vx.pl.latent(
        cells, color=["p1", "group"], modality="protein", dimensions=(0, 1), sort_order=False, show=False
    )
    first, second = axes
    points = first.collections[0]
    np.testing.assert_allclose(np.asarray(points.get_offsets()), cells.obsm["X_vae"][:, :2], rtol=1e-6)
    protein = cells.mod["protein"]
    level = pd.Series(protein[:, "p1"].X.ravel(), index=protein.obs_names).reindex(cells.obs_names, fill_value=0.0)
    np.testing.assert_array_equal(np.asarray(points.get_array()), level)
    assert second.get_title() == "group"
    assert len(cells.uns["group_colors"]) == 4


def test_a_comparison_counts_all_modalities(cells: mudata.MuData) -> None:
    vx.tl.compare(cells, n_samples=50)
    assert set(cells.uns["vae_compare"]["table"].index) == {"vae", "other"}
    vx.tl.compare(cells, {"here": "vae", "there": (cells.copy(), "other")}, n_samples=50, key_added="again")
    held_out = (cells.obs["vae_split"] == "validation") & (cells.obs["other_split"] == "validation")
    held_out &= cells.obs_names.isin(cells.mod["rna"].obs_names)
    for table, key, row in (("vae_compare", "vae", "vae"), ("again", "other", "there")):
        vx.tl.log_likelihood(cells, key=key, n_samples=50)
        expected = cells.obs[f"{key}_log_likelihood"][held_out].mean()
        # proteins contribute about ten nats
        assert cells.uns[table]["table"].loc[row, "log_likelihood"] == pytest.approx(expected, abs=0.1)
    vx.tl.fit_vae(
        cells, "batch", modality="rna", key_added="alone", **{k: v for k, v in FIT.items() if k != "modalities"}
    )
    with pytest.raises(ValueError, match=r"different modalities.*\['rna', 'protein'\] and \['rna'\]"):
        vx.tl.compare(cells, ["vae", (cells.mod["rna"], "alone")])


def test_outliers_of_chosen_cells_are_those_of_a_mudata_of_their_own(raw: mudata.MuData) -> None:
    fitted, both = raw[40:300].copy(), raw[300:].copy()
    vx.tl.fit_vae(fitted, "batch", **FIT)
    calibration, query = both[both.obs["usual"].to_numpy()].copy(), both[~both.obs["usual"].to_numpy()].copy()
    vx.tl.outliers(query, fitted, calibration=calibration)
    vx.tl.outliers(both, fitted, calibration="usual")
    found = both.obs.loc[query.obs_names, "vae_outlier_pval"]
    np.testing.assert_allclose(found, query.obs["vae_outlier_pval"], rtol=1e-6)
    without_rna = ~query.obs_names.isin(query.mod["rna"].obs_names)
    assert without_rna.any()
    np.testing.assert_array_equal(found.isna(), without_rna)


def test_draws_are_of_a_modality_and_of_its_cells(cells: mudata.MuData) -> None:
    vx.tl.sample(cells, modality="protein")
    vx.tl.sample(cells)
    protein, rna = cells.mod["protein"], cells.mod["rna"]
    drawn = protein.layers["vae_sample"].toarray()
    assert drawn.shape == (610, 4)
    assert rna.layers["vae_sample"].shape == (640, 30)
    assert list(protein.uns["vae_sample"]["genes"]) == list(protein.var_names)
    np.testing.assert_array_equal(drawn, np.round(drawn))
    np.testing.assert_allclose(drawn.mean(), protein.X.mean(), rtol=0.3)
    np.testing.assert_allclose(rna.layers["vae_sample"].sum(1).mean(), rna.X.sum(1).mean(), rtol=0.1)
    returned: Any = vx.tl.sample(cells, modality="protein", genes=["p2", "p0"], n_samples=2)
    first = returned[returned.obs["draw"] == 0]
    assert set(first.obs["source"]) == set(protein.obs_names)
    expected = pd.DataFrame(drawn, index=protein.obs_names, columns=protein.var_names)
    np.testing.assert_array_equal(first.X.toarray(), expected.loc[first.obs["source"], ["p2", "p0"]])


def test_a_check_of_counts_is_one_of_the_cells_with_rna(cells: mudata.MuData) -> None:
    vx.tl.predictive_check(cells, n_draws=2)
    found, rna = cells.uns["vae_predictive_check"], cells.mod["rna"]
    assert set(found["cells"].index) == set(rna.obs_names)
    np.testing.assert_allclose(found["genes"]["mean"], np.asarray(rna.X.mean(0)).ravel(), rtol=1e-5)
    assert len(vx.pl.predictive_check(cells, show=False)) > 1


def test_labels_and_priors_are_written_to_the_mudata(cells: mudata.MuData) -> None:
    vx.tl.annotate(cells)
    assert set(cells.obs["vae_label"]) <= {"group_0", "group_1", "group_2", "Unknown"}
    np.testing.assert_allclose(cells.obsm["vae_label_prob"].sum(1), 1.0, rtol=1e-5)
    vx.tl.fit_prior(cells, "mixture", condition_key="group", key_added="new")
    np.testing.assert_array_equal(cells.obsm["new"], cells.obsm["X_vae"])
    assert "new" not in cells.mod["rna"].uns
    vx.pp.neighbors(cells, n_draws=2)
    vx.tl.cluster_stability(cells, "group")
    assert cells.obs["group_stability"].between(0, 1).all()


def test_the_only_modality_with_a_fit_needs_no_name(raw: mudata.MuData) -> None:
    cells = raw.copy()
    vx.tl.fit_vae(cells, modality="rna", **{k: v for k, v in FIT.items() if k != "modalities"})
    ax: Any = vx.pl.kl(cells, show=False)
    assert len(ax.patches) == 3
    vx.tl.sample(cells)
    assert "vae_sample" in cells.mod["rna"].layers
    vx.tl.fit_vae(cells, modality="protein", **{k: v for k, v in FIT.items() if k != "modalities"})
    with pytest.raises(ValueError, match="Name the modality"):
        vx.pl.kl(cells, show=False)


def test_a_missing_argument_is_named_with_its_function(raw: mudata.MuData) -> None:
    with pytest.raises(TypeError, match=r"counterfactual\(\) missing a required argument: 'key_covariate'"):
        vx.tl.counterfactual(raw)  # type: ignore[call-arg]


def test_gene_panels_say_nothing_about_proteins(raw: mudata.MuData) -> None:
    mdata = raw.copy()
    rna = mdata.mod["rna"]
    mdata.obs["panel"] = np.where(np.arange(mdata.n_obs) % 3 == 0, "few", "all")
    few = (mdata.obs["panel"] == "few").reindex(rna.obs_names).to_numpy()
    counts = rna.X.toarray()
    counts[few, 20:] = 0
    rna.X = counts
    rna.varm["gene_panels"] = pd.DataFrame({"few": np.arange(30) < 20, "all": True}, index=rna.var_names)
    vx.tl.fit_vae(mdata, "batch", panel_key="panel", **FIT | {"modalities": {"rna": "nb", "protein": "nb"}})
    tables = []
    for panel in (mdata.obs["panel"].to_numpy(), "all"):
        mdata.obs["panel"] = panel
        vx.tl.rank_genes_groups(mdata, "group", modality="protein")
        vx.tl.sample(mdata, modality="protein")
        vx.tl.impute(mdata, "protein", interval=0.5, n_draws=20)
        protein = mdata.mod["protein"]
        ranking = pd.DataFrame(protein.uns["rank_genes_groups"]["scores"])
        tables.append((ranking, protein.layers["vae_sample"].toarray(), mdata.obsm["vae_protein"]))
    (ranking, sample, imputed), (ranking_of_all, sample_of_all, imputed_of_all) = tables
    pd.testing.assert_frame_equal(ranking, ranking_of_all)
    np.testing.assert_array_equal(sample, sample_of_all)
    assert imputed.shape == imputed_of_all.shape == (mdata.n_obs, 4)
