"""Objectives and decoders of ``fit_vae``."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import anndata as ad
import numpy as np
import pytest
import torch

import vxpress as vx
from vxpress.core.config import DecoderName, LikelihoodName
from vxpress.tl import FitOptions

DECODERS = get_args(DecoderName)


def _columns(adata: ad.AnnData) -> np.ndarray:
    return np.arange(adata.n_vars) % 3 != 0


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_works_with_every_function(adata: ad.AnnData, quick: dict, tmp_path: Path, decoder: str) -> None:
    train, query = adata[:120].copy(), adata[120:].copy()
    options = FitOptions(decoder=decoder, covariate_code="embedding" if decoder == "split" else None)  # type: ignore[arg-type]
    vx.tl.fit_vae(train, "batch", mask_var=_columns(adata), likelihood="zinb", options=options, **quick)
    np.testing.assert_allclose(train.layers["vae_normalized"].sum(1), 1e4, rtol=1e-3)

    # stored and read again, it gives the same results
    vx.tl.log_likelihood(train, n_samples=5)
    train.write_h5ad(tmp_path / "fit.h5ad")
    again = ad.read_h5ad(tmp_path / "fit.h5ad")
    vx.tl.log_likelihood(again, n_samples=5)
    np.testing.assert_allclose(again.obs["vae_log_likelihood"], train.obs["vae_log_likelihood"], rtol=1e-6)
    few, same = again[:9].copy(), train[:9].copy()
    for part in (few, same):
        vx.tl.denoise(part)
    np.testing.assert_allclose(few.layers["vae_normalized"], same.layers["vae_normalized"], rtol=1e-5)

    # a batch that the fit does not know, and cells with missing genes
    query.obs["batch"] = "another"
    fewer = query[:, ::2].copy()
    vx.tl.encode(query, model=again, fine_tune=1)
    vx.tl.encode(fewer, model=again)
    assert np.isfinite(query.obsm["X_vae"]).all()
    assert np.isfinite(fewer.obsm["X_vae"]).all()


def test_loadings_are_the_slopes_of_decoded_log_ratios(adata: ad.AnnData, quick: dict, tmp_path: Path) -> None:
    modelled = _columns(adata)
    options = FitOptions(decoder="linear")
    vx.tl.fit_vae(adata, "batch", mask_var=modelled, options=options, key_added="k", **quick)
    loadings = adata.varm["k_loadings"]
    assert loadings.dtype == np.float32
    assert loadings.shape == (adata.n_vars, 3)
    np.testing.assert_array_equal(np.isnan(loadings).all(1), ~modelled)
    assert np.isfinite(loadings[modelled]).all()
    adata.write_h5ad(tmp_path / "fit.h5ad")
    np.testing.assert_array_equal(ad.read_h5ad(tmp_path / "fit.h5ad").varm["k_loadings"], loadings)

    # decode at the means of two cells: log ratios between genes change along the loadings
    moved = adata[:2].copy()
    moved.obsm["k_var"][:] = 1e-12
    moved.obsm["k"][1] = moved.obsm["k"][0] + np.array([0.0, 0.5, 0.0], dtype=np.float32)
    vx.tl.denoise(moved, key="k", transform_batch=str(adata.obs["batch"].iloc[0]))
    log = np.log(moved.layers["k_normalized"][:, modelled].astype(np.float64))
    slope = (log[1] - log[0]) / 0.5
    expected = loadings[modelled, 1]
    np.testing.assert_allclose(slope - slope.mean(), expected - expected.mean(), atol=2e-3)


def test_loadings_are_removed_with_their_decoder(adata: ad.AnnData, quick: dict) -> None:
    vx.tl.fit_vae(adata, options=FitOptions(decoder="linear"), **quick)
    assert "X_vae_loadings" in adata.varm
    vx.tl.fit_vae(adata, **quick)
    assert "X_vae_loadings" not in adata.varm
    adata.varm["other_loadings"] = np.zeros((adata.n_vars, 2))
    with pytest.raises(ValueError, match=r"varm\['other_loadings'\]"):
        vx.tl.fit_vae(adata, key_added="other", options=FitOptions(decoder="linear"), **quick)
    assert "other" not in adata.uns


@pytest.mark.parametrize("likelihood", get_args(LikelihoodName))
@pytest.mark.parametrize(
    "settings",
    [
        {"objective": "iwae", "options": FitOptions(n_samples=3)},
        {"objective": "dreg", "library": "latent", "beta": 2.0},
        {"free_bits": 0.1, "options": FitOptions(free_bits_form="hard", decoder="skip")},
        {"free_bits": 0.1, "library": "latent", "options": FitOptions(encoder_steps=2)},
        {"beta": 10.0, "options": FitOptions(kl_schedule="capacity", kl_capacity=4.0, decoder="linear")},
        {"objective": "iwae", "options": FitOptions(kl_schedule="cyclical", kl_cycles=2, decoder="split")},
    ],
    ids=["iwae", "dreg latent", "hard skip", "soft latent ahead", "capacity linear", "cyclical split iwae"],
)
def test_options_work_with_every_likelihood(adata: ad.AnnData, likelihood: str, settings: dict) -> None:
    quick = {"n_latent": 3, "n_hidden": 8, "max_epochs": 3, "batch_size": 64, "denoised": False}
    vx.tl.fit_vae(adata, "batch", likelihood=likelihood, **quick, **settings)  # type: ignore[arg-type]
    history, params = adata.uns["vae"]["history"], adata.uns["vae"]["params"]
    assert all(len(values) == 3 and np.isfinite(values).all() for values in history.values())
    assert history["kl_weight"][-1] == settings.get("beta", 1.0)
    assert np.isfinite(adata.obsm["X_vae"]).all()
    assert params["train"]["objective"] == settings.get("objective", "elbo")
    again = adata.copy()
    vx.tl.fit_vae(again, "batch", likelihood=likelihood, **quick, **settings)  # type: ignore[arg-type]
    np.testing.assert_array_equal(again.obsm["X_vae"], adata.obsm["X_vae"])


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"options": FitOptions(n_samples=5)}, r"FitOptions\(n_samples=5\).*objective='iwae'"),
        ({"options": FitOptions(kl_cycles=2)}, r"FitOptions\(kl_cycles=2\).*cyclical"),
        ({"options": FitOptions(kl_capacity=2.0)}, r"FitOptions\(kl_capacity=2\.0\).*capacity"),
        ({"options": FitOptions(free_bits_form="soft")}, r"FitOptions\(free_bits_form='soft'\).*free_bits="),
        ({"options": FitOptions(prior_components=9)}, r"FitOptions\(prior_components=9\).*prior='mixture' or 'vamp'"),
        ({"prior": "vamp", "options": FitOptions(prior_components=0)}, "prior_components=0"),
        ({"options": FitOptions(decoder="linear", condition_output=False)}, "condition_output=False"),
        ({"options": FitOptions(kl_schedule="capacity", kl_capacity=2.0)}, "beta=1"),
        ({"options": FitOptions(kl_schedule="capacity"), "beta": 10.0}, "kl_capacity=10"),
        ({"options": FitOptions(decoder="deep")}, "decoder='deep'"),  # type: ignore[arg-type]
        ({"options": FitOptions(encoder_steps=-1)}, "encoder_steps=-1"),
        ({"objective": "vae"}, "objective='vae'"),
        ({"objective": "iwae", "options": FitOptions(n_samples=0)}, "n_samples=0"),
        ({"objective": "iwae", "free_bits": 0.1}, "free_bits=0.1"),
        ({"free_bits": -1.0}, "free_bits=-1"),
        ({"free_bits": "much"}, "free_bits='much'"),
    ],
)
def test_invalid_settings_are_refused_and_nothing_is_written(
    adata: ad.AnnData, quick: dict, settings: dict, match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        vx.tl.fit_vae(adata, **quick, **settings)
    assert "vae" not in adata.uns
    assert "X_vae" not in adata.obsm


def test_a_warmup_that_does_not_end_raises_a_warning(adata: ad.AnnData) -> None:
    """A warm-up of the target, whose weight is the final one from the start."""
    options = FitOptions(kl_schedule="capacity", kl_capacity=4.0)
    vx.tl.fit_vae(adata, preset="scvi", beta=10.0, options=options, max_epochs=60, n_hidden=8, denoised=False)
    assert adata.uns["vae"]["history"]["kl_target"][-1] == pytest.approx(4.0 * 59 / 400)
    assert "target of the divergence ended at 0.59 of 4 nats" in adata.uns["vae"]["diagnostics"]["verdict"]


def test_the_global_state_of_torch_does_not_change(adata: ad.AnnData, quick: dict) -> None:
    before = torch.get_rng_state()
    vx.tl.fit_vae(adata, objective="dreg", options=FitOptions(decoder="split", encoder_steps=1), **quick)
    assert torch.equal(before, torch.get_rng_state())
