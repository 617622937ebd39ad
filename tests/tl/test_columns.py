"""Unusual columns of obs in every call: numbers as categories, repeated columns, gaps, awkward arrays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import vxpress

# calls return one of several types, which the tests know
vx: Any = vxpress
N = 60
QUICK: dict[str, Any] = {"n_latent": 2, "n_hidden": 8, "max_epochs": 1}
DAYS = np.resize([0.0, 1.5, 3.0], N)


@pytest.fixture(scope="module")
def _days() -> ad.AnnData:
    """Days as categories of floats, plates as integers, an age between 20 and 60."""
    rng = np.random.default_rng(0)
    x = sparse.csr_matrix(rng.poisson(2.0 + DAYS[:, None] * (np.arange(12) < 4)).astype(np.float32))
    obs = pd.DataFrame(
        {"day": pd.Categorical(DAYS), "plate": np.resize([1, 2, 2, 1], N), "age": np.linspace(20, 60, N)},
        index=[f"c{i}" for i in range(N)],
    )
    adata = ad.AnnData(x, obs=obs)
    vx.tl.fit_vae(adata, "plate", categorical_covariate_keys=["day"], continuous_covariate_keys=["age"], **QUICK)
    vx.tl.fit_prior(adata, "mixture", condition_key="day", max_steps=5, n_components=3)
    if "condition_key" not in adata.uns["vae"]["prior"]:
        pytest.fail("the prior given the day was not kept")
    return adata


@pytest.fixture
def days(_days: ad.AnnData) -> ad.AnnData:
    return _days.copy()


@pytest.mark.parametrize("value", [3, 3.0, "3", np.float32(3), np.int8(3), "3.0"])
def test_arguments_accept_values_from_obs(days: ad.AnnData, value: Any) -> None:
    expected = vx.tl.counterfactual(days, "day", "3", copy=True)
    vx.tl.counterfactual(days, "day", value)
    assert expected is not None
    np.testing.assert_array_equal(days.layers["vae_counterfactual"], expected.layers["vae_counterfactual"])
    change = days.layers["vae_counterfactual"] - days.layers["vae_normalized"]
    assert abs(change[DAYS == 3]).max() < 1e-3 < abs(change[DAYS != 3]).max()
    assert days.uns["vae_counterfactual"]["params"]["value"] == "3"
    new = vx.tl.generate(days, labels=[value, 1.5, np.float64(0)])
    assert new.obs["day"].tolist() == ["3", "1.5", "0"]
    path = vx.tl.interpolate(days, value, 1.5, groupby="day", n_steps=3, covariates={"day": value})
    assert path.uns["vae_interpolate"]["params"]["source"] == "3"


@pytest.mark.parametrize("value", [2, 2.0, "2", np.float32(2), np.int8(2), np.array(2.0)])
def test_transform_batch_accepts_values_from_obs(days: ad.AnnData, value: Any) -> None:
    expected = vx.tl.denoise(days, genes=["0"], transform_batch="2").X
    np.testing.assert_array_equal(vx.tl.denoise(days, genes=["0"], transform_batch=value).X, expected)
    np.testing.assert_array_equal(vx.tl.denoise(days, genes=["0"], transform_batch=[value]).X, expected)
    drawn = vx.tl.sample(days, genes=["0"], transform_batch=value)
    assert drawn.uns["vae_sample"]["params"]["transform_batch"] == "2"
    new = vx.tl.generate(days, 3, covariates={"plate": value})
    assert new.obs["plate"].tolist() == ["2"] * 3


def test_generated_cells_have_the_categories_of_similar_cells(days: ad.AnnData) -> None:
    new = vx.tl.generate(days, 20)
    assert not new.obs.isna().any().any()
    assert set(new.obs["plate"]) <= {"1", "2"}
    assert new.obs["age"].between(20, 60).all()


@pytest.mark.parametrize(
    "stored",
    [
        {"day": DAYS, "plate": np.resize([1.0, 2, 2, 1], N)},
        {"day": DAYS.astype(np.float32), "plate": pd.array(np.resize([1, 2, 2, 1], N), dtype="Int64")},
        {"day": pd.Categorical(DAYS.astype(str)), "plate": pd.Categorical(np.resize(["1.0", "2.0", "2.0", "1.0"], N))},
        {"day": pd.Categorical(DAYS, categories=[3.0, 0.0, 9.0, 1.5]), "plate": np.resize(["1", "2", "2", "1"], N)},
    ],
)
def test_other_cells_may_store_the_same_numbers_as_another_type(days: ad.AnnData, stored: dict[str, Any]) -> None:
    other = ad.AnnData(days.X.copy(), obs=days.obs[["age"]].assign(**stored), var=days.var.copy())
    vx.tl.encode(other, model=days)
    np.testing.assert_array_equal(other.obsm["X_vae"], days.obsm["X_vae"])
    for i in (0, 1):
        name = f"categories_{i}"
        assert list(other.uns["vae"]["covariates"][name]) == list(days.uns["vae"]["covariates"][name])
    np.testing.assert_array_equal(
        vx.tl.counterfactual(other, "day", 3.0, genes=["1"]).X, vx.tl.counterfactual(days, "day", "3", genes=["1"]).X
    )
    vx.tl.rank_genes_groups(other, "plate", groups=[1.0], reference=2, n_genes=2)
    ranked = other.uns["rank_genes_groups"]
    # text keeps its own spelling
    one, two = ("1.0", "2.0") if "1.0" in set(other.obs["plate"]) else ("1", "2")
    assert (ranked["names"].dtype.names, ranked["params"]["reference"]) == ((one,), two)
    vx.pp.library_size(other, batch_key="plate")
    assert list(other.uns["library_size"]["batches"]) == [one, two]


def test_a_file_may_store_the_same_numbers_as_another_type(days: ad.AnnData, tmp_path: Path) -> None:
    days.write_h5ad(tmp_path / "days.h5ad")
    read = ad.read_h5ad(tmp_path / "days.h5ad")
    np.testing.assert_array_equal(
        vx.tl.counterfactual(read, "day", 1.5, genes=["1"]).X, vx.tl.counterfactual(days, "day", 1.5, genes=["1"]).X
    )
    record = read.uns["vae"]["covariates"]
    assert record["continuous_min"][0] == pytest.approx(20)
    assert record["continuous_max"][0] == pytest.approx(60)


def _twice(adata: ad.AnnData) -> ad.AnnData:
    adata.obs = pd.concat([adata.obs, adata.obs], axis=1)
    adata.var["mask"] = True
    adata.var = pd.concat([adata.var, adata.var], axis=1)
    return adata


CALLS: dict[str, Callable[[ad.AnnData], object]] = {
    "batch": lambda a: vx.tl.fit_vae(a, "plate", **QUICK),
    "category": lambda a: vx.tl.fit_vae(a, categorical_covariate_keys=["day"], **QUICK),
    "number": lambda a: vx.tl.fit_vae(a, continuous_covariate_keys=["age"], **QUICK),
    "labels": lambda a: vx.tl.fit_vae(a, labels_key="day", dispersion="gene-label", **QUICK),
    "library": lambda a: vx.tl.fit_vae(a, library="age", **QUICK),
    "mask": lambda a: vx.tl.fit_vae(a, mask_var="mask", **QUICK),
    "slots": lambda a: vx.tl.fit_vae(a, **QUICK),
    "encode": vx.tl.encode,
    "denoise": vx.tl.denoise,
    "counterfactual": lambda a: vx.tl.counterfactual(a, "day", 3.0),
    "sample": vx.tl.sample,
    "generate": lambda a: vx.tl.generate(a, 3),
    "interpolate": lambda a: vx.tl.interpolate(a, 0.0, 3.0, groupby="day", n_steps=3),
    "interpolate cells": lambda a: vx.tl.interpolate(a, "c0", "c1", n_steps=3),
    "fit_prior": lambda a: vx.tl.fit_prior(a, "mixture", condition_key="day"),
    "diagnose": vx.tl.diagnose,
    "log_likelihood": lambda a: vx.tl.log_likelihood(a, n_samples=2),
    "predictive_check": lambda a: vx.tl.predictive_check(a, n_draws=2),
    "rank_genes_groups": lambda a: vx.tl.rank_genes_groups(a, "day"),
    "compare": lambda a: vx.tl.compare(a, [(a, "vae"), (a, "vae")], cells="plate"),
    "outliers": lambda a: vx.tl.outliers(a, calibration="plate"),
    "library_size": lambda a: vx.pp.library_size(a, batch_key="plate"),
    "highly_variable_genes": lambda a: vx.pp.highly_variable_genes(a, n_top_genes=3, batch_key="plate"),
    "cluster_stability": lambda a: vx.tl.cluster_stability(a, "day"),
    "latent": lambda a: vx.pl.latent(a, color="day", dimensions=(0, 1), show=False),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_repeated_column_raises_the_same_error_in_every_call(days: ad.AnnData, call: str) -> None:
    twice = _twice(days)
    before = list(twice.obs.columns), list(twice.uns), list(twice.obsm), list(twice.layers)
    with pytest.raises(ValueError, match="repeated name"):
        CALLS[call](twice)
    assert (list(twice.obs.columns), list(twice.uns), list(twice.obsm), list(twice.layers)) == before


EMPTY: tuple[str, ...] = (
    "batch",
    "category",
    "labels",
    "interpolate",
    "fit_prior",
    "rank_genes_groups",
    "library_size",
)
EMPTY = (*EMPTY, "highly_variable_genes", "cluster_stability")


@pytest.mark.parametrize("call", EMPTY)
def test_a_group_named_by_the_empty_string_is_refused_in_every_call(days: ad.AnnData, call: str) -> None:
    for name in ("day", "plate"):
        days.obs[name] = pd.Categorical(np.resize(["", "a", "b"], N))
    key = {"batch": "again", "category": "again", "labels": "again"}.get(call)
    run: Callable[[ad.AnnData], object] = CALLS[call]
    if key is not None:
        column: dict[str, dict[str, Any]] = {
            "batch": {"batch_key": "plate"},
            "category": {"categorical_covariate_keys": ["day"]},
        }
        arguments: dict[str, Any] = column.get(call, {"labels_key": "day", "dispersion": "gene-label"})
        run = lambda a: vx.tl.fit_vae(a, key_added=key, **arguments, **QUICK)
    elif call == "interpolate":
        run = lambda a: vx.tl.interpolate(a, "", "a", groupby="day", n_steps=3)
        del days.uns["vae"]
        for slot in ("X_vae", "X_vae_var"):
            del days.obsm[slot]
        for name in ("vae_split", "vae_library"):
            del days.obs[name]
        del days.layers["vae_normalized"]
        vx.tl.fit_vae(days, **QUICK)
    elif call in ("fit_prior", "rank_genes_groups"):
        days.obs["group"], days.obs["day"], days.obs["plate"] = days.obs["day"], pd.Categorical(DAYS), 1
        run = {
            "fit_prior": lambda a: vx.tl.fit_prior(a, "mixture", condition_key="group"),
            "rank_genes_groups": lambda a: vx.tl.rank_genes_groups(a, "group"),
        }[call]
    with pytest.raises(ValueError, match=r"empty string.*replace\(''"):
        run(days)


def test_values_far_outside_the_range_of_the_fit_are_named(days: ad.AnnData, warned: list[str]) -> None:
    vx.tl.counterfactual(days, "age", 45, genes=["0"])
    vx.tl.generate(days, 3, covariates={"age": 30.0})
    assert not [text for text in warned if "outside the range" in text]
    for run in (
        lambda: vx.tl.counterfactual(days, "age", 450, genes=["0"]),
        lambda: vx.tl.generate(days, 3, covariates={"age": 450.0}),
        lambda: vx.tl.interpolate(days, "c0", "c1", n_steps=3, covariates={"age": 450.0}),
        lambda: vx.tl.log_likelihood(_aged(days, 450.0), n_samples=2),
        lambda: vx.tl.denoise(_aged(days, 450.0), genes=["0"]),
        lambda: vx.tl.encode(_aged(days, 450.0)),
    ):
        warned.clear()
        run()
        (text,) = [text for text in warned if "outside the range" in text]
        assert "'age'" in text
        assert "450" in text
        assert "20 to 60" in text


def _aged(adata: ad.AnnData, age: float) -> ad.AnnData:
    adata = adata.copy()
    adata.obs["age"] = age
    return adata


def test_the_error_for_a_query_without_the_batch_says_how_to_add_it(days: ad.AnnData) -> None:
    query = ad.AnnData(days.X.copy(), obs=days.obs[["age", "day"]], var=days.var.copy())
    with pytest.raises(KeyError, match=r"query\.obs\['plate'\] = 'new batch name'"):
        vx.tl.encode(query, model=days)
    assert not query.uns
    assert not query.obsm
    query.obs["plate"] = "new batch name"
    vx.tl.encode(query, model=days)
    assert list(query.uns["vae"]["covariates"]["categories_0"]) == ["1", "2", "new batch name"]


def test_gaps_in_a_mask_are_named_and_masks_of_other_types_are_read(days: ad.AnnData) -> None:
    fresh = ad.AnnData(days.X.copy())
    chosen = np.arange(12) < 7
    fresh.var["highly_variable"] = np.where(np.arange(12) == 3, None, chosen)
    with pytest.raises(ValueError, match=r"1 of 12 genes.*fillna\(False\)\.astype\(bool\).*mask_var=None"):
        vx.tl.fit_vae(fresh, **QUICK)
    for column in (pd.array(chosen, dtype="boolean"), chosen.astype(float), pd.Categorical(chosen)):
        fresh.var["highly_variable"] = column
        vx.tl.fit_vae(fresh, denoised=False, **QUICK)
        np.testing.assert_array_equal(fresh.uns["vae"]["genes"]["modelled"], chosen)


@pytest.mark.parametrize("name", ["", ".", "..", " ", "a/b", "a\0b", "_index", 3, ("a",)])
def test_names_that_cannot_be_written_are_refused_in_every_call(days: ad.AnnData, name: Any) -> None:
    before = list(days.uns), list(days.obsm), list(days.layers), list(days.obs)
    for call in (
        lambda: vx.tl.fit_vae(days, key_added=name, **QUICK),
        lambda: vx.tl.encode(days, key_added=name),
        lambda: vx.tl.denoise(days, key_added=name),
        lambda: vx.tl.counterfactual(days, "day", 3.0, key_added=name),
        lambda: vx.tl.sample(days, key_added=name),
        lambda: vx.tl.fit_prior(days, "mixture", key_added=name),
        lambda: vx.tl.log_likelihood(days, key=name),
        lambda: vx.tl.compare(days, key_added=name),
        lambda: vx.tl.outliers(days, calibration="plate", key_added=name),
        lambda: vx.tl.rank_genes_groups(days, "day", key_added=name),
        lambda: vx.tl.cluster_stability(days, "day", key_added=name),
        lambda: vx.pp.library_size(days, key_added=name),
        lambda: vx.pp.neighbors(days, n_neighbors=3, key_added=name),
        lambda: vx.pl.kl(days, key=name, show=False),
        lambda: vx.pl.kl(days, compare_key=name, show=False),
    ):
        with pytest.raises(ValueError, match="cannot name a result"):
            call()
    assert (list(days.uns), list(days.obsm), list(days.layers), list(days.obs)) == before


def test_the_message_about_a_name_says_which_argument_it_is(days: ad.AnnData) -> None:
    for call in (
        lambda: vx.tl.fit_vae(days, key_added=3, **QUICK),
        lambda: vx.tl.encode(days, key_added=3),
        lambda: vx.tl.fit_prior(days, "mixture", key_added=3),
        lambda: vx.tl.log_likelihood(days, key_added=3),
    ):
        with pytest.raises(ValueError, match=r"^key_added=3 cannot"):
            call()
    with pytest.raises(ValueError, match=r"^key=3 cannot"):
        vx.tl.encode(days, key=3)


@pytest.mark.filterwarnings("ignore:Support for Awkward Arrays")
def test_obsm_values_of_any_type_are_preserved(days: ad.AnnData) -> None:
    ak = pytest.importorskip("awkward")
    days.obsm["airr"] = ak.Array([[{"locus": "TRA"}] * (i % 3) for i in range(N)])
    days.obsm["frame"] = pd.DataFrame({"a": np.arange(N)}, index=days.obs_names)
    for out in (
        vx.tl.denoise(days, genes=["1"]),
        vx.tl.counterfactual(days, "day", 0.0, genes=["1"]),
        vx.tl.denoise(days[:30], genes=["1"]),
    ):
        assert ak.to_list(out.obsm["airr"]) == ak.to_list(days.obsm["airr"])[: out.n_obs]
        assert out.obsm["frame"]["a"].tolist() == list(range(out.n_obs))
    assert vx.tl.sample(days, n_samples=2).n_obs == 2 * N
    vx.tl.rank_genes_groups(days, "day")
    vx.tl.encode(days)


def test_a_posterior_may_be_a_frame_but_must_be_an_array(days: ad.AnnData) -> None:
    expected = vx.tl.denoise(days, genes=["1"]).X
    frame = pd.DataFrame(days.obsm["X_vae"], index=days.obs_names, columns=["a", "b"])
    days.obsm["X_vae"] = frame
    np.testing.assert_array_equal(vx.tl.denoise(days, genes=["1"]).X, expected)
    days.obsm["X_vae"] = frame.astype(str) + "x"
    with pytest.raises(ValueError, match=r"obsm\['X_vae'\].*vx\.tl\.encode"):
        vx.tl.denoise(days, genes=["1"])


def test_cells_without_a_known_split_belong_to_none(days: ad.AnnData) -> None:
    days.obs["vae_split"] = pd.array(["train"] * 30 + [None] * 30, dtype="string")
    vx.tl.log_likelihood(days, n_samples=2)
    vx.tl.diagnose(days)
    vx.tl.encode(days)
    summary = days.uns["vae_log_likelihood"]["summary"]
    assert summary["n_cells"].to_dict() == {"all": N, "train": 30}


@pytest.mark.parametrize("keys", [3, np.nan])
def test_invalid_column_names_are_refused(days: ad.AnnData, keys: Any) -> None:
    for run in (
        lambda: vx.tl.fit_vae(days, categorical_covariate_keys=keys, **QUICK),
        lambda: vx.tl.fit_vae(days, continuous_covariate_keys=keys, **QUICK),
        lambda: vx.pl.latent(days, color=keys, show=False),
    ):
        with pytest.raises((TypeError, ValueError), match=r"a name, or a list of|a column, or a list of"):
            run()


@pytest.mark.parametrize(
    ("values", "match"),
    [
        (pd.date_range("2024", periods=N), r"\.dt\.days"),
        (pd.timedelta_range("1D", periods=N), r"\.dt\.total_seconds"),
        ([str(i) for i in range(N)], r"astype\(float\)"),
    ],
)
def test_the_suggested_call_converts_columns_to_numbers(days: ad.AnnData, values: Any, match: str) -> None:
    days.obs["v"] = values
    with pytest.raises(ValueError, match=match) as error:
        vx.tl.fit_vae(days, continuous_covariate_keys=["v"], **QUICK)
    call = str(error.value).split("Convert it to numbers, ")[1].split(", or name")[0]
    days.obs["v"] = eval(call, {"adata": days})
    vx.tl.fit_vae(days, continuous_covariate_keys=["v"], key_added="again", denoised=False, **QUICK)
    assert days.uns["again"]["covariates"]["continuous_sd"][0] > 1


def test_columns_that_cannot_be_coloured_are_named(days: ad.AnnData) -> None:
    days.obs["date"] = pd.Timestamp("2024-01-01")
    with pytest.raises(ValueError, match=r"cannot be colored.*astype\('category'\)"):
        vx.pl.latent(days, color="date", dimensions=(0, 1), show=False)
