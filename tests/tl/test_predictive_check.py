from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import vxpress as vx

KEY = "vae_predictive_check"


def test_observed_numbers_are_those_of_the_counts(fitted: ad.AnnData, tmp_path: Path) -> None:
    vx.tl.predictive_check(fitted, n_draws=4)
    found = fitted.uns[KEY]
    genes, cells = found["genes"], found["cells"]
    x = fitted[:, genes.index].X.toarray().astype(np.float64)
    assert list(cells.index) == list(fitted.obs_names)
    for axis, table in ((0, genes), (1, cells)):
        np.testing.assert_allclose(table["mean"], x.mean(axis))
        np.testing.assert_allclose(table["variance"], x.var(axis, ddof=1), rtol=1e-6)
        np.testing.assert_allclose(table["zero_fraction"], (x == 0).mean(axis))
        assert np.isfinite(table.to_numpy()).all()
    assert list(found["coverage"].index) == ["50", "90"]
    fitted.write_h5ad(tmp_path / "check.h5ad")
    back = ad.read_h5ad(tmp_path / "check.h5ad").uns[KEY]
    pd.testing.assert_frame_equal(back["coverage"], found["coverage"], check_index_type=False)
    assert back["params"]["n_draws"] == 4


def test_predictions_are_the_moments_of_draws(fitted: ad.AnnData) -> None:
    vx.tl.predictive_check(fitted, n_draws=60)
    table = fitted.uns[KEY]["genes"]
    drawn = vx.tl.sample(fitted, n_samples=200)
    assert drawn is not None
    x = drawn[:, table.index].X.toarray().reshape(200, 160, -1).astype(np.float64)
    for name, values in (
        ("mean", x.mean(1)), ("variance", x.var(1, ddof=1)), ("zero_fraction", (x == 0).mean(1)),
    ):  # fmt: skip
        # draws of the counts, and those of z in the prediction
        error = values.std(0) * np.sqrt(1 / 200 + 1 / 60)
        assert (np.abs(table[f"{name}_predicted"] - values.mean(0)) / error).max() < 6


def test_a_distribution_of_the_right_family_is_covered_and_poisson_is_not() -> None:
    adata = vx.datasets.simulate(500, 300, n_batches=2, library_mean=1500, dispersion=1.0)
    shares = {}
    for distribution in ("nb", "poisson"):
        vx.tl.fit_vae(adata, "batch", likelihood=distribution, max_epochs=40, denoised=False, key_added=distribution)
        vx.tl.predictive_check(adata, key=distribution, n_draws=8)
        shares[distribution] = adata.uns[f"{distribution}_predictive_check"]["coverage"]["expressed"]
    np.testing.assert_allclose(shares["nb"], [0.5, 0.9], atol=0.04)
    assert shares["poisson"]["50"] < 0.4
    assert shares["poisson"]["90"] < 0.75
    genes = adata.uns["poisson_predictive_check"]["genes"]
    assert (genes["variance_predicted"] < genes["variance"]).mean() > 0.9


def test_it_needs_counts_but_no_posterior(fitted: ad.AnnData) -> None:
    query = ad.AnnData(
        fitted.X.copy(), obs=fitted.obs[["batch", "age", "library_size"]].copy(), var=fitted.var[[]].copy()
    )
    vx.tl.predictive_check(query, fitted, n_draws=3)
    vx.tl.predictive_check(fitted, n_draws=3)
    pd.testing.assert_frame_equal(query.uns[KEY]["genes"], fitted.uns[KEY]["genes"])
    query.X = np.log1p(query.X.toarray())
    before = query.uns[KEY]
    with pytest.raises(ValueError, match="whole numbers"):
        vx.tl.predictive_check(query, fitted)
    assert query.uns[KEY] is before


def test_copy_and_seeds(fitted: ad.AnnData) -> None:
    result = vx.tl.predictive_check(fitted, n_draws=2, copy=True)
    assert result is not None
    assert KEY not in fitted.uns
    vx.tl.predictive_check(fitted, n_draws=2)
    pd.testing.assert_frame_equal(fitted.uns[KEY]["genes"], result.uns[KEY]["genes"])
    vx.tl.predictive_check(fitted, n_draws=2, rng=1)
    assert not fitted.uns[KEY]["genes"].equals(result.uns[KEY]["genes"])


def test_latent_libraries_and_labels(adata: ad.AnnData, quick: dict) -> None:
    vx.tl.fit_vae(adata, "batch", library="latent", dispersion="gene-label", labels_key="group", **quick)
    vx.tl.predictive_check(adata, n_draws=3)
    assert np.isfinite(adata.uns[KEY]["genes"].to_numpy()).all()


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"n_draws": 0}, ValueError, "n_draws"),
        ({"rng": "a"}, ValueError, "rng"),
        ({"key": "other"}, KeyError, "holds no fit"),
    ],
)
def test_errors_for_bad_arguments_name_the_remedy(fitted: ad.AnnData, arguments: dict, error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        vx.tl.predictive_check(fitted, **arguments)
    fitted.uns[KEY] = "mine"
    with pytest.raises((ValueError, KeyError)):
        vx.tl.predictive_check(fitted, **arguments)
    with pytest.raises(ValueError, match="already"):
        vx.tl.predictive_check(fitted)
    assert fitted.uns[KEY] == "mine"
