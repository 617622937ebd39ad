from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import vxpress as vx
from vxpress.bridge.fits.find_fit import find_fit

STEPS = 60


@pytest.fixture(scope="module")
def _cells() -> ad.AnnData:
    """Cells with a fit whose stored posteriors form two clusters, far from N(0, I)."""
    adata = vx.datasets.simulate(400, 40, n_groups=2, n_batches=2, library_mean=300, rng=1)
    adata.obs["labelled"] = pd.Categorical(np.where(np.arange(400) % 5 == 0, None, adata.obs["group"].astype(str)))
    vx.tl.fit_vae(adata, "batch", n_latent=2, n_hidden=8, max_epochs=2, denoised=False)
    rng = np.random.default_rng(0)
    clump = np.where(adata.obs["group"].astype(str) == str(adata.obs["group"].iloc[0]), -1.5, 1.5)
    adata.obsm["X_vae"] = (clump[:, None] + 0.3 * rng.normal(size=(400, 2))).astype(np.float32)
    adata.obsm["X_vae_var"] = np.full((400, 2), 0.04, dtype=np.float32)
    return adata


@pytest.fixture
def cells(_cells: ad.AnnData) -> ad.AnnData:
    return _cells.copy()


def _networks(adata: ad.AnnData, key: str = "vae") -> dict[str, bytes]:
    weights = adata.uns[key]["weights"]
    return {name: value.tobytes() for name, value in weights.items() if not name.startswith("prior.")}


