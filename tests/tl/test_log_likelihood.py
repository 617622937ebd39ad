from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import torch
from scipy import special, stats

import vxpress as vx
from vxpress.bridge.fits.find_fit import find_fit

pytestmark = pytest.mark.usefixtures("compiled")

COLUMNS = ["vae_log_likelihood", "vae_log_likelihood_se", "vae_log_likelihood_ess", "vae_elbo", "vae_reconstruction"]


def _query(fitted: ad.AnnData, rows: slice = slice(None)) -> ad.AnnData:
    part = fitted[rows]
    return ad.AnnData(part.X.copy(), obs=part.obs[["batch", "age", "library_size"]].copy(), var=part.var[[]].copy())


def test_columns_and_summary(fitted: ad.AnnData) -> None:
    vx.tl.log_likelihood(fitted, n_samples=30)
    obs, table = fitted.obs, fitted.uns["vae_log_likelihood"]["summary"]
    assert [c for c in obs if c in COLUMNS] == COLUMNS
    assert all(obs[c].dtype == np.float64 and np.isfinite(obs[c]).all() for c in COLUMNS)
    assert (obs["vae_reconstruction"] > obs["vae_elbo"]).all()
    assert obs["vae_log_likelihood_ess"].between(1, 30).all()
    assert list(table.index) == ["all", "train", "validation"]
    held_out = obs["vae_split"] == "validation"
    assert table.loc["validation", "n_cells"] == held_out.sum()
    for name, column in (
        ("log_likelihood", COLUMNS[0]),
        ("elbo", "vae_elbo"),
        ("reconstruction", "vae_reconstruction"),
    ):
        np.testing.assert_allclose(table.loc["validation", name], obs.loc[held_out, column].mean())
        np.testing.assert_allclose(table.loc["all", name], obs[column].mean())
    np.testing.assert_allclose(table.loc["all", "se"], stats.sem(obs[COLUMNS[0]]))
    np.testing.assert_allclose(table.loc["all", "se_sampling"], np.sqrt((obs[COLUMNS[1]] ** 2).sum()) / len(obs))


def test_agrees_with_a_plain_double_precision_estimate(fitted: ad.AnnData) -> None:
    part, n_samples = fitted[:25].copy(), 4000
    vx.tl.log_likelihood(part, n_samples=n_samples)
    fit = find_fit(part, None, "vae")
    covariates = fit.covariates.read(part.obs, labels=False)
    x = part[:, fit.genes[fit.modelled_g]].X.toarray().astype(np.float64)
    rng = np.random.default_rng(0)
    log_library = torch.from_numpy(np.log(part.obs["vae_library"].to_numpy())).float()[:, None]
    theta = fit.model.decoder.log_dispersion.detach().double().exp().numpy()
    ess = np.empty(25)
    for n in range(25):
        mean, sd = part.obsm["X_vae"][n].astype(np.float64), np.sqrt(part.obsm["X_vae_var"][n].astype(np.float64))
        z = mean + sd * rng.normal(size=(n_samples, 4))
        rows = torch.full((n_samples,), n)
        with torch.no_grad():
            distribution = fit.model.likelihood({"z": torch.from_numpy(z).float()}, covariates[rows], log_library[rows])
        mu = distribution.mean.double().numpy()
        log_x = stats.nbinom.logpmf(x[n], theta, theta / (theta + mu)).sum(1)
        log_w = log_x + stats.norm.logpdf(z).sum(1) - stats.norm.logpdf(z, mean, sd).sum(1)
        expected = special.logsumexp(log_w) - np.log(n_samples)
        w = np.exp(log_w - log_w.max())
        error = np.hypot(w.std() / w.mean() / np.sqrt(n_samples), part.obs["vae_log_likelihood_se"].iloc[n])
        assert abs(part.obs["vae_log_likelihood"].iloc[n] - expected) < 5 * error + 1e-3
        np.testing.assert_allclose(
            part.obs["vae_reconstruction"].iloc[n], log_x.mean(), atol=6 * log_x.std() / np.sqrt(n_samples) + 1e-3
        )
        ess[n] = w.sum() ** 2 / np.square(w).sum()
    # heavy tails make it noisy for single cells
    assert 0.8 < np.median(part.obs["vae_log_likelihood_ess"] / ess) < 1.25


def test_one_sample_estimates_the_elbo(fitted: ad.AnnData) -> None:
    vx.tl.log_likelihood(fitted, n_samples=1)
    assert fitted.obs["vae_log_likelihood_se"].isna().all()
    np.testing.assert_allclose(fitted.obs["vae_log_likelihood_ess"], 1)
    one = fitted.obs["vae_log_likelihood"].mean()
    spread = (fitted.obs["vae_log_likelihood"] - fitted.obs["vae_elbo"]).std() / np.sqrt(160)
    assert abs(one - fitted.obs["vae_elbo"].mean()) < 4 * spread


