"""One fit with two views: the effects of optional covariates removed, and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import scanpy as sc

import vxpress as vx

pytestmark = pytest.mark.usefixtures("compiled")

VIEWS = ("X_vae", "X_vae_var", "X_vae_kept", "X_vae_kept_var")
KEPT = VIEWS[2:]


@pytest.fixture(scope="module")
def _dial(_simulated: ad.AnnData) -> ad.AnnData:
    adata = _simulated.copy()
    adata.var["highly_variable"] = np.arange(adata.n_vars) % 3 != 0
    settings: dict[str, Any] = {"n_latent": 4, "n_hidden": 16, "max_epochs": 4, "batch_size": 64}
    vx.tl.fit_vae(adata, "batch", optional_covariate_keys=["donor"], **settings)
    return adata


@pytest.fixture
def dial(_dial: ad.AnnData) -> ad.AnnData:
    """160 cells with a fit whose donor is optional, of 40 of the 60 genes."""
    return _dial.copy()


def _other_donors(adata: ad.AnnData) -> ad.AnnData:
    """Return the same cells with the donors in another order."""
    out = adata.copy()
    out.obs["donor"] = out.obs["donor"].map({"d1": "d2", "d2": "d3", "d3": "d1"})
    return out


def _raw(adata: ad.AnnData) -> ad.AnnData:
    return ad.AnnData(adata.X, obs=adata.obs[["batch", "donor", "age", "library_size"]].copy(), var=adata.var.copy())


# the slots


def test_a_fit_writes_both_views(dial: ad.AnnData) -> None:
    for name in VIEWS:
        assert dial.obsm[name].shape == (160, 4)
        assert dial.obsm[name].dtype == np.float32
    assert not np.array_equal(dial.obsm["X_vae"], dial.obsm["X_vae_kept"])
    assert dial.uns["vae"]["params"]["optional_covariate_keys"].tolist() == ["donor"]


def test_named_fits_have_their_own_slots(adata: ad.AnnData, quick: dict) -> None:
    vx.tl.fit_vae(adata, "batch", optional_covariate_keys="donor", key_added="k", **quick)
    assert set(adata.obsm) >= {"k", "k_var", "k_kept", "k_kept_var"}


def test_a_fit_without_optional_covariates_is_stored_as_before(adata: ad.AnnData, quick: dict) -> None:
    vx.tl.fit_vae(adata, "batch", **quick)
    assert not set(KEPT) & set(adata.obsm)
    params = adata.uns["vae"]["params"]
    assert "optional_covariate_keys" not in params
    assert "optional" not in params["model"]
    assert "hidden_share" not in params["train"]


def test_a_covariate_may_be_named_as_what_it_is_or_only_as_optional(adata: ad.AnnData, quick: dict) -> None:
    z = []
    for keys in (["donor"], []):
        vx.tl.fit_vae(adata, "batch", categorical_covariate_keys=keys, optional_covariate_keys=["donor"], **quick)
        z.append(adata.obsm["X_vae_kept"].copy())
    np.testing.assert_array_equal(*z)


def test_a_new_fit_removes_the_view_that_it_does_not_have(dial: ad.AnnData, quick: dict) -> None:
    vx.tl.fit_vae(dial, "batch", **quick)
    assert not set(KEPT) & set(dial.obsm)


def test_slots_of_others_are_not_replaced(adata: ad.AnnData, quick: dict) -> None:
    adata.obsm["X_vae_kept"] = np.zeros((adata.n_obs, 2))
    with pytest.raises(ValueError, match="X_vae_kept"):
        vx.tl.fit_vae(adata, "batch", optional_covariate_keys=["donor"], **quick)
    assert set(adata.obsm) & set(VIEWS) == {"X_vae_kept"}
    vx.tl.fit_vae(adata, "batch", key_added="k_kept", **quick)
    with pytest.raises(ValueError, match="a fit named 'k_kept'"):
        vx.tl.fit_vae(adata, "batch", optional_covariate_keys=["donor"], key_added="k", **quick)


def test_a_slot_that_an_earlier_fit_did_not_write_is_not_replaced(adata: ad.AnnData, quick: dict) -> None:
    vx.tl.fit_vae(adata, "batch", **quick)
    mine = adata.obsm["X_vae_kept"] = np.zeros((adata.n_obs, 2))
    before = adata.obsm["X_vae"].copy()
    with pytest.raises(ValueError, match=r"obsm\['X_vae_kept'\], which the fit in uns\['vae'\] did not write"):
        vx.tl.fit_vae(adata, "batch", optional_covariate_keys=["donor"], **quick)
    np.testing.assert_array_equal(adata.obsm["X_vae_kept"], mine)
    np.testing.assert_array_equal(adata.obsm["X_vae"], before)


# encoding and files


def test_encode_reproduces_both_views(dial: ad.AnnData) -> None:
    query = _raw(dial)
    vx.tl.encode(query, dial)
    for name in VIEWS:
        np.testing.assert_array_equal(query.obsm[name], dial.obsm[name])


@pytest.mark.parametrize("suffix", ["h5ad", "zarr", "safetensors"])
def test_both_views_and_the_fit_survive_a_file(dial: ad.AnnData, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"dial.{suffix}"
    query = _raw(dial)
    if suffix == "safetensors":
        vx.save_model(dial, path)
    else:
        getattr(dial, f"write_{suffix}")(path)
        stored = getattr(ad, f"read_{suffix}")(path)
        for name in VIEWS:
            np.testing.assert_array_equal(stored.obsm[name], dial.obsm[name])
        vx.tl.denoise(stored, keep=True)
    vx.tl.encode(query, path)
    for name in VIEWS:
        np.testing.assert_array_equal(query.obsm[name], dial.obsm[name])


def test_a_changed_record_of_what_is_optional_is_noticed(dial: ad.AnnData) -> None:
    dial.uns["vae"]["params"]["optional_covariate_keys"] = np.array(["batch"], dtype=object)
    with pytest.raises(ValueError, match="optional covariates"):
        vx.tl.encode(dial)


def test_the_kept_view_does_not_depend_on_the_category_given(dial: ad.AnnData) -> None:
    query = _raw(_other_donors(dial))
    vx.tl.encode(query, dial)
    for name in VIEWS:
        assert np.array_equal(query.obsm[name], dial.obsm[name]) == (name in KEPT), name


@pytest.mark.parametrize("fine_tune", [False, 2])
def test_cells_of_an_unseen_category_have_the_same_kept_view(dial: ad.AnnData, *, fine_tune: bool | int) -> None:
    query = _raw(dial)
    query.obs["donor"] = np.where(np.arange(160) < 80, "new", query.obs["donor"])
    vx.tl.encode(query, dial, fine_tune=fine_tune)
    np.testing.assert_allclose(query.obsm["X_vae_kept"], dial.obsm["X_vae_kept"], rtol=1e-4, atol=1e-5)
    again = query.copy()
    vx.tl.encode(again)
    for name in VIEWS:
        np.testing.assert_array_equal(query.obsm[name], again.obsm[name])


def test_cells_with_missing_genes_have_both_views(dial: ad.AnnData) -> None:
    query = _raw(dial)[:, ::2].copy()
    vx.tl.encode(query, dial)
    other = _raw(_other_donors(dial))[:, ::2].copy()
    vx.tl.encode(other, dial)
    np.testing.assert_allclose(query.obsm["X_vae_kept"], other.obsm["X_vae_kept"], rtol=1e-5, atol=1e-6)
    assert not np.array_equal(query.obsm["X_vae"], other.obsm["X_vae"])
    assert (query.obsm["X_vae_kept_var"] > 0).all()


# questions


def test_denoised_expression_of_the_kept_view_does_not_depend_on_the_category(dial: ad.AnnData) -> None:
    other = _other_donors(dial)
    for cells in (dial, other):
        vx.tl.denoise(cells, keep=True)
        vx.tl.denoise(cells)
    np.testing.assert_array_equal(dial.layers["vae_normalized_kept"], other.layers["vae_normalized_kept"])
    assert not np.array_equal(dial.layers["vae_normalized"], other.layers["vae_normalized"])
    assert not np.array_equal(dial.layers["vae_normalized"], dial.layers["vae_normalized_kept"])
    np.testing.assert_allclose(dial.layers["vae_normalized_kept"].sum(1), 1e4, rtol=1e-3)


def test_denoising_with_own_counts_and_with_an_interval_in_the_kept_view(dial: ad.AnnData) -> None:
    other = _other_donors(dial)
    for cells in (dial, other):
        vx.tl.denoise(cells, keep=True, own_counts=True, target_sum="library")
    np.testing.assert_array_equal(dial.layers["vae_normalized_kept"], other.layers["vae_normalized_kept"])
    vx.tl.denoise(dial, keep=True, interval=0.8, n_draws=20)
    assert (dial.layers["vae_normalized_kept_lower"] <= dial.layers["vae_normalized_kept_upper"]).all()
    few = vx.tl.denoise(dial, keep=True, genes=list(dial.var_names[:2]))
    assert few is not None
    assert few.shape == (160, 2)


def test_neighbors_of_the_kept_view(dial: ad.AnnData) -> None:
    vx.pp.neighbors(dial, keep=True, distance="euclidean", key_added="kept")
    sc.pp.neighbors(dial, use_rep="X_vae_kept", key_added="expected")
    assert (dial.obsp["kept_distances"] != dial.obsp["expected_distances"]).nnz == 0
    assert dial.uns["kept"]["params"]["use_rep"] == "X_vae_kept"


def test_log_likelihood_of_both_views(dial: ad.AnnData) -> None:
    other = _other_donors(dial)
    for cells in (dial, other):
        vx.tl.log_likelihood(cells, keep=True, n_samples=5)
        vx.tl.log_likelihood(cells, n_samples=5)
    np.testing.assert_array_equal(dial.obs["vae_kept_log_likelihood"], other.obs["vae_kept_log_likelihood"])
    assert not np.array_equal(dial.obs["vae_log_likelihood"], other.obs["vae_log_likelihood"])
    assert dial.uns["vae_kept_log_likelihood"]["params"]["keep"]


def test_counterfactuals_of_other_covariates_can_keep_the_effect(dial: ad.AnnData) -> None:
    batch = dial.obs["batch"].iloc[0]
    other = _other_donors(dial)
    for cells in (dial, other):
        vx.tl.counterfactual(cells, "batch", batch, keep=True)
    np.testing.assert_array_equal(dial.layers["vae_counterfactual_kept"], other.layers["vae_counterfactual_kept"])
    vx.tl.counterfactual(dial, "donor", "d1")
    assert "vae_counterfactual" in dial.layers
    with pytest.raises(ValueError, match="cannot be changed"):
        vx.tl.counterfactual(dial, "donor", "d1", keep=True)


def test_an_optional_batch(adata: ad.AnnData, quick: dict) -> None:
    vx.tl.fit_vae(adata, "batch", optional_covariate_keys=["batch", "donor"], **quick)
    vx.tl.denoise(adata, keep=True)
    vx.tl.counterfactual(adata, "donor", "d1")
    name = str(adata.obs["batch"].iloc[0])
    with pytest.raises(ValueError, match="decoded without one"):
        vx.tl.denoise(adata, keep=True, transform_batch=name)
    with pytest.raises(ValueError, match="cannot be changed"):
        vx.tl.counterfactual(adata, "batch", name, keep=True)
    swapped = adata.copy()
    swapped.obs["batch"] = swapped.obs["batch"].to_numpy()[::-1]
    vx.tl.encode(swapped)
    np.testing.assert_array_equal(swapped.obsm["X_vae_kept"], adata.obsm["X_vae_kept"])


def test_all_other_functions_use_the_view_without_the_effect(dial: ad.AnnData) -> None:
    dial.obs["group"] = np.where(np.arange(160) % 2, "a", "b")
    vx.tl.diagnose(dial)
    vx.tl.sample(dial)
    vx.tl.predictive_check(dial, n_draws=2)
    held_out = _raw(dial)
    held_out.X = held_out.X[:, ::-1]
    vx.tl.outliers(held_out[:20].copy(), dial, calibration=held_out[20:].copy())
    vx.tl.rank_genes_groups(dial, "group", n_draws=10)
    vx.tl.generate(dial, n_obs=5)
    vx.tl.interpolate(dial, dial.obs_names[0], dial.obs_names[1])


def test_a_fit_with_another_prior_has_both_views(dial: ad.AnnData) -> None:
    vx.tl.fit_prior(dial, "mixture", key_added="new", max_steps=3)
    if "new" in dial.uns:
        np.testing.assert_array_equal(dial.obsm["new_kept"], dial.obsm["X_vae_kept"])
        vx.tl.denoise(dial, key="new", keep=True)


# what else the fit can have


@pytest.mark.parametrize(
    "settings",
    [
        {"library": "latent"},
        {"options": vx.tl.FitOptions(covariate_code="embedding", encode_covariates=True)},
        {"options": vx.tl.FitOptions(decoder="linear"), "likelihood": "zinb"},
        {"options": vx.tl.FitOptions(encoder_steps=1, norm="layer"), "objective": "iwae"},
        {"preset": "likelihood", "prior": "vamp", "continuous_covariate_keys": ["age"]},
        {"dispersion": "gene-batch"},
    ],
    ids=str,
)
def test_settings_that_go_together_with_it(adata: ad.AnnData, quick: dict, settings: dict[str, Any]) -> None:
    vx.tl.fit_vae(adata, "batch", optional_covariate_keys=["donor"], **quick | settings)
    query = _raw(_other_donors(adata))
    vx.tl.encode(query, adata)
    np.testing.assert_array_equal(query.obsm["X_vae_kept"], adata.obsm["X_vae_kept"])
    assert not np.array_equal(query.obsm["X_vae"], adata.obsm["X_vae"])
    vx.tl.denoise(adata, keep=True)


# bad input


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"optional_covariate_keys": ["nothing"]}, KeyError, "optional_covariate_keys='nothing' is not a column"),
        ({"optional_covariate_keys": ["age"]}, ValueError, "holds numbers"),
        ({"optional_covariate_keys": ["rank"]}, ValueError, "holds numbers"),
        (
            {"optional_covariate_keys": ["age"], "continuous_covariate_keys": ["age"]},
            ValueError,
            "continuous_covariate_keys",
        ),
        ({"optional_covariate_keys": ["one"]}, ValueError, "no effect to remove or to keep"),
        ({"optional_covariate_keys": ["gaps"]}, ValueError, "missing .NaN. in 10 of 160 cells"),
        ({"optional_covariate_keys": ["donor", "donor"]}, ValueError, "names a column twice"),
        ({"optional_covariate_keys": [3]}, TypeError, "name of a column"),
        ({"optional_covariate_keys": 3}, TypeError, "list of names"),
        ({"optional_covariate_keys": ["batch"], "dispersion": "gene-batch"}, ValueError, "Leave one of the two out"),
        ({"optional_covariate_keys": ["batch"], "library": "latent"}, ValueError, "Leave one of the two out"),
    ],
)
def test_what_cannot_be_optional(
    adata: ad.AnnData, quick: dict, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    adata.obs["one"] = "x"
    adata.obs["rank"] = np.arange(160)
    adata.obs["gaps"] = adata.obs["donor"].where(np.arange(160) >= 10)
    before = set(adata.obsm), set(adata.uns), set(adata.layers)
    with pytest.raises(error, match=message):
        vx.tl.fit_vae(adata, "batch", **quick | arguments)
    assert (set(adata.obsm), set(adata.uns), set(adata.layers)) == before


def test_keep_needs_a_fit_with_optional_covariates(fitted: ad.AnnData) -> None:
    for call in (vx.tl.denoise, vx.pp.neighbors, vx.tl.log_likelihood):
        with pytest.raises(ValueError, match="nothing to keep"):
            call(fitted, keep=True)
    with pytest.raises(ValueError, match="nothing to keep"):
        vx.tl.counterfactual(fitted, "age", 40, keep=True)


def test_keep_is_true_or_false(dial: ad.AnnData) -> None:
    with pytest.raises(ValueError, match=r"True.*\['donor'\]"):
        vx.tl.denoise(dial, keep="donor")  # type: ignore[arg-type]


def test_a_lost_view_is_named_with_the_call_that_writes_it(dial: ad.AnnData) -> None:
    del dial.obsm["X_vae_kept"]
    with pytest.raises(KeyError, match=r"X_vae_kept.*vx\.tl\.encode"):
        vx.tl.denoise(dial, keep=True)


def test_several_models_have_both_views(adata: ad.AnnData, quick: dict) -> None:
    vx.tl.fit_vae(adata, "batch", optional_covariate_keys=["donor"], n_fits=2, **quick)
    assert adata.obsm["X_vae_ensemble_kept"].shape == (160, 6)
    np.testing.assert_array_equal(adata.obsm["X_vae_ensemble_kept"][:, :3], adata.obsm["X_vae_kept"])
    query = _raw(_other_donors(adata))
    vx.tl.encode(query, adata)
    np.testing.assert_array_equal(query.obsm["X_vae_ensemble_kept"], adata.obsm["X_vae_ensemble_kept"])
    assert not np.array_equal(query.obsm["X_vae_ensemble"], adata.obsm["X_vae_ensemble"])
    vx.pp.neighbors(adata, keep=True)
    assert adata.uns["neighbors"]["params"]["use_rep"] == "X_vae_ensemble_kept"
