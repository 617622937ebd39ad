"""Functions that start from stored posteriors use those of every latent block, as the likelihood at that point says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import vxpress as vx
from vxpress import extend
from vxpress.bridge.fits import runner
from vxpress.bridge.fits.fit import Fit
from vxpress.bridge.fits.query import read_query
from vxpress.core.likelihoods import Likelihood

N, FEW = 60, 12


class Tilt(extend.NormalBlock):
    """A number that moves z along a fixed direction, and with it the logits of all genes."""

    name = "tilt"

    def prior(self, covariates: extend.Covariates) -> tuple[Tensor, Tensor]:
        return torch.tensor(0.3), torch.tensor(1.0)

    def enter(self, inputs: extend.DecoderInputs, value: Tensor) -> extend.DecoderInputs:
        return dataclasses.replace(inputs, z_nd=inputs.z_nd + value * torch.tensor([1.0, -0.5]))


class Depth(Tilt):
    """A number whose exponential multiplies the size factor."""

    name = "depth"

    def enter(self, inputs: extend.DecoderInputs, value: Tensor) -> extend.DecoderInputs:
        return dataclasses.replace(inputs, log_library_n1=inputs.log_library_n1 + value)


class Size(Tilt):
    """The log size factor, in place of the one that is counted."""

    name = "size"
    infers_library = True

    def prior(self, covariates: extend.Covariates) -> tuple[Tensor, Tensor]:
        return torch.tensor(6.0), torch.tensor(1.0)

    def enter(self, inputs: extend.DecoderInputs, value: Tensor) -> extend.DecoderInputs:
        return dataclasses.replace(inputs, log_library_n1=value)


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    for cls in (Tilt, Depth):
        extend.register_block(cls.name, cls)
    yield
    for cls in (Tilt, Depth):
        extend.unregister("block", cls.name)


@pytest.fixture(scope="module", params=["observed", "latent"])
def _stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ad.AnnData:
    """Cells of a fit with both blocks, read from a file; their posteriors are narrow, at points that differ by cell."""
    adata = vx.datasets.simulate(N, 30, n_groups=2, n_batches=2, library_mean=400, rng=1)
    options = vx.tl.FitOptions(blocks=("tilt", "depth"), norm="batch", start="mean", thinning=0.0)
    vx.tl.fit_vae(
        adata, "batch", n_latent=2, n_hidden=8, max_epochs=1, library=request.param, options=options, denoised=False
    )
    # the decoder of so short a fit depends little on its input
    fit, rng = Fit.from_uns(adata.uns["vae"]), np.random.default_rng(0)
    with torch.no_grad():
        for weight in (fit.model.decoder.location.weight, fit.model.get_parameter("decoder.body.linears.0.weight")):
            weight.copy_(torch.from_numpy(rng.normal(0.0, 0.5, tuple(weight.shape))))
    adata.uns["vae"] = fit.to_uns()
    adata.obsm["X_vae"] = rng.normal(size=(N, 2)).astype(np.float32)
    adata.obsm["vae_tilt"] = np.linspace(-2, 2, N, dtype=np.float32)[:, None]
    adata.obsm["vae_depth"] = rng.permutation(np.linspace(-1, 1, N, dtype=np.float32))[:, None]
    for name in ("X_vae_var", "vae_tilt_var", "vae_depth_var"):
        adata.obsm[name] = np.full_like(adata.obsm[name], 1e-12)
    path = tmp_path_factory.mktemp("blocks") / "cells.h5ad"
    adata.write_h5ad(path)
    return ad.read_h5ad(path)


@pytest.fixture
def stored(_stored: ad.AnnData) -> ad.AnnData:
    return _stored.copy()


@torch.no_grad()
def _likelihood(adata: ad.AnnData, batch: int | None = None) -> Likelihood:
    """Return the distribution of the counts at the stored point."""
    fit = Fit.from_uns(adata.uns["vae"])
    covariates = fit.covariates.read(adata.obs)
    covariates = covariates if batch is None else covariates.with_batch(batch)
    slots = {"z": "X_vae", "tilt": "vae_tilt", "depth": "vae_depth"}
    point = {name: torch.from_numpy(adata.obsm[slot]) for name, slot in slots.items()}
    if fit.params.model.latent_library:
        point["library"] = torch.from_numpy(np.log(adata.obs["vae_library"].to_numpy(np.float32)))[:, None]
        # blocks enter in the order of the model, so the library comes before what multiplies it
        assert list(fit.model.blocks) == ["z", "library", "tilt", "depth"]
    log_library = np.log(adata.obs["vae_library"].to_numpy(np.float32))[:, None]
    return fit.model.eval().likelihood(point, covariates, torch.from_numpy(log_library))


def _shares(mean: np.ndarray) -> np.ndarray:
    return mean / mean.sum(1, keepdims=True)


def _with(adata: ad.AnnData, name: str, values: np.ndarray) -> ad.AnnData:
    changed = adata.copy()
    changed.obsm[name] = values.astype(np.float32)
    return changed


def test_denoised_counts_are_the_means_of_the_likelihood(stored: ad.AnnData) -> None:
    mean = _likelihood(stored).mean.numpy()
    settings = {"transform_batch": "observed", "n_draws": 2}
    vx.tl.denoise(stored, target_sum="library", key_added="counts", **settings)
    np.testing.assert_allclose(stored.layers["counts"], mean, rtol=1e-3)
    vx.tl.denoise(stored, target_sum=1.0, key_added="shares", **settings)
    np.testing.assert_allclose(stored.layers["shares"], _shares(mean), rtol=1e-3)
    # tilt changes the shares, depth the totals alone
    assert np.ptp(mean.sum(1) / stored.obs["vae_library"]) > 1.0
    untilted = _likelihood(_with(stored, "vae_tilt", np.full((N, 1), 0.3))).mean.numpy()
    assert np.abs(_shares(untilted) / _shares(mean) - 1).max() > 0.1


def test_a_block_that_infers_the_size_factor_is_stored_and_used_as_one(stored: ad.AnnData) -> None:
    extend.register_block("size", Size)
    try:
        options = vx.tl.FitOptions(blocks=("size",))
        vx.tl.fit_vae(stored, n_latent=2, n_hidden=8, max_epochs=1, options=options, denoised=False, key_added="own")
        model = Fit.from_uns(stored.uns["own"]).model.eval()
        cells = read_query(stored, Fit.from_uns(stored.uns["own"]), None).cells
        with torch.no_grad():
            point = model.posterior(cells.batch(torch.arange(N))).mean()
            mean = model.likelihood(point, cells.covariates, cells.log_library_n1).mean.numpy()
        np.testing.assert_allclose(stored.obs["own_library"], point["size"][:, 0].exp().numpy(), rtol=1e-4)
        stored.obsm["own_var"] = np.full_like(stored.obsm["own_var"], 1e-12)
        vx.tl.denoise(stored, key="own", target_sum="library", key_added="counts", n_draws=1)
        np.testing.assert_allclose(stored.layers["counts"], mean, rtol=1e-3)
        drawn = vx.tl.sample(stored, key="own", n_samples=200)
        assert drawn is not None
        total_n = np.asarray(drawn.X.sum(1)).reshape(200, N).mean(0)
        np.testing.assert_allclose(total_n, mean.sum(1), rtol=0.3)
    finally:
        extend.unregister("block", "size")


def test_own_counts_are_compared_with_the_means_of_the_likelihood(stored: ad.AnnData) -> None:
    mean, theta = _likelihood(stored).mean.numpy(), np.exp(stored.uns["vae"]["weights"]["decoder.log_dispersion"])
    vx.tl.denoise(stored, target_sum=1.0, own_counts=True, transform_batch="observed", n_draws=2, key_added="updated")
    expected = _shares(mean) * (theta + np.asarray(stored.X.todense())) / (theta + mean)
    np.testing.assert_allclose(stored.layers["updated"], expected, rtol=1e-3)


def test_intervals_are_as_wide_as_the_posterior_of_a_block(stored: ad.AnnData) -> None:
    def width(adata: ad.AnnData) -> float:
        found = vx.tl.denoise(adata, genes=list(adata.var_names[:5]), interval=0.9, n_draws=40)
        assert found is not None
        return float((found.layers["upper"] / found.layers["lower"] - 1).mean())

    assert width(stored) < 1e-3
    assert width(_with(stored, "vae_tilt_var", np.full((N, 1), 1.0))) > 0.1


def test_drawn_counts_have_the_distribution_of_the_likelihood(stored: ad.AnnData) -> None:
    few, n_draws = stored[:FEW].copy(), 400
    drawn = vx.tl.sample(few, n_samples=n_draws)
    assert drawn is not None
    distribution, x = _likelihood(few), drawn.X.toarray().reshape(n_draws, FEW, -1)
    error = (x.mean(0) - distribution.mean.numpy()) / np.sqrt(distribution.variance.numpy() / n_draws)
    assert np.abs(error).max() < 5.0
    assert np.square(error).mean() == pytest.approx(1.0, abs=0.4)


def test_a_counterfactual_keeps_the_other_blocks(stored: ad.AnnData) -> None:
    value = stored.obs["batch"].cat.categories[1]
    vx.tl.counterfactual(stored, "batch", value, target_sum="library", n_draws=2)
    np.testing.assert_allclose(stored.layers["vae_counterfactual"], _likelihood(stored, 1).mean.numpy(), rtol=1e-3)


def test_the_other_blocks_move_linearly_along_a_path(stored: ad.AnnData) -> None:
    batch = stored.obs["batch"].cat.categories[0]
    # mean of two cells, and one cell
    names = list(stored.obs_names[[0, 10]]), [stored.obs_names[50]]
    path = vx.tl.interpolate(stored, *names, n_steps=3, transform_batch=batch, target_sum=1.0)
    steps = stored[[0, 1, 2]].copy()
    for name in ("X_vae", "vae_tilt", "vae_depth"):
        values = stored.obsm[name].astype(np.float64)
        start, end = values[[0, 10]].mean(0), values[50]
        steps.obsm[name] = np.stack([start, (start + end) / 2, end]).astype(np.float32)
    np.testing.assert_allclose(path.X, _shares(_likelihood(steps, 0).mean.numpy()), rtol=1e-3)


def test_groups_that_differ_in_a_block_differ_in_expression(stored: ad.AnnData) -> None:
    stored.obsm["X_vae"] = np.zeros((N, 2), np.float32)
    second = np.arange(N) % 2 == 1
    stored.obs["half"] = pd.Categorical(np.where(second, "b", "a"))

    def change(tilt_n: np.ndarray) -> np.ndarray:
        adata = _with(stored, "vae_tilt", tilt_n[:, None])
        vx.tl.rank_genes_groups(adata, "half", groups=["b"], reference="a", use_counts=False, n_draws=2)
        table = pd.DataFrame({name: adata.uns["rank_genes_groups"][name]["b"] for name in ("names", "logfoldchanges")})
        return table.set_index("names")["logfoldchanges"].loc[adata.var_names].to_numpy()

    tilted = np.where(second, 1.0, 0.0)
    one, other = (_with(stored, "vae_tilt", np.full((N, 1), value)) for value in (0.0, 1.0))
    # averaged over batches
    shares = [sum(_shares(_likelihood(adata, batch).mean.numpy())[0] for batch in (0, 1)) for adata in (one, other)]
    found, expected = change(tilted), np.log2(shares[1] / shares[0])
    assert np.corrcoef(found, expected)[0, 1] > 0.99
    assert np.abs(change(np.full(N, 1.0))).max() < 0.01 * np.abs(expected).max()


def test_genes_outside_are_read_out_at_the_posterior_of_every_block(
    stored: ad.AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = []
    monkeypatch.setattr(runner, "fit_readout", lambda *args, **_: points.append(args[3]))
    mask, options = np.arange(stored.n_vars) < 20, vx.tl.FitOptions(blocks=("tilt",))
    vx.tl.fit_vae(stored, n_latent=2, n_hidden=8, max_epochs=1, mask_var=mask, options=options, key_added="some")
    assert list(points[0]) == ["z", "tilt"]
    np.testing.assert_array_equal(points[0]["tilt"].numpy(), stored.obsm["some_tilt"])


def test_a_new_prior_under_another_name_keeps_the_posterior_of_every_block(stored: ad.AnnData) -> None:
    # far from the prior, so that the new one is better
    stored.obsm["X_vae"] += np.where(np.arange(N) % 2, 4.0, -4.0).astype(np.float32)[:, None]
    vx.tl.fit_prior(stored, prior="mixture", n_components=2, key_added="learned")
    for name in ("tilt", "tilt_var", "depth", "depth_var"):
        np.testing.assert_array_equal(stored.obsm[f"learned_{name}"], stored.obsm[f"vae_{name}"])


USES: dict[str, Callable[[ad.AnnData], object]] = {
    "denoise": vx.tl.denoise,
    "sample": vx.tl.sample,
    "counterfactual": lambda adata: vx.tl.counterfactual(adata, "batch", adata.obs["batch"].iloc[0]),
    "interpolate": lambda adata: vx.tl.interpolate(adata, "group_0", "group_1", groupby="group"),
    "rank_genes_groups": lambda adata: vx.tl.rank_genes_groups(adata, "group"),
    "diagnose": vx.tl.diagnose,
    "fit_prior": lambda adata: vx.tl.fit_prior(adata, prior="mixture"),
}


@pytest.mark.parametrize("use", USES)
def test_a_missing_posterior_of_a_block_is_named_with_the_call_that_writes_it(stored: ad.AnnData, use: str) -> None:
    del stored.obsm["vae_tilt"]
    with pytest.raises(KeyError, match=r"adata\.obsm lacks \['vae_tilt'\].*vx\.tl\.encode\(adata, model=\.\.\.\)"):
        USES[use](stored)


def test_encode_writes_it_again_and_what_needs_z_alone_works_without_it(stored: ad.AnnData) -> None:
    del stored.obsm["vae_tilt"], stored.obsm["vae_depth_var"]
    vx.pp.neighbors(stored)
    assert vx.tl.generate(stored, 5).n_obs == 5
    vx.tl.encode(stored)
    vx.tl.denoise(stored)
    assert np.isfinite(stored.layers["vae_normalized"]).all()


def test_concatenated_cells_without_the_block_are_refused(stored: ad.AnnData) -> None:
    first, second = stored[:20].copy(), stored[20:].copy()
    del second.obsm["vae_depth"]
    joined = ad.concat([first, second], uns_merge="same")
    with pytest.raises(KeyError, match=r"lacks \['vae_depth'\]"):
        vx.tl.denoise(joined)
    second.obsm["vae_depth"] = np.full((40, 1), np.nan, np.float32)
    joined = ad.concat([first, second], uns_merge="same")
    with pytest.raises(
        ValueError, match=r"obsm\['vae_depth'\] or \['vae_depth_var'\] holds values that are not a posterior"
    ):
        vx.tl.denoise(joined)
    joined.obsm["vae_depth"] = np.zeros((60, 2), np.float32)
    with pytest.raises(ValueError, match=r"obsm\['vae_depth'\] has shape \(60, 2\), but the fit writes \(60, 1\)"):
        vx.tl.denoise(joined)
