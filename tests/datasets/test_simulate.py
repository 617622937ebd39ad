from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pytest
from scipy import stats

import vxpress as vx
from vxpress.datasets import _simulate

BATCHED: dict[str, Any] = {"n_batches": 3, "n_groups": 3, "batch_strength": 0.8, "de_log_fold_change": 1.5}


@pytest.fixture(scope="module")
def adata():
    return vx.datasets.simulate(600, 80, keep_truth=True, **BATCHED)


def log2_means(adata, rows) -> tuple[np.ndarray, np.ndarray]:
    """Compute log2 of the mean true share in these cells, for genes that the state does not change."""
    still = (adata.var["state_log_fold_change_true"] == 0).to_numpy()
    return np.log2(adata.layers["rho_true"][rows][:, still].mean(axis=0, dtype=np.float64)), still


def test_compositions_sum_to_one_in_every_cell(adata) -> None:
    np.testing.assert_allclose(adata.layers["rho_true"].sum(axis=1, dtype=np.float64), 1, atol=1e-6)


def test_fold_changes_are_exact_in_every_batch(adata) -> None:
    truth = adata.varm["log_fold_change_true"]
    for batch in adata.obs["batch"].cat.categories:
        for k, group in enumerate(adata.obs["group"].cat.categories):
            for j, other in enumerate(adata.obs["group"].cat.categories):
                in_batch = adata.obs["batch"] == batch
                here, still = log2_means(adata, (in_batch & (adata.obs["group"] == group)).to_numpy())
                there, _ = log2_means(adata, (in_batch & (adata.obs["group"] == other)).to_numpy())
                np.testing.assert_allclose(here - there, (truth[:, k] - truth[:, j])[still], atol=1e-4)


def test_batch_effects_are_exact_in_every_group(adata) -> None:
    truth = adata.varm["batch_log_fold_change_true"]
    for group in adata.obs["group"].cat.categories:
        in_group = (adata.obs["group"] == group).to_numpy()
        here, still = log2_means(adata, in_group & (adata.obs["batch"] == "batch_0").to_numpy())
        there, _ = log2_means(adata, in_group & (adata.obs["batch"] == "batch_2").to_numpy())
        np.testing.assert_allclose(here - there, (truth[:, 0] - truth[:, 2])[still], atol=1e-4)
    assert (np.abs(truth) > 0).all()


def test_the_state_changes_only_its_genes_by_the_recorded_loadings(adata) -> None:
    loading = adata.var["state_log_fold_change_true"].to_numpy()
    state = adata.obsm["latent_true"][:, -1]
    same = (adata.obs["group"] == "group_0") & (adata.obs["batch"] == "batch_0")
    first, second = np.flatnonzero(same)[:2]
    change = np.log2(adata.layers["rho_true"][first] / adata.layers["rho_true"][second])
    expected = (state[first] - state[second]) * loading
    offset = (change - expected)[loading != 0]
    np.testing.assert_allclose(change[loading == 0], 0, atol=1e-5)
    np.testing.assert_allclose(offset, offset[0], atol=1e-5)
    assert not loading[adata.var["de_true"]].any()


def test_each_gene_marks_one_group_at_most(adata) -> None:
    differs = adata.varm["log_fold_change_true"] != 0
    assert differs.sum(axis=1).max() == 1
    np.testing.assert_array_equal(differs.any(axis=1), adata.var["de_true"])
    assert differs.sum(axis=0).tolist() == [8, 8, 8]


@pytest.mark.parametrize("dispersion", [0.5, 5.0, np.inf])
def test_counts_follow_the_negative_binomial(dispersion: float) -> None:
    adata = vx.datasets.simulate(3000, 60, dispersion=dispersion, library_mean=300, keep_truth=True, rng=1)
    mean = adata.obs["library_size_true"].to_numpy()[:, None] * adata.layers["rho_true"].astype(np.float64)
    theta = adata.var["dispersion_true"].to_numpy()
    x = adata.X.toarray()
    distribution = stats.poisson(mean) if np.isinf(dispersion) else stats.nbinom(theta, theta / (theta + mean))
    uniform = distribution.cdf(x) - np.random.default_rng(0).random(x.shape) * distribution.pmf(x)
    assert stats.kstest(uniform.ravel(), "uniform").pvalue > 1e-3
    chi2 = ((x - mean) ** 2 / distribution.var()).mean(axis=0)
    assert np.abs(chi2 - 1).max() < 0.6


