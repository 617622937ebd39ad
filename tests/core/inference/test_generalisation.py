from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import torch
from scipy import stats

import vxpress as vx
from vxpress.bridge.fits.find_fit import find_fit
from vxpress.bridge.fits.query import read_query
from vxpress.core.inference.generalisation import generalisation
from vxpress.core.inference.importance import log_likelihood


@pytest.fixture(scope="module")
def overfitted() -> ad.AnnData:
    adata = vx.datasets.simulate(250, 100, n_groups=2, library_mean=300, rng=0)
    # without dropout and thinning, which keep the default fit of so few cells from overfitting
    options = vx.tl.FitOptions(keep_best=False, dropout=0.0, thinning=0.0)
    settings = {"n_latent": 10, "max_epochs": 150, "early_stopping": False, "validation_fraction": 0.3}
    vx.tl.fit_vae(adata, options=options, denoised=False, **settings)
    return adata


def _rows(adata: ad.AnnData) -> list[np.ndarray]:
    split = adata.obs["vae_split"].astype(str).to_numpy()
    return [np.flatnonzero(split == name) for name in ("train", "validation")]


def test_an_overfitted_model_describes_new_cells_worse(overfitted: ad.AnnData) -> None:
    fit = find_fit(overfitted, None, "vae")
    train, held = _rows(overfitted)
    cells = read_query(overfitted, fit, None).cells
    found = generalisation(fit.model, cells, train, held, seed=0)
    assert found is not None
    assert found.share_low > 0.05
    assert overfitted.uns["vae"]["diagnostics"]["verdict"].startswith("overfitted")
    # two halves of the training cells are both known to the model
    halves = generalisation(fit.model, cells, train[::2], train[1::2], seed=0)
    assert halves is not None
    assert abs(halves.gap) < 3 * halves.se


def test_differences_in_depth_are_not_reported_as_overfitting() -> None:
    """Deep cells have a much lower ELBO, but deep and shallow training cells of the same type have no gap."""
    adata = vx.datasets.simulate(600, 60, n_groups=2, library_mean=300, rng=0)
    vx.tl.fit_vae(adata, max_epochs=25, n_latent=2, n_hidden=16, denoised=False)
    fit = find_fit(adata, None, "vae")
    train, _ = _rows(adata)
    depth = np.asarray(adata.X[train].sum(1)).ravel()
    deep = np.random.default_rng(0).random(len(train)) < stats.rankdata(depth) / len(depth)
    cells = read_query(adata, fit, None).cells
    found = generalisation(fit.model, cells, train[~deep], train[deep], seed=0)
    elbo_n = log_likelihood(fit.model, cells.take(torch.from_numpy(train)), 1, seed=0).elbo_n
    assert found is not None
    assert elbo_n[~deep].mean() - elbo_n[deep].mean() > 8.0
    assert abs(found.gap) < 0.15 * (elbo_n[~deep].mean() - elbo_n[deep].mean())


def test_too_few_cells_give_no_result(fitted: ad.AnnData) -> None:
    fit = find_fit(fitted, None, "vae")
    cells = read_query(fitted, fit, None).cells
    assert generalisation(fit.model, cells, np.arange(100), np.arange(100, 110), seed=0) is None


def test_rows_of_counts_are_returned_in_the_requested_order(fitted: ad.AnnData) -> None:
    cells = read_query(fitted, find_fit(fitted, None, "vae"), None).cells
    rows = torch.tensor([7, 3, 3, 150])
    assert (cells.take(rows).load().dense(torch.arange(4)) == cells.load().dense(rows)).all()
    assert len(cells.take(rows[:0])) == 0
