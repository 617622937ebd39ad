from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

import vxpress as vx


def _query(fitted: ad.AnnData, rows: slice = slice(None)) -> ad.AnnData:
    part = fitted[rows]
    return ad.AnnData(part.X.copy(), obs=part.obs[["batch", "age", "library_size"]].copy(), var=part.var[[]].copy())


def test_encoding_the_cells_of_the_fit_reproduces_them(fitted: ad.AnnData) -> None:
    query = _query(fitted)
    vx.tl.encode(query, fitted)
    for name in ("X_vae", "X_vae_var"):
        np.testing.assert_array_equal(query.obsm[name], fitted.obsm[name])
    np.testing.assert_array_equal(query.obs["vae_library"], fitted.obs["vae_library"])
    assert "vae_split" not in query.obs


def test_order_and_number_of_genes_do_not_matter(fitted: ad.AnnData) -> None:
    query = _query(fitted, slice(0, 30))
    extra = ad.AnnData(np.ones((30, 2), dtype=np.float32), var={"x": [0, 0]})
    extra.var_names, extra.obs_names = ["new1", "new2"], query.obs_names
    wide = ad.concat([query, extra], axis=1)
    wide.obs = query.obs
    mixed = wide[:, np.random.default_rng(0).permutation(wide.n_vars)].copy()
    vx.tl.encode(mixed, fitted)
    np.testing.assert_allclose(mixed.obsm["X_vae"], fitted.obsm["X_vae"][:30], rtol=1e-5, atol=1e-6)


def test_reordered_and_further_genes_are_denoised_by_name(fitted: ad.AnnData, warned: list[str]) -> None:
    vx.tl.denoise(fitted, key_added="smooth")
    turned = fitted[:, ::-1].copy()
    del turned.layers["smooth"]
    vx.tl.denoise(turned, key_added="smooth")
    np.testing.assert_allclose(turned.layers["smooth"], fitted.layers["smooth"][:, ::-1], rtol=1e-6)
    extra = ad.AnnData(np.ones((fitted.n_obs, 1), dtype=np.float32), obs=fitted.obs[[]])
    extra.var_names = ["new"]
    wide = ad.concat([fitted, extra], axis=1, merge="same")
    wide.obs, wide.obsm["X_vae"], wide.obsm["X_vae_var"] = fitted.obs, fitted.obsm["X_vae"], fitted.obsm["X_vae_var"]
    vx.tl.denoise(wide, fitted)
    assert np.isnan(wide[:, "new"].layers["vae_normalized"]).all()
    assert "unknown to the fit" in " ".join(warned)


def test_the_fit_of_the_same_cells_is_not_replaced(fitted: ad.AnnData, adata: ad.AnnData, quick: dict) -> None:
    vx.tl.fit_vae(adata, "batch", **quick)
    with pytest.raises(ValueError, match="key_added="):
        vx.tl.encode(adata, fitted)
    vx.tl.encode(adata, fitted, key_added="other")
    assert adata.obsm["other"].shape[1] == 4


def test_encoding_a_query_again_replaces_all_results(fitted: ad.AnnData) -> None:
    query = _query(fitted, slice(0, 20))
    vx.tl.encode(query, fitted)
    vx.tl.denoise(query)
    vx.tl.encode(query, fitted)
    assert "vae_normalized" not in query.layers


def test_new_cells_need_neither_labels_nor_a_library_column(adata: ad.AnnData, quick: dict) -> None:
    vx.tl.fit_vae(adata, "batch", library="latent", dispersion="gene-label", labels_key="group", **quick)
    query = ad.AnnData(adata.X.copy(), obs=adata.obs[["batch"]].copy(), var=adata.var[[]].copy())
    vx.tl.encode(query, adata)
    np.testing.assert_array_equal(query.obsm["X_vae"], adata.obsm["X_vae"])
    np.testing.assert_array_equal(query.obs["vae_library"], adata.obs["vae_library"])
    vx.tl.denoise(query)


