from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import vxpress as vx


def _dense(layer: Any) -> np.ndarray:
    return layer.toarray() if sparse.issparse(layer) else np.asarray(layer)


def _modelled(adata: ad.AnnData, key: str = "vae") -> np.ndarray:
    genes = adata.uns[key]["genes"]
    return np.asarray(genes["names"])[np.asarray(genes["modelled"], dtype=bool)].astype(str)


def test_one_draw_is_a_sparse_layer_of_counts(fitted: ad.AnnData, warned: list[str]) -> None:
    vx.tl.sample(fitted)
    layer = fitted.layers["vae_sample"]
    assert sparse.issparse(layer)
    assert layer.format == "csr"
    assert layer.dtype == np.float32
    assert layer.has_canonical_format
    np.testing.assert_array_equal(layer.data, np.rint(layer.data))
    inside = fitted.var_names.isin(_modelled(fitted))
    assert _dense(layer)[:, inside].sum(0).min() > 0
    assert _dense(layer)[:, ~inside].sum() == 0
    assert "20 of the 60 genes" in " ".join(warned)
    assert list(fitted.uns["vae_sample"]["genes"]) == list(fitted.var_names[inside])


def test_draws_have_the_mean_of_the_denoised_layer(fitted: ad.AnnData) -> None:
    drawn = vx.tl.sample(fitted, n_samples=300, transform_batch="batch_0")
    assert drawn is not None
    vx.tl.denoise(fitted, transform_batch="batch_0", target_sum=1.0, n_draws=300, key_added="rho")
    expected = fitted.layers["rho"] * fitted.obs["vae_library"].to_numpy()[:, None]
    expected = pd.DataFrame(expected, columns=fitted.var_names)[drawn.var_names].to_numpy()
    np.testing.assert_allclose(np.asarray(drawn.X.mean(0)).ravel(), expected.mean(0), rtol=0.05)


def test_several_draws_are_separate_cells(fitted: ad.AnnData) -> None:
    drawn = vx.tl.sample(fitted, n_samples=3)
    assert drawn is not None
    assert drawn.shape == (480, 40)
    assert "vae_sample" not in fitted.layers
    assert drawn.obs_names.is_unique
    assert list(drawn.obs["source"][160:320]) == list(fitted.obs_names)
    assert list(drawn.obs["draw"].unique()) == [0, 1, 2]
    assert list(drawn.obs["group"][:160]) == list(fitted.obs["group"])
    vx.tl.sample(fitted)
    np.testing.assert_array_equal(_dense(drawn[:160].X), _dense(fitted[:, drawn.var_names].layers["vae_sample"]))
    assert (drawn[:160].X != drawn[160:320].X).nnz > 0


def test_some_genes_are_the_same_columns(fitted: ad.AnnData) -> None:
    names = list(_modelled(fitted)[[7, 2, 30]])
    some, every = vx.tl.sample(fitted, genes=names), vx.tl.sample(fitted, n_samples=2)
    assert some is not None
    assert every is not None
    assert list(some.var_names) == names
    assert list(some.obs_names) == list(fitted.obs_names)
    np.testing.assert_array_equal(_dense(some.X), _dense(every[:160, names].X))
    mask = fitted.var_names.isin(names)
    by_mask = vx.tl.sample(fitted, genes=mask)
    assert by_mask is not None
    assert set(by_mask.var_names) == set(names)


def test_only_stored_results_are_needed(fitted: ad.AnnData, tmp_path: Path) -> None:
    vx.tl.sample(fitted)
    genes = _modelled(fitted)[::-2]
    part = fitted[:, genes].copy()
    part.X = np.log1p(_dense(part.X) / 7)
    part.write_h5ad(tmp_path / "part.h5ad")
    back = ad.read_h5ad(tmp_path / "part.h5ad")
    vx.tl.sample(back)
    np.testing.assert_array_equal(_dense(back.layers["vae_sample"]), _dense(fitted[:, genes].layers["vae_sample"]))
    other = ad.AnnData(obs=part.obs, var=part.var, obsm=dict(part.obsm))
    vx.tl.sample(other, fitted)
    np.testing.assert_array_equal(_dense(other.layers["vae_sample"]), _dense(back.layers["vae_sample"]))


def test_seeds_copy_and_names(fitted: ad.AnnData) -> None:
    result = vx.tl.sample(fitted, rng=3, key_added="drawn", copy=True)
    assert result is not None
    assert "drawn" not in fitted.layers
    vx.tl.sample(fitted, rng=3)
    np.testing.assert_array_equal(_dense(result.layers["drawn"]), _dense(fitted.layers["vae_sample"]))
    before = _dense(fitted.layers["vae_sample"])
    vx.tl.sample(fitted, rng=4)
    assert (_dense(fitted.layers["vae_sample"]) != before).any()
    assert fitted.uns["vae_sample"]["params"]["rng"] == 4


