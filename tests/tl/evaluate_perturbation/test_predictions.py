"""Which predictions are scored: one method at a time, on the scale of counts, by the change they state."""

from __future__ import annotations

import re
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

import vxpress as vx

from ._cells import FAST, row, stating


def _labelled(cells: dict[str, AnnData]) -> AnnData:
    """Predictions of two methods in one AnnData, as anndata.concat joins them."""
    methods = {"one": cells["predicted"], "two": cells["predicted"]}
    return ad.concat(methods, label="method", index_unique="-")


SEVERAL = {
    "sources": r"obs\['source_cell'\] of .* has the methods",
    "names": "obs_names of .* pass a mapping",
    "list": "has 2 AnnDatas for .* pass a mapping",
    "floor": "cells predicted by 'f' repeats",
}


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
@pytest.mark.parametrize("kind", SEVERAL)
def test_predictions_of_several_methods_are_not_scored_as_one(kind: str, cells: dict[str, AnnData]) -> None:
    joined = _labelled(cells)
    if kind == "names":
        joined = ad.concat([cells["predicted"], cells["predicted"]])
        del joined.obs["source_cell"]
    predicted = {"list": [cells["predicted"], cells["predicted"]], "floor": cells["predicted"]}.get(kind, joined)
    floors = {"f": joined} if kind == "floor" else None
    with pytest.raises(ValueError, match=SEVERAL[kind]) as raised:
        vx.tl.evaluate_perturbation(predicted, cells["drug"], cells["ctrl"], groupby="group", floors=floors, **FAST)
    if kind == "sources":
        assert "obs['method'] has the methods" in str(raised.value)
        mending = {name: joined[joined.obs["method"] == name].copy() for name in joined.obs["method"].unique()}
        result = vx.tl.evaluate_perturbation(mending, cells["drug"], cells["ctrl"], groupby="group", **FAST)
        assert set(result.verdicts) == {"one", "two"}


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_several_predictions_of_each_control_cell_can_be_scored_by_the_call_named(cells: dict[str, AnnData]) -> None:
    joined = ad.concat([cells["predicted"], cells["predicted"]])
    with pytest.raises(ValueError, match=r"del predicted.obs\['source_cell'\]; predicted.obs_names_make_unique\(\)"):
        vx.tl.evaluate_perturbation(joined, cells["drug"], cells["ctrl"], groupby="group", **FAST)
    del joined.obs["source_cell"]
    joined.obs_names_make_unique()
    result = vx.tl.evaluate_perturbation(joined, cells["drug"], cells["ctrl"], groupby="group", **FAST)
    once = vx.tl.evaluate_perturbation(cells["predicted"], cells["drug"], cells["ctrl"], groupby="group", **FAST)
    np.testing.assert_allclose(result.changes["predicted"], once.changes["predicted"], atol=1e-12)


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_joined_targets_without_their_column_name_the_argument(cells: dict[str, AnnData]) -> None:
    other = cells["predicted"].copy()
    other.obs["drug"] = "other"
    joined = ad.concat([cells["predicted"], other])
    for predicted, said in (
        (joined, "perturbation_key='drug' if it has the perturbations"),
        ([cells["predicted"], other], "of several targets, pass perturbation_key="),
    ):
        with pytest.raises(ValueError, match=said):
            vx.tl.evaluate_perturbation(predicted, cells["drug"], cells["ctrl"], groupby="group", **FAST)


@pytest.mark.parametrize("form", ["cells", "other total", "subset of genes", "mean profile"])
def test_log_values_are_not_normalised_a_second_time(form: str, cells: dict[str, AnnData]) -> None:
    predicted, given = cells["predicted"].copy(), (cells["drug"], cells["ctrl"])
    total = 2000.0 if form == "other total" else 1e4
    predicted.X = vx.metrics.log1p_normalized(predicted.X, target_sum=total)
    if form == "subset of genes":
        predicted = predicted[:, 5:].copy()
    if form == "mean profile":
        rows = (predicted.obs["group"] == "a").to_numpy()
        mean = np.asarray(predicted.X[rows].mean(0))
        predicted = predicted[np.flatnonzero(rows)[:1]].copy()
        predicted.X = mean
    with pytest.raises(ValueError, match=r"looks log-transformed .* predicted.X = np.expm1\(predicted.X\)"):
        vx.tl.evaluate_perturbation(predicted, *given, groupby="group", **FAST)
    if form in ("cells", "other total"):
        predicted.X = np.expm1(predicted.X)
        found = vx.tl.evaluate_perturbation(predicted, *given, groupby="group", **FAST)
        counts = vx.tl.evaluate_perturbation(cells["predicted"], *given, groupby="group", **FAST)
        np.testing.assert_allclose(found.table["score"], counts.table["score"], rtol=1e-6)


@pytest.mark.parametrize("form", ["means", "rate", "shares", "thinned", "panel"])
def test_expected_counts_are_scored_whatever_their_total(
    form: str, cells: dict[str, AnnData], rates: dict[str, np.ndarray]
) -> None:
    rows = (cells["predicted"].obs["group"] == "a").to_numpy()
    predicted, given = cells["predicted"][rows].copy(), [cells[name] for name in ("drug", "ctrl")]
    size = np.random.default_rng(0).gamma(5, 0.2, (len(predicted), 1))
    mean = size * rates["drug"]
    predicted.X = {
        "means": mean / 10,
        "rate": mean[:1].repeat(len(mean), 0) / 7,
        "shares": mean / mean.sum(1, keepdims=True),
        "thinned": predicted.X.toarray() / 50,
        "panel": mean / 10,
    }[form]
    if form == "panel":
        predicted = predicted[:, :12].copy()
    result = vx.tl.evaluate_perturbation(predicted, *given, groupby="group", **FAST)
    assert row(result, "pearson_change")["score"] > 0.5


