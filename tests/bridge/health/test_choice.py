"""``likelihood="auto"`` chooses the distribution from which the counts were drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

import vxpress as vx

# with which so few cells and genes are learned within a few epochs
LEARNS_FAST: dict[str, Any] = {"norm": "batch", "dropout": 0.1, "thinning": 0.0, "start": "mean"}
QUICK: dict[str, Any] = {
    "n_latent": 3,
    "n_hidden": 32,
    "max_epochs": 25,
    "batch_size": 64,
    "validation_fraction": 0.3,
    "options": vx.tl.FitOptions(**LEARNS_FAST),
}


def simulated(zeros: float = 0.0) -> ad.AnnData:
    """NB counts, of which a random share is set to zero."""
    adata = vx.datasets.simulate(400, 40, n_groups=3, library_mean=1000, de_log_fold_change=2, dispersion=8, rng=6)
    x = adata.X.toarray() * (np.random.default_rng(0).uniform(size=adata.shape) >= zeros)
    del adata.obs["library_size"]
    adata.X = sparse.csr_matrix(x.astype(np.float32))
    return adata


@pytest.mark.parametrize(("zeros", "distribution"), [(0.0, "nb"), (0.5, "zinb")])
def test_the_distribution_of_the_counts_is_chosen(zeros: float, distribution: Any, tmp_path: Path) -> None:
    adata = simulated(zeros)
    vx.tl.fit_vae(adata, likelihood="auto", **QUICK)
    params, choice = adata.uns["vae"]["params"], adata.uns["vae"]["choice"]
    assert params["model"]["likelihood"] == choice["likelihood"] == distribution
    assert list(choice["candidates"]) == ["nb", "zinb"]
    assert choice["n_cells"] == (adata.obs["vae_split"] == "validation").sum() == 120
    nb, zinb = choice["log_likelihood"]
    np.testing.assert_allclose(choice["difference"], zinb - nb, atol=1e-9)
    gain = choice["log_likelihood"] - choice["log_likelihood_fewer"]
    np.testing.assert_allclose(choice["gap"], gain.max())
    assert gain.max() > 0
    decided = choice["ci_low"] > 0 and choice["difference"] > choice["gap"]
    assert decided == (distribution == "zinb")
    # naming the likelihood gives the same fit and the same number
    named = simulated(zeros)
    vx.tl.fit_vae(named, likelihood=distribution, **QUICK)
    np.testing.assert_array_equal(named.obsm["X_vae"], adata.obsm["X_vae"])
    np.testing.assert_array_equal(named.layers["vae_normalized"], adata.layers["vae_normalized"])
    assert "choice" not in named.uns["vae"]
    vx.tl.log_likelihood(named, n_samples=1000, rng=5)
    mean = named.uns["vae_log_likelihood"]["summary"].loc["validation", "log_likelihood"]
    np.testing.assert_allclose(mean, choice["log_likelihood"][["nb", "zinb"].index(distribution)], atol=0.1)
    # the record is saved with the fit
    adata.write_h5ad(tmp_path / "fit.h5ad")
    vx.save_model(adata, tmp_path / "fit.safetensors")
    query = adata[:20].copy()
    del query.uns["vae"], query.obs["vae_split"]
    vx.tl.encode(query, tmp_path / "fit.safetensors", key_added="there")
    vx.tl.diagnose(adata)
    for stored in (ad.read_h5ad(tmp_path / "fit.h5ad").uns["vae"], query.uns["there"], adata.uns["vae"]):
        assert stored["choice"]["likelihood"] == distribution
        np.testing.assert_array_equal(stored["choice"]["log_likelihood"], choice["log_likelihood"])


def test_few_held_out_cells_raise_a_warning(warned: list[str]) -> None:
    adata = simulated()
    vx.tl.fit_vae(adata, likelihood="auto", **(QUICK | {"validation_fraction": 0.002, "max_epochs": 2}))
    assert adata.uns["vae"]["choice"]["n_cells"] == 1
    assert adata.uns["vae"]["choice"]["likelihood"] == "nb"
    assert "1 held-out cells" in " ".join(warned)


def test_a_choice_needs_held_out_cells() -> None:
    adata = simulated()
    with pytest.raises(ValueError, match=r"validation_fraction=0.1, or name the likelihood"):
        vx.tl.fit_vae(adata, likelihood="auto", **(QUICK | {"validation_fraction": 0}))
    assert "vae" not in adata.uns


def test_the_choice_works_with_presets_labels_and_a_latent_library() -> None:
    adata = simulated()
    quick = QUICK | {"max_epochs": 2, "denoised": False, "validation_fraction": 0.5}
    vx.tl.fit_vae(
        adata, likelihood="auto", library="latent", dispersion="gene-label", labels_key="group", key_added="a", **quick
    )
    vx.tl.fit_vae(adata, likelihood="auto", preset="scvi", key_added="b", **quick)
    for key in ("a", "b"):
        assert np.isfinite(adata.uns[key]["choice"]["log_likelihood"]).all()
    # fits with the same choice are seeds of one model, chosen or named
    vx.tl.fit_vae(
        adata, likelihood=adata.uns["b"]["choice"]["likelihood"], preset="scvi", key_added="b2", rng=1, **quick
    )
    vx.tl.compare(adata, ["b", "b2"], n_samples=10)
    assert list(adata.uns["vae_compare"]["table"]["n_fits"]) == [2]


@pytest.mark.parametrize("at", [5, 30])
def test_an_interrupt_ends_the_choice_and_is_recorded(
    at: int, interrupt_look: Callable[[int], list[Any]], warned: list[str]
) -> None:
    calls = interrupt_look(at)
    adata = simulated()
    vx.tl.fit_vae(adata, likelihood="auto", early_stopping=False, denoised=False, **QUICK)
    assert len(calls) == at
    params = adata.uns["vae"]["params"]
    assert (params["model"]["likelihood"], params["stopped"]) == ("nb", "interrupted")
    assert "choice" not in adata.uns["vae"]
    assert "without a comparison" in " ".join(warned)


def test_distributions_are_compared_after_the_cure() -> None:
    plain, cured = simulated(), simulated()
    settings = QUICK | {"denoised": False, "options": vx.tl.FitOptions(refit_dispersion=False, **LEARNS_FAST)}
    vx.tl.fit_vae(cured, likelihood="auto", cure=True, beta=100.0, **settings)
    found = cured.uns["vae"]["diagnostics"]
    assert list(found["cure"]["change"]) == ["", "beta=1.0", "kl_warmup=0.6", "free_bits=0.1"]
    assert found["cure"]["kept"].all()
    assert found["verdict"] == found["cure"]["verdict"][3]
    # as if the settings found by the cure had been given
    vx.tl.fit_vae(plain, likelihood="auto", kl_warmup=0.6, free_bits=0.1, **settings)
    choice = cured.uns["vae"]["choice"]
    np.testing.assert_array_equal(choice["log_likelihood"], plain.uns["vae"]["choice"]["log_likelihood"])
    np.testing.assert_array_equal(cured.obsm["X_vae"], plain.obsm["X_vae"])
