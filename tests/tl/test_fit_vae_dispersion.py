"""The refit of dispersions at the end of a fit: what changes, what does not, and its gain."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

import vxpress as vx

pytestmark = pytest.mark.usefixtures("compiled")


@pytest.fixture(scope="module")
def counts() -> ad.AnnData:
    """Counts with little more than Poisson noise."""
    return vx.datasets.simulate(700, 60, n_batches=2, dispersion=20, rng=3)


def test_the_refit_changes_only_dispersions(adata: ad.AnnData) -> None:
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
def test_the_recorded_gain_of_the_refit_holds_for_unseen_cells(counts: ad.AnnData, settings: dict) -> None:
    seen, unseen = counts[:500].copy(), counts[500:].copy()
    scores = {}
    for again in (False, True):
        options = vx.tl.FitOptions(refit_dispersion=again)
        arguments = {"n_latent": 5, "max_epochs": 8, "validation_fraction": 0.2, "denoised": False} | settings
        vx.tl.fit_vae(seen, "batch", options=options, **arguments)
        vx.tl.log_likelihood(unseen, model=seen, n_samples=50)
        scores[again] = unseen.obs["vae_log_likelihood"].mean()
    gain = seen.uns["vae"]["params"]["dispersion_gain"]
    # after a few epochs the dispersions are far from their optimum
    assert gain > 10
    assert scores[True] - scores[False] == pytest.approx(gain, rel=0.25)


@pytest.mark.parametrize(
    "settings", [{"likelihood": "poisson"}, {"dispersion": "gene-cell"}, {"validation_fraction": 0.0}]
)
def test_no_refit_without_dispersions_or_held_out_cells(adata: ad.AnnData, quick: dict, settings: dict) -> None:
    weights = []
    for again in (False, True):
        vx.tl.fit_vae(adata, options=vx.tl.FitOptions(refit_dispersion=again), **quick, **settings)
        weights.append(adata.uns["vae"]["weights"])
        assert adata.uns["vae"]["params"]["dispersion_gain"] == 0
    for name, value in weights[0].items():
        np.testing.assert_array_equal(value, weights[1][name])
