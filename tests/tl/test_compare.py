from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest

import vxpress as vx
from vxpress.bridge.fits.find_fit import find_fit
from vxpress.bridge.fits.query import read_scored
from vxpress.core.inference.importance import log_likelihoods

COLUMNS = ["rank", "n_fits", "fits", "likelihood", "n_latent", "prior", "log_likelihood", "se", "log_likelihood_fewer"]
COLUMNS += ["ess_median", "difference", "ci_low", "ci_high", "gap", "verdict"]
FEW: dict[str, Any] = {"n_samples": 40}


@pytest.fixture(scope="module")
def _simulated() -> ad.AnnData:
    return vx.datasets.simulate(850, 60, n_groups=3, n_batches=2, library_mean=300, rng=4)


@pytest.fixture
def unseen(_simulated: ad.AnnData) -> ad.AnnData:
    """250 cells of the same population that no fit has seen."""
    return _simulated[600:].copy()


def fit(adata: ad.AnnData, key: str, **settings: Any) -> None:
    quick: dict[str, Any] = {"n_latent": 3, "n_hidden": 16, "max_epochs": 12, "batch_size": 64, "denoised": False}
    quick |= {"validation_fraction": 0.4}
    vx.tl.fit_vae(adata, "batch", key_added=key, **(quick | settings))


@pytest.fixture(scope="module")
def _fits(_simulated: ad.AnnData) -> ad.AnnData:
    adata = _simulated[:600].copy()
    for seed in range(3):
        fit(adata, f"good_{seed}", rng=seed)
    fit(adata, "short", max_epochs=1)
    fit(adata, "zinb", likelihood="zinb")
    return adata


@pytest.fixture
def fits(_fits: ad.AnnData) -> ad.AnnData:
    """600 cells with three fits that differ by their seed, one with few epochs, and one with another distribution."""
    return _fits.copy()


def table(adata: ad.AnnData, *args: Any, **settings: Any) -> Any:
    vx.tl.compare(adata, *args, **(FEW | settings))
    return adata.uns["vae_compare"]["table"]


def test_all_fits_of_an_adata(fits: ad.AnnData) -> None:
    before = list(fits.obs), set(fits.uns)
    found = table(fits)
    assert (list(fits.obs), set(fits.uns)) == (before[0], before[1] | {"vae_compare"})
    assert list(found.columns) == COLUMNS
    assert set(found.index) == {"good", "short", "zinb"}
    assert found.loc["good", "fits"] == "good_0, good_1, good_2"
    assert list(found["n_fits"][["good", "short", "zinb"]]) == [3, 1, 1]
    assert found.loc["short", "verdict"] == "worse"
    assert found.index[-1] == "short"
    assert found["verdict"].iloc[0] == "best"
    assert list(found["rank"]) == [1, 2, 3]
    assert found["log_likelihood"].is_monotonic_decreasing
    assert (found["log_likelihood_fewer"] < found["log_likelihood"]).all()
    np.testing.assert_allclose(
        found["difference"], found["log_likelihood"] - found["log_likelihood"].iloc[0], atol=1e-9
    )
    rest = found.iloc[1:]
    assert ((rest["ci_low"] < rest["difference"]) & (rest["difference"] < rest["ci_high"])).all()
    assert found["ess_median"].between(1, 40).all()
    params = fits.uns["vae_compare"]["params"]
    assert (params["n_cells"], params["n_samples"], params["n_samples_fewer"]) == (240, 40, 4)


def test_the_numbers_are_the_bounds_of_the_held_out_cells(fits: ad.AnnData) -> None:
    found = table(fits, ["good_1", "short"], n_samples=500)
    held_out = fits[fits.obs["short_split"] == "validation"].copy()
    for key in ("good_1", "short"):
        one = find_fit(held_out, None, key)
        few, many = log_likelihoods(one.model, read_scored(held_out, one, None), (50, 500), seed=7)
        error = np.sqrt(np.square(many.se_n).sum()) / 240
        assert abs(found.loc[key, "log_likelihood"] - many.log_likelihood_n.mean()) < 6 * error
        np.testing.assert_allclose(found.loc[key, "log_likelihood_fewer"], few.log_likelihood_n.mean(), atol=0.1)
        np.testing.assert_allclose(found.loc[key, "ess_median"], np.median(many.ess_n), rtol=0.15)


