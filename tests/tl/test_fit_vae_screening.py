"""A covariate without effect leaves the fit as it is without the covariate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest

import vxpress as vx
from vxpress.bridge.fits.find_fit import find_fit

QUICK: dict[str, Any] = {"n_latent": 3, "n_hidden": 8, "max_epochs": 2, "batch_size": 64, "rng": 0, "split_rng": 0}
KEPT = vx.tl.FitOptions(screen_covariates=False)


@pytest.fixture(scope="module")
def labelled(_simulated: ad.AnnData) -> ad.AnnData:
    adata = _simulated.copy()
    # labels in random order, which do not belong to the one in twenty that passes
    adata.obs["random"] = np.random.default_rng(0).permutation(np.arange(adata.n_obs) % 8).astype(str)
    return adata


def _fit(adata: ad.AnnData, *keys: str, **arguments: Any) -> ad.AnnData:
    adata = adata.copy()
    batch, *others = keys or (None,)
    vx.tl.fit_vae(adata, batch, categorical_covariate_keys=others, **(QUICK | arguments))
    return adata


@pytest.fixture(scope="module")
def plain(labelled: ad.AnnData) -> ad.AnnData:
    return _fit(labelled)


@pytest.fixture(scope="module")
def random(labelled: ad.AnnData) -> ad.AnnData:
    return _fit(labelled, "random")


def _same(a: ad.AnnData, b: ad.AnnData) -> None:
    for slot in ("X_vae", "X_vae_var"):
        np.testing.assert_array_equal(a.obsm[slot], b.obsm[slot])
    np.testing.assert_array_equal(a.obs["vae_split"].to_numpy(), b.obs["vae_split"].to_numpy())
    np.testing.assert_array_equal(a.layers["vae_normalized"], b.layers["vae_normalized"])


def test_a_random_batch_changes_nothing(plain: ad.AnnData, random: ad.AnnData) -> None:
    _same(plain, random)
    assert find_fit(random, None, "vae").model.config.left_out == (0,)


def test_a_random_covariate_next_to_a_batch_changes_nothing(labelled: ad.AnnData) -> None:
    batch, both = _fit(labelled, "batch"), _fit(labelled, "batch", "random")
    _same(batch, both)
    assert find_fit(both, None, "vae").model.config.left_out == (1,)
    assert find_fit(batch, None, "vae").model.config.left_out == ()


@pytest.mark.parametrize("arguments", [{"options": KEPT}, {"preset": "scvi"}])
def test_the_option_and_the_preset_of_scvi_tools_keep_it(
    labelled: ad.AnnData, plain: ad.AnnData, arguments: dict[str, Any]
) -> None:
    kept = _fit(labelled, "random", denoised=False, **arguments)
    assert find_fit(kept, None, "vae").model.conditioner.width == 8
    assert not np.array_equal(kept.obsm["X_vae"], plain.obsm["X_vae"])


def test_a_counterfactual_of_a_random_batch_is_the_cell_itself(random: ad.AnnData) -> None:
    fit = find_fit(random, None, "vae")
    own, other = random.copy(), random.copy()
    vx.tl.denoise(own, transform_batch="0")
    vx.tl.denoise(other, transform_batch="7")
    assert fit.model.conditioner.width == 0
    np.testing.assert_array_equal(own.layers["vae_normalized"], other.layers["vae_normalized"])


def test_the_file_keeps_what_was_left_out(random: ad.AnnData, tmp_path: Path) -> None:
    random.copy().write_h5ad(tmp_path / "fit.h5ad")
    read = ad.read_h5ad(tmp_path / "fit.h5ad")
    assert find_fit(read, None, "vae").model.config.left_out == (0,)
    vx.tl.encode(read)
    np.testing.assert_allclose(read.obsm["X_vae"], random.obsm["X_vae"], atol=1e-5)


@pytest.mark.parametrize("code", ["one-hot", "embedding"])
def test_a_new_batch_of_a_covariate_that_was_left_out_is_learned(labelled: ad.AnnData, code: str) -> None:
    options = vx.tl.FitOptions(covariate_code=code)
    fitted = _fit(labelled, "random", denoised=False, options=options)
    query = labelled[:80].copy()
    query.obs["random"] = "new"
    # the new batch has other genes in the place of some
    query.X = query.X[:, np.r_[20:40, 0:20, 40:60]].copy()
    vx.tl.encode(query, fitted, fine_tune=True)
    model = find_fit(query, None, "vae").model
    assert model.config.left_out == ()
    assert model.config.n_categories == (9,)
    weights = model.state_dict()
    effect = weights["decoder.body.linears.0.weight"][:, -model.conditioner.width :]
    if code == "embedding":
        effect = effect @ weights["conditioner.embeddings.0.weight"].t()
    assert float(effect[:, :8].abs().max()) == 0.0
    assert float(effect[:, 8].abs().max()) > 0.0


@pytest.mark.parametrize("name", ["screen_covariates", "readout"])
@pytest.mark.parametrize("value", ["no", 0, 1])
def test_a_switch_is_true_or_false(labelled: ad.AnnData, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}=.*True or False is expected"):
        _fit(labelled, "random", options=vx.tl.FitOptions(**{name: value}))
