"""The graph has scanpy's format, so that scanpy's functions can use it."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
from scipy import sparse

import vxpress as vx
from vxpress.core.inference.nearest import likelihood_of, nearest


@pytest.fixture
def of_scanpy(fitted: ad.AnnData) -> ad.AnnData:
    plain = fitted.copy()
    sc.pp.neighbors(plain, use_rep="X_vae")
    return plain


@pytest.mark.parametrize("key_added", [None, "post"])
def test_results_are_written_in_the_format_of_scanpy(fitted, key_added):
    plain = fitted.copy()
    sc.pp.neighbors(plain, 12, use_rep="X_vae", key_added=key_added)
    vx.pp.neighbors(fitted, 12, key_added=key_added)
    name = key_added or "neighbors"
    ours, theirs = dict(fitted.uns[name]), dict(plain.uns[name])
    params = dict(ours.pop("params"))
    assert params.pop("distance") == "likelihood"
    assert params.pop("n_draws") == 0
    assert params == theirs.pop("params")
    assert ours == theirs
    assert set(fitted.obsp) == set(plain.obsp)
    assert set(fitted.obsm) == set(plain.obsm)
    for slot, matrix in plain.obsp.items():
        found = fitted.obsp[slot]
        assert (type(found), found.shape, found.dtype) == (type(matrix), matrix.shape, matrix.dtype)
    distances, connectivities = (fitted.obsp[ours[f"{kind}_key"]] for kind in ("distances", "connectivities"))
    assert (np.diff(distances.indptr) == 11).all()
    assert not distances.diagonal().any()
    assert abs(connectivities - connectivities.T).max() < 1e-6
    assert 0 < connectivities.data.min() <= connectivities.data.max() <= 1


def test_distances_are_those_to_the_nearest(fitted):
    mean_nd, var_nd = fitted.obsm["X_vae"], fitted.obsm["X_vae_var"]
    index_nk, squared_nk = nearest(*likelihood_of(mean_nd, var_nd), mean_nd, var_nd, 14, 0)
    vx.pp.neighbors(fitted)
    rows = np.arange(fitted.n_obs)[:, None]
    np.testing.assert_allclose(fitted.obsp["distances"].toarray()[rows, index_nk], np.sqrt(squared_nk), rtol=1e-6)


def test_euclidean_is_the_graph_of_scanpy(fitted, of_scanpy):
    vx.pp.neighbors(fitted, distance="euclidean")
    for name, matrix in of_scanpy.obsp.items():
        assert (fitted.obsp[name] != matrix).nnz == 0


def test_with_equally_narrow_posteriors_the_graph_is_that_of_scanpy(fitted, of_scanpy):
    fitted.obsm["X_vae_var"] = np.full_like(fitted.obsm["X_vae"], 1e-8)
    vx.pp.neighbors(fitted)
    np.testing.assert_allclose(
        fitted.obsp["distances"].toarray() * 1e-4, of_scanpy.obsp["distances"].toarray(), rtol=1e-3, atol=1e-4
    )
    np.testing.assert_allclose(
        fitted.obsp["connectivities"].toarray(), of_scanpy.obsp["connectivities"].toarray(), atol=1e-3
    )


@pytest.mark.parametrize("key_added", [None, "post"])
def test_scanpys_functions_use_the_graph(fitted, key_added):
    vx.pp.neighbors(fitted, n_draws=2, key_added=key_added)
    sc.tl.leiden(fitted, neighbors_key=key_added, flavor="igraph", n_iterations=2)
    sc.tl.umap(fitted, neighbors_key=key_added, maxiter=5)
    sc.tl.paga(fitted, "leiden", neighbors_key=key_added)
    sc.tl.diffmap(fitted, neighbors_key=key_added)
    assert fitted.obsm["X_umap"].shape == (fitted.n_obs, 2)
    assert np.isfinite(fitted.obsm["X_diffmap"]).all()


def test_gauss_connectivities_and_unknown_methods(fitted):
    vx.pp.neighbors(fitted, method="gauss")
    assert fitted.uns["neighbors"]["params"]["method"] == "gauss"
    before = set(fitted.obsp)
    with pytest.raises(ValueError, match="method"):
        vx.pp.neighbors(fitted, method="none", key_added="bad")
    assert set(fitted.obsp) == before
    assert "bad" not in fitted.uns


@pytest.mark.parametrize("distance", ["likelihood", "euclidean"])
def test_edge_frequencies(fitted, distance):
    vx.pp.neighbors(fitted, 10, n_draws=4, distance=distance)
    frequency = fitted.obsp[fitted.uns["neighbors"]["edge_frequency_key"]]
    assert sparse.isspmatrix_csr(frequency)
    np.testing.assert_allclose(np.asarray(frequency.sum(1)).ravel(), 9, rtol=1e-5)
    assert set(np.unique(frequency.data)) <= {0.25, 0.5, 0.75, 1.0}
    vx.pp.neighbors(fitted, 10)
    assert "edge_frequency" not in fitted.obsp
    assert "edge_frequency_key" not in fitted.uns["neighbors"]


def test_draws_do_not_change_the_graph_and_repeat_with_the_seed(fitted):
    graphs = []
    for rng in (0, 0, 1):
        vx.pp.neighbors(fitted, n_draws=3, rng=rng)
        graphs.append({name: matrix.copy() for name, matrix in fitted.obsp.items()})
    first, same, other = graphs
    assert all((first[name] != same[name]).nnz == 0 for name in first)
    assert (first["distances"] != other["distances"]).nnz == 0
    assert (first["edge_frequency"] != other["edge_frequency"]).nnz > 0
    vx.pp.neighbors(fitted, rng=np.random.default_rng(5))
    assert isinstance(fitted.uns["neighbors"]["params"]["random_state"], int)


def test_copy_and_round_trip(fitted, tmp_path):
    assert vx.pp.neighbors(fitted) is None
    done = vx.pp.neighbors(fitted, n_draws=2, key_added="post", copy=True)
    assert done is not None
    assert "post" not in fitted.uns
    done.write_h5ad(tmp_path / "cells.h5ad")
    back = ad.read_h5ad(tmp_path / "cells.h5ad")
    assert (back.obsp["post_edge_frequency"] != done.obsp["post_edge_frequency"]).nnz == 0
    assert back.uns["post"]["params"]["distance"] == "likelihood"
    sc.tl.leiden(back, neighbors_key="post", flavor="igraph", n_iterations=2)


def test_cells_alone_suffice_without_counts_or_covariates(fitted):
    bare = ad.AnnData(obs=fitted.obs[[]].copy(), obsm={name: fitted.obsm[name] for name in ("X_vae", "X_vae_var")})
    bare = ad.AnnData(sparse.csr_matrix((fitted.n_obs, 1), dtype=np.float32), obs=bare.obs, obsm=dict(bare.obsm))
    vx.pp.neighbors(bare, model=fitted)
    vx.pp.neighbors(fitted)
    assert (bare.obsp["distances"] != fitted.obsp["distances"]).nnz == 0


def test_a_view_becomes_actual_and_the_verbosity_does_not_change(fitted):
    before = sc.settings.verbosity
    part = fitted[:50]
    with pytest.warns(UserWarning, match="view"):
        vx.pp.neighbors(part, 5)
    assert part.obsp["distances"].shape == (50, 50)
    assert sc.settings.verbosity == before


def test_the_fit_under_another_key(adata, quick):
    vx.tl.fit_vae(adata, key_added="mine", **quick)
    vx.pp.neighbors(adata, key="mine")
    assert adata.uns["neighbors"]["params"]["use_rep"] in adata.obsm


def test_bad_input_is_named(fitted, adata):
    for n_neighbors in (1, fitted.n_obs, 2.5):
        with pytest.raises(ValueError, match="n_neighbors"):
            vx.pp.neighbors(fitted, n_neighbors)
    with pytest.raises(ValueError, match="at least 3"):
        vx.pp.neighbors(fitted[:2].copy())
    with pytest.raises(ValueError, match="distance"):
        vx.pp.neighbors(fitted, distance="cosine")
    with pytest.raises(ValueError, match="n_draws"):
        vx.pp.neighbors(fitted, n_draws=-1)
    with pytest.raises(ValueError, match="rng"):
        vx.pp.neighbors(fitted, rng=-1)
    with pytest.raises(ValueError, match="key_added"):
        vx.pp.neighbors(fitted, key_added="a/b")
    with pytest.raises(KeyError, match=r"vx\.tl\.fit_vae"):
        vx.pp.neighbors(adata)
    del fitted.obsm["X_vae_var"]
    with pytest.raises(KeyError, match=r"vx\.tl\.encode"):
        vx.pp.neighbors(fitted)
    assert "neighbors" not in fitted.uns
    assert not fitted.obsp