def test_fits_in_files_and_other_adatas(fits: ad.AnnData, tmp_path: Path) -> None:
    expected = table(fits, ["good_0", "short"])
    fits.write_h5ad(tmp_path / "all.h5ad")
    only = fits.copy()
    for key in ("good_0", "good_1", "good_2", "zinb"):
        del only.uns[key]
    only.write_h5ad(tmp_path / "cut.h5ad")
    bare = fits.copy()
    del bare.uns["short"], bare.uns["good_0"], bare.obs["short_split"], bare.obs["good_0_split"]
    places: dict[str, Any] = {"a": (tmp_path / "all.h5ad", "good_0"), "b": tmp_path / "cut.h5ad"}
    for models in (
        places,
        {"a": (fits, "good_0"), "b": only},
        {"a": (str(tmp_path / "all.h5ad"), "good_0"), "b": only},
    ):
        found = table(bare, models)
        assert list(found.index) == ["a", "b"]
        np.testing.assert_array_equal(found["log_likelihood"], expected["log_likelihood"])
    # cells in another order, without the training cells
    held_out = bare[bare.obs["zinb_split"] == "validation"][::-1].copy()
    found = table(held_out, places)
    np.testing.assert_allclose(found["log_likelihood"], expected["log_likelihood"], atol=1)
    assert list(table(held_out, ["good_1", tmp_path / "cut.h5ad"]).index) == ["good_1", "cut"]


def test_a_comparison_survives_a_file(fits: ad.AnnData, tmp_path: Path) -> None:
    found = table(fits)
    fits.write_h5ad(tmp_path / "compared.h5ad")
    back = ad.read_h5ad(tmp_path / "compared.h5ad").uns["vae_compare"]["table"]
    assert list(back.index) == list(found.index)
    assert list(back["verdict"]) == list(found["verdict"])
    np.testing.assert_array_equal(back["difference"], found["difference"])


def test_single_fits_raise_a_warning(fits: ad.AnnData, warned: list[str]) -> None:
    table(fits, ["good_0", "good_1", "good_2", "short"])
    assert "['short']" in " ".join(warned)
    fit(fits, "short_again", max_epochs=1, rng=1)
    warned.clear()
    table(fits, ["good_0", "good_1", "short", "short_again"])
    assert not warned


def test_copy_seed_and_writing_again(fits: ad.AnnData) -> None:
    result = vx.tl.compare(fits, ["short", "zinb"], copy=True, **FEW)
    assert result is not None
    assert "vae_compare" not in fits.uns
    again = table(fits, ["short", "zinb"])
    np.testing.assert_array_equal(again["log_likelihood"], result.uns["vae_compare"]["table"]["log_likelihood"])
    assert (table(fits, ["short", "zinb"], rng=1)["log_likelihood"] != again["log_likelihood"]).all()
    vx.tl.compare(fits, ["short", "zinb"], n_cells=200, key_added="few", **FEW)
    assert fits.uns["few"]["params"]["n_cells"] == 200
    assert "prior" in fits.uns["few"]["table"]


def test_cells_of_another_adata_and_files_of_weights(fits: ad.AnnData, unseen: ad.AnnData, tmp_path: Path) -> None:
    paths = []
    for key in ("good_0", "short"):
        paths.append(tmp_path / f"{key}_weights.safetensors")
        vx.save_model(fits, paths[-1], key=key)
    with pytest.raises(ValueError, match=r"It is unknown which cells .*cells="):
        table(unseen, paths)
    found = table(unseen, paths, cells=np.ones(250, dtype=bool))
    assert list(found.index) == ["good_0_weights", "short_weights"]
    # none of them is a training cell by name, and the fits hold all of those
    same = table(unseen, {"a": (fits, "good_0"), "b": (fits, "short")})
    np.testing.assert_array_equal(same["log_likelihood"], found["log_likelihood"])
    # a subset of the training cells does not show which other cells were trained on
    with pytest.raises(ValueError, match="It is unknown which"):
        table(unseen, {"a": (fits[:300].copy(), "good_0"), "b": (fits, "short")})