def test_encoded_query_cells_need_no_reference(fitted: ad.AnnData) -> None:
    query = _query(fitted, slice(0, 30))
    vx.tl.encode(query, fitted)
    vx.tl.denoise(query)
    vx.tl.diagnose(query)
    assert np.isfinite(query.layers["vae_normalized"]).all()
    again = query[:10].copy()
    vx.tl.encode(again)
    np.testing.assert_allclose(again.obsm["X_vae"], fitted.obsm["X_vae"][:10], rtol=1e-5, atol=1e-6)


def test_the_reference_does_not_change(fitted: ad.AnnData) -> None:
    weights = {name: np.array(value) for name, value in fitted.uns["vae"]["weights"].items()}
    vx.tl.encode(_query(fitted, slice(0, 5)), fitted)
    for name, value in weights.items():
        np.testing.assert_array_equal(fitted.uns["vae"]["weights"][name], value)


def test_copy_and_key_added(fitted: ad.AnnData) -> None:
    query = _query(fitted, slice(0, 12))
    result = vx.tl.encode(query, fitted, key_added="mine", copy=True)
    assert result is not None
    assert not len(query.obsm)
    assert set(result.obsm) == {"mine", "mine_var"}
    vx.tl.denoise(result, key="mine", key_added="smooth")
    assert [k for k in result.layers if k is not None] == ["smooth"]


def test_after_concatenation_the_model_is_required(fitted: ad.AnnData) -> None:
    both = ad.concat([fitted[:10], fitted[10:20]])
    with pytest.raises(KeyError, match="model="):
        vx.tl.encode(both)
    vx.tl.denoise(both, fitted)
    np.testing.assert_allclose(both.layers["vae_normalized"].sum(1), 1e4, rtol=1e-3)


def test_denoise_is_reproducible_and_averages_draws(fitted: ad.AnnData) -> None:
    written = fitted.layers["vae_normalized"].copy()
    vx.tl.denoise(fitted)
    np.testing.assert_allclose(fitted.layers["vae_normalized"], written, rtol=1e-5)
    one, two = list(fitted.obs["batch"].cat.categories)
    for name in (one, two):
        vx.tl.denoise(fitted, transform_batch=name, key_added=name, n_draws=40)
    vx.tl.denoise(fitted, n_draws=80, key_added="both")
    mean = (fitted.layers[one] + fitted.layers[two]) / 2
    np.testing.assert_allclose(fitted.layers["both"].mean(0), mean.mean(0), rtol=0.02)
    assert not np.allclose(fitted.layers[one], fitted.layers[two], rtol=1e-3)


def test_denoise_scales_and_seeds(fitted: ad.AnnData) -> None:
    vx.tl.denoise(fitted, target_sum=1.0, key_added="share")
    np.testing.assert_allclose(fitted.layers["share"].sum(1), 1.0, rtol=1e-3)
    vx.tl.denoise(fitted, rng=1, key_added="other")
    assert not np.array_equal(fitted.layers["other"], fitted.layers["vae_normalized"])


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"transform_batch": "nowhere"}, "knows the batches"),
        ({"n_draws": 0}, "n_draws"),
        ({"target_sum": 0.0}, "target_sum"),
        ({"n_draws": 2.5}, "n_draws"),
        ({"rng": -1}, "rng"),
        ({"transform_batch": 0}, "knows the batches"),
        ({"key_added": "a/b"}, "without '/'"),
        ({"key_added": "taken"}, "already"),
    ],
)
def test_denoise_refuses_bad_arguments(fitted: ad.AnnData, arguments: dict, match: str) -> None:
    fitted.layers["taken"] = fitted.X.copy()
    with pytest.raises(ValueError, match=match):
        vx.tl.denoise(fitted, **arguments)
    assert (fitted.layers["taken"] != fitted.X).nnz == 0


def test_a_posterior_with_gaps_is_refused(fitted: ad.AnnData) -> None:
    fitted.obsm["X_vae"][3, 1] = np.nan
    with pytest.raises(ValueError, match="not a posterior"):
        vx.tl.denoise(fitted)


def test_a_gaussian_fit_has_no_sum_to_scale_to(adata: ad.AnnData, quick: dict) -> None:
    vx.tl.fit_vae(adata, likelihood="gaussian", **quick)
    with pytest.raises(ValueError, match="log values"):
        vx.tl.denoise(adata, target_sum=1.0)


