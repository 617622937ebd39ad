"""Measures of unusual cells, compared with plain computations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from scipy.stats import nbinom

import vxpress.core.inference.anomaly as anomaly
from vxpress.core.config import ModelConfig
from vxpress.core.inference.anomaly import evidence, neighbor_distance
from vxpress.core.model import build


def _model(likelihood="nb", **kwargs):
    return build(ModelConfig(n_genes=20, n_latent=2, n_hidden=8, likelihood=likelihood, **kwargs), seed=0).eval()


def test_surprise_peak_and_width_are_those_of_scipy(make_cells, monkeypatch):
    monkeypatch.setattr(anomaly, "N_PEAK", 4)
    model, cells = _model(), make_cells(30)
    reference = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    found = evidence(model, cells, reference)
    batch = cells.batch(torch.arange(30))
    with torch.no_grad():
        q = model.posterior(batch)["z"]
        distribution = model.likelihood({"z": q.loc}, batch.covariates, batch.log_library_n1)
    mean, theta = (
        distribution.mean.double().numpy(),
        np.broadcast_to(distribution._theta.detach().double().numpy(), distribution.mean.shape),
    )
    x = batch.x_ng.numpy()
    nll = -nbinom.logpmf(x, theta, theta / (theta + mean))
    above = np.where(x > mean, nll, 0.0)
    np.testing.assert_allclose(found.parts_nk[:, 1], nll.sum(1), rtol=1e-5)
    np.testing.assert_allclose(found.parts_nk[:, 2], np.sort(above, axis=1)[:, -4:].sum(1), rtol=1e-5)
    np.testing.assert_allclose(found.parts_nk[:, 3], np.log(q.scale.square().numpy()).sum(1), rtol=1e-5)
    np.testing.assert_array_equal(found.genes_nk[:, 0], above.argmax(1))
    np.testing.assert_allclose(found.mean_nd, q.loc.numpy(), rtol=1e-6)


def test_distances_are_those_of_a_tree():
    rng = np.random.default_rng(1)
    points, reference = rng.normal(size=(50, 5)).astype(np.float32), rng.normal(size=(200, 5)).astype(np.float32)
    mean, nearest = neighbor_distance(points, reference)
    expected, _ = cKDTree(reference).query(points, k=15)
    np.testing.assert_allclose(mean, expected.mean(1), rtol=1e-5)
    np.testing.assert_allclose(nearest, expected[:, 0], rtol=1e-5)
    few, _ = neighbor_distance(points, reference[:3])
    np.testing.assert_allclose(few, np.linalg.norm(points[:, None] - reference[None, :3], axis=-1).mean(1), rtol=1e-5)


@pytest.mark.parametrize("likelihood", ["zinb", "poisson", "gaussian", "bernoulli"])
def test_every_likelihood_is_supported(make_cells, likelihood):
    found = evidence(_model(likelihood), make_cells(10), np.zeros((20, 2), np.float32))
    assert np.isfinite(found.parts_nk).all()


def test_a_latent_library_is_inferred(make_cells):
    found = evidence(_model(latent_library=True), make_cells(10), np.zeros((20, 2), np.float32))
    assert np.isfinite(found.parts_nk).all()


def test_chunks_make_no_difference(make_cells, monkeypatch):
    model, cells, reference = _model(), make_cells(90), np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    whole = evidence(model, cells, reference)
    monkeypatch.setattr(anomaly, "BLOCK_ENTRIES", 1)
    monkeypatch.setattr(anomaly, "CHUNK", 7)
    np.testing.assert_allclose(evidence(model, cells, reference).parts_nk, whole.parts_nk, rtol=1e-5)
