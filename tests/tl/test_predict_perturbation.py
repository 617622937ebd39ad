"""Predictions of the response to a perturbation in groups that were never treated."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc

import vxpress as vx
from vxpress.bridge.fits.runner import Runner
from vxpress.bridge.read.prepare import Prepared

pytestmark = pytest.mark.usefixtures("compiled")

WHO = {"control": "none", "target": "drug", "groupby": "type"}


def _profile(x: np.ndarray, library_n: np.ndarray) -> np.ndarray:
    return np.log1p(1e4 * x / np.maximum(library_n, 1)[:, None]).mean(0)


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    """Three types; the drug multiplies the expression of ten genes; type 2 has treated cells, which are kept apart."""
    adata = vx.datasets.simulate(900, 50, n_groups=3, n_batches=1, library_mean=2000, rng=3)
    rng = np.random.default_rng(0)
    drug = rng.random(900) < 0.5
    x = adata.X.toarray()
    x[np.ix_(drug, np.arange(10))] = rng.poisson(4.0 * x[np.ix_(drug, np.arange(10))] + 0.3)
    adata.X = x.astype(np.float32)
    del adata.obs["library_size"]
    adata.obs["drug"] = pd.Categorical(np.where(drug, "drug", "none"))
    adata.obs["type"] = adata.obs["group"].astype(str)
    adata.obs["dose"] = np.where(drug, 1, 0)
    return adata


@pytest.fixture(scope="module")
def fits(cells: ad.AnnData) -> dict[str, ad.AnnData]:
    seen = cells[(cells.obs["type"] != "group_2") | (cells.obs["drug"] == "none")].copy()
    kwargs = {"n_latent": 4, "n_hidden": 32, "max_epochs": 25, "batch_size": 64, "denoised": False, "device": "cpu"}
    out = {}
    for name, more in {
        "plain": {},
        "covariate": {"categorical_covariate_keys": ["drug"]},
        "optional": {"optional_covariate_keys": ["drug"]},
    }.items():
        out[name] = vx.tl.fit_vae(seen, copy=True, **kwargs, **more)
    return out


@pytest.fixture
def plain(fits: dict[str, ad.AnnData]) -> ad.AnnData:
    return fits["plain"].copy()


@pytest.fixture
def truth(cells: ad.AnnData) -> np.ndarray:
    """The real change of the type that was never treated."""
    here = cells[cells.obs["type"] == "group_2"]
    library_n, drug = np.asarray(here.X.sum(1)).reshape(-1), (here.obs["drug"] == "drug").to_numpy()
    return _profile(here.X[drug], library_n[drug]) - _profile(here.X[~drug], library_n[~drug])


def _change(predicted: ad.AnnData) -> np.ndarray:
    library_n = predicted.obs["library_size"].to_numpy()
    return _profile(predicted.X.toarray(), library_n) - _profile(predicted.layers["control"].toarray(), library_n)


METHODS = [
    ("plain", "shift"),
    ("optional", "shift"),
    ("covariate", "counterfactual"),
    ("plain", "mean_shift"),
    ("plain", "ridge"),
    ("covariate", "mean_shift"),
]


@pytest.mark.parametrize(("fit", "method"), METHODS)
def test_the_change_of_a_group_that_was_never_treated_is_predicted(
    fits: dict[str, ad.AnnData], truth: np.ndarray, fit: str, method: str
) -> None:
    adata = fits[fit]
    before = adata.copy()
    predicted = vx.tl.predict_perturbation(adata, "drug", **WHO, groups="group_2", method=method)
    assert np.corrcoef(_change(predicted), truth)[0, 1] > 0.85
    # the source is named, and travels along
    source = (adata.obs["type"] == "group_2") & (adata.obs["drug"] == "none")
    assert list(predicted.obs_names) == list(adata.obs_names[source]) == list(predicted.obs["source_cell"])
    np.testing.assert_array_equal(predicted.layers["control"].toarray(), adata[source].X)
    assert (predicted.obs["drug"] == "drug").all()
    assert (predicted.obs["type"] == "group_2").all()
    assert predicted.obs["support"].between(0, 1).all()
    assert (predicted.X.data % 1 == 0).all()
    # nothing is written to adata
    assert sorted(adata.uns) == sorted(before.uns)
    assert list(adata.obs) == list(before.obs)
    assert sorted(adata.obsm) == sorted(before.obsm)


def test_no_change_returns_the_control_cells(plain: ad.AnnData) -> None:
    predicted = vx.tl.predict_perturbation(plain, "drug", **WHO, method="control")
    np.testing.assert_array_equal(predicted.X.toarray(), predicted.layers["control"].toarray())


@pytest.mark.parametrize("method", ["mean_shift", "ridge"])
def test_floors_are_recorded_and_their_cells_have_their_change(plain: ad.AnnData, method: str) -> None:
    predicted = vx.tl.predict_perturbation(plain, "drug", **WHO, method=method)
    record = predicted.uns["perturbation"]
    assert list(record["groups"]) == ["group_0", "group_1", "group_2"]
    for i, group in enumerate(record["groups"]):
        found = _change(predicted[predicted.obs["type"] == group])
        np.testing.assert_allclose(found, record["floors"][method][i], atol=0.25)


def test_mean_shift_is_the_mean_change_of_the_other_groups(plain: ad.AnnData) -> None:
    record = vx.tl.predict_perturbation(plain, "drug", **WHO, groups="group_2", method="mean_shift").uns["perturbation"]
    changes = []
    for group in ("group_0", "group_1"):
        here = plain[plain.obs["type"] == group]
        library_n, drug = here.X.sum(1), (here.obs["drug"] == "drug").to_numpy()
        changes.append(_profile(here.X[drug], library_n[drug]) - _profile(here.X[~drug], library_n[~drug]))
    np.testing.assert_allclose(record["floors"]["mean_shift"][0], np.mean(changes, 0), atol=1e-4)


def test_additive_mean_adds_the_changes_of_single_perturbations(plain: ad.AnnData) -> None:
    rng = np.random.default_rng(0)
    names = np.array(["none", "A", "B"], dtype=object)[rng.integers(3, size=plain.n_obs)]
    plain.obs["genes"] = names
    predicted = vx.tl.predict_perturbation(plain, "genes", control="none", target="A+B", method="additive_mean")
    library_n = plain.X.sum(1)
    profiles = {name: _profile(plain.X[names == name], library_n[names == name]) for name in ("none", "A", "B")}
    expected = profiles["A"] + profiles["B"] - 2 * profiles["none"]
    np.testing.assert_allclose(predicted.uns["perturbation"]["floors"]["additive_mean"][0], expected, atol=1e-4)
    np.testing.assert_allclose(_change(predicted), expected, atol=0.25)


def test_check_leaves_each_treated_group_out(plain: ad.AnnData) -> None:
    record = vx.tl.predict_perturbation(plain, "drug", **WHO, groups="group_2").uns["perturbation"]
    assert set(record["checked"]["group"]) == {"group_0", "group_1"}
    assert set(record["checked"]["method"]) == {"shift", "control", "mean_shift", "ridge"}
    assert "'shift'" in record["verdict"]
    none = record["checked"].set_index("method").loc["control"]
    assert (none["correlation"] == 0).all()
    unchecked = vx.tl.predict_perturbation(plain, "drug", **WHO, groups="group_2", check=False)
    assert "checked" not in unchecked.uns["perturbation"]


def test_few_groups_are_left_out_with_a_map_that_takes_long() -> None:
    adata = vx.datasets.simulate_perturbation(400, 40, n_groups=5, rng=0)
    vx.tl.fit_vae(adata, n_latent=3, n_hidden=8, max_epochs=2, denoised=False)
    for method, n in (("shift", 5), ("sinkhorn", 3)):
        predicted = vx.tl.predict_perturbation(
            adata, "condition", control="control", target="treated", groupby="group", groups="group_0", method=method
        )
        assert predicted.uns["perturbation"]["checked"]["group"].nunique() == n


def test_a_method_that_is_no_better_than_a_floor_is_said(plain: ad.AnnData, warned: list[str]) -> None:
    # positions without meaning
    plain.obsm["X_vae"] = np.random.default_rng(0).normal(size=(plain.n_obs, 4)).astype(np.float32)
    record = vx.tl.predict_perturbation(plain, "drug", **WHO, groups="group_2", anchor=0.0).uns["perturbation"]
    assert "no better than a floor" in record["verdict"]
    assert any("no better than a floor" in message for message in warned)


def test_support_is_low_where_no_treated_cell_is_near(plain: ad.AnnData) -> None:
    near = vx.tl.predict_perturbation(plain, "drug", **WHO)
    seen = near.obs["type"] != "group_2"
    assert near.obs["support"][seen].median() > 0.3
    far = plain.copy()
    never = far.obs["type"] == "group_2"
    far.obsm["X_vae"][never] += 40.0
    away = vx.tl.predict_perturbation(far, "drug", **WHO, groups="group_2")
    assert (away.obs["support"] == 0).all()


def test_the_prediction_can_be_stored(plain: ad.AnnData, tmp_path: Path) -> None:
    plain.obs["a/b"] = plain.obs["type"].map(lambda name: f"{name}/x")
    predicted = vx.tl.predict_perturbation(plain, "drug", control="none", target="drug", groupby="a/b")
    predicted.obs = predicted.obs.rename(columns={"a/b": "ab"})
    predicted.write_h5ad(tmp_path / "x.h5ad")
    again = ad.read_h5ad(tmp_path / "x.h5ad")
    assert list(again.uns["perturbation"]["groups"]) == ["group_0/x", "group_1/x", "group_2/x"]
    pd.testing.assert_frame_equal(
        again.uns["perturbation"]["checked"], predicted.uns["perturbation"]["checked"], check_dtype=False
    )


def test_without_groups_all_cells_are_one_and_names_may_be_numbers(plain: ad.AnnData) -> None:
    predicted = vx.tl.predict_perturbation(plain, "dose", control=0, target=1.0)
    assert predicted.n_obs == (plain.obs["dose"] == 0).sum()
    assert (predicted.obs["dose"] == "1").all()
    assert "Not checked" in predicted.uns["perturbation"]["verdict"]


def test_the_same_seed_gives_the_same_counts(plain: ad.AnnData) -> None:
    first, again, other = (
        vx.tl.predict_perturbation(plain, "drug", **WHO, groups="group_2", check=False, rng=rng).X.toarray()
        for rng in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_counts_are_read_where_the_fit_read_them(plain: ad.AnnData, fits: dict[str, ad.AnnData]) -> None:
    plain.layers["raw"] = plain.X.copy()
    sc.pp.normalize_total(plain)
    sc.pp.log1p(plain)
    with pytest.raises(ValueError, match="raw"):
        vx.tl.predict_perturbation(plain, "drug", **WHO)
    found = vx.tl.predict_perturbation(plain, "drug", **WHO, layer="raw", check=False)
    expected = vx.tl.predict_perturbation(fits["plain"], "drug", **WHO, check=False)
    np.testing.assert_array_equal(found.X.toarray(), expected.X.toarray())


BAD = [
    ({"control": "nothing"}, "control='nothing' is not in obs"),
    ({"target": "poison"}, "target='poison' is not in obs"),
    ({"target": "none"}, "are both 'none'"),
    ({"groups": "group_9"}, "groups= names 'group_9'"),
    ({"groups": []}, "names no group"),
    ({"groupby": None, "groups": "group_1"}, "without groupby="),
    ({"groupby": "drug"}, "both name 'drug'"),
    ({"method": "magic"}, "choose one of 'shift'"),
    ({"method": "counterfactual"}, "categorical_covariate_keys"),
    ({"method_options": {"locl": "groups"}}, "'locl'"),
    ({"method_options": {"local": "everywhere"}}, "everywhere"),
    ({"method": "additive_mean"}, "not a combination"),
    ({"method": "additive_mean", "target": "a+b"}, "'a', 'b'"),
]


@pytest.mark.parametrize(("given", "message"), BAD)
def test_bad_arguments_are_named(plain: ad.AnnData, given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        vx.tl.predict_perturbation(plain, "drug", **(WHO | given))


def test_latent_methods_need_the_effect_in_the_latent_space(fits: dict[str, ad.AnnData]) -> None:
    with pytest.raises(ValueError, match="optional_covariate_keys"):
        vx.tl.predict_perturbation(fits["covariate"], "drug", **WHO)


def test_groups_need_control_cells(plain: ad.AnnData) -> None:
    only_treated = plain[(plain.obs["type"] != "group_0") | (plain.obs["drug"] == "drug")].copy()
    with pytest.raises(ValueError, match="has no control cells"):
        vx.tl.predict_perturbation(only_treated, "drug", **WHO, groups=["group_0"])
    predicted = vx.tl.predict_perturbation(only_treated, "drug", **WHO)
    assert set(predicted.obs["type"]) == {"group_1", "group_2"}
    apart = plain[((plain.obs["type"] == "group_0") & (plain.obs["drug"] == "drug")) | (plain.obs["type"] == "group_2")]
    with pytest.raises(ValueError, match="has both"):
        vx.tl.predict_perturbation(apart.copy(), "drug", **WHO)


@pytest.mark.parametrize("column", ["drug", "type"])
def test_missing_names_are_an_error(plain: ad.AnnData, column: str) -> None:
    plain.obs[column] = plain.obs[column].astype(object)
    plain.obs.loc[plain.obs_names[3], column] = np.nan
    with pytest.raises(ValueError, match=f"'{column}'. is missing"):
        vx.tl.predict_perturbation(plain, "drug", **WHO)
    with pytest.raises(KeyError, match="'nowhere' is not a column"):
        vx.tl.predict_perturbation(plain, "nowhere", **WHO)


def test_fits_without_counts_are_refused(plain: ad.AnnData) -> None:
    vx.tl.fit_vae(plain, likelihood="bernoulli", n_latent=2, n_hidden=8, max_epochs=1)
    with pytest.raises(ValueError, match="does not describe counts"):
        vx.tl.predict_perturbation(plain, "drug", **WHO)


def test_additive_predicts_a_combination_that_was_never_observed() -> None:
    adata = vx.datasets.simulate(700, 40, n_groups=2, n_batches=1, library_mean=2000, rng=4)
    del adata.obs["library_size"]
    rng = np.random.default_rng(0)
    names = np.array(["none", "A", "B", "A+B"], dtype=object)[rng.integers(4, size=700)]
    x = adata.X.toarray()
    for part, genes in (("A", slice(0, 6)), ("B", slice(6, 12))):
        has = np.array([part in name.split("+") for name in names])
        x[has, genes] = rng.poisson(5.0 * x[has, genes] + 0.5)
    adata.X, adata.obs["genes"] = x.astype(np.float32), names
    both = names == "A+B"
    library_n = x.sum(1)
    truth = _profile(x[both], library_n[both]) - _profile(x[names == "none"], library_n[names == "none"])
    seen = adata[~both].copy()
    call = {"control": "none", "target": "A+B", "method": "additive"}
    with pytest.raises(ValueError, match="perturbation_key='genes'"):
        vx.tl.predict_perturbation(vx.tl.fit_vae(seen, max_epochs=1, copy=True), "genes", **call)
    vx.tl.fit_vae(seen, perturbation_key="genes", control="none", n_latent=4, n_hidden=32, max_epochs=20, batch_size=64)
    predicted = vx.tl.predict_perturbation(seen, "genes", **call)
    assert np.corrcoef(_change(predicted), truth)[0, 1] > 0.9
    assert np.corrcoef(predicted.uns["perturbation"]["change"][0], truth)[0, 1] > 0.9
    assert list(predicted.uns["perturbation"]["floors"]) == ["additive_mean"]
    with pytest.raises(ValueError, match="method='additive'"):
        vx.tl.predict_perturbation(seen, "genes", control="none", target="A")
    with pytest.raises(ValueError, match="names the perturbation 'C'"):
        vx.tl.predict_perturbation(seen, "genes", control="none", target="A+C", method="additive")


def test_the_anchor_is_the_log_fold_change_of_other_groups(plain: ad.AnnData) -> None:
    one = plain[plain.obs["type"] != "group_1"].copy()
    call = dict(**WHO, groups="group_2", check=False)
    found = vx.tl.predict_perturbation(one, "drug", **call, anchor=1.0).uns["perturbation"]["change"][0]
    means = {}
    for group, drug in (("group_0", "none"), ("group_0", "drug"), ("group_2", "none")):
        here = one[(one.obs["type"] == group) & (one.obs["drug"] == drug)]
        means[group, drug] = _profile(here.X, here.X.sum(1))
    factor = (np.expm1(means["group_0", "drug"]) + 0.1) / (np.expm1(means["group_0", "none"]) + 0.1)
    own = means["group_2", "none"]
    expected = np.log1p(np.maximum((np.expm1(own) + 0.1) * factor - 0.1, 0)) - own
    np.testing.assert_allclose(found, np.maximum(expected, -own), atol=1e-4)
    decoded, half = (
        vx.tl.predict_perturbation(one, "drug", **call, anchor=anchor).uns["perturbation"]["change"][0]
        for anchor in (0.0, 0.5)
    )
    np.testing.assert_allclose(half, np.maximum((decoded + expected) / 2, -own), atol=1e-4)
    with pytest.raises(ValueError, match="anchor=2"):
        vx.tl.predict_perturbation(one, "drug", **call, anchor=2.0)


def test_the_stated_change_is_what_is_evaluated_unless_cells_were_edited(plain: ad.AnnData, cells: ad.AnnData) -> None:
    predicted = vx.tl.predict_perturbation(plain, "drug", **WHO, groups="group_2")
    observed = cells[(cells.obs["type"] == "group_2") & (cells.obs["drug"] == "drug")].copy()

    def correlation(given: ad.AnnData) -> float:
        table = vx.tl.evaluate_perturbation(given, observed, n_resamples=20, split_controls=False).table
        rows = table[(table["kind"] == "prediction") & (table["genes"] == "all")].set_index("measure")
        return float(rows.loc["pearson_change", "score"])

    library_n = observed.X.sum(1)
    control = plain[(plain.obs["type"] == "group_2") & (plain.obs["drug"] == "none")]
    treated = _profile(observed.X, library_n)
    real = treated - _profile(control.X, control.X.sum(1))
    stated = np.corrcoef(predicted.uns["perturbation"]["change"][0], real)[0, 1]
    assert correlation(predicted) == pytest.approx(stated, abs=1e-4)
    edited = predicted.copy()
    edited.X = edited.X[:, ::-1].copy()
    edited.X[0, 0] += 1
    assert correlation(edited) < 0.5
    some = predicted[:40].copy()
    before = some.layers["control"].toarray()
    real = treated - _profile(before, before.sum(1))
    found = _profile(some.X.toarray(), some.X.toarray().sum(1)) - _profile(before, before.sum(1))
    assert correlation(some) == pytest.approx(np.corrcoef(found, real)[0, 1], abs=0.01)


@pytest.mark.parametrize(
    ("fit", "method"), [("plain", "shift"), ("covariate", "counterfactual"), ("optional", "shift")]
)
def test_a_check_with_refits_has_not_seen_the_group(
    fits: dict[str, ad.AnnData], fit: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[np.ndarray] = []
    original = Runner.__init__

    def spy(self: Runner, prepared: Prepared, **more: object) -> None:
        trained.append(np.concatenate([prepared.train_n, prepared.validation_n]))
        original(self, prepared, **more)

    monkeypatch.setattr(Runner, "__init__", spy)
    adata = fits[fit]
    record = vx.tl.predict_perturbation(adata, "drug", **WHO, groups="group_2", method=method, check="refit").uns
    assert len(trained) == 2
    for group, rows in zip(("group_0", "group_1"), trained, strict=True):
        out = (adata.obs["type"] == group) & (adata.obs["drug"] == "drug")
        np.testing.assert_array_equal(np.sort(rows), np.flatnonzero(~out))
    table = record["perturbation"]["checked"]
    assert (table.loc[table["method"] == method, "correlation"] > 0.8).all()
    assert "had seen" not in record["perturbation"]["verdict"]
    seen = vx.tl.predict_perturbation(adata, "drug", **WHO, groups="group_2", method=method).uns["perturbation"]
    assert "had seen" in seen["verdict"]
    del (other := adata.copy()).obs["vae_split"]
    with pytest.raises(ValueError, match="trained on"):
        vx.tl.predict_perturbation(other, "drug", **WHO, method=method, check="refit")
