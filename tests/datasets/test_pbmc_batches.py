"""Simulated blood cells in batches: agreement with real cells, and the documented batch effects."""

from __future__ import annotations

import numpy as np
import pytest
import scanpy as sc

import vxpress as vx
from vxpress._demo import mixing


def test_the_same_seed_gives_the_same_counts_of_whole_numbers():
    first, again, other = (vx.datasets.pbmc_batches(90, rng=rng) for rng in (3, 3, 4))
    assert (first.X != again.X).nnz == 0
    assert first.obs.equals(again.obs)
    assert (first.X != other.X).nnz > 0
    assert first.shape == (90, 728)
    assert np.array_equal(first.X.data, np.rint(first.X.data))
    assert np.array_equal(first.obs["library_size"], np.asarray(first.X.sum(axis=1)).ravel())
    assert first.obs["batch"].value_counts().tolist() == [30, 30, 30]


def test_types_have_the_composition_of_real_cells():
    real = vx.datasets.pbmc68k_reduced()
    adata = vx.datasets.pbmc_batches(6000)
    assert set(adata.var_names) <= set(real.var_names)
    real = real[:, adata.var_names]
    kept = real.obs["bulk_labels"].value_counts()
    assert set(adata.obs["cell_type"].cat.categories) == set(kept[kept >= 20].index)

    def profile(cells, rows):
        sums = np.asarray(cells.X[np.asarray(rows)].sum(axis=0)).ravel() + 1
        return np.log(sums / sums.sum())

    for name in ("CD19+ B", "CD14+ Monocyte", "Dendritic"):
        drawn = profile(adata, adata.obs["cell_type"] == name)
        likeness = {
            other: np.corrcoef(drawn, profile(real, real.obs["bulk_labels"] == other))[0, 1]
            for other in adata.obs["cell_type"].cat.categories
        }
        assert max(likeness, key=likeness.__getitem__) == name
        assert likeness[name] > 0.9


def test_batches_are_separate_in_pca():
    adata = vx.datasets.pbmc_batches(900)
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    sc.pp.pca(adata, n_comps=10)
    codes = adata.obs["batch"].cat.codes.to_numpy()
    assert mixing(adata.obsm["X_pca"], codes) < 0.3


def test_mixing_is_one_without_batch_effect_and_zero_if_only_batches_differ():
    rng = np.random.default_rng(0)
    z_nd, batch_n = rng.normal(size=(3000, 3)), rng.choice(3, 3000, p=[0.2, 0.3, 0.5])
    assert mixing(z_nd, batch_n) == pytest.approx(1.0, abs=0.02)
    assert mixing(z_nd + 100.0 * batch_n[:, None], batch_n) == 0.0


@pytest.mark.parametrize("n_obs", [0, -1, 2.5, True, "many"])
def test_the_number_of_cells_is_checked(n_obs):
    with pytest.raises(ValueError, match=f"n_obs={n_obs!r}"):
        vx.datasets.pbmc_batches(n_obs)
