"""Dispersions of a fit, anew."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

import vxpress as vx


def test_only_dispersions_change_and_held_out_cells_gain(adata: ad.AnnData) -> None:
    vx.tl.fit_vae(adata, "batch", n_latent=3, n_hidden=16, max_epochs=20, batch_size=32)
    before = adata.copy()
    vx.tl.fit_dispersion(adata)
    old, new = before.uns["vae"]["weights"], adata.uns["vae"]["weights"]
    assert {name for name in old if not np.array_equal(old[name], new[name])} == {"decoder.log_dispersion"}
    record = adata.uns["vae"]["diagnostics"]["dispersion"]
    assert record["kept"]
    assert record["gain"] > 0
    for name in ("X_vae", "X_vae_var"):
        np.testing.assert_array_equal(before.obsm[name], adata.obsm[name])
    held_out = (adata.obs["vae_split"] == "validation").to_numpy()
    scores = []
    for cells in (before[held_out].copy(), adata[held_out].copy()):
        vx.tl.log_likelihood(cells, n_samples=50)
        scores.append(cells.obs["vae_log_likelihood"].mean())
    assert scores[1] > scores[0]
    again = before.copy()
    vx.tl.fit_dispersion(again)
    np.testing.assert_array_equal(again.uns["vae"]["weights"]["decoder.log_dispersion"], new["decoder.log_dispersion"])


def test_what_is_not_better_is_not_kept(adata: ad.AnnData, warned: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    vx.tl.fit_vae(adata, n_latent=3, n_hidden=16, max_epochs=5, batch_size=64, denoised=False)
    before = adata.copy()
    monkeypatch.setitem(
        vx.tl.fit_dispersion.__globals__,
        "refit_dispersions",
        lambda model, *_, **__: model.decoder.log_dispersion - 5.0,
    )
    copied = vx.tl.fit_dispersion(adata, copy=True)
    assert copied is not None
    assert not copied.uns["vae"]["diagnostics"]["dispersion"]["kept"]
    for name, value in before.uns["vae"]["weights"].items():
        np.testing.assert_array_equal(copied.uns["vae"]["weights"][name], value)
    assert any("not better and were not kept" in text for text in warned)
    assert "dispersion" not in adata.uns["vae"]["diagnostics"]


@pytest.mark.parametrize("settings", [{"likelihood": "poisson"}, {"dispersion": "gene-cell"}])
def test_laws_without_a_dispersion_per_gene_are_refused(adata: ad.AnnData, quick: dict, settings: dict) -> None:
    vx.tl.fit_vae(adata, denoised=False, **quick, **settings)
    with pytest.raises(ValueError, match="no dispersion of a gene to fit"):
        vx.tl.fit_dispersion(adata)


def test_the_cells_of_the_fit_are_needed(fitted: ad.AnnData) -> None:
    some = fitted[fitted.obs["vae_split"] == "train"].copy()
    with pytest.raises(ValueError, match="0 validation cell"):
        vx.tl.fit_dispersion(some)
    del fitted.obs["vae_split"]
    with pytest.raises(KeyError, match="lacks 'vae_split'"):
        vx.tl.fit_dispersion(fitted)


def test_a_second_call_does_not_forget_the_first(adata: ad.AnnData) -> None:
    vx.tl.fit_vae(adata, "batch", n_latent=3, n_hidden=16, max_epochs=20, batch_size=32, denoised=False)
    vx.tl.fit_dispersion(adata)
    first = adata.uns["vae"]["diagnostics"]["dispersion"]
    assert first["kept"]
    assert first["refitted"]
    for rng in range(1, 6):
        vx.tl.fit_dispersion(adata, rng=rng)
    assert adata.uns["vae"]["diagnostics"]["dispersion"]["refitted"]
