"""Fits with perturbations whose effects add up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import sparse

import vxpress as vx

CONDITIONS = ("ctrl", "A", "B", "C", "A+C")
KEYS = {"perturbation_key": "drug", "control": "ctrl"}


def _simulate(n: int = 60, g: int = 30) -> ad.AnnData:
    """Cells of two types; A acts on genes 0-4, B on 5-9, C on 10-14."""
    rng = np.random.default_rng(0)
    drug = np.repeat(CONDITIONS, n)
    log = (
        rng.normal(1.0, 0.7, g)
        + np.where(rng.random(len(drug))[:, None] < 0.5, 1.0, -1.0) * np.r_[np.zeros(g - 5), np.ones(5)]
    )
    for i, name in enumerate("ABC"):
        log[np.char.find(drug, name) >= 0, 5 * i : 5 * i + 5] += 1.2
    obs = pd.DataFrame(
        {"drug": drug, "batch": rng.choice(["x", "y"], len(drug))}, index=[f"c{i}" for i in range(len(drug))]
    )
    return ad.AnnData(sparse.csr_matrix(rng.poisson(np.exp(log)).astype(np.float32)), obs=obs)


@pytest.fixture(scope="module")
def _treated() -> ad.AnnData:
    adata = _simulate()
    vx.tl.fit_vae(adata, "batch", n_latent=4, n_hidden=16, max_epochs=8, batch_size=64, **KEYS)
    return adata


@pytest.fixture
def treated(_treated: ad.AnnData) -> ad.AnnData:
    return _treated.copy()


def _between(z: np.ndarray, names: pd.Series) -> float:
    """Return the share of the variance that is between conditions."""
    means = pd.DataFrame(z).groupby(names.to_numpy()).transform("mean").to_numpy()
    return float(means.var(0).sum() / z.var(0).sum())


def test_the_latent_space_has_the_effects_removed_and_a_second_one_has_them(treated: ad.AnnData) -> None:
    removed, kept = (_between(treated.obsm[name], treated.obs["drug"]) for name in ("X_vae", "X_vae_perturbed"))
    assert removed < 0.1 < 0.4 < kept
    control = (treated.obs["drug"] == "ctrl").to_numpy()
    np.testing.assert_array_equal(treated.obsm["X_vae"][control], treated.obsm["X_vae_perturbed"][control])


def test_every_condition_has_training_and_held_out_cells(treated: ad.AnnData) -> None:
    table = pd.crosstab(treated.obs["drug"], treated.obs["vae_split"])
    assert (table["validation"] == 6).all()


def test_a_fit_survives_a_file_and_encodes_new_cells(treated: ad.AnnData, tmp_path: Path) -> None:
    treated.write_h5ad(tmp_path / "fit.h5ad")
    query = _simulate()
    query.obs["batch"] = "new"
    vx.tl.encode(query, model=tmp_path / "fit.h5ad")
    assert query.obsm["X_vae_perturbed"].shape == (300, 4)
    vx.tl.encode(query, model=tmp_path / "fit.h5ad", fine_tune=1)
    assert np.isfinite(query.obsm["X_vae_perturbed"]).all()
    vx.tl.encode(treated)
    vx.save_model(treated, tmp_path / "fit.safetensors")
    other = _simulate()
    vx.tl.encode(other, model=tmp_path / "fit.safetensors")
    np.testing.assert_array_equal(other.obsm["X_vae_perturbed"], treated.obsm["X_vae_perturbed"])


def test_an_unseen_perturbation_is_an_error_and_nothing_is_written(treated: ad.AnnData) -> None:
    query = _simulate()
    query.obs["drug"] = "D"
    with pytest.raises(ValueError, match="'D', which the fit has not seen"):
        vx.tl.encode(query, model=treated)
    assert not query.obsm
    del query.obs["drug"]
    with pytest.raises(KeyError, match="the perturbation of every cell"):
        vx.tl.encode(query, model=treated)


def test_missing_genes(treated: ad.AnnData) -> None:
    query = _simulate()[:, ::2].copy()
    vx.tl.encode(query, model=treated)
    shift = query.obsm["X_vae_perturbed"] - query.obsm["X_vae"]
    np.testing.assert_allclose(shift, treated.obsm["X_vae_perturbed"] - treated.obsm["X_vae"], atol=1e-5)


def test_effects_are_in_denoised_expression_differential_expression_and_likelihood(treated: ad.AnnData) -> None:
    denoised = pd.DataFrame(treated.layers["vae_normalized"]).groupby(treated.obs["drug"].to_numpy()).mean()
    ratio = denoised.loc["A+C"] / denoised.loc["ctrl"]
    assert ratio[[0, 4, 10, 14]].min() > 1.4 > ratio[5:10].max()
    vx.tl.rank_genes_groups(treated, "drug", groups=["A"], reference="ctrl")
    found = sc.get.rank_genes_groups_df(treated, "A")
    assert set(found["names"][:4]) < {"0", "1", "2", "3", "4"}
    vx.tl.log_likelihood(treated, n_samples=20)
    swapped = treated.copy()
    swapped.obs["drug"] = swapped.obs["drug"].replace({"A": "B"})
    vx.tl.log_likelihood(swapped, n_samples=20)
    cells = (treated.obs["drug"] == "A").to_numpy()
    own, other = (part.obs["vae_log_likelihood"].to_numpy()[cells].mean() for part in (treated, swapped))
    assert own > other + 1.0


def test_several_fits_a_cure_and_another_prior(treated: ad.AnnData, quick: dict) -> None:
    adata = _simulate(20)
    vx.tl.fit_vae(adata, n_fits=2, prior="vamp", denoised=False, **KEYS, **quick)
    assert adata.obsm["X_vae_ensemble"].shape == (100, 6)
    vx.tl.fit_vae(adata, cure=True, denoised=False, **KEYS, **quick)
    vx.tl.diagnose(adata)


def test_the_name_of_the_second_latent_space_is_guarded(quick: dict) -> None:
    adata = _simulate(20)
    adata.obsm["X_vae_perturbed"] = np.zeros((adata.n_obs, 2))
    with pytest.raises(ValueError, match="X_vae_perturbed"):
        vx.tl.fit_vae(adata, **KEYS, **quick)
    del adata.obsm["X_vae_perturbed"]
    vx.tl.fit_vae(adata, **KEYS, **quick)
    vx.tl.fit_vae(adata, **quick)
    assert "X_vae_perturbed" not in adata.obsm


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"perturbation_key": "drug"}, "control='ctrl'"),
        ({"control": "ctrl"}, "pass perturbation_key= too"),
        ({"dose_key": "dose"}, "pass perturbation_key= too"),
        (KEYS | {"categorical_covariate_keys": ["drug"]}, "Name it once"),
        (KEYS | {"dose_key": "drug"}, "Name it once"),
    ],
)
def test_arguments_that_lack_one_another(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vx.tl.fit_vae(_simulate(10), **arguments)


def test_doses(quick: dict) -> None:
    adata = _simulate(20)
    rng = np.random.default_rng(0)
    adata.obs["dose"] = rng.choice([0.1, 1.0, 10.0], adata.n_obs)
    vx.tl.fit_vae(adata, dose_key="dose", **KEYS, **quick)
    shift = adata.obsm["X_vae_perturbed"] - adata.obsm["X_vae"]
    a = (adata.obs["drug"] == "A").to_numpy()
    size = pd.Series(np.linalg.norm(shift[a], axis=1)).groupby(adata.obs["dose"].to_numpy()[a]).mean()
    assert 0 < size[0.1] < size[1.0] < size[10.0]


@pytest.fixture(scope="module")
def dosed() -> ad.AnnData:
    adata = _simulate(40)
    adata.obs["dose"] = np.random.default_rng(0).choice([1.0, 10.0], adata.n_obs)
    adata.obs.loc[adata.obs["drug"] == "A+C", "dose"] = 5.0
    vx.tl.fit_vae(adata, dose_key="dose", n_latent=3, n_hidden=16, max_epochs=4, batch_size=64, denoised=False, **KEYS)
    return adata


def test_a_counterfactual_sets_combinations_and_doses(treated: ad.AnnData, dosed: ad.AnnData) -> None:
    vx.tl.counterfactual(treated, "drug", "B+C", key_added="unseen")
    found = (
        pd.DataFrame(treated.layers["unseen"]).mean()
        / pd.DataFrame(treated.layers["vae_normalized"])[(treated.obs["drug"] == "ctrl").to_numpy()].mean()
    )
    assert found[5:15].min() > 1.2 > found[:5].max()
    assert (treated.obs["unseen_support"] == 0).all()

    def mean(value: Any) -> float:
        found: Any = vx.tl.counterfactual(dosed, "drug", value, genes=["0"])
        return float(found.X.mean())

    assert mean("ctrl") < mean({"A": 1.0}) < mean({"A": 10.0}) == mean("A")
    with pytest.raises(ValueError, match="'D'"):
        vx.tl.counterfactual(treated, "drug", "D", key_added="unseen")
    with pytest.raises(KeyError, match="'drug'"):
        vx.tl.counterfactual(treated, "dose", 1.0)


def test_new_cells_have_the_given_perturbations(treated: ad.AnnData, dosed: ad.AnnData, tmp_path: Path) -> None:
    new = vx.tl.generate(treated, 40, covariates={"drug": "B+C"})
    assert (new.obs["drug"] == "B+C").all()
    plain = vx.tl.generate(treated, 40, covariates={"drug": "ctrl"})
    means = [part.X.toarray().sum(0) / part.X.sum() for part in (new, plain)]
    assert means[0][5:15].sum() > 1.3 * means[1][5:15].sum()
    some = vx.tl.generate(dosed, 30)
    assert set(some.obs["drug"].astype(str)) <= set(CONDITIONS)
    some.write_h5ad(tmp_path / "new.h5ad")
    with pytest.raises(ValueError, match="'D'"):
        vx.tl.generate(treated, 5, covariates={"drug": "D"})
    highest = vx.tl.generate(dosed, 5, covariates={"drug": "A+B"})
    assert (highest.obs["dose"] == "10+10").all()


def test_paths_between_cells_keep_a_perturbation(treated: ad.AnnData, dosed: ad.AnnData) -> None:
    for fitted in (treated, dosed):
        adata = fitted.copy()
        adata.obs["type"] = np.where(np.arange(adata.n_obs) % 2, "u", "v")
        path = vx.tl.interpolate(adata, "u", "v", groupby="type", n_steps=3)
        assert path.n_obs == 3


def test_additive_predictions_of_combinations_and_doses(treated: ad.AnnData, dosed: ad.AnnData) -> None:
    arguments = {"control": "ctrl", "method": "additive", "anchor": 0.0}
    found = vx.tl.predict_perturbation(treated, "drug", target="B+C", **arguments)
    ratio = found.layers["mean"].mean(0) / found.layers["control"].toarray().mean(0)
    assert ratio[5:15].min() > 1.2 > ratio[:5].max()
    means = [
        vx.tl.predict_perturbation(dosed, "drug", target="A", method_options={"dose": dose}, **arguments)
        .layers["mean"][:, :5]
        .mean()
        for dose in (1.0, "10", None)
    ]
    assert means[0] < means[1] == means[2]
    with pytest.raises(ValueError, match="not negative"):
        vx.tl.predict_perturbation(dosed, "drug", target="A", method_options={"dose": -1}, **arguments)
    with pytest.raises(ValueError, match="Fit with dose_key="):
        vx.tl.predict_perturbation(treated, "drug", target="A", method_options={"dose": 1}, **arguments)


def test_the_anchor_of_a_combination_uses_all_conditions_that_share_its_parts(treated: ad.AnnData) -> None:
    """Without cells of C alone, its change follows from A + C and A; without any, it is unknown."""
    some = treated[(treated.obs["drug"] != "C").to_numpy()].copy()
    found = vx.tl.predict_perturbation(some, "drug", control="ctrl", target="B+C", method="additive", anchor=1.0)
    change = found.uns["perturbation"]["change"][0]

    def mean(name: str) -> np.ndarray:
        cells = treated[(treated.obs["drug"] == name).to_numpy()]
        return np.log1p(1e4 * cells.X.toarray() / cells.obs["vae_library"].to_numpy()[:, None]).mean(0)

    expected = mean("B") - mean("ctrl") + (mean("A+C") - mean("A"))
    np.testing.assert_allclose(change, expected, atol=1e-4)


def test_single_perturbations_may_be_written_with_the_control_and_combinations_in_any_order(
    treated: ad.AnnData,
) -> None:
    plain = vx.tl.predict_perturbation(treated, "drug", control="ctrl", target="B+C", method="additive_mean")
    written = treated.copy()
    names = {"A": "A+ctrl", "B": "ctrl+B", "C": "C+ctrl"}
    written.obs["drug"] = [names.get(name, name) for name in written.obs["drug"].astype(str)]
    found = vx.tl.predict_perturbation(written, "drug", control="ctrl", target="C+B", method="additive_mean")
    np.testing.assert_array_equal(found.X.toarray(), plain.X.toarray())
    seen = vx.tl.predict_perturbation(written, "drug", control="ctrl", target="C+A", method="additive")
    assert seen.uns["perturbation"]["params"]["target"] == "A+C"