@pytest.mark.parametrize("prior", ["mixture", "flow"])
def test_a_better_prior_is_stored_and_nothing_else_changes(cells: ad.AnnData, prior: str) -> None:
    before = cells.copy()
    vx.tl.fit_prior(cells, prior, max_steps=STEPS)
    record = cells.uns["vae"]["prior"]
    assert record["kind"] == prior == cells.uns["vae"]["params"]["model"]["prior"]["name"]
    assert record["gain"] > record["gain_se"] > 0
    assert record["gain"] == pytest.approx(record["log_prob_after"] - record["log_prob_before"])
    assert _networks(cells) == _networks(before)
    # the diagnostics are those of the new prior
    vx.tl.diagnose(before, gaps=False)
    gap_before, gap = (a.uns["vae"]["diagnostics"]["prior_gap_per_dim"] for a in (before, cells))
    assert gap < 0.5 * gap_before
    assert set(cells.obsm) == set(before.obsm)
    assert set(cells.obs) == set(before.obs)
    assert np.array_equal(cells.obsm["X_vae"], before.obsm["X_vae"])
    # the record agrees with the density of the validation cells under the stored prior
    held_out = (cells.obs["vae_split"] == "validation").to_numpy()
    mean, var = (torch.from_numpy(cells.obsm[name][held_out]).double() for name in ("X_vae", "X_vae_var"))
    noise = torch.randn(400, *mean.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    log_p = find_fit(cells, None, "vae").model.prior.log_prob(mean + var.sqrt() * noise).detach()
    assert float(log_p.mean()) == pytest.approx(record["log_prob_after"], abs=0.15)
    normal = -0.5 * (mean**2 + var + np.log(2 * np.pi)).sum(1).mean()
    assert record["log_prob_before"] == pytest.approx(float(normal), abs=0.15)
    assert record["n_cells"] == held_out.sum()


def test_a_prior_that_does_not_help_is_refused(cells: ad.AnnData, warned: list[str]) -> None:
    rng = np.random.default_rng(1)
    cells.obsm["X_vae"] = (np.sqrt(0.96) * rng.normal(size=(400, 2))).astype(np.float32)
    before = cells.copy()
    vx.tl.fit_prior(cells, "mixture", max_steps=STEPS)
    assert any("was not kept" in message for message in warned)
    refused = cells.uns["vae"]["prior"]["refused"]
    assert refused["gain"] <= refused["gain_se"]
    assert cells.uns["vae"]["params"]["model"]["prior"]["name"] == "normal"
    assert _networks(cells) == _networks(before)
    assert type(find_fit(cells, None, "vae").model.prior).__name__ == "StandardNormal"
    # nothing is written under another name either
    vx.tl.fit_prior(before, "mixture", max_steps=STEPS, key_added="other")
    assert "other" not in before.uns
    assert "other" not in before.obsm
    assert "refused" in before.uns["vae"]["prior"]


def test_a_refusal_keeps_the_record_of_the_present_prior(cells: ad.AnnData) -> None:
    vx.tl.fit_prior(cells, "mixture", condition_key="group", max_steps=STEPS)
    gain = cells.uns["vae"]["prior"]["gain"]
    vx.tl.fit_prior(cells, "normal")
    record = cells.uns["vae"]["prior"]
    assert record["kind"] == "mixture"
    assert record["gain"] == gain
    assert record["refused"]["kind"] == "normal"
    assert find_fit(cells, None, "vae").conditions == tuple(cells.obs["group"].cat.categories)


def test_conditions_with_gaps(cells: ad.AnnData, tmp_path: Path) -> None:
    vx.tl.fit_prior(cells, "mixture", condition_key="labelled", max_steps=STEPS, key_added="k")
    fit = find_fit(cells, None, "k")
    assert fit.condition_key == "labelled"
    assert fit.conditions == tuple(cells.obs["labelled"].cat.categories)
    assert fit.prior["unlabelled"]
    train = (cells.obs["vae_split"] == "train").to_numpy()
    codes = cells.obs["labelled"].cat.codes.to_numpy()[train]
    shares = [float((codes == c).mean()) for c in (0, 1, -1)]
    assert fit.model.prior.log_share_c.exp().tolist() == pytest.approx(shares, abs=1e-6)
    # the prior of condition c is where its cells are
    for c, name in enumerate(fit.conditions):
        z = fit.model.prior.sample(300, torch.Generator().manual_seed(0), torch.full((300,), c))
        own = cells.obsm["X_vae"][(cells.obs["labelled"] == name).to_numpy()]
        assert np.abs(z.numpy().mean(0) - own.mean(0)).max() < 0.3
    cells.write_h5ad(tmp_path / "cells.h5ad")
    vx.save_model(cells, tmp_path / "model.safetensors", key="k")
    z = torch.tensor([[-1.5, -1.4], [0.3, 2.0]])
    for path in (tmp_path / "cells.h5ad", tmp_path / "model.safetensors"):
        again = find_fit(cells, path, "k")
        assert again.conditions == fit.conditions
        assert torch.equal(again.model.prior.log_prob(z), fit.model.prior.log_prob(z))
        assert torch.equal(
            again.model.prior.log_prob(z, torch.tensor([0, 2])), fit.model.prior.log_prob(z, torch.tensor([0, 2]))
        )


def test_key_added_makes_a_second_fit_of_the_same_cells(cells: ad.AnnData) -> None:
    vx.tl.fit_prior(cells, "mixture", max_steps=STEPS, key_added="k")
    assert "prior" not in cells.uns["vae"]
    assert np.array_equal(cells.obsm["k"], cells.obsm["X_vae"])
    assert np.array_equal(cells.obsm["k_var"], cells.obsm["X_vae_var"])
    assert (cells.obs["k_split"] == cells.obs["vae_split"]).all()
    assert np.array_equal(cells.obs["k_library"], cells.obs["vae_library"])
    vx.tl.log_likelihood(cells, key="k", n_samples=5)
    vx.tl.log_likelihood(cells, n_samples=5)
    assert not np.array_equal(cells.obs["k_log_likelihood"], cells.obs["vae_log_likelihood"])
    assert np.array_equal(cells.obs["k_reconstruction"], cells.obs["vae_reconstruction"])


def test_copy_subset_and_seed(cells: ad.AnnData) -> None:
    some = cells[::2].copy()
    out = vx.tl.fit_prior(some, "mixture", max_steps=STEPS, copy=True)
    assert out is not None
    assert "prior" in out.uns["vae"]
    assert "prior" not in some.uns["vae"]
    again, other = (vx.tl.fit_prior(some, "mixture", max_steps=STEPS, rng=rng, copy=True) for rng in (0, 1))
    assert again is not None
    assert other is not None
    name = "prior.loc_kd"
    assert np.array_equal(out.uns["vae"]["weights"][name], again.uns["vae"]["weights"][name])
    assert not np.array_equal(out.uns["vae"]["weights"][name], other.uns["vae"]["weights"][name])


def test_counts_are_not_required(cells: ad.AnnData) -> None:
    bare = cells[:, :3].copy()
    bare.X = np.full(bare.shape, 0.5, dtype=np.float32)
    vx.tl.fit_prior(bare, "mixture", max_steps=STEPS)
    assert bare.uns["vae"]["prior"]["gain"] > 0


def test_a_fit_without_held_out_cells(cells: ad.AnnData) -> None:
    cells.obs["vae_split"] = pd.Categorical(np.full(cells.n_obs, "train"), categories=["train", "validation", "query"])
    vx.tl.fit_prior(cells, "mixture", max_steps=STEPS)
    assert cells.uns["vae"]["prior"]["n_cells"] == cells.n_obs // 10


def test_bad_input(cells: ad.AnnData) -> None:
    before = cells.copy()
    for arguments, error, message in (
        ({"prior": "laplace"}, ValueError, "choose one of"),
        ({"condition_key": "nothing"}, KeyError, "not a column"),
        ({"condition_key": 3}, TypeError, "name of a column"),
        ({"max_steps": 0}, ValueError, "max_steps"),
        ({"n_components": 0.5}, ValueError, "n_components"),
        ({"key": "other"}, KeyError, "holds no fit"),
        ({"key_added": "a/b"}, ValueError, "cannot name"),
        ({"rng": "seed"}, ValueError, "rng"),
        ({"device": "tpu"}, ValueError, "device"),
    ):
        with pytest.raises(error, match=message):
            vx.tl.fit_prior(cells, **{"prior": "mixture", **arguments})
    cells.obs["empty"] = pd.Categorical([None] * cells.n_obs, categories=["a"])
    with pytest.raises(ValueError, match="no training cell"):
        vx.tl.fit_prior(cells, "mixture", condition_key="empty")
    with pytest.raises(ValueError, match="at least 20"):
        vx.tl.fit_prior(cells[:10].copy(), "mixture")
    taken = cells.copy()
    taken.obsm["k"] = np.zeros((cells.n_obs, 1))
    with pytest.raises(ValueError, match="holds obsm"):
        vx.tl.fit_prior(taken, "mixture", key_added="k")
    del taken.obs["vae_split"]
    with pytest.raises(KeyError, match="vae_split"):
        vx.tl.fit_prior(taken, "mixture")
    with pytest.raises(TypeError, match="AnnData"):
        vx.tl.fit_prior(np.zeros((3, 3)))
    assert set(before.uns["vae"]) == set(cells.uns["vae"])
    assert _networks(before) == _networks(cells)


def test_a_damaged_record_is_detected(cells: ad.AnnData) -> None:
    vx.tl.fit_prior(cells, "mixture", condition_key="group", max_steps=STEPS)
    del cells.uns["vae"]["prior"]
    with pytest.raises(ValueError, match="condition"):
        vx.tl.log_likelihood(cells, n_samples=1)


@pytest.mark.parametrize("prior", ["mixture", "vamp", "flow", "diffusion", "flow_matching"])
def test_a_prior_learned_with_the_model_survives_a_file(prior: str, tmp_path: Path) -> None:
    adata = vx.datasets.simulate(160, 60, n_groups=3, n_batches=2, library_mean=300, rng=1)
    settings = {"n_latent": 3, "n_hidden": 8, "max_epochs": 2, "batch_size": 64, "denoised": False}
    options = vx.tl.FitOptions(prior_components=5 if prior in ("mixture", "vamp") else None)
    vx.tl.fit_vae(adata, "batch", prior=prior, options=options, **settings)
    record = adata.uns["vae"]["prior"]
    assert record["kind"] == prior
    assert 0 < record["kl_se"] < 0.3
    again = adata.copy()
    vx.tl.fit_vae(again, "batch", prior=prior, options=options, **settings)
    weights = adata.uns["vae"]["weights"]
    assert all(np.array_equal(value, again.uns["vae"]["weights"][name]) for name, value in weights.items())
    # it has learned something
    assert any(name.startswith("prior.") for name in weights)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    vx.save_model(adata, tmp_path / "model.safetensors")
    z = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    log_p = find_fit(adata, None, "vae").model.prior.log_prob(z)
    for path in (tmp_path / "cells.h5ad", tmp_path / "model.safetensors"):
        assert torch.equal(find_fit(adata, path, "vae").model.prior.log_prob(z), log_p)
    some = adata[:20].copy()
    vx.tl.log_likelihood(some, n_samples=30)
    # the ELBO and the bound use the same samples, so the bound cannot be lower
    assert (some.obs["vae_log_likelihood"] >= some.obs["vae_elbo"]).all()
    panel = adata[:20, ::2].copy()
    vx.tl.encode(panel)
    assert (panel.obsm["X_vae_var"] > 0).all()


@pytest.mark.parametrize("prior", ["diffusion", "flow_matching"])
def test_priors_that_are_too_slow_for_training_are_refused(adata: ad.AnnData, prior: str) -> None:
    with pytest.raises(ValueError, match="objective='elbo'"):
        vx.tl.fit_vae(adata, prior=prior, objective="iwae")


@pytest.mark.parametrize("prior", ["vamp", "diffusion", "flow_matching"])
def test_the_other_kinds_with_conditions(cells: ad.AnnData, prior: str) -> None:
    vx.tl.fit_prior(cells, prior, condition_key="labelled", max_steps=2 * STEPS)
    assert cells.uns["vae"]["prior"]["gain"] > 0
    drawn = find_fit(cells, None, "vae").model.prior.sample(200, torch.Generator().manual_seed(0))
    assert np.abs(drawn.numpy().mean(0) - cells.obsm["X_vae"].mean(0)).max() < 0.6


def test_zuko_is_imported_only_if_used() -> None:
    from vxpress.core.priors import flow

    assert not hasattr(flow, "zuko")


def test_diagnostics_of_the_old_prior_are_removed(cells: ad.AnnData) -> None:
    # a weak pull towards N(0, I) leaves room for a better prior
    vx.tl.fit_vae(cells, "batch", n_latent=2, n_hidden=8, beta=0.01, max_epochs=30, denoised=False)
    vx.tl.diagnose(cells, n_cells=5)
    before = dict(cells.uns["vae"]["diagnostics"])
    vx.tl.fit_prior(cells, "mixture", max_steps=STEPS)
    assert cells.uns["vae"]["params"]["model"]["prior"]["name"] == "mixture"
    after = cells.uns["vae"]["diagnostics"]
    assert {"elbo", "inference_gap", "amortisation_gap"} == set(before) - set(after)
    assert after["kl_refined"] == before["kl_refined"]
    vx.tl.diagnose(cells, n_cells=5)
    assert set(cells.uns["vae"]["diagnostics"]) == set(before)
    assert cells.uns["vae"]["diagnostics"]["elbo"] != before["elbo"]
