"""Paths between populations and cells, decoded."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch

import vxpress as vx
from vxpress.bridge.fits.find_fit import find_fit
from vxpress.core.priors.gaussian_path import GaussianPath


def _groups(adata: ad.AnnData) -> tuple[str, str]:
    first, second = adata.obs["group"].cat.categories[:2]
    return str(first), str(second)


def test_the_path_is_straight_between_the_means_of_the_groups(fitted: ad.AnnData) -> None:
    a, b = _groups(fitted)
    path = vx.tl.interpolate(fitted, a, b, groupby="group", n_steps=5)
    expected = [fitted.obsm["X_vae"][fitted.obs["group"] == name].mean(0) for name in (a, b)]
    z = path.obsm["X_vae"]
    np.testing.assert_allclose(z[[0, -1]], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.diff(z, 2, axis=0), 0.0, atol=1e-6)
    np.testing.assert_allclose(path.obs["position"], [0, 0.25, 0.5, 0.75, 1])
    assert list(path.var_names) == list(fitted.var_names)
    params = path.uns["vae_interpolate"]["params"]
    assert (params["source"], params["target"], params["method"]) == (a, b, "linear")


def test_steps_are_decoded_at_their_z_and_averaged_over_batches(fitted: ad.AnnData) -> None:
    path = vx.tl.interpolate(
        fitted, *_groups(fitted), groupby="group", n_steps=3, covariates={"age": 40.0}, target_sum=1.0
    )
    fit = find_fit(fitted, None, "vae")
    obs = path.obs.assign(age=40.0)
    found = []
    for batch in fitted.obs["batch"].cat.categories:
        condition = fit.model.conditioner(fit.covariates.read(obs.assign(batch=batch), labels=False))
        with torch.no_grad():
            features = fit.model.decoder.features(torch.from_numpy(path.obsm["X_vae"]), condition)
            found.append(fit.model.decoder.locate(features)[0].exp().numpy())
    np.testing.assert_allclose(path[:, fit.modelled_g].X, np.mean(found, axis=0), rtol=1e-4, atol=1e-7)
    one = vx.tl.interpolate(
        fitted,
        *_groups(fitted),
        groupby="group",
        n_steps=3,
        covariates={"age": 40.0},
        target_sum=1.0,
        transform_batch="batch_1",
    )
    np.testing.assert_allclose(one[:, fit.modelled_g].X, found[1], rtol=1e-4, atol=1e-7)


def test_covariates_do_not_change_along_the_path(fitted: ad.AnnData) -> None:
    # a path between cells of different age: age is their mean throughout
    names = fitted.obs_names[[0, 1]]
    age = float(fitted.obs.loc[names, "age"].mean())
    path = vx.tl.interpolate(fitted, *names, n_steps=3)
    given = vx.tl.interpolate(fitted, *names, n_steps=3, covariates={"age": age})
    np.testing.assert_allclose(path.X, given.X, rtol=1e-5)


def test_cells_by_name_or_mask(fitted: ad.AnnData) -> None:
    names = list(fitted.obs_names[:3])
    mask = np.zeros(fitted.n_obs, dtype=bool)
    mask[:3] = True
    path = vx.tl.interpolate(fitted, names, fitted.obs_names[9], n_steps=2)
    by_mask = vx.tl.interpolate(fitted, mask, fitted.obs_names[9], n_steps=2)
    np.testing.assert_array_equal(path.X, by_mask.X)
    np.testing.assert_allclose(path.obsm["X_vae"][1], fitted.obsm["X_vae"][9], rtol=1e-6)
    assert path.uns["vae_interpolate"]["params"]["source"] == "3 cells"
    assert path.uns["vae_interpolate"]["params"]["target"] == fitted.obs_names[9]


def test_spherical_keeps_norms_between_those_of_the_ends(fitted: ad.AnnData) -> None:
    path = vx.tl.interpolate(fitted, *fitted.obs_names[[3, 8]], n_steps=9, method="spherical")
    norm = np.linalg.norm(path.obsm["X_vae"], axis=1)
    np.testing.assert_allclose(norm, np.linspace(norm[0], norm[-1], 9), rtol=1e-5)


def test_empty_space_is_flagged_and_named(warned: list[str]) -> None:
    adata = vx.datasets.simulate(400, 80, n_groups=2, library_mean=2000, de_fraction=0.6, de_log_fold_change=3.0, rng=0)
    # without thinning, and with little dropout, so few cells are learned within these epochs
    options = vx.tl.FitOptions(dropout=0.1, thinning=0.0)
    vx.tl.fit_vae(adata, n_latent=4, n_hidden=32, max_epochs=60, batch_size=64, options=options, denoised=False)
    path = vx.tl.interpolate(adata, *_groups(adata), groupby="group", n_steps=11)
    empty = path.obs["empty"].to_numpy()
    assert empty[4:7].any()
    assert not empty[[0, 1, -2, -1]].any()
    assert any("cross regions with hardly any cells" in text and "fit_prior" in text for text in warned)
    warned.clear()
    inside = adata.obs["group"] == adata.obs["group"].cat.categories[0]
    halves = [inside & (np.arange(adata.n_obs) % 2 == k) for k in (0, 1)]
    within = vx.tl.interpolate(adata, *(half.to_numpy() for half in halves), n_steps=11)
    assert not within.obs["empty"].any()
    assert not warned


def test_genes_can_be_selected_and_the_model_may_be_a_file(fitted: ad.AnnData, tmp_path: Path) -> None:
    whole = vx.tl.interpolate(fitted, *_groups(fitted), groupby="group", n_steps=4)
    names = list(fitted.var_names[[7, 2]])
    some = vx.tl.interpolate(fitted, *_groups(fitted), groupby="group", n_steps=4, genes=names)
    assert vx.tl.interpolate(fitted, *_groups(fitted), groupby="group", n_steps=4, genes=[]).shape == (4, 0)
    np.testing.assert_allclose(some.X, whole[:, names].X, rtol=1e-5)
    vx.save_model(fitted, tmp_path / "m.safetensors")
    bare = fitted.copy()
    bare.X = bare.X * 0.3
    del bare.uns["vae"]
    from_file = vx.tl.interpolate(bare, *_groups(fitted), groupby="group", n_steps=4, model=tmp_path / "m.safetensors")
    np.testing.assert_array_equal(from_file.X, whole.X)
    whole.write_h5ad(tmp_path / "path.h5ad")
    back = ad.read_h5ad(tmp_path / "path.h5ad")
    assert back.uns["vae_interpolate"]["params"] == whole.uns["vae_interpolate"]["params"]
    assert back.obs["empty"].dtype == bool


def test_gaussian_fits_give_log_values(adata: ad.AnnData, quick: dict) -> None:
    vx.tl.fit_vae(adata, likelihood="gaussian", denoised=False, **quick)
    path = vx.tl.interpolate(adata, *_groups(adata), groupby="group", n_steps=3)
    fit = find_fit(adata, None, "vae")
    with torch.no_grad():
        expected = fit.model.decoder.locate(fit.model.decoder.features(torch.from_numpy(path.obsm["X_vae"]), None))[0]
    np.testing.assert_allclose(path.X, expected.numpy(), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="no sum to scale to"):
        vx.tl.interpolate(adata, *_groups(adata), groupby="group", target_sum=1e4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"target": "nobody"}, ValueError, "'nobody' is not a group of obs"),
        ({"groupby": "cluster"}, KeyError, "not a column of adata.obs"),
        ({"groupby": None}, KeyError, "If it is a group.*groupby="),
        ({"groupby": None, "source": np.ones(3, dtype=bool)}, ValueError, "booleans, one per cell"),
        ({"groupby": None, "source": []}, ValueError, "selects no cell"),
        ({"target": "group_0"}, ValueError, "are identical"),
        ({"n_steps": 1}, ValueError, "n_steps=1"),
        ({"method": "straight"}, ValueError, "method='straight' is not known"),
        ({"method": "flow"}, ValueError, r"fit_prior\(adata, prior='flow'\)"),
        ({"genes": ["nope"]}, KeyError, "unknown to the fit"),
        ({"covariates": {"donor": "d1"}}, KeyError, "is not a covariate of the fit"),
        ({"covariates": {"batch": "batch_0"}}, ValueError, "transform_batch="),
        ({"transform_batch": "elsewhere"}, ValueError, "the fit knows the batches"),
        ({"target_sum": 0.0}, ValueError, "target_sum=0"),
        ({"min_percentile": 101}, ValueError, "min_percentile=101"),
    ],
)
def test_impossible_requests_are_refused(fitted: ad.AnnData, arguments: dict, error: type, message: str) -> None:
    settings = {"source": "group_0", "target": "group_1", "groupby": "group"} | arguments
    with pytest.raises(error, match=message):
        vx.tl.interpolate(fitted, settings.pop("source"), settings.pop("target"), **settings)


def test_a_batch_is_refused_where_the_fit_has_none(adata: ad.AnnData, quick: dict) -> None:
    vx.tl.fit_vae(adata, **quick)
    with pytest.raises(ValueError, match=r"the fit has no batches.*batch_key="):
        vx.tl.denoise(adata, transform_batch="batch_0")


def test_a_flow_path_is_straight_in_the_base_space_and_has_the_given_ends(fitted: ad.AnnData) -> None:
    vx.tl.fit_prior(fitted, "flow", max_steps=60, key_added="flowed")
    if "flowed" not in fitted.uns:
        pytest.fail("the flow was not kept, so that there is nothing to test")
    # far apart, so that the path bends by more than rounding errors
    mean_nd = fitted.obsm["X_vae"]
    ends = [int(mean_nd[:, 0].argmin()), int(mean_nd[:, 0].argmax())]
    path = vx.tl.interpolate(fitted, *fitted.obs_names[ends], n_steps=7, method="flow", key="flowed")
    z = path.obsm["flowed"]
    np.testing.assert_allclose(z[[0, -1]], mean_nd[ends], atol=1e-4)
    prior = find_fit(fitted, None, "flowed").model.prior
    base = prior.to_base(torch.from_numpy(z)).numpy()
    np.testing.assert_allclose(np.diff(base, 2, axis=0), 0.0, atol=2e-3)
    # the map belongs to the density
    np.testing.assert_allclose(prior.from_base(torch.from_numpy(base)).numpy(), z, atol=1e-3)
    assert np.abs(np.diff(z, 2, axis=0)).max() > 1e-3


def test_a_slow_prior_is_evaluated_for_some_cells_only(fitted: ad.AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vxpress.bridge.health.learn_prior.MARGIN", -np.inf)
    vx.tl.fit_prior(fitted, "flow_matching", max_steps=20)
    asked: list[int] = []
    log_prob = GaussianPath.log_prob

    def counted(prior: GaussianPath, z: torch.Tensor) -> torch.Tensor:
        asked.append(len(z))
        return log_prob(prior, z)

    monkeypatch.setattr(GaussianPath, "log_prob", counted)
    monkeypatch.setattr("vxpress.bridge.ask.interpolation.N_COSTLY", 10)
    path = vx.tl.interpolate(fitted, *_groups(fitted), groupby="group", n_steps=4)
    assert asked == [4, 10]
    assert (path.obs["prior_percentile"] % 10 == 0).all()