def test_cells_can_be_drawn_under_another_batch(fitted: ad.AnnData) -> None:
    own, first = vx.tl.sample(fitted, n_samples=2), vx.tl.sample(fitted, n_samples=2, transform_batch="batch_0")
    assert own is not None
    assert first is not None
    there = (own.obs["batch"] == "batch_0").to_numpy()
    # the noise of a block is shared, so the cells before the first exchanged one stay as they are
    stop = int(np.argmin(there))
    np.testing.assert_array_equal(_dense(own[:stop].X), _dense(first[:stop].X))
    assert (own.X != first.X).nnz > 0


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson", "bernoulli", "gaussian"])
def test_every_likelihood_is_drawn(adata: ad.AnnData, quick: dict, likelihood: Any) -> None:
    vx.tl.fit_vae(adata, "batch", likelihood=likelihood, denoised=False, **quick)
    vx.tl.sample(adata)
    layer = adata.layers["vae_sample"]
    assert sparse.issparse(layer) == (likelihood != "gaussian")
    values = _dense(layer)
    assert np.isfinite(values).all()
    if likelihood == "bernoulli":
        assert set(np.unique(values)) == {0, 1}
    if likelihood == "gaussian":
        assert (values < 0).any()
    else:
        np.testing.assert_array_equal(values, np.rint(values))


def test_a_gaussian_fit_is_nan_for_genes_outside_the_model(adata: ad.AnnData, quick: dict) -> None:
    adata.var["highly_variable"] = np.arange(60) < 40
    vx.tl.fit_vae(adata, likelihood="gaussian", denoised=False, **quick)
    vx.tl.sample(adata)
    layer = adata.layers["vae_sample"]
    assert np.isfinite(layer[:, :40]).all()
    assert np.isnan(layer[:, 40:]).all()


def test_labels_and_latent_libraries(adata: ad.AnnData, quick: dict) -> None:
    vx.tl.fit_vae(adata, "batch", library="latent", dispersion="gene-label", labels_key="group", **quick)
    vx.tl.sample(adata)
    once = adata.layers["vae_sample"].sum()
    adata.obs["vae_library"] *= 4
    vx.tl.sample(adata)
    np.testing.assert_allclose(adata.layers["vae_sample"].sum() / once, 4, rtol=0.2)
    del adata.obs["group"]
    with pytest.raises(KeyError, match="group"):
        vx.tl.sample(adata)


def test_a_cell_without_molecules_draws_none(fitted: ad.AnnData) -> None:
    fitted.obs["vae_library"] = np.where(np.arange(160) == 5, 0.0, fitted.obs["vae_library"])
    vx.tl.sample(fitted)
    sums = np.asarray(fitted.layers["vae_sample"].sum(1)).ravel()
    assert sums[5] == 0
    assert np.delete(sums, 5).min() > 0


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"n_samples": 0}, ValueError, "n_samples"),
        ({"n_samples": 1.5}, ValueError, "n_samples"),
        ({"transform_batch": "nowhere"}, ValueError, "knows the batches"),
        ({"transform_batch": ["batch_0", "batch_1"]}, ValueError, "one batch"),
        ({"genes": ["nothing"]}, KeyError, "not modelled"),
        ({"genes": ["gene_1", "gene_1"]}, ValueError, "more than once"),
        ({"genes": []}, ValueError, "no gene"),
        ({"genes": np.ones(3, dtype=bool)}, ValueError, "should be 60 booleans"),
        ({"genes": ["gene_1"], "copy": True}, ValueError, "write no layer"),
        ({"n_samples": 2, "key_added": "x"}, ValueError, "write no layer"),
        ({"rng": -1}, ValueError, "rng"),
        ({"key": "other"}, KeyError, "holds no fit"),
        ({"key_added": "vae_normalized"}, ValueError, "already"),
        ({"key_added": "a/b"}, ValueError, "without '/'"),
    ],
)
def test_errors_for_bad_arguments_name_the_remedy(fitted: ad.AnnData, arguments: dict, error: type, match: str) -> None:
    before = set(fitted.layers), set(fitted.uns)
    with pytest.raises(error, match=match):
        vx.tl.sample(fitted, **arguments)
    assert (set(fitted.layers), set(fitted.uns)) == before


def test_no_modelled_gene_left(fitted: ad.AnnData) -> None:
    with pytest.raises(ValueError, match="None of the 20 genes"):
        vx.tl.sample(fitted[:, ~fitted.var_names.isin(_modelled(fitted))].copy())


def test_a_layer_of_others_is_not_replaced(fitted: ad.AnnData) -> None:
    fitted.layers["vae_sample"] = fitted.X.copy()
    with pytest.raises(ValueError, match="already"):
        vx.tl.sample(fitted)
    # records of scanpy also have params
    fitted.uns["pca"] = {"params": {"zero_center": True}, "variance": np.ones(2)}
    with pytest.raises(ValueError, match="already"):
        vx.tl.sample(fitted, key_added="pca")
    del fitted.obs["vae_library"]
    del fitted.layers["vae_sample"]
    with pytest.raises(KeyError, match=r"vx\.tl\.encode"):
        vx.tl.sample(fitted)
