"""Dispersions fitted once more at the end of a fit: what changes, what does not, and who gains."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

import vxpress as vx


def test_dispersions_are_fitted_once_more_and_nothing_else_is(adata: ad.AnnData) -> None:
    fits = {}
    for again in (False, True):
        fits[again] = adata.copy()
        options = vx.tl.FitOptions(refit_dispersion=again)
        small = {"n_latent": 3, "n_hidden": 16, "max_epochs": 20, "batch_size": 32, "validation_fraction": 0.3}
        vx.tl.fit_vae(fits[again], "batch", options=options, **small)
    old, new = (fits[again].uns["vae"]["weights"] for again in (False, True))
    assert {name for name in old if not np.array_equal(old[name], new[name])} == {"decoder.log_dispersion"}
    for name in ("X_vae", "X_vae_var"):
        np.testing.assert_array_equal(fits[False].obsm[name], fits[True].obsm[name])
    np.testing.assert_array_equal(fits[False].layers["vae_normalized"], fits[True].layers["vae_normalized"])
    gain = fits[True].uns["vae"]["params"]["dispersion_gain"]
    assert gain > 0
    assert fits[False].uns["vae"]["params"]["dispersion_gain"] == 0
    held_out = np.flatnonzero(fits[True].obs["vae_split"] == "validation")
    scores = {}
    for again, fitted in fits.items():
        cells = fitted[held_out].copy()
        vx.tl.log_likelihood(cells, n_samples=50)
        scores[again] = cells.obs["vae_log_likelihood"].mean()
    assert scores[True] - scores[False] == pytest.approx(gain, abs=0.5 * gain)


@pytest.mark.parametrize(
    "settings",
    [
        {"likelihood": "zinb"},
        {"library": "latent"},
        {"dispersion": "gene-batch"},
        {"dispersion": "gene-label", "labels_key": "group"},
        {"objective": "iwae"},
        {"preset": "likelihood"},
    ],
)
def test_cells_outside_the_fit_gain_by_the_refit(settings: dict) -> None:
    adata = vx.datasets.simulate(900, 120, n_batches=2, dispersion=20, rng=3)
    seen, unseen = adata[:600].copy(), adata[600:].copy()
    scores = {}
    for again in (False, True):
        options = vx.tl.FitOptions(refit_dispersion=again)
        vx.tl.fit_vae(seen, "batch", max_epochs=30, options=options, **({"n_latent": 5} | settings))
        vx.tl.log_likelihood(unseen, model=seen, n_samples=100)
        scores[again] = unseen.obs["vae_log_likelihood"].mean()
    # what a latent library leaves open is as large as what there is to gain, and then nothing is taken
    kept = seen.uns["vae"]["params"]["dispersion_gain"] > 0
    assert kept or settings == {"library": "latent"}
    assert scores[True] > scores[False] if kept else scores[True] == scores[False]


@pytest.mark.parametrize(
    "settings", [{"likelihood": "poisson"}, {"dispersion": "gene-cell"}, {"validation_fraction": 0.0}]
)
def test_where_there_is_nothing_to_refit_or_to_judge_by_nothing_is(
    adata: ad.AnnData, quick: dict, settings: dict
) -> None:
    weights = []
    for again in (False, True):
        vx.tl.fit_vae(adata, options=vx.tl.FitOptions(refit_dispersion=again), **quick, **settings)
        weights.append(adata.uns["vae"]["weights"])
        assert adata.uns["vae"]["params"]["dispersion_gain"] == 0
    for name, value in weights[0].items():
        np.testing.assert_array_equal(value, weights[1][name])