def test_cells_that_were_trained_on_are_refused(fits: ad.AnnData) -> None:
    fits.obs["all"] = True
    with pytest.raises(ValueError, match="trained on 360 of the 600 cells"):
        table(fits, cells="all")
    fits.obs["unseen"] = (fits.obs["zinb_split"] == "validation").astype(object)
    by_column = table(fits, ["good_0", "zinb"], cells="unseen")
    np.testing.assert_array_equal(by_column["log_likelihood"], table(fits, ["good_0", "zinb"])["log_likelihood"])


def test_only_cells_that_every_fit_held_out_are_used(fits: ad.AnnData) -> None:
    fit(fits, "other", split_rng=5, validation_fraction=0.7)
    shared = (fits.obs["other_split"] == "validation") & (fits.obs["zinb_split"] == "validation")
    assert shared.sum() < 200
    with pytest.raises(ValueError, match=rf"{shared.sum()} cells .*split_rng="):
        table(fits, ["other", "zinb"])
    fit(fits, "other", split_rng=5, validation_fraction=0.95)
    shared = (fits.obs["other_split"] == "validation") & (fits.obs["zinb_split"] == "validation")
    table(fits, ["other", "zinb"])
    assert fits.uns["vae_compare"]["params"]["n_cells"] == shared.sum() > 200


def test_too_few_cells_are_refused(fits: ad.AnnData) -> None:
    with pytest.raises(ValueError, match=r"validation_fraction="):
        table(fits[:300].copy())
    empty = fits.copy()
    x = empty.X.toarray()
    rows = np.flatnonzero(empty.obs["zinb_split"] == "validation")
    x[rows[:41]] = 0
    empty.X = x
    empty.obs["library_size"] = x.sum(1)
    with pytest.raises(ValueError, match="199 cells with counts"):
        table(empty, ["good_0", "short"])


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"likelihood": "gaussian"}, r"log values \(gaussian\)"),
        ({"likelihood": "bernoulli"}, r"detection \(bernoulli\)"),
        ({"library": "latent"}, "library='latent'"),
        ({"mask_var": np.arange(60) < 50}, "50 of them shared"),
        ({"library": "depth"}, "different size factors"),
        ({"layer": "counts"}, r"layer=None and layer='counts'"),
    ],
)
def test_incomparable_fits_are_refused(fits: ad.AnnData, settings: dict, match: str) -> None:
    fits.obs["depth"] = fits.obs["library_size"] + 7.0
    fits.layers["counts"] = fits.X.copy()
    fit(fits, "odd", max_epochs=1, **settings)
    before = set(fits.uns)
    with pytest.raises(ValueError, match=match):
        table(fits, ["good_0", "odd"])
    assert set(fits.uns) == before


def test_fits_of_one_kind_of_distribution_and_named_layers_are_compared(fits: ad.AnnData) -> None:
    fits.layers["counts"] = fits.X.copy()
    fit(fits, "layered", layer="counts")
    fit(fits, "poisson", likelihood="poisson")
    found = table(fits, ["layered", "good_0", "poisson"], layer="counts")
    assert found.loc["layered", "log_likelihood"] == found.loc["good_0", "log_likelihood"]
    assert found.loc["layered", "difference"] == found.loc["good_0", "difference"] == 0
    # overdispersed counts
    assert found.loc["poisson", "verdict"] == "worse"
    turned = fits[:, ::-1].copy()
    again = table(turned, ["layered", "good_0", "poisson"], layer="counts")
    np.testing.assert_allclose(again["log_likelihood"], found["log_likelihood"], rtol=1e-6)