def test_new_cells_and_a_file(fitted: ad.AnnData, tmp_path: Path) -> None:
    vx.tl.log_likelihood(fitted, n_samples=20)
    query = _query(fitted)
    vx.tl.log_likelihood(query, fitted, n_samples=20)
    np.testing.assert_array_equal(query.obs["vae_log_likelihood"], fitted.obs["vae_log_likelihood"])
    assert list(query.uns["vae_log_likelihood"]["summary"].index) == ["all"]
    fitted.write_h5ad(tmp_path / "fit.h5ad")
    turned = query[:, ::-1].copy()
    vx.tl.log_likelihood(turned, tmp_path / "fit.h5ad", n_samples=20, key_added="again")
    np.testing.assert_allclose(turned.obs["again_log_likelihood"], query.obs["vae_log_likelihood"], rtol=1e-5)
    back = ad.read_h5ad(tmp_path / "fit.h5ad")
    table = back.uns["vae_log_likelihood"]["summary"]
    np.testing.assert_array_equal(table["n_cells"], fitted.uns["vae_log_likelihood"]["summary"]["n_cells"])


def test_the_split_of_another_fit_is_not_used(fitted: ad.AnnData, adata: ad.AnnData, quick: dict) -> None:
    vx.tl.fit_vae(adata, "batch", **quick)
    vx.tl.log_likelihood(adata, fitted, n_samples=5, key_added="other")
    assert list(adata.uns["other_log_likelihood"]["summary"].index) == ["all"]


def test_copy_seeds_and_writing_again(fitted: ad.AnnData) -> None:
    result = vx.tl.log_likelihood(fitted, n_samples=5, copy=True)
    assert result is not None
    assert "vae_elbo" not in fitted.obs
    vx.tl.log_likelihood(fitted, n_samples=5)
    np.testing.assert_array_equal(fitted.obs["vae_elbo"], result.obs["vae_elbo"])
    vx.tl.log_likelihood(fitted, n_samples=5, rng=1)
    assert (fitted.obs["vae_elbo"] != result.obs["vae_elbo"]).any()


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson", "bernoulli", "gaussian"])
def test_every_distribution_is_scored(adata: ad.AnnData, quick: dict, likelihood: Any) -> None:
    vx.tl.fit_vae(adata, "batch", likelihood=likelihood, denoised=False, **quick)
    vx.tl.log_likelihood(adata, n_samples=50)
    table = adata.uns["vae_log_likelihood"]["summary"]
    assert table.loc["all", "elbo"] < table.loc["all", "log_likelihood"]
    # the validation bound that training logged, with other noise
    logged = adata.uns["vae"]["history"]["elbo_validation"]
    spread = adata.obs.loc[adata.obs["vae_split"] == "validation", "vae_elbo"].std()
    assert abs(table.loc["validation", "elbo"] - logged).min() < spread


def test_labels_and_a_latent_library(adata: ad.AnnData, quick: dict) -> None:
    vx.tl.fit_vae(adata, "batch", library="latent", dispersion="gene-label", labels_key="group", **quick)
    vx.tl.log_likelihood(adata, n_samples=40)
    assert (adata.obs["vae_log_likelihood"] > adata.obs["vae_elbo"]).mean() > 0.9
    adata.obs["group"] = np.roll(adata.obs["group"].astype(str), 1)
    before = adata.obs["vae_reconstruction"].copy()
    vx.tl.log_likelihood(adata, n_samples=40)
    assert (adata.obs["vae_reconstruction"] != before).any()


def test_a_small_effective_sample_size_raises_a_warning(fitted: ad.AnnData, warned: list[str]) -> None:
    vx.tl.log_likelihood(fitted, n_samples=2)
    assert "effective sample size" in " ".join(warned)


def test_an_empty_cell_has_a_reconstruction_of_zero(adata: ad.AnnData, quick: dict) -> None:
    x = adata.X.toarray()
    x[3] = 0
    adata.X = x
    del adata.obs["library_size"]
    vx.tl.fit_vae(adata, "batch", **quick)
    vx.tl.log_likelihood(adata, n_samples=200)
    np.testing.assert_allclose(adata.obs["vae_reconstruction"].iloc[3], 0, atol=1e-6)
    assert adata.uns["vae_log_likelihood"]["summary"].loc["query", "n_cells"] == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_bound(fitted: ad.AnnData) -> None:
    vx.tl.log_likelihood(fitted, n_samples=20, device="cpu")
    there = vx.tl.log_likelihood(fitted, n_samples=20, device="cuda", copy=True)
    assert there is not None
    np.testing.assert_allclose(there.obs["vae_log_likelihood"], fitted.obs["vae_log_likelihood"], rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"n_samples": 0}, ValueError, "n_samples"),
        ({"n_samples": True}, ValueError, "n_samples"),
        ({"rng": 0.5}, ValueError, "rng"),
        ({"key": "other"}, KeyError, "holds no fit"),
        ({"layer": "nowhere"}, KeyError, "nowhere"),
        ({"layer": "vae_normalized"}, ValueError, "whole numbers"),
        ({"device": "abacus"}, ValueError, "device"),
        ({"key_added": "a/b"}, ValueError, "without '/'"),
    ],
)
def test_errors_for_bad_arguments_name_the_remedy(fitted: ad.AnnData, arguments: dict, error: type, match: str) -> None:
    before = list(fitted.obs), set(fitted.uns)
    with pytest.raises(error, match=match):
        vx.tl.log_likelihood(fitted, **arguments)
    assert (list(fitted.obs), set(fitted.uns)) == before


def test_columns_of_others_are_not_replaced(fitted: ad.AnnData) -> None:
    fitted.obs["vae_elbo"] = 1.0
    with pytest.raises(ValueError, match="already"):
        vx.tl.log_likelihood(fitted, n_samples=2)
    assert (fitted.obs["vae_elbo"] == 1.0).all()
