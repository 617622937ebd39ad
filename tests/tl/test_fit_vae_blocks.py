"""A fit with a latent block that is registered from outside."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import anndata as ad
import numpy as np
import pytest
import torch
from torch import Tensor

import vxpress as vx
from vxpress.core.blocks import BLOCKS, DecoderInputs, NormalBlock
from vxpress.core.covariates import Covariates


class Shift(NormalBlock):
    """A number with a standard normal prior that is added to every dimension of z."""

    name = "shift"

    def prior(self, covariates: Covariates) -> tuple[Tensor, Tensor]:
        return torch.zeros(1, 1), torch.ones(1, 1)

    def enter(self, inputs: DecoderInputs, value: Tensor) -> DecoderInputs:
        return replace(inputs, z_nd=inputs.z_nd + value)


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    BLOCKS.register(Shift.name, Shift)
    yield
    BLOCKS.remove(Shift.name)


@pytest.fixture(scope="module")
def fitted(_registered: None) -> ad.AnnData:
    """Cells with a fit that has the block."""
    adata = vx.datasets.pbmc68k_reduced()[:200, :60].copy()
    adata.obs["batch"] = np.where(np.arange(200) % 2, "a", "b")
    vx.tl.fit_vae(adata, batch_key="batch", max_epochs=2, options=vx.tl.FitOptions(blocks=["shift"]))
    return adata


def test_its_posterior_its_divergence_and_its_weights_are_written(fitted: ad.AnnData) -> None:
    assert fitted.obsm["vae_shift"].shape == fitted.obsm["vae_shift_var"].shape == (200, 1)
    assert (fitted.obsm["vae_shift_var"] > 0).all()
    history = fitted.uns["vae"]["history"]
    elbo = history["reconstruction_train"] - history["kl_train"] - history["kl_shift_train"]
    np.testing.assert_allclose(history["elbo_train"], elbo)
    assert list(fitted.uns["vae"]["params"]["model"]["blocks"]) == ["shift"]
    assert "blocks.shift.encoder.mean.weight" in fitted.uns["vae"]["weights"]


def test_the_diagnosis_names_its_divergence_from_its_prior(fitted: ad.AnnData) -> None:
    held_out = (fitted.obs["vae_split"] == "validation").to_numpy()
    mean, var = (fitted.obsm[name][held_out, 0].astype(np.float64) for name in ("vae_shift", "vae_shift_var"))
    expected = 0.5 * (var + mean**2 - 1 - np.log(var)).mean()
    assert fitted.uns["vae"]["diagnostics"]["kl_shift"] == pytest.approx(expected, rel=1e-4)
    again = fitted.copy()
    vx.tl.diagnose(again, gaps=False)
    assert again.uns["vae"]["diagnostics"]["kl_shift"] == pytest.approx(expected, rel=1e-4)


def test_a_stored_fit_encodes_the_same(fitted: ad.AnnData, tmp_path) -> None:
    path = tmp_path / "fit.safetensors"
    vx.save_model(fitted, path)
    again = fitted.copy()
    del again.uns["vae"], again.obs["vae_split"]
    for name in ("X_vae", "X_vae_var", "vae_shift", "vae_shift_var"):
        del again.obsm[name]
    del again.layers["vae_normalized"], again.obs["vae_library"]
    vx.tl.encode(again, model=path)
    for name in ("X_vae", "vae_shift", "vae_shift_var"):
        np.testing.assert_allclose(again.obsm[name], fitted.obsm[name], rtol=1e-4, atol=1e-5)


def test_a_taken_slot_is_not_replaced(fitted: ad.AnnData) -> None:
    adata = ad.AnnData(fitted.X, obs=fitted.obs[["batch"]], var=fitted.var, obsm={"k_shift": np.zeros((200, 1))})
    with pytest.raises(ValueError, match=r"already holds obsm\['k_shift'\]"):
        vx.tl.fit_vae(adata, max_epochs=1, key_added="k", options=vx.tl.FitOptions(blocks=["shift"]))


def test_a_later_fit_without_the_block_removes_its_slots(fitted: ad.AnnData) -> None:
    adata = fitted.copy()
    vx.tl.fit_vae(adata, batch_key="batch", max_epochs=1)
    assert not {"vae_shift", "vae_shift_var"} & set(adata.obsm)
    assert "kl_shift_train" not in adata.uns["vae"]["history"]


def test_a_new_prior_under_another_name_keeps_the_posterior(
    fitted: ad.AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vxpress.bridge.health.learn_prior.MARGIN", -np.inf)
    adata = fitted.copy()
    vx.tl.fit_prior(adata, "mixture", n_components=2, max_steps=2, key_added="mixed")
    for name in ("shift", "shift_var"):
        np.testing.assert_array_equal(adata.obsm[f"mixed_{name}"], adata.obsm[f"vae_{name}"])