@pytest.mark.parametrize(
    ("models", "settings", "error", "match"),
    [
        (["good_0"], {}, ValueError, "two or more"),
        ("good_0", {}, TypeError, "list of fits"),
        (["good_0", "nowhere"], {}, KeyError, "nowhere"),
        (["good_0", 3], {}, TypeError, "int"),
        (["good_0", ("good_1",)], {}, TypeError, "pair"),
        (["good_0", "good_0"], {}, ValueError, "Name them"),
        (None, {"n_samples": 5}, ValueError, "n_samples"),
        (None, {"n_cells": 100}, ValueError, "n_cells"),
        (None, {"rng": 0.5}, ValueError, "rng"),
        (None, {"cells": "nowhere"}, KeyError, "nowhere"),
        (None, {"cells": np.arange(600)}, ValueError, "booleans"),
        (None, {"cells": np.ones(3, dtype=bool)}, ValueError, "600 booleans"),
        (None, {"layer": "nowhere"}, KeyError, "nowhere"),
        (None, {"key_added": "a/b"}, ValueError, "without '/'"),
        (None, {"key_added": "zinb"}, ValueError, "already"),
    ],
)
def test_errors_for_bad_arguments_name_the_remedy(
    fits: ad.AnnData, models: Any, settings: dict, error: type, match: str
) -> None:
    before = set(fits.uns)
    with pytest.raises(error, match=match):
        vx.tl.compare(fits, models, **(FEW | settings))
    assert set(fits.uns) == before


def test_an_adata_with_several_fits_needs_the_name_of_a_fit(fits: ad.AnnData, adata: ad.AnnData) -> None:
    with pytest.raises(ValueError, match="Choose one with a pair"):
        table(fits, ["good_0", fits.copy()])
    with pytest.raises(KeyError, match="fit_vae first"):
        table(fits, ["good_0", adata])


def test_identical_fits_do_not_count_as_seeds(fits: ad.AnnData) -> None:
    fits.uns["twin"], fits.obs["twin_split"] = fits.uns["good_0"], fits.obs["good_0_split"]
    found = table(fits, ["good_0", "twin"])
    assert list(found["n_fits"]) == [1, 1]
    assert list(found["difference"]) == [0, 0]
    assert list(found["verdict"]) == ["best", "undecided"]


def test_fits_without_refitted_dispersions_are_another_model(adata: ad.AnnData) -> None:
    for key, again in (("a0", True), ("a1", False)):
        options = vx.tl.FitOptions(refit_dispersion=again)
        quick = {"n_latent": 3, "n_hidden": 8, "max_epochs": 3, "validation_fraction": 0.8, "denoised": False}
        vx.tl.fit_vae(adata, key_added=key, options=options, **quick)
    found = table(adata, ["a0", "a1"])
    assert len(found) == 2


def test_a_refused_prior_does_not_change_the_model(fits: ad.AnnData) -> None:
    vx.tl.fit_prior(fits, "normal", key="good_1")
    assert "refused" in fits.uns["good_1"]["prior"]
    assert list(table(fits, ["good_0", "good_1", "good_2"])["fits"]) == ["good_0, good_1, good_2"]


@pytest.mark.parametrize("rename", ["{}-0", "old_{}"])
def test_training_cells_renamed_by_concatenation_are_not_treated_as_unseen(fits: ad.AnnData, rename: str) -> None:
    fits.obs_names = [f"CELL{i}-1" for i in range(fits.n_obs)]
    renamed = fits.copy()
    renamed.obs_names = [rename.format(name) for name in fits.obs_names]
    with pytest.raises(ValueError, match="names changed by concatenation"):
        vx.tl.compare(renamed, {"a": (fits, "good_0"), "b": (fits, "good_1")}, **FEW)


def test_too_few_named_cells_are_refused(fits: ad.AnnData) -> None:
    some = np.zeros(fits.n_obs, dtype=bool)
    some[np.flatnonzero(fits.obs["good_0_split"] == "validation")[:3]] = True
    with pytest.raises(ValueError, match="cells= selects 3 cells; 200 or more"):
        vx.tl.compare(fits, ["good_0", "good_1"], cells=some)
