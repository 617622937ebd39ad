"""Similarity of the embeddings of perturbations."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import vxpress as vx
from vxpress.core.inference.embedding_similarity import clustered_order, cosines, similarity


@pytest.fixture(scope="module")
def fitted() -> ad.AnnData:
    """A and B act on the same genes, C lowers them, D acts on others, E does nothing."""
    rng = np.random.default_rng(0)
    drug = np.repeat(["ctrl", "A", "B", "C", "D", "E"], 80)
    log = np.full((len(drug), 30), 1.3)
    for name, genes, size in (
        ("A", slice(0, 10), 1.0),
        ("B", slice(0, 10), 0.8),
        ("C", slice(0, 10), -1.0),
        ("D", slice(15, 25), 1.0),
    ):
        log[drug == name, genes] += size
    obs = pd.DataFrame({"drug": drug}, index=[f"c{i}" for i in range(len(drug))])
    adata = ad.AnnData(sparse.csr_matrix(rng.poisson(np.exp(log)).astype(np.float32)), obs=obs)
    arguments = {"n_latent": 4, "n_hidden": 16, "max_epochs": 15, "batch_size": 64, "denoised": False}
    vx.tl.fit_vae(adata, perturbation_key="drug", control="ctrl", **arguments)
    vx.tl.perturbation_similarity(adata, n_resamples=20)
    return adata


def test_similar_and_opposite_effects(fitted: ad.AnnData) -> None:
    found = fitted.uns["vae_perturbation_similarity"]
    table = pd.DataFrame(found["similarity"], index=found["names"], columns=found["names"])
    assert table.loc["A", "B"] > 0.8
    assert table.loc["A", "C"] < -0.8
    assert abs(table.loc["A", "D"]) < 0.7
    assert (found["low"] <= found["similarity"]).all()
    assert (found["similarity"] <= found["high"]).all()
    reliability = pd.Series(found["reliability"], index=found["names"])
    assert reliability[["A", "B", "C", "D"]].min() > 0.8 > reliability["E"]
    assert found["size"][list(found["names"]).index("E")] == found["size"].min()
    # the two that are alike are next to each other
    order = list(found["names"])
    assert abs(order.index("A") - order.index("B")) == 1


def test_it_survives_a_file_and_is_drawn(fitted: ad.AnnData, tmp_path) -> None:
    fitted.write_h5ad(tmp_path / "x.h5ad")
    again = ad.read_h5ad(tmp_path / "x.h5ad")
    axes: Any = vx.pl.perturbation_similarity(again, show=False)
    (ax,) = axes
    assert len(ax.get_xticklabels()) == 5
    grey = {
        label.get_text() for label in ax.get_yticklabels() if label.get_color() != ax.get_yticklabels()[0].get_color()
    }
    assert "E" in grey or len(grey) == 4


def test_without_result_or_perturbations(quick: dict) -> None:
    adata = vx.datasets.simulate(100, 20, rng=0)
    vx.tl.fit_vae(adata, **quick)
    with pytest.raises(ValueError, match="perturbation_key="):
        vx.tl.perturbation_similarity(adata)
    with pytest.raises(KeyError, match=r"vx.tl.perturbation_similarity\(adata\)"):
        vx.pl.perturbation_similarity(adata, show=False)


def test_cosines_and_order() -> None:
    a = np.array([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(cosines(a, a)[:3, :3], [[1, 0, -1], [0, 1, 0], [-1, 0, 1]])
    assert (cosines(a, a)[3] == 0).all()
    blocks = np.kron(np.eye(2), np.ones((3, 3)))[np.ix_([0, 3, 1, 4, 2, 5], [0, 3, 1, 4, 2, 5])]
    order = clustered_order(blocks)
    assert set(order[:3]) in ({0, 2, 4}, {1, 3, 5})


def test_reliability_is_the_cosine_between_two_samples() -> None:
    rng = np.random.default_rng(0)
    strength = np.repeat(np.eye(3)[:, 1:], 200, axis=0)
    effect = np.array([[0.4, 0.0, 0.0, 0.0], [0.05, 0.0, 0.0, 0.0]])

    def sample() -> np.ndarray:
        return strength @ effect + rng.standard_normal((600, 4))

    found = [
        similarity(effect, sample(), strength, level=0.9, n_resamples=10, rng=rng).reliability_p for _ in range(40)
    ]
    z = [(sample()[200:].reshape(2, 200, 4).mean(1) - sample()[:200].mean(0)) for _ in range(400)]
    expected = np.mean([np.diagonal(cosines(a, b)) for a, b in zip(z[:200], z[200:], strict=True)], axis=0)
    np.testing.assert_allclose(np.mean(found, axis=0), expected, atol=0.2)
