"""The slots that a fit writes, their content, and reading them back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import torch
from scipy import sparse

import vxpress as vx

SLOTS = {
    "obs": {"vae_split", "vae_library"},
    "obsm": {"X_vae", "X_vae_var"},
    "layers": {"vae_normalized"},
    "uns": {"vae"},
}


def test_it_writes_these_slots_and_no_others(adata: ad.AnnData, quick: dict) -> None:
    before = adata.copy()
    assert vx.tl.fit_vae(adata, "batch", **quick) is None
    for slot in ("obs", "var", "obsm", "varm", "layers", "obsp", "uns"):
        new = {k for k in getattr(adata, slot) if k is not None} - {k for k in getattr(before, slot) if k is not None}
        assert new == SLOTS.get(slot, set())
    assert (adata.X != before.X).nnz == 0
    pd.testing.assert_frame_equal(adata.obs[before.obs.columns], before.obs)


def test_types_and_shapes(fitted: ad.AnnData) -> None:
    for name in ("X_vae", "X_vae_var"):
        assert fitted.obsm[name].shape == (160, 4)
        assert fitted.obsm[name].dtype == np.float32
        assert np.isfinite(fitted.obsm[name]).all()
    assert (fitted.obsm["X_vae_var"] > 0).all()
    assert isinstance(fitted.obs["vae_split"].dtype, pd.CategoricalDtype)
    assert (fitted.obs["vae_split"] == "validation").sum() == 16
    np.testing.assert_array_equal(fitted.obs["vae_library"], fitted.obs["library_size"])
    assert len(fitted.uns["vae"]["history"]["elbo_validation"]) == 4


def test_denoised_expression_sums_to_the_target_over_all_genes(fitted: ad.AnnData) -> None:
    layer = fitted.layers["vae_normalized"]
    assert layer.dtype == np.float32
    assert np.isfinite(layer).all()
    assert (layer > 0).all()
    np.testing.assert_allclose(layer.sum(1), 1e4, rtol=1e-3)


def test_terms_of_the_history_add_up(fitted: ad.AnnData) -> None:
    history = fitted.uns["vae"]["history"]
    for part in ("train", "validation"):
        elbo = history[f"reconstruction_{part}"] - history[f"kl_{part}"]
        np.testing.assert_allclose(history[f"elbo_{part}"], elbo, rtol=1e-9)
    assert history["kl_weight"][-1] == 1.0
    assert history["elbo_validation"][-1] > history["elbo_validation"][0]


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_the_file_is_the_model(fitted: ad.AnnData, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"fit.{suffix}"
    latent, layer = fitted.obsm["X_vae"].copy(), fitted.layers["vae_normalized"].copy()
    if suffix == "h5ad":
        fitted.write_h5ad(path)
        back = ad.read_h5ad(path)
    else:
        fitted.write_zarr(path)
        back = ad.read_zarr(path)
    vx.tl.encode(back)
    np.testing.assert_array_equal(back.obsm["X_vae"], latent)
    del back.layers["vae_normalized"]
    vx.tl.denoise(back)
    np.testing.assert_allclose(back.layers["vae_normalized"], layer, rtol=1e-5)
    query = ad.AnnData(fitted.X, obs=fitted.obs[["batch", "age", "library_size"]], var=fitted.var)
    vx.tl.encode(query, path)
    np.testing.assert_array_equal(query.obsm["X_vae"], latent)


def test_a_new_process_gives_the_same_bits_to_the_file_and_to_the_seed(
    adata: ad.AnnData, quick: dict, tmp_path: Path
) -> None:
    vx.tl.fit_vae(adata, "batch", rng=7, **quick)
    again = adata.copy()
    vx.tl.fit_vae(again, "batch", rng=7, **quick)
    np.testing.assert_array_equal(again.obsm["X_vae"], adata.obsm["X_vae"])
    np.testing.assert_array_equal(again.layers["vae_normalized"], adata.layers["vae_normalized"])
    adata.write_h5ad(tmp_path / "a.h5ad")
    code = (
        "import sys, anndata, numpy, torch, vxpress as vx\n"
        "torch.set_num_threads(int(sys.argv[2]))\n"
        "a = anndata.read_h5ad(sys.argv[1]); z = a.obsm['X_vae'].copy()\n"
        "vx.tl.encode(a)\n"
        "assert numpy.array_equal(z, a.obsm['X_vae']), 'encode'\n"
        f"vx.tl.fit_vae(a, 'batch', rng=7, **{quick!r})\n"
        "assert numpy.array_equal(z, a.obsm['X_vae']), 'fit_vae'\n"
    )
    threads = str(torch.get_num_threads())
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.h5ad"), threads], check=False, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()


def test_seeds_differ_but_hold_out_the_same_cells(adata: ad.AnnData, quick: dict) -> None:
    one = vx.tl.fit_vae(adata, rng=0, copy=True, **quick)
    two = vx.tl.fit_vae(adata, rng=1, copy=True, **quick)
    three = vx.tl.fit_vae(adata, rng=0, split_rng=5, copy=True, **quick)
    assert one is not None
    assert two is not None
    assert three is not None
    assert not np.array_equal(one.obsm["X_vae"], two.obsm["X_vae"])
    assert (one.obs["vae_split"] == two.obs["vae_split"]).all()
    assert not (one.obs["vae_split"] == three.obs["vae_split"]).all()


def test_global_random_states_stay_untouched(adata: ad.AnnData, quick: dict) -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].copy()  # noqa: NPY002
    vx.tl.fit_vae(adata, **quick)
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state(legacy=False)["state"]["key"], numpy_state)  # noqa: NPY002


@pytest.mark.parametrize("kind", ["dense", "csc", "csr_array", "int32", "layer", "view", "backed"])
def test_the_kind_of_matrix_does_not_matter(adata: ad.AnnData, quick: dict, tmp_path: Path, kind: str) -> None:
    expected = vx.tl.fit_vae(adata, "batch", copy=True, **quick)
    assert expected is not None
    layer = None
    if kind == "dense":
        adata.X = adata.X.toarray()
    elif kind == "csc":
        adata.X = adata.X.tocsc()
    elif kind == "csr_array":
        adata.X = sparse.csr_array(adata.X)
    elif kind == "int32":
        adata.X = adata.X.astype(np.int32)
    elif kind == "layer":
        adata.layers["counts"] = adata.X.copy()
        adata.X = np.log1p(adata.X.toarray())
        layer = "counts"
    elif kind == "view":
        parent = adata
        adata = parent[:, :]
        with pytest.warns(UserWarning, match="view"):
            vx.tl.fit_vae(adata, "batch", **quick)
        assert "X_vae" not in parent.obsm
    elif kind == "backed":
        adata.write_h5ad(tmp_path / "b.h5ad")
        adata = ad.read_h5ad(tmp_path / "b.h5ad", backed="r")
    if kind != "view":
        vx.tl.fit_vae(adata, "batch", layer=layer, **quick)
    np.testing.assert_array_equal(adata.obsm["X_vae"], expected.obsm["X_vae"])
    np.testing.assert_array_equal(adata.layers["vae_normalized"], expected.layers["vae_normalized"])
    if kind == "backed":
        adata.to_memory().write_h5ad(tmp_path / "kept.h5ad")
        assert "X_vae" in ad.read_h5ad(tmp_path / "kept.h5ad").obsm


def test_the_size_factor_of_another_column(adata: ad.AnnData, quick: dict) -> None:
    adata.obs["sf"] = adata.obs["library_size"] / adata.obs["library_size"].mean()
    vx.tl.fit_vae(adata, library="sf", **quick)
    np.testing.assert_allclose(adata.obs["vae_library"], adata.obs["library_size"], rtol=1e-6)
    assert "rescaled" in adata.uns["vae"]["params"]["library_source"]


def test_mask_is_scanpys_rule(adata: ad.AnnData, quick: dict) -> None:
    adata.var["highly_variable"] = np.arange(60) < 20
    adata.var["mine"] = np.arange(60) < 30
    for mask, n in ((None, 60), ("mine", 30), (np.arange(60) < 7, 7)):
        result = vx.tl.fit_vae(adata, mask_var=mask, copy=True, denoised=False, **quick)
        assert result is not None
        assert result.uns["vae"]["genes"]["modelled"].sum() == n
    vx.tl.fit_vae(adata, denoised=False, **quick)
    assert adata.uns["vae"]["genes"]["modelled"].sum() == 20


def test_the_dense_layer_is_optional_and_its_absence_raises_a_warning(
    adata: ad.AnnData, quick: dict, monkeypatch: pytest.MonkeyPatch, warned: list[str]
) -> None:
    monkeypatch.setattr("vxpress.bridge.fitting.MAX_DENSE_BYTES", 10)
    vx.tl.fit_vae(adata, **quick)
    assert "vae_normalized" not in adata.layers
    assert "vx.tl.denoise(adata)" in " ".join(warned)
    vx.tl.fit_vae(adata, denoised=True, **quick)
    assert "vae_normalized" in adata.layers


def test_key_added_and_a_second_fit(adata: ad.AnnData, quick: dict) -> None:
    vx.tl.fit_vae(adata, key_added="first", **quick)
    vx.tl.fit_vae(adata, **(quick | {"n_latent": 2}))
    assert adata.obsm["first"].shape[1] == 3
    assert adata.obsm["X_vae"].shape[1] == 2
    assert {"first_normalized", "vae_normalized"} <= set(adata.layers)
    vx.tl.fit_vae(adata, key_added="first", **quick)


def test_scanpys_next_steps_work(fitted: ad.AnnData) -> None:
    sc.pp.neighbors(fitted, use_rep="X_vae")
    sc.tl.leiden(fitted, flavor="igraph", n_iterations=2)
    sc.pl.embedding(fitted, "vae", color="leiden", show=False)
    assert "leiden" in fitted.obs


def test_readout_genes_follow_their_own_mean(adata: ad.AnnData) -> None:
    mask = np.arange(60) % 2 == 0
    vx.tl.fit_vae(adata, mask_var=mask, n_latent=4, n_hidden=32, max_epochs=40, batch_size=64)
    raw = adata.X.toarray()
    share = (raw / raw.sum(1, keepdims=True)).mean(0)[~mask]
    read = adata.layers["vae_normalized"].mean(0)[~mask] / 1e4
    assert np.corrcoef(np.log(share + 1e-5), np.log(read + 1e-5))[0, 1] > 0.99
    np.testing.assert_allclose(read.sum(), share.sum(), rtol=0.05)


@pytest.mark.parametrize("setting", ["library beyond the data", "library of the data", "preset scvi"])
def test_shares_of_modelled_and_read_genes_are_those_of_the_counts(adata: ad.AnnData, setting: str) -> None:
    mask = np.arange(60) % 3 != 0
    raw = adata.X.toarray()
    factor = 3.0 if setting == "library beyond the data" else 1.0
    adata.obs["library_size"] = factor * raw.sum(1)
    preset = "scvi" if setting == "preset scvi" else None
    vx.tl.fit_vae(adata, mask_var=mask, preset=preset, n_latent=3, max_epochs=30, batch_size=64)
    layer = adata.layers["vae_normalized"]
    for genes in (mask, ~mask):
        expected = 1e4 * raw[:, genes].sum() / (factor * raw.sum())
        np.testing.assert_allclose(layer[:, genes].sum(1).mean(), expected, rtol=0.05)


def test_a_size_factor_alone_adds_no_remainder(adata: ad.AnnData, quick: dict) -> None:
    adata.obs["sf"] = np.random.default_rng(0).uniform(0.5, 2, adata.n_obs)
    vx.tl.fit_vae(adata, library="sf", **quick)
    assert not adata.uns["vae"]["params"]["model"]["remainder"]
    np.testing.assert_allclose(adata.layers["vae_normalized"].sum(1), 1e4, rtol=1e-4)


def test_a_refit_removes_the_earlier_fit(adata: ad.AnnData, quick: dict) -> None:
    vx.tl.fit_vae(adata, **quick)
    vx.tl.fit_vae(adata, rng=1, denoised=False, **quick)
    assert "vae_normalized" not in adata.layers


def test_numpy_scalars_are_accepted_as_numbers(adata: ad.AnnData, quick: dict) -> None:
    arguments = quick | {"n_latent": np.int64(3), "max_epochs": np.int32(1), "beta": np.float32(1)}
    vx.tl.fit_vae(adata, rng=np.int64(3), **arguments)
    assert type(adata.uns["vae"]["params"]["model"]["n_latent"]) is int
    assert adata.uns["vae"]["params"]["rng"] == 3


def test_it_recovers_simulated_groups_and_batches_mix() -> None:
    adata = vx.datasets.simulate(600, 200, n_groups=3, n_batches=2, library_mean=1500, de_log_fold_change=1.5, rng=0)
    vx.tl.fit_vae(adata, "batch", n_latent=5, max_epochs=40)
    latent = adata.obsm["X_vae"]
    from sklearn.neighbors import NearestNeighbors

    near = NearestNeighbors(n_neighbors=16).fit(latent).kneighbors(latent, return_distance=False)[:, 1:]
    same_group = (adata.obs["group"].to_numpy()[near] == adata.obs["group"].to_numpy()[:, None]).mean()
    same_batch = (adata.obs["batch"].to_numpy()[near] == adata.obs["batch"].to_numpy()[:, None]).mean()
    assert same_group > 0.95
    assert same_batch < 0.6


def test_fits_on_external_real_counts(real_data) -> None:
    adata = real_data("kang_ifnb")[:600].copy()
    vx.pp.library_size(adata)
    vx.pp.highly_variable_genes(adata, n_top_genes=300, batch_key="batch")
    vx.tl.fit_vae(adata, "batch", max_epochs=10)
    history = adata.uns["vae"]["history"]
    assert history["elbo_validation"][-1] > history["elbo_validation"][0]
    assert np.isfinite(adata.layers["vae_normalized"]).all()