@pytest.mark.parametrize("rng", [None, 3, np.random.default_rng(0)])
def test_seeds_of_every_type_work(fitted: ad.AnnData, rng: object) -> None:
    vx.tl.denoise(fitted, rng=rng, key_added="smooth")  # type: ignore[arg-type]
    assert np.isfinite(fitted.layers["smooth"]).all()


def test_without_a_fit_the_call_that_makes_one_is_named(adata: ad.AnnData, fitted: ad.AnnData) -> None:
    for function in (vx.tl.encode, vx.tl.denoise, vx.tl.diagnose):
        with pytest.raises(KeyError, match="fit_vae"):
            function(adata)
    with pytest.raises(KeyError, match="fits found"):
        vx.tl.denoise(fitted, key="other")
    del fitted.obsm["X_vae_var"]
    with pytest.raises(KeyError, match="encode"):
        vx.tl.denoise(fitted)


def test_a_latent_space_of_another_fit_is_refused(fitted: ad.AnnData) -> None:
    fitted.obsm["X_vae"] = fitted.obsm["X_vae"][:, :2]
    with pytest.raises(ValueError, match="another fit"):
        vx.tl.denoise(fitted)


def test_some_genes_are_returned_as_in_the_layer_and_nothing_is_written(fitted: ad.AnnData) -> None:
    before = set(fitted.layers)
    names = list(fitted.var_names[[5, 0, -1]])
    part = vx.tl.denoise(fitted, genes=names)
    assert part is not None
    assert list(part.var_names) == names
    assert set(fitted.layers) == before
    np.testing.assert_allclose(part.X, fitted[:, names].layers["vae_normalized"], rtol=1e-5)
    np.testing.assert_array_equal(part.obsm["X_vae"], fitted.obsm["X_vae"])
    assert part.obs["batch"].equals(fitted.obs["batch"])
    mask = fitted.var_names.isin(names)
    by_mask = vx.tl.denoise(fitted, genes=mask)
    assert by_mask is not None
    assert list(by_mask.var_names) == list(fitted.var_names[mask])
    one = vx.tl.denoise(fitted, genes=names[0])
    assert one is not None
    np.testing.assert_array_equal(one.X[:, 0], part.X[:, 0])


@pytest.mark.parametrize("likelihood", ["nb", "gaussian"])
@pytest.mark.parametrize("from_all", [True, False])
def test_some_genes_with_a_readout(adata: ad.AnnData, quick: dict, likelihood: str, from_all: bool) -> None:
    modelled = np.arange(adata.n_vars) % 3 > 0
    if not from_all:
        adata.obs["library_size"] = np.asarray(adata.X[:, modelled].sum(1)).ravel() + 1.0
    vx.tl.fit_vae(adata, "batch", mask_var=modelled, likelihood=likelihood, **quick)
    for wanted in ([0, 1, 3, 2], [3, 0], [2, 1], []):
        part = vx.tl.denoise(adata, genes=list(adata.var_names[wanted]))
        assert part is not None
        np.testing.assert_allclose(part.X, adata.layers["vae_normalized"][:, wanted], rtol=1e-5, atol=1e-6)


def test_genes_removed_from_adata_can_be_requested(fitted: ad.AnnData) -> None:
    name = fitted.var_names[0]
    part = vx.tl.denoise(fitted[:, 1:3].copy(), genes=[name])
    assert part is not None
    np.testing.assert_allclose(part.X[:, 0], fitted[:, name].layers["vae_normalized"][:, 0], rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"genes": ["no such gene"]}, KeyError, "unknown to the fit"),
        ({"genes": np.ones(3, dtype=bool)}, ValueError, "booleans, one per gene"),
        ({"genes": ["twice", "twice"]}, ValueError, "once"),
        ({"genes": ["any"], "key_added": "smooth"}, ValueError, "genes="),
        ({"genes": ["any"], "copy": True}, ValueError, "genes="),
    ],
)
def test_invalid_genes_are_refused(fitted: ad.AnnData, arguments: dict, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        vx.tl.denoise(fitted, **arguments)
