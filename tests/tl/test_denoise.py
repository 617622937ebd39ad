"""Formats, scales and intervals of the denoised layer; its values are tested together with ``encode``."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

import vxpress as vx
from vxpress.bridge.ask import decoded
from vxpress.core.inference import posterior


def test_target_sum_library_gives_expected_counts(fitted: ad.AnnData) -> None:
    vx.tl.denoise(fitted, target_sum=1.0, key_added="share")
    vx.tl.denoise(fitted, target_sum="library", key_added="counts")
    library = fitted.obs["vae_library"].to_numpy()[:, None]
    np.testing.assert_allclose(fitted.layers["counts"], fitted.layers["share"] * library, rtol=1e-5)
    few = vx.tl.denoise(fitted, genes=list(fitted.var_names[:2]), target_sum="library")
    assert few is not None
    np.testing.assert_allclose(few.X, fitted.layers["counts"][:, :2], rtol=1e-5)


def test_observed_decodes_each_cell_under_its_own_batch(fitted: ad.AnnData) -> None:
    vx.tl.denoise(fitted, transform_batch="observed", key_added="own")
    for name in fitted.obs["batch"].cat.categories:
        vx.tl.denoise(fitted, transform_batch=name, key_added=name)
        here = (fitted.obs["batch"] == name).to_numpy()
        np.testing.assert_array_equal(fitted.layers["own"][here], fitted.layers[name][here])
        assert not np.allclose(fitted.layers["own"][~here], fitted.layers[name][~here], rtol=1e-3)


def test_a_batch_called_observed_is_given_in_a_list(adata: ad.AnnData, quick: dict, warned: list[str]) -> None:
    adata.obs["batch"] = adata.obs["batch"].cat.rename_categories(["observed", "other"])
    vx.tl.fit_vae(adata, "batch", denoised=False, **quick)
    vx.tl.denoise(adata, transform_batch=["observed"], key_added="named")
    vx.tl.denoise(adata, transform_batch="other", key_added="other")
    assert not any("selects that batch" in message for message in warned)
    vx.tl.denoise(adata, transform_batch="observed", key_added="own")
    assert any("selects that batch" in message for message in warned)
    here = (adata.obs["batch"] == "observed").to_numpy()
    np.testing.assert_array_equal(adata.layers["own"][here], adata.layers["named"][here])
    np.testing.assert_array_equal(adata.layers["own"][~here], adata.layers["other"][~here])


def test_observed_has_no_effect_without_batches(adata: ad.AnnData, quick: dict) -> None:
    vx.tl.fit_vae(adata, **quick)
    vx.tl.denoise(adata, transform_batch="observed", key_added="own")
    np.testing.assert_array_equal(adata.layers["own"], adata.layers["vae_normalized"])


def test_half_precision_is_the_layer_rounded(fitted: ad.AnnData) -> None:
    vx.tl.denoise(fitted, dtype="float16", key_added="half")
    assert fitted.layers["half"].dtype == np.float16
    np.testing.assert_array_equal(fitted.layers["half"], fitted.layers["vae_normalized"].astype(np.float16))
    with pytest.raises(ValueError, match="65,504"):
        vx.tl.denoise(fitted, dtype="float16", target_sum=1e9, key_added="beyond")
    assert "beyond" not in fitted.layers


@pytest.mark.parametrize("drop_below", [1.0, 80.0, 1e9])
def test_a_sparse_layer_holds_values_above_the_limit(
    monkeypatch: pytest.MonkeyPatch, fitted: ad.AnnData, drop_below: float
) -> None:
    vx.tl.denoise(fitted, key_added="dense")
    vx.tl.denoise(fitted, drop_below=drop_below, key_added="sparse")
    found = fitted.layers["sparse"]
    assert isinstance(found, sparse.csr_matrix)
    assert found.dtype == np.float32
    dense = fitted.layers["dense"]
    np.testing.assert_array_equal(found.toarray(), np.where(dense >= drop_below, dense, 0))
    assert found.nnz == (dense >= drop_below).sum()
    found.check_format()
    # chunk by chunk: the same rows, but never all of them at once
    monkeypatch.setattr(posterior, "CHUNK", 50)
    blocks: list[int] = []

    class Watched(decoded._Sparse):
        def put(self, rows, inside, outside, scale):
            blocks.append(inside.shape[0])
            super().put(rows, inside, outside, scale)

    monkeypatch.setattr(decoded, "_Sparse", Watched)
    vx.tl.denoise(fitted, drop_below=drop_below, transform_batch="observed", key_added="chunks")
    assert blocks == [50, 50, 50, 10]
    assert fitted.layers["chunks"].shape == fitted.shape


def test_unknown_genes_are_nan_in_a_sparse_layer(fitted: ad.AnnData, warned: list[str]) -> None:
    extra = ad.AnnData(np.ones((fitted.n_obs, 1), dtype=np.float32), obs=fitted.obs[[]])
    extra.var_names = ["new"]
    wide = ad.concat([extra, fitted], axis=1, merge="same")
    wide.obs, wide.obsm["X_vae"], wide.obsm["X_vae_var"] = fitted.obs, fitted.obsm["X_vae"], fitted.obsm["X_vae_var"]
    vx.tl.denoise(wide, fitted, drop_below=50.0)
    found = wide.layers["vae_normalized"].toarray()
    assert np.isnan(found[:, 0]).all()
    assert np.isfinite(found[:, 1:]).all()
    assert "unknown to the fit" in " ".join(warned)


def test_forms_survive_a_file(fitted: ad.AnnData, tmp_path: Path) -> None:
    vx.tl.denoise(fitted, drop_below=50.0, key_added="sparse")
    vx.tl.denoise(fitted, dtype="float16", interval=0.5, key_added="half")
    fitted.write_h5ad(tmp_path / "a.h5ad")
    back = ad.read_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(back.layers["sparse"].toarray(), fitted.layers["sparse"].toarray())
    for name in ("half", "half_lower", "half_upper"):
        assert back.layers[name].dtype == np.float16
        np.testing.assert_array_equal(back.layers[name], fitted.layers[name])


def test_the_interval_holds_its_share_of_new_draws_and_its_mean(fitted: ad.AnnData) -> None:
    vx.tl.denoise(fitted, transform_batch="batch_0", interval=0.8, n_draws=200, rng=1, key_added="a")
    low, high, mean = (fitted.layers[name] for name in ("a_lower", "a_upper", "a"))
    assert ((low < mean) & (mean < high)).all()
    inside = []
    for seed in range(2, 22):
        vx.tl.denoise(fitted, transform_batch="batch_0", n_draws=1, rng=seed, key_added=f"draw{seed}")
        draw = fitted.layers[f"draw{seed}"]
        inside.append(((low <= draw) & (draw <= high)).mean())
    assert np.mean(inside) == pytest.approx(0.8, abs=0.03)
    vx.tl.denoise(fitted, transform_batch="batch_0", n_draws=200, key_added="other")
    np.testing.assert_allclose(mean.mean(0), fitted.layers["other"].mean(0), rtol=0.02)


def test_an_interval_over_batches_is_that_of_their_mean(fitted: ad.AnnData) -> None:
    names = list(fitted.obs["batch"].cat.categories)
    for name in names:
        vx.tl.denoise(fitted, transform_batch=name, interval=0.8, n_draws=50, key_added=name)
    vx.tl.denoise(fitted, interval=0.8, n_draws=50, key_added="both")
    # the same draws of z under both batches, so means average, and widths are at most the average
    np.testing.assert_allclose(
        fitted.layers["both"], (fitted.layers[names[0]] + fitted.layers[names[1]]) / 2, rtol=1e-4
    )
    width = {name: fitted.layers[f"{name}_upper"] - fitted.layers[f"{name}_lower"] for name in [*names, "both"]}
    assert width["both"].mean() <= (width[names[0]] + width[names[1]]).mean() / 2 * (1 + 1e-5)


def test_quantiles_agree_with_numpy(monkeypatch: pytest.MonkeyPatch, fitted: ad.AnnData) -> None:
    monkeypatch.setattr(posterior, "DRAWN_ENTRIES", 30 * 60 * 40)
    vx.tl.denoise(fitted, transform_batch="observed", interval=0.9, n_draws=40, key_added="a")
    monkeypatch.setattr(posterior, "_quantiles", lambda drawn, levels: [
        posterior.torch.from_numpy(np.quantile(drawn.numpy(), level, axis=0)) for level in levels
    ])  # fmt: skip
    vx.tl.denoise(fitted, transform_batch="observed", interval=0.9, n_draws=40, key_added="b")
    for end in ("", "_lower", "_upper"):
        np.testing.assert_allclose(fitted.layers[f"a{end}"], fitted.layers[f"b{end}"], rtol=1e-5)


def test_an_interval_of_some_genes_comes_with_them(fitted: ad.AnnData) -> None:
    few = vx.tl.denoise(fitted, genes=list(fitted.var_names[[1, 0]]), interval=0.9, target_sum="library")
    assert few is not None
    vx.tl.denoise(fitted, interval=0.9, target_sum="library", key_added="all")
    # the chunks of the draws depend on the number of genes
    np.testing.assert_allclose(few.X.mean(0), fitted.layers["all"][:, [1, 0]].mean(0), rtol=0.02)
    assert (few.layers["lower"] < few.X).all()
    assert (few.layers["upper"] > few.X).all()


def test_old_intervals_are_removed_with_their_layer(fitted: ad.AnnData) -> None:
    vx.tl.denoise(fitted, interval=0.9)
    assert {"vae_normalized_lower", "vae_normalized_upper"} <= set(fitted.layers)
    vx.tl.denoise(fitted)
    assert [name for name in fitted.layers if name] == ["vae_normalized"]


def test_own_counts_follow_the_formula_and_predict_held_out_molecules(adata: ad.AnnData) -> None:
    x = adata.X.copy()
    rng = np.random.default_rng(0)
    # rates that no latent space describes: gamma noise per cell and gene
    rate = x.toarray() * rng.gamma(2, 0.5, x.shape) * 10
    train, test = rng.poisson(rate * 0.9), rng.poisson(rate * 0.1)
    cells = ad.AnnData(sparse.csr_matrix(train.astype(np.float32)), obs=adata.obs[["batch"]].copy())
    vx.tl.fit_vae(cells, "batch", n_latent=3, n_hidden=16, max_epochs=30, batch_size=64, denoised=False)
    vx.tl.denoise(cells, transform_batch="observed", target_sum="library", key_added="plain")
    vx.tl.denoise(cells, transform_batch="observed", target_sum="library", own_counts=True, key_added="updated")
    mean = cells.layers["plain"]
    theta = np.exp(cells.uns["vae"]["weights"]["decoder.log_dispersion"])
    np.testing.assert_allclose(cells.layers["updated"], mean * (theta + train) / (theta + mean), rtol=1e-4)
    loss = {
        name: (value / 9 - test * np.log(value / 9)).mean()
        for name, value in ((name, cells.layers[name]) for name in ("plain", "updated"))
    }
    assert loss["updated"] < loss["plain"]
    cells.layers["counts"], cells.X = cells.X.copy(), cells.X * 0.5
    vx.tl.denoise(
        cells, transform_batch="observed", target_sum="library", own_counts=True, layer="counts", key_added="layer"
    )
    np.testing.assert_array_equal(cells.layers["layer"], cells.layers["updated"])


def test_own_counts_use_the_mean_of_a_latent_library(adata: ad.AnnData, quick: dict) -> None:
    vx.tl.fit_vae(adata, "batch", library="latent", denoised=False, **quick)
    vx.tl.denoise(adata, transform_batch="observed", target_sum="library", key_added="plain")
    vx.tl.denoise(adata, transform_batch="observed", target_sum="library", own_counts=True, key_added="updated")
    mean, x = adata.layers["plain"], adata.X.toarray()
    theta = np.exp(adata.uns["vae"]["weights"]["decoder.log_dispersion"])
    np.testing.assert_allclose(adata.layers["updated"], mean * (theta + x) / (theta + mean), rtol=1e-4)


def test_a_batch_that_is_named_twice_counts_once(fitted: ad.AnnData) -> None:
    vx.tl.denoise(fitted, transform_batch=["batch_0", "batch_1"], key_added="once")
    vx.tl.denoise(fitted, transform_batch=["batch_0", "batch_0", "batch_1"], key_added="twice")
    np.testing.assert_array_equal(fitted.layers["once"], fitted.layers["twice"])


@pytest.mark.parametrize("drop_below", [None, 20.0])
def test_some_genes_in_another_order_are_the_columns_of_all(fitted: ad.AnnData, drop_below: float | None) -> None:
    """With a gene that the fit does not know, and with the ends of an interval."""
    vx.tl.denoise(fitted, interval=0.5, drop_below=drop_below, key_added="all")
    at = np.random.default_rng(0).permutation(fitted.n_vars)[:25]
    some = ad.AnnData(
        np.ones((fitted.n_obs, 26), np.float32), obs=fitted.obs.copy(), obsm=dict(fitted.obsm), uns=dict(fitted.uns)
    )
    some.var_names = ["unknown", *fitted.var_names[at]]
    vx.tl.denoise(some, interval=0.5, drop_below=drop_below, key_added="some")
    for end in ("", "_lower", "_upper"):
        found, expected = (
            value.toarray() if sparse.issparse(value) else value
            for value in (some.layers[f"some{end}"], fitted.layers[f"all{end}"])
        )
        assert np.isnan(found[:, 0]).all()
        np.testing.assert_array_equal(found[:, 1:], expected[:, at])


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"target_sum": "size"}, "'library'"),
        ({"dtype": "float64"}, "dtype"),
        ({"drop_below": 0.0}, "drop_below"),
        ({"drop_below": 1.0, "dtype": "float16"}, "does not support"),
        ({"interval": 1.5}, "interval"),
        ({"interval": 0.9, "n_draws": 10}, "n_draws=20"),
        ({"interval": 0.9, "own_counts": True}, "one of the two"),
        ({"transform_batch": "Observed"}, "knows the batches"),
    ],
)
def test_invalid_arguments_are_refused(fitted: ad.AnnData, arguments: dict, match: str) -> None:
    before = set(fitted.layers)
    with pytest.raises(ValueError, match=match):
        vx.tl.denoise(fitted, **arguments, key_added="new")
    assert set(fitted.layers) == before


def test_options_without_meaning_for_a_gaussian_fit_are_refused(adata: ad.AnnData, quick: dict) -> None:
    vx.tl.fit_vae(adata, likelihood="gaussian", **quick)
    for arguments in ({"drop_below": 1.0}, {"target_sum": "library"}):
        with pytest.raises(ValueError, match="log values"):
            vx.tl.denoise(adata, **arguments)
    with pytest.raises(ValueError, match="likelihood='nb'"):
        vx.tl.denoise(adata, own_counts=True)


def test_an_interval_does_not_replace_a_layer_of_that_name(fitted: ad.AnnData) -> None:
    fitted.layers["mine_upper"] = fitted.X.copy()
    with pytest.raises(ValueError, match="mine_upper"):
        vx.tl.denoise(fitted, interval=0.9, key_added="mine")
    assert "mine" not in fitted.layers
