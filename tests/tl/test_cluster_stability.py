"""Stability is the expected share of neighbours in the cell's own cluster."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import vxpress as vx


def by_hand(frequency: np.ndarray, clusters: list[str | None], name: str = "edge_frequency") -> ad.AnnData:
    n = len(clusters)
    adata = ad.AnnData(np.zeros((n, 1), dtype=np.float32), obs={"leiden": pd.Categorical(clusters)})
    adata.obsp[name] = sparse.csr_matrix(frequency, dtype=np.float32)
    return adata


FREQUENCY = np.array([[0, 1, 0.5, 0.5], [1, 0, 1, 0], [0, 0.5, 0, 1.5], [0, 0, 2, 0]])


def test_the_share_of_neighbours_in_the_own_cluster():
    adata = by_hand(FREQUENCY, ["a", "a", "a", "b"])
    vx.tl.cluster_stability(adata)
    np.testing.assert_allclose(adata.obs["leiden_stability"], [0.75, 1.0, 0.25, 0.0])


def test_cells_without_a_cluster_have_no_stability_and_are_not_counted():
    adata = by_hand(FREQUENCY, ["a", "a", None, "b"])
    vx.tl.cluster_stability(adata)
    np.testing.assert_allclose(adata.obs["leiden_stability"], [1 / 1.5, 1.0, np.nan, np.nan])


def test_names_of_the_graph_and_of_the_column():
    adata = by_hand(FREQUENCY, ["a", "a", "a", "b"], "post_edge_frequency")
    done = vx.tl.cluster_stability(adata, "leiden", neighbors_key="post", key_added="sure", copy=True)
    assert done is not None
    assert list(done.obs) == ["leiden", "sure"]
    assert list(adata.obs) == ["leiden"]


def test_wider_posteriors_make_cells_less_stable(fitted):
    means = []
    for factor in (1e-4, 1.0, 4.0):
        cells = fitted.copy()
        cells.obsm["X_vae_var"] = fitted.obsm["X_vae_var"] * np.float32(factor)
        # clusters by the first dimension, so that the two ends of a cluster differ
        cells.obs["half"] = pd.Categorical(cells.obsm["X_vae"][:, 0] > np.median(cells.obsm["X_vae"][:, 0]))
        vx.pp.neighbors(cells, n_draws=10, distance="euclidean")
        vx.tl.cluster_stability(cells, "half")
        assert cells.obs["half_stability"].between(0, 1).all()
        means.append(cells.obs["half_stability"].mean())
    assert means[0] > means[1] > means[2]


def test_bad_input_is_named(fitted):
    with pytest.raises(KeyError, match=r"sc\.tl\.leiden"):
        vx.tl.cluster_stability(fitted)
    with pytest.raises(KeyError, match=r"n_draws=20\)"):
        vx.tl.cluster_stability(fitted, "group")
    with pytest.raises(KeyError, match="key_added='post'"):
        vx.tl.cluster_stability(fitted, "group", neighbors_key="post")
    with pytest.raises(ValueError, match="key_added"):
        vx.tl.cluster_stability(fitted, "group", key_added="group")