@pytest.mark.parametrize("n_genes", [1, 2])
def test_scores_over_fewer_than_three_genes_are_refused(n_genes: int, cells: dict[str, AnnData]) -> None:
    with pytest.raises(ValueError, match=f"has {n_genes} gene.*at least 3 are needed"):
        vx.tl.evaluate_perturbation(cells["predicted"][:, :n_genes], cells["drug"], cells["ctrl"], **FAST)
    with pytest.raises(ValueError, match="n_top"):
        vx.tl.evaluate_perturbation(cells["predicted"], cells["drug"], cells["ctrl"], **(FAST | {"n_top": (n_genes,)}))
    vx.tl.evaluate_perturbation(cells["predicted"][:, :3], cells["drug"], cells["ctrl"], **FAST)


@pytest.mark.parametrize("argument", ["observed", "control"])
@pytest.mark.parametrize("layer", [None, "corrected"])
def test_the_call_that_rounds_counts_runs(argument: str, layer: str | None, cells: dict[str, AnnData]) -> None:
    given = {"predicted": cells["predicted"], "observed": cells["drug"].copy(), "control": cells["ctrl"].copy()}
    for name in ("observed", "control"):
        given[name].layers["corrected"] = given[name].X.copy()
    bad = given[argument].X * 1.3
    if layer is None:
        given[argument].X = bad
    else:
        given[argument].layers[layer] = bad
    with pytest.raises(ValueError, match=r"np\.rint") as raised:
        vx.tl.evaluate_perturbation(**given, groupby="group", layer=layer, **FAST)
    call = re.search(r"[\w.\[\]']+ = np\.rint\([\w.\[\]']+\)", str(raised.value))
    assert call is not None
    exec(call.group(), {"np": np} | given)
    vx.tl.evaluate_perturbation(**given, groupby="group", layer=layer, **FAST)


def test_expected_counts_as_log_values_are_refused(cells: dict[str, AnnData]) -> None:
    predicted, observed, control = (cells[name].copy() for name in ("predicted", "drug", "ctrl"))
    predicted.X *= 7.7
    for adata in (observed, control):
        adata.X = vx.metrics.log1p_normalized(adata.X)
    with pytest.raises(ValueError, match=r"of the predicted cells holds values up to .* too large for log1p"):
        vx.tl.evaluate_perturbation(predicted, observed, control, groupby="group", log_transformed=True, **FAST)


def _emptied(x: sparse.csr_matrix, rows: list[int]) -> sparse.csr_matrix:
    dense = x.toarray()
    dense[rows] = 0
    return sparse.csr_matrix(dense)


def _own(adata: AnnData, cells: dict[str, AnnData], **more: Any) -> np.ndarray:
    """The change of group b that is scored for a prediction."""
    found = vx.tl.evaluate_perturbation(adata, cells["drug"], **(FAST | more)).changes
    return found[(found["kind"] == "prediction") & (found["group"] == "b")]["predicted"].to_numpy()


def test_control_cells_without_molecules_leave_the_stated_change_in_use(
    cells: dict[str, AnnData], warned: list[str]
) -> None:
    parts = {name: cells[name].copy() for name in ("ctrl", "predicted")}
    for adata in parts.values():
        adata.X = _emptied(adata.X, [50, 51, 52])
    stored = stating(cells | parts)
    # the fit gives cells without molecules the size factor of others
    stored.obs.loc[stored.obs["library_size"] == 0, "library_size"] = stored.obs["library_size"].max()
    np.testing.assert_allclose(_own(stored, cells), stored.uns["perturbation"]["change"][1])
    assert not any("is not scored" in message for message in warned)


@pytest.mark.parametrize("edit", ["emptied", "left out"])
def test_a_stated_change_that_is_not_scored_is_a_warning(
    edit: str, cells: dict[str, AnnData], warned: list[str]
) -> None:
    stored = stating(cells)
    if edit == "emptied":
        stored.X = _emptied(stored.X, [50])
    else:
        stored = stored[np.arange(stored.n_obs) != 50].copy()
    assert np.abs(_own(stored, cells) - stored.uns["perturbation"]["change"][1]).max() > 0.05
    found = [message for message in warned if "is not scored" in message]
    assert len(found) == 1
    assert "1 group(s) is not scored" in found[0]
    assert "b, all: cells were edited or left out" in found[0]


def test_controls_that_travel_along_are_read_if_the_counts_are_in_a_layer(cells: dict[str, AnnData]) -> None:
    observed = cells["drug"].copy()
    observed.layers["counts"] = observed.X
    observed.X = vx.metrics.log1p_normalized(observed.X)
    given = {"groupby": "group"} | FAST
    found = vx.tl.evaluate_perturbation(cells["predicted"], observed, layer="counts", **given)
    plain = vx.tl.evaluate_perturbation(cells["predicted"], cells["drug"], **given)
    pd.testing.assert_frame_equal(found.table, plain.table)
