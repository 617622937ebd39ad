"""Queries of every kind: unseen batches, missing genes, and other matrix formats."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import vxpress as vx


def _query(fitted: ad.AnnData, **obs: Any) -> ad.AnnData:
    query = ad.AnnData(
        fitted.X.copy(), obs=fitted.obs[["batch", "age", "library_size"]].copy(), var=fitted.var[[]].copy()
    )
    for name, value in obs.items():
        query.obs[name] = value
    return query


@pytest.fixture(scope="module")
def _reference() -> ad.AnnData:
    adata = vx.datasets.simulate(400, 80, n_groups=3, n_batches=3, library_mean=400, rng=3)
    adata.obs["plate"] = "p1"
    del adata.obs["library_size"]
    reference = adata[adata.obs["batch"] != "batch_2"].copy()
    vx.tl.fit_vae(
        reference,
        "batch",
        categorical_covariate_keys=["plate"],
        n_latent=3,
        n_hidden=32,
        max_epochs=60,
        batch_size=64,
        denoised=False,
        options=vx.tl.FitOptions(encode_covariates=True, dropout=0.1, thinning=0.0),
    )
    reference.uns["held_out"] = adata[adata.obs["batch"] == "batch_2"].copy()
    return reference


@pytest.fixture
def reference(_reference: ad.AnnData) -> ad.AnnData:
    """A fit of two batches of one plate, with batches as input of the encoder."""
    return _reference.copy()


@pytest.fixture
def held_out(_reference: ad.AnnData) -> ad.AnnData:
    """The third batch."""
    return _reference.uns["held_out"].copy()


def test_an_unseen_batch_is_the_average_of_the_known_ones(fitted: ad.AnnData, warned: list[str]) -> None:
    query = _query(fitted, batch="new")
    vx.tl.encode(query, fitted)
    # the encoder of this fit does not see the batch
    np.testing.assert_array_equal(query.obsm["X_vae"], fitted.obsm["X_vae"])
    assert "'new'" in " ".join(warned)
    assert "average" in " ".join(warned)
    assert list(query.uns["vae"]["covariates"]["categories_0"]) == ["batch_0", "batch_1", "new"]
    bias = {}
    for batch in ("batch_0", "batch_1", "new"):
        vx.tl.denoise(query, transform_batch=batch, key_added=batch)
        bias[batch] = np.log(query.layers[batch]).mean(0)
    low, high = np.minimum(bias["batch_0"], bias["batch_1"]), np.maximum(bias["batch_0"], bias["batch_1"])
    assert ((bias["new"] > low - 0.05) & (bias["new"] < high + 0.05)).mean() > 0.9


def test_known_cells_next_to_unseen_ones_are_encoded_in_the_same_way(
    reference: ad.AnnData, held_out: ad.AnnData
) -> None:
    both = ad.concat([reference, held_out])
    vx.tl.encode(both, reference)
    np.testing.assert_allclose(both[reference.obs_names].obsm["X_vae"], reference.obsm["X_vae"], rtol=1e-4, atol=1e-5)
    alone = held_out.copy()
    vx.tl.encode(alone, reference)
    np.testing.assert_allclose(both[held_out.obs_names].obsm["X_vae"], alone.obsm["X_vae"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fine_tune", [False, 3])
@pytest.mark.parametrize("genes", [slice(None), slice(None, None, 2)])
def test_the_reference_does_not_change_by_a_bit(
    reference: ad.AnnData, held_out: ad.AnnData, tmp_path: Path, fine_tune: Any, genes: slice
) -> None:
    def bits(stored: Any) -> Any:
        if isinstance(stored, dict):
            return {name: bits(value) for name, value in stored.items()}
        array = np.asarray(stored)
        return array.tolist() if array.dtype == object else (array.dtype.str, array.shape, array.tobytes())

    path = tmp_path / "reference.safetensors"
    vx.save_model(reference, path)
    before, file = bits(copy.deepcopy(reference.uns["vae"])), path.read_bytes()
    cells, latent = reference.obs.copy(), reference.obsm["X_vae"].copy()
    for model in (reference, path):
        vx.tl.encode(held_out[:, genes].copy(), model, fine_tune=fine_tune)
    assert bits(reference.uns["vae"]) == before
    assert path.read_bytes() == file
    pd.testing.assert_frame_equal(reference.obs, cells)
    np.testing.assert_array_equal(reference.obsm["X_vae"], latent)


def test_a_new_category_of_a_column_that_had_one_only(reference: ad.AnnData, held_out: ad.AnnData) -> None:
    held_out.obs["batch"] = "batch_0"
    old = vx.tl.encode(held_out, reference, copy=True)
    held_out.obs["plate"] = "p2"
    vx.tl.encode(held_out, reference)
    assert old is not None
    np.testing.assert_allclose(held_out.obsm["X_vae"], old.obsm["X_vae"], rtol=1e-4, atol=1e-5)


def test_a_query_can_be_used_without_the_reference(reference: ad.AnnData, held_out: ad.AnnData, tmp_path: Path) -> None:
    query = held_out[:, 10:].copy()
    vx.tl.encode(query, reference, fine_tune=2)
    query.write_h5ad(tmp_path / "query.h5ad")
    vx.save_model(query, tmp_path / "query.safetensors")
    again = ad.read_h5ad(tmp_path / "query.h5ad")
    vx.tl.denoise(query)
    vx.tl.denoise(again)
    vx.tl.diagnose(again)
    np.testing.assert_array_equal(again.layers["vae_normalized"], query.layers["vae_normalized"])
    every = vx.tl.denoise(query, genes=list(reference.var_names))
    assert every is not None
    np.testing.assert_allclose(every.X[:, 10:], query.layers["vae_normalized"], rtol=1e-5)
    np.testing.assert_allclose(every.X.sum(1), 1e4, rtol=1e-3)
    latent = query.obsm["X_vae"].copy()
    vx.tl.encode(query)
    np.testing.assert_allclose(query.obsm["X_vae"], latent, rtol=1e-5, atol=1e-6)
    vx.tl.encode(again, tmp_path / "query.safetensors", key_added="other")
    np.testing.assert_allclose(again.obsm["other"], latent, rtol=1e-5, atol=1e-6)


def test_fine_tuning_is_reproducible_and_raises_the_likelihood(
    reference: ad.AnnData, held_out: ad.AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr("scanpy.logging.info", lambda message, **_: told.append(message))
    one, two, other = (vx.tl.encode(held_out, reference, fine_tune=True, rng=seed, copy=True) for seed in (0, 0, 1))
    plain = vx.tl.encode(held_out, reference, copy=True)
    assert one is not None
    assert two is not None
    assert other is not None
    assert plain is not None
    np.testing.assert_array_equal(one.obsm["X_vae"], two.obsm["X_vae"])
    assert not np.array_equal(one.obsm["X_vae"], other.obsm["X_vae"])
    assert not np.array_equal(one.obsm["X_vae"], plain.obsm["X_vae"])
    line = next(message for message in told if "ELBO" in message)
    before, after = (float(part.split()[0]) for part in line.split(" from ")[1].split(" to "))
    assert after > before


@pytest.mark.parametrize(("fine_tune", "said"), [(False, "treated as the average"), (1, "weights are trained")])
def test_the_warning_about_a_new_batch_says_how_it_is_treated(
    reference: ad.AnnData, held_out: ad.AnnData, warned: list[str], fine_tune: Any, said: str
) -> None:
    vx.tl.encode(held_out, reference, fine_tune=fine_tune)
    (message,) = [line for line in warned if "'batch_2'" in line]
    assert message.endswith((f"{said} on these cells.", f"{said} of the known ones."))


def test_fine_tuning_without_new_categories_raises_a_warning(fitted: ad.AnnData, warned: list[str]) -> None:
    query = _query(fitted)
    vx.tl.encode(query, fitted, fine_tune=True)
    assert "knows all categories" in " ".join(warned)
    np.testing.assert_array_equal(query.obsm["X_vae"], fitted.obsm["X_vae"])


def test_missing_genes_are_not_zeros(reference: ad.AnnData, held_out: ad.AnnData, warned: list[str]) -> None:
    rng = np.random.default_rng(0)
    keep = np.sort(rng.permutation(80)[:40])
    full = vx.tl.encode(held_out, reference, copy=True)
    masked = vx.tl.encode(held_out[:, keep].copy(), reference, copy=True)
    zeros = held_out.copy()
    zeros.X = sparse.csr_matrix(held_out.X.multiply(np.isin(np.arange(80), keep)))
    vx.tl.encode(zeros, reference)
    assert full is not None
    assert masked is not None
    assert "40 of the 80 modelled genes" in " ".join(warned)
    truth = full.obsm["X_vae"]
    assert np.square(masked.obsm["X_vae"] - truth).mean() < 0.75 * np.square(zeros.obsm["X_vae"] - truth).mean()
    assert masked.obsm["X_vae_var"].mean() > 1.05 * full.obsm["X_vae_var"].mean()
    # molecules of all genes, though half of these were not counted
    ratio = masked.obs["vae_library"] / full.obs["vae_library"]
    assert abs(np.median(ratio) - 1) < 0.1
    # the order does not matter
    turned = vx.tl.encode(held_out[:, keep[::-1]].copy(), reference, copy=True)
    assert turned is not None
    np.testing.assert_allclose(turned.obsm["X_vae"], masked.obsm["X_vae"], rtol=1e-4, atol=1e-5)
    # nor do other cells
    few = vx.tl.encode(held_out[:7, keep].copy(), reference, copy=True)
    assert few is not None
    np.testing.assert_allclose(few.obsm["X_vae"], masked.obsm["X_vae"][:7], rtol=1e-4, atol=1e-5)


def test_a_known_library_is_kept(fitted: ad.AnnData) -> None:
    query = _query(fitted)[:, ::2].copy()
    vx.tl.encode(query, fitted)
    np.testing.assert_array_equal(query.obs["vae_library"], fitted.obs["vae_library"])


def test_a_library_size_without_the_missing_genes_is_not_treated_as_complete(
    adata: ad.AnnData, quick: dict, warned: list[str]
) -> None:
    reference, query = adata[:80].copy(), adata[80:].copy()
    for part in (reference, query):
        vx.pp.library_size(part, overwrite=True)
    vx.tl.fit_vae(reference, "batch", **quick)
    whole = query.obs["library_size"].to_numpy()
    part = query[:, ::2].copy()
    vx.tl.encode(part, model=reference)
    np.testing.assert_array_equal(part.obs["vae_library"], whole)
    part = query[:, ::2].copy()
    vx.pp.library_size(part, overwrite=True)
    warned.clear()
    vx.tl.encode(part, model=reference)
    assert any("counts only molecules of the genes present" in message for message in warned)
    assert 0.85 < np.median(part.obs["vae_library"] / whole) < 1.15
    estimated = part.obs["vae_library"].to_numpy()
    part = query[:, ::2].copy()
    vx.pp.library_size(part, overwrite=True)
    part.obs["library_size"] = part.obs["library_size"].astype("Int64")
    vx.tl.encode(part, model=reference)
    np.testing.assert_array_equal(part.obs["vae_library"], estimated)


def test_genes_outside_the_model_matter_for_the_library_only(adata: ad.AnnData, quick: dict) -> None:
    del adata.obs["library_size"]
    modelled = np.arange(adata.n_vars) % 3 != 0
    vx.tl.fit_vae(adata, "batch", mask_var=modelled, **(quick | {"max_epochs": 10}))
    query = ad.AnnData(adata.X.copy(), obs=adata.obs[["batch"]].copy(), var=adata.var[[]].copy())[:, modelled].copy()
    vx.tl.encode(query, adata)
    np.testing.assert_allclose(query.obsm["X_vae"], adata.obsm["X_vae"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(query.obsm["X_vae_var"], adata.obsm["X_vae_var"], rtol=1e-5)
    ratio = query.obs["vae_library"] / adata.obs["vae_library"]
    assert abs(np.median(ratio) - 1) < 0.1


@pytest.mark.parametrize("drop_outside", [False, True])
@pytest.mark.parametrize("likelihood", ["nb", "gaussian"])
def test_a_library_that_counts_genes_outside_the_model_is_estimated_under_every_likelihood(
    likelihood: Any, *, drop_outside: bool
) -> None:
    adata = vx.datasets.simulate(300, 80, n_groups=3, library_mean=600, rng=1)
    del adata.obs["library_size"]
    modelled = np.arange(adata.n_vars) % 3 != 0
    vx.tl.fit_vae(
        adata, mask_var=modelled, likelihood=likelihood, n_latent=3, n_hidden=16, max_epochs=20, batch_size=64
    )
    keep = np.ones(adata.n_vars, dtype=bool)
    keep[np.flatnonzero(modelled)[::2]] = False
    if drop_outside:
        keep[np.flatnonzero(~modelled)[::2]] = False
    query = ad.AnnData(adata.X.copy(), var=adata.var[[]].copy())[:, keep].copy()
    vx.tl.encode(query, adata)
    ratio = query.obs["vae_library"].to_numpy() / adata.X.toarray().sum(1)
    assert abs(np.median(ratio) - 1) < 0.12


def test_new_embeddings_do_not_change_the_global_generator(adata: ad.AnnData, quick: dict) -> None:
    vx.tl.fit_vae(adata, "batch", denoised=False, options=vx.tl.FitOptions(covariate_code="embedding"), **quick)
    query = ad.AnnData(adata.X.copy(), obs=adata.obs[["library_size"]].assign(batch="new"), var=adata.var[[]].copy())
    before = torch.get_rng_state()
    vx.tl.encode(query, adata)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_fit_used_as_its_own_model_keeps_its_slots(fitted: ad.AnnData) -> None:
    vx.tl.encode(fitted, fitted)
    assert "vae_split" in fitted.obs
    assert "vae_normalized" in fitted.layers


def test_a_concatenation_of_reference_and_query_requires_the_fit_with_the_new_batch(fitted: ad.AnnData) -> None:
    query = _query(fitted, batch="new")
    vx.tl.encode(query, fitted)
    both = ad.concat([fitted, query], uns_merge="same", index_unique="-")
    with pytest.raises(ValueError, match="model=query"):
        vx.tl.denoise(both)
    vx.tl.denoise(both, query)
    assert np.isfinite(both.layers["vae_normalized"]).all()


def test_empty_cells_have_no_library(reference: ad.AnnData, held_out: ad.AnnData) -> None:
    x = held_out.X.toarray()
    x[3] = 0
    query = ad.AnnData(sparse.csr_matrix(x), obs=held_out.obs, var=held_out.var)[:, ::2].copy()
    vx.tl.encode(query, reference, fine_tune=1)
    assert query.obs["vae_library"].iloc[3] == 0
    assert np.isfinite(query.obsm["X_vae"]).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"likelihood": "zinb"},
        {"likelihood": "gaussian"},
        {"likelihood": "poisson"},
        {"likelihood": "bernoulli"},
        {"library": "latent"},
        {"dispersion": "gene-batch"},
        {"dispersion": "gene-cell"},
        {"dispersion": "gene-label", "labels_key": "group"},
        {"preset": "scvi"},
        {"options": vx.tl.FitOptions(covariate_code="embedding", encode_covariates=True, condition_output=True)},
    ],
)
def test_every_kind_of_fit_encodes_any_query(adata: ad.AnnData, quick: dict, settings: dict) -> None:
    vx.tl.fit_vae(adata, "batch", denoised=False, **quick, **settings)
    query = ad.AnnData(adata.X.copy(), obs=adata.obs[["group", "library_size"]].copy(), var=adata.var[[]].copy())
    query.obs["batch"] = np.where(np.arange(len(query)) % 2, "new", "batch_1")
    query = query[:, ::2].copy()
    vx.tl.encode(query, adata, fine_tune=2)
    vx.tl.denoise(query)
    for values in (
        query.obsm["X_vae"],
        query.obsm["X_vae_var"],
        query.obs["vae_library"],
        query.layers["vae_normalized"],
    ):
        assert np.isfinite(values).all()
    assert (query.obsm["X_vae_var"] > 0).all()


@pytest.mark.parametrize(
    "convert",
    [
        sparse.csc_matrix,
        sparse.csr_array,
        sparse.csc_array,
        lambda x: x.toarray(),
        lambda x: np.asfortranarray(x.toarray()),
        lambda x: x.astype(np.int64),
        lambda x: sparse.csc_matrix(x.astype(np.uint8)) if x.max() < 256 else x,
    ],
)
@pytest.mark.parametrize("genes", [slice(None), slice(None, None, -1), slice(0, 45)])
def test_any_matrix_format_works(fitted: ad.AnnData, convert: Any, genes: slice) -> None:
    query = _query(fitted)[:, genes].copy()
    expected = vx.tl.encode(query, fitted, copy=True)
    assert expected is not None
    query.X = convert(query.X)
    vx.tl.encode(query, fitted)
    for name in ("X_vae", "X_vae_var"):
        np.testing.assert_array_equal(query.obsm[name], expected.obsm[name])


def test_coordinate_matrices_and_files_work(fitted: ad.AnnData, tmp_path: Path) -> None:
    query = _query(fitted)[:, :45].copy()
    expected = vx.tl.encode(query, fitted, copy=True)
    assert expected is not None
    by_layer = query.copy()
    by_layer.layers["counts"] = sparse.csc_matrix(query.X)
    by_layer.X = np.zeros(query.shape, dtype=np.float32)
    vx.tl.encode(by_layer, fitted, layer="counts")
    np.testing.assert_array_equal(by_layer.obsm["X_vae"], expected.obsm["X_vae"])
    for name, convert in (("csr", sparse.csr_matrix), ("csc", sparse.csc_matrix), ("dense", lambda x: x.toarray())):
        query.X = convert(query.X)
        query.write_h5ad(tmp_path / f"{name}.h5ad")
        backed = ad.read_h5ad(tmp_path / f"{name}.h5ad", backed="r")
        vx.tl.encode(backed, fitted)
        np.testing.assert_array_equal(backed.obsm["X_vae"], expected.obsm["X_vae"])
        backed.file.close()
        query.X = sparse.csr_matrix(query.X)
