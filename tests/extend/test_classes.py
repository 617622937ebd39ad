"""What each class from outside does in a fit."""

from __future__ import annotations

import dataclasses
from typing import cast

import anndata as ad
import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import vxpress as vx
from vxpress import extend
from vxpress.bridge.fits.fit import Fit

from ._outside import EXTENSIONS, QUICK, Activity, Counting, Renyi, cells_of, model_of


def test_the_likelihood_is_the_distribution(fits: dict[str, ad.AnnData]) -> None:
    adata = fits["likelihood"]
    model, batch = model_of(adata), cells_of(adata)
    with torch.no_grad():
        point = model.posterior(batch).mean()
        found = model.log_likelihood(point, batch)["rna"].numpy()
        distribution = model.likelihood(point, batch.covariates, batch.log_library_n1)
        mean = distribution.mean.double().numpy()
        p = 1.0 / (1.0 + mean)
        x = batch.x_ng.numpy()
        np.testing.assert_allclose(found, stats.geom.logpmf(x, p, loc=-1).sum(1), rtol=1e-4)
        below, upto = (part.numpy() for part in distribution.steps(batch.x_ng))
        np.testing.assert_allclose(below, stats.geom.cdf(x - 1, p, loc=-1), atol=1e-6)
        np.testing.assert_allclose(upto, stats.geom.cdf(x, p, loc=-1), atol=1e-6)
        drawn = distribution.sample((50,), generator=torch.Generator().manual_seed(0)).numpy()
    assert drawn.mean() == pytest.approx(mean.mean(), rel=0.05)
    assert (drawn == 0).mean() == pytest.approx(p.mean(), rel=0.02)