def test_library_sizes_have_the_requested_distribution() -> None:
    adata = vx.datasets.simulate(5000, 20, library_mean=800, library_sd=0.5)
    library = adata.obs["library_size_true"]
    assert abs(library.mean() / 800 - 1) < 0.05
    assert abs(np.log(library).std() - 0.5) < 0.03
    np.testing.assert_array_equal(adata.obs["library_size"], adata.X.sum(axis=1).A1)


def test_groups_and_batches_are_balanced(adata) -> None:
    assert adata.obs["group"].value_counts().tolist() == [200, 200, 200]
    assert adata.obs["batch"].value_counts().tolist() == [200, 200, 200]
    np.testing.assert_array_equal(adata.obsm["latent_true"][:, :3].argmax(axis=1), adata.obs["group"].cat.codes)


def test_the_same_seed_gives_the_same_data(adata) -> None:
    state = np.random.get_state(legacy=False)["state"]["key"].copy()  # noqa: NPY002
    again = vx.datasets.simulate(600, 80, **BATCHED, rng=0)
    assert (again.X != adata.X).nnz == 0
    assert "rho_true" not in again.layers
    other = vx.datasets.simulate(600, 80, **BATCHED, rng=1)
    assert (other.X != adata.X).nnz > 0
    first = vx.datasets.simulate(50, 20, rng=np.random.default_rng(0))
    assert (first.X != vx.datasets.simulate(50, 20, rng=0).X).nnz == 0
    np.testing.assert_array_equal(np.random.get_state(legacy=False)["state"]["key"], state)  # noqa: NPY002


def test_without_effects_nothing_differs() -> None:
    adata = vx.datasets.simulate(60, 40, n_groups=1)
    assert not adata.var["de_true"].any()
    assert not adata.varm["batch_log_fold_change_true"].any()
    assert adata.varm["log_fold_change_true"].shape == (40, 1)
    none = vx.datasets.simulate(60, 40, de_fraction=0, keep_truth=True)
    assert none.varm["log_fold_change_true"].shape == (40, 4)
    assert not none.var["de_true"].any()


def test_blocks_cover_every_row(monkeypatch) -> None:
    monkeypatch.setattr(_simulate, "BLOCK_ENTRIES", 70)
    adata = vx.datasets.simulate(33, 20, keep_truth=True, library_mean=5000)
    assert adata.shape == (33, 20)
    assert (adata.obs["library_size"] > 0).all()
    np.testing.assert_allclose(adata.layers["rho_true"].sum(axis=1), 1, atol=1e-5)


def test_data_are_the_same_after_a_file_round_trip(adata, tmp_path) -> None:
    adata.write_h5ad(tmp_path / "a.h5ad")
    back = ad.read_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(back.varm["log_fold_change_true"], adata.varm["log_fold_change_true"])
    assert back.uns["simulate"]["params"]["n_batches"] == 3
    assert back.uns["simulate"]["params"]["rng"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_obs": 0}, "n_obs=0"),
        ({"n_vars": 2.5}, "n_vars=2.5"),
        ({"n_groups": 101}, "1 to 100"),
        ({"n_batches": True}, "n_batches=True"),
        ({"dispersion": 0}, "dispersion=0"),
        ({"library_sd": -1}, "library_sd=-1"),
        ({"library_sd": "x"}, "library_sd='x'"),
        ({"de_fraction": 1.5}, "de_fraction=1.5"),
        ({"n_groups": 30}, "Increase n_vars"),
        ({"batch_strength": np.nan}, "batch_strength=nan"),
    ],
)
def test_bad_arguments_are_named(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        vx.datasets.simulate(**{"n_obs": 100, "n_vars": 50} | options)


def test_few_genes_still_give_two_per_group() -> None:
    differs = vx.datasets.simulate(40, 8, n_batches=2).varm["log_fold_change_true"]
    assert (differs > 0).sum(axis=0).tolist() == [1, 1, 1, 1]
    assert (differs < 0).sum(axis=0).tolist() == [1, 1, 1, 1]