def test_the_density_of_the_prior_enters_the_bound(fits: dict[str, ad.AnnData]) -> None:
    model, batch = model_of(fits["prior"]), cells_of(fits["prior"])
    eps = torch.randn(len(batch), 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        q = model.posterior(batch)["z"]
        terms = extend.elbo(model, batch, extend.Noise(0), eps)
    z = q.rsample(eps).double().numpy()
    loc, scale = q.loc.double().numpy(), q.scale.double().numpy()
    expected = stats.norm.logpdf(z, loc, scale).sum(1) - stats.laplace.logpdf(z, scale=0.5).sum(1)
    np.testing.assert_allclose(terms.kl["z"].sum(-1).numpy(), expected, rtol=1e-3, atol=1e-3)
    drawn = vx.tl.generate(fits["prior"], 4000, n_neighbors=None).obsm["X_vae"]
    assert np.abs(drawn).mean() == pytest.approx(0.5, rel=0.05)


def test_the_decoder_is_made_with_its_options(fits: dict[str, ad.AnnData]) -> None:
    assert fits["decoder"].uns["vae"]["weights"]["decoder.body.linear.weight"].shape == (8, 3 * 3 + 2)


def test_the_block_has_a_divergence_and_slots_and_moves_z(fits: dict[str, ad.AnnData]) -> None:
    adata = fits["block"].copy()
    model, batch = model_of(adata), cells_of(adata)
    q = model.posterior(batch)
    mean, sd = (part.detach().double().numpy() for part in (q["activity"].loc, q["activity"].scale))
    np.testing.assert_allclose(adata.obsm["vae_activity"], mean, rtol=1e-5)
    np.testing.assert_allclose(adata.obsm["vae_activity_var"], sd**2, rtol=1e-4)
    kl = 0.5 * (sd**2 / 2 + (mean - 0.5) ** 2 / 2 - 1 - np.log(sd**2 / 2))
    found = model.blocks["activity"].kl(q["activity"], q["activity"].loc, batch.covariates).detach().numpy()
    np.testing.assert_allclose(found, kl, rtol=1e-3, atol=1e-5)
    held_out = (adata.obs["vae_split"] == "validation").to_numpy()
    history, best = adata.uns["vae"]["history"], adata.uns["vae"]["params"]["best_epoch"]
    assert history["kl_activity_validation"][best] == pytest.approx(kl[held_out].mean(), rel=1e-3)
    parts = history["reconstruction_validation"] - history["kl_validation"] - history["kl_activity_validation"]
    np.testing.assert_allclose(history["elbo_validation"], parts, rtol=1e-5)
    # one unit of activity and a step of z along its direction are the same
    z_nd, u = q["z"].loc, q["activity"].loc
    block = cast("Activity", model.blocks["activity"])
    moved = {"z": z_nd + block.direction_d, "activity": u - 1.0}
    for point in ({"z": z_nd, "activity": u}, moved):
        values = model.likelihood(point, batch.covariates, batch.log_library_n1).mean
        torch.testing.assert_close(values, model.likelihood(moved, batch.covariates, batch.log_library_n1).mean)
    drawn = model.sample_others(
        batch.covariates[torch.zeros(9000, dtype=torch.int64)], torch.Generator().manual_seed(0)
    )
    assert drawn["activity"].mean() == pytest.approx(0.5, abs=0.05)
    assert drawn["activity"].var() == pytest.approx(2.0, rel=0.05)
    # a fit without the block removes what it wrote
    vx.tl.fit_vae(adata, "batch", **QUICK)
    assert not [name for name in adata.obsm if "activity" in name]


def test_generated_cells_vary_as_their_blocks_do(fits: dict[str, ad.AnnData]) -> None:
    class Depth(Activity):
        """A factor of all counts, from exp(-3) to exp(3)."""

        def prior(self, covariates: extend.Covariates) -> tuple[Tensor, Tensor]:
            return torch.tensor(0.0), torch.tensor(1.0)

        def enter(self, inputs: extend.DecoderInputs, value: Tensor) -> extend.DecoderInputs:
            return dataclasses.replace(inputs, log_library_n1=inputs.log_library_n1 + value)

    extend.register_block("activity", Depth, replace=True)
    try:
        # the weights of both classes have the same names and shapes
        new = vx.tl.generate(fits["block"], 2000, library=3000.0)
    finally:
        extend.register_block("activity", Activity, replace=True)
    total = np.asarray(new.X.sum(1)).ravel()
    assert np.log(total).std() == pytest.approx(1.0, rel=0.1)


def test_the_objective_lies_between_the_elbo_and_the_iwae(fits: dict[str, ad.AnnData]) -> None:
    history = fits["objective"].uns["vae"]["history"]
    model, batch = model_of(fits["objective"]), cells_of(fits["objective"])
    objective = Renyi(Fit.from_uns(fits["objective"].uns["vae"]).params.train, model)
    with torch.no_grad():
        terms = objective.terms(model, batch, extend.Noise(0))
        log_weight_kn, bound_n = terms.log_weight(), objective.bound(terms, 1.0)
    assert bool((log_weight_kn.mean(0) <= bound_n + 1e-3).all())
    assert bool((bound_n <= terms.value() + 1e-3).all())
    assert (history["objective_validation"] > history["elbo_validation"]).all()


def test_the_source_serves_all_reads_and_changes_no_bit(adata: ad.AnnData) -> None:
    plain, counted = adata, adata.copy()
    vx.tl.fit_vae(plain, "batch", **QUICK)
    Counting.n_read = 0
    vx.tl.fit_vae(counted, "batch", **QUICK, **EXTENSIONS["source"].settings)
    # three epochs of training cells, three looks at the held-out ones, and the encoding of all
    assert Counting.n_read >= (3 + 1) * counted.n_obs
    np.testing.assert_array_equal(counted.obsm["X_vae"], plain.obsm["X_vae"])
    assert counted.uns["vae"]["sha256"] == plain.uns["vae"]["sha256"]


def test_a_variant_of_the_elbo_has_its_floors_and_schedules(adata: ad.AnnData) -> None:
    class Variant(extend.ElboObjective):
        pass

    extend.register_objective("variant", Variant)
    try:
        plain = adata.copy()
        vx.tl.fit_vae(plain, "batch", **QUICK, free_bits=0.1, denoised=False)
        vx.tl.fit_vae(adata, "batch", **QUICK, free_bits=0.1, denoised=False, objective="variant")  # type: ignore[arg-type]
    finally:
        extend.unregister("objective", "variant")
    np.testing.assert_array_equal(adata.obsm["X_vae"], plain.obsm["X_vae"])
    with pytest.raises(ValueError, match=r"free_bits=0\.1 .* objective='renyi'"):
        vx.tl.fit_vae(adata, objective="renyi", free_bits=0.1)  # type: ignore[arg-type]
