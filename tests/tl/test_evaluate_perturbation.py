"""Evaluation of predicted perturbations: populations, floors, scores against their definitions, verdicts, errors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse
from sklearn.metrics import r2_score

import vxpress as vx

N_GENES = 60
GENES = pd.Index([f"gene{i}" for i in range(N_GENES)])
FAST: dict[str, Any] = {"n_resamples": 20, "n_top": (10,), "n_cells": 60}


def _counts(rng: np.random.Generator, rate_g: np.ndarray, n: int, **obs: str) -> AnnData:
    x = rng.poisson(rng.gamma(5, 0.2, size=(n, 1)) * rate_g).astype(np.float32)
    frame = pd.DataFrame({name: np.repeat(value, n) for name, value in obs.items()})
    frame.index = [f"{'_'.join(obs.values())}_{i}" for i in range(n)]
    return AnnData(sparse.csr_matrix(x), obs=frame, var=pd.DataFrame(index=GENES))


@pytest.fixture(scope="module")
def rates() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    base = rng.gamma(2, 3, N_GENES)
    factor = np.where(rng.random(N_GENES) < 0.4, np.exp(rng.normal(0, 0.8, N_GENES)), 1.0)
    return {"ctrl": base, "drug": base * factor, "other": base * factor[::-1]}


@pytest.fixture(scope="module")
def cells(rates: dict[str, np.ndarray]) -> dict[str, AnnData]:
    """Two groups of control and treated cells; the groups differ much more than the treatment changes them."""
    rng = np.random.default_rng(1)
    second = np.roll(rates["ctrl"], 7) / rates["ctrl"]
    parts = {
        name: [
            _counts(rng, rates[name] * scale, 50, group=group, drug=name) for group, scale in (("a", 1), ("b", second))
        ]
        for name in rates
    }
    found = {name: ad.concat(both) for name, both in parts.items()}
    predicted = found["ctrl"].copy()
    for group, scale in (("a", 1), ("b", second)):
        rows = (predicted.obs["group"] == group).to_numpy()
        x = predicted.X.toarray()
        x[rows] = _counts(rng, rates["drug"] * scale, 50, group=group).X.toarray()
        predicted.X = sparse.csr_matrix(x)
    predicted.obs["source_cell"] = predicted.obs_names.astype(str)
    predicted.obs["drug"] = "drug"
    predicted.layers["control"] = found["ctrl"].X.copy()
    return found | {"predicted": predicted}


def _mean(adata: AnnData, group: str = "a") -> np.ndarray:
    part = adata[adata.obs["group"] == group]
    return np.asarray(vx.metrics.log1p_normalized(part.X).mean(0)).reshape(-1)


def _row(result: vx.tl.PerturbationEvaluation, measure: str, genes: str = "all", **where: str) -> pd.Series:
    table = result.table[(result.table["measure"] == measure) & (result.table["genes"] == genes)]
    for column, value in ({"group": "a", "kind": "prediction"} | where).items():
        table = table[table[column] == value]
    assert len(table) == 1
    return table.iloc[0]


@pytest.fixture(scope="module")
def shared(cells: dict[str, AnnData]) -> vx.tl.PerturbationEvaluation:
    return vx.tl.evaluate_perturbation(
        cells["predicted"], cells["drug"], cells["ctrl"], groupby="group", split_controls=False, **FAST
    )


def test_scores_agree_with_their_definitions(cells: dict[str, AnnData], shared: vx.tl.PerturbationEvaluation) -> None:
    log = {
        name: vx.metrics.log1p_normalized(adata[adata.obs["group"] == "a"].X).toarray() for name, adata in cells.items()
    }
    p, m, c = (log[name].mean(0) for name in ("predicted", "drug", "ctrl"))
    t = vx.metrics.welch_t(log["drug"], log["ctrl"])
    top = np.argsort(-np.abs(t), kind="stable")[:10]
    plain, weighted = (vx.metrics.change_scores(p - c, m - c, weights_g=w) for w in (None, vx.metrics.de_weights(t)))
    listed = vx.metrics.change_scores((p - c)[top], (m - c)[top])
    expected = {
        ("r2_mean", "all"): r2_score(m, p),
        ("pearson2_mean", "all"): np.corrcoef(m, p)[0, 1] ** 2,
        ("mse_mean", "top10"): ((m - p)[top] ** 2).mean(),
        ("pearson_change", "all"): plain.pearson,
        ("pearson2_change", "all"): plain.pearson**2,
        ("r2_change", "all"): plain.r2,
        ("mse_change", "all"): plain.mse,
        ("slope_change", "all"): plain.slope,
        ("r2_change", "top10"): listed.r2,
        ("sign_agreement", "top10"): listed.sign_agreement,
        ("weighted_r2_change", "all"): weighted.r2,
        ("weighted_mse_change", "all"): weighted.mse,
        ("r2_sd", "all"): r2_score(log["drug"].std(0, ddof=1), log["predicted"].std(0, ddof=1)),
        ("energy_distance", "all"): vx.metrics.energy_distance(log["drug"], log["predicted"]),
        ("mmd", "top10"): vx.metrics.mmd(log["drug"][:, top], log["predicted"][:, top]),
        ("deg_overlap", "top10"): vx.metrics.deg_overlap(p - c, m - c, 10, error_g=_error(log["drug"], log["ctrl"])),
    }
    for (measure, genes), value in expected.items():
        assert _row(shared, measure, genes)["score"] == pytest.approx(value, rel=1e-6), (measure, genes)


def _error(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sqrt(x.var(0, ddof=1) / len(x) + y.var(0, ddof=1) / len(y))


def test_each_group_has_its_own_controls(cells: dict[str, AnnData], shared: vx.tl.PerturbationEvaluation) -> None:
    for group in ("a", "b"):
        changes = shared.changes[(shared.changes["group"] == group) & (shared.changes["kind"] == "prediction")]
        np.testing.assert_allclose(changes["measured"], _mean(cells["drug"], group) - _mean(cells["ctrl"], group))
        np.testing.assert_allclose(changes["predicted"], _mean(cells["predicted"], group) - _mean(cells["ctrl"], group))
    assert shared.scores("r2_change").loc["prediction", "score"] == pytest.approx(
        np.mean([_row(shared, "r2_change", group=group)["score"] for group in ("a", "b")])
    )


def test_controls_travel_with_the_prediction_and_the_prediction_names_its_columns(cells: dict[str, AnnData]) -> None:
    predicted = cells["predicted"].copy()
    predicted.uns["perturbation"] = {
        "params": {"groupby": "group", "perturbation_key": "drug", "control": "ctrl", "method": "shift"}
    }
    observed = ad.concat([cells["drug"], cells["other"]])
    given = vx.tl.evaluate_perturbation(
        {"shift": cells["predicted"]}, cells["drug"], cells["ctrl"], groupby="group", **FAST
    )
    found = vx.tl.evaluate_perturbation(predicted, observed, **FAST)
    pd.testing.assert_series_equal(found.table["score"], given.table["score"])
    # a control of other perturbations is narrowed down to its label
    whole = vx.tl.evaluate_perturbation(predicted, observed, ad.concat([cells["ctrl"], cells["other"]]), **FAST)
    pd.testing.assert_series_equal(whole.table["score"], given.table["score"])
    assert set(found.table["target"]) == {"drug"}
    assert list(found.verdicts) == ["shift"]


def test_a_good_prediction_is_better_a_reversed_one_worse_and_an_equal_one_undecided(
    cells: dict[str, AnnData],
) -> None:
    change = pd.DataFrame({g: _mean(cells["drug"], g) - _mean(cells["ctrl"], g) for g in "ab"}, index=GENES).T
    methods = {"good": cells["predicted"], "wrong": cells["other"], "again": cells["predicted"].copy()}
    result = vx.tl.evaluate_perturbation(
        methods, cells["drug"], cells["ctrl"], groupby="group", floors={"some": 0.3 * change}, **FAST
    )
    scores = result.scores()
    assert scores.loc["good", "verdict"] == "better"
    assert scores.loc["good", "floor"] == "some"
    assert scores.loc["wrong", "verdict"] == "worse"
    assert "is better than the best floor, some" in result.verdicts["good"]
    assert "is worse than the best floor, some" in result.verdicts["wrong"]
    assert 0.5 < scores.loc["good", "calibrated"] < 1.5
    assert scores.loc["good", "score"] == scores.loc["again", "score"]
    equal = vx.tl.evaluate_perturbation(
        cells["predicted"], cells["drug"], cells["ctrl"], groupby="group", floors={"same": cells["predicted"]}, **FAST
    )
    assert equal.scores().loc["prediction", "verdict"] == "undecided"
    assert equal.scores().loc["prediction", "difference"] == 0


def test_better_must_hold_against_every_floor(cells: dict[str, AnnData]) -> None:
    change = pd.DataFrame({g: _mean(cells["drug"], g) - _mean(cells["ctrl"], g) for g in "ab"}, index=GENES).T
    result = vx.tl.evaluate_perturbation(
        cells["predicted"], cells["drug"], cells["ctrl"], groupby="group", floors={"truth": change}, **FAST
    )
    assert result.scores().loc["prediction", "verdict"] != "better"
    assert result.scores().loc["prediction", "floor"] == "truth"


def test_floors_are_read_from_the_prediction_tables_and_arrays_alike(cells: dict[str, AnnData]) -> None:
    rng = np.random.default_rng(5)
    change = pd.DataFrame(rng.normal(0, 0.2, (2, N_GENES)), index=["b", "a"], columns=GENES)
    stored = cells["predicted"].copy()
    stored.uns["perturbation"] = {
        "params": {"groupby": "group"},
        "groups": np.array(["b", "a"]),
        "genes": np.array(GENES, dtype=object),
        "floors": {"f": change.to_numpy(), "absent": np.full((2, N_GENES), np.nan)},
    }
    table = {"f": change[GENES[::-1]]}
    array = {"f": change.loc[["a", "b"]].to_numpy()}
    results = [
        vx.tl.evaluate_perturbation(predicted, cells["drug"], cells["ctrl"], groupby="group", floors=floors, **FAST)
        for predicted, floors in ((stored, None), (cells["predicted"], table), (cells["predicted"], array))
    ]
    for result in results:
        floors = result.table[result.table["kind"] == "floor"]
        assert set(floors["method"]) == {"control", "f"}
        pd.testing.assert_frame_equal(result.table, results[0].table)


def _stating(cells: dict[str, AnnData]) -> AnnData:
    """Predicted cells that state a change, as predict_perturbation writes it."""
    rng = np.random.default_rng(7)
    stored = cells["predicted"].copy()
    totals = [float(stored.X[(stored.obs["group"] == group).to_numpy()].sum()) for group in "ab"]
    stored.layers["control"] = cells["ctrl"].X[: stored.n_obs]
    stored.obs["library_size"] = np.asarray(stored.layers["control"].sum(1)).ravel()
    stored.uns["perturbation"] = {
        "params": {"groupby": "group"},
        "groups": np.array(["a", "b"]),
        "genes": np.array(GENES, dtype=object),
        "change": rng.normal(0, 0.2, (2, N_GENES)),
        "molecules": np.array(totals),
        "floors": {"f": rng.normal(0, 0.2, (2, N_GENES))},
    }
    return stored


def test_stored_changes_follow_a_new_order_of_genes(cells: dict[str, AnnData]) -> None:
    stored = _stating(cells)
    straight, turned = (
        vx.tl.evaluate_perturbation(predicted, cells["drug"], cells["ctrl"], **FAST).changes
        for predicted in (stored, stored[:, ::-1].copy())
    )
    order = ["group", "kind", "method", "gene"]
    columns = [*order, "predicted", "measured"]
    pd.testing.assert_frame_equal(
        straight.sort_values(order)[columns].reset_index(drop=True),
        turned.sort_values(order)[columns].reset_index(drop=True),
    )
    own = straight[(straight["kind"] == "prediction") & (straight["group"] == "a")].set_index("gene")["predicted"]
    np.testing.assert_allclose(own[list(GENES)], stored.uns["perturbation"]["change"][0])
    # genes that are left out change the sums, which are another scale than that of the floors
    with pytest.raises(ValueError, match="library_key='library_size'"):
        vx.tl.evaluate_perturbation(stored[:, :20].copy(), cells["drug"], cells["ctrl"], **FAST)


def test_no_change_as_the_only_floor_is_a_warning(cells: dict[str, AnnData], warned: list[str]) -> None:
    given = cells["predicted"], cells["drug"], cells["ctrl"]
    vx.tl.evaluate_perturbation(*given, groupby="group", floors={"some": np.full(N_GENES, 0.1)}, **FAST)
    assert not any("only floor" in message for message in warned)
    vx.tl.evaluate_perturbation(*given, groupby="group", **FAST)
    assert sum("only floor is 'control'" in message for message in warned) == 1


def test_a_shift_of_the_mean_is_a_floor_as_cells_and_as_a_change(cells: dict[str, AnnData]) -> None:
    log = [adata.copy() for adata in (cells["predicted"], cells["drug"], cells["ctrl"])]
    for adata in log:
        adata.X = vx.metrics.log1p_normalized(adata.X)
    change = np.random.default_rng(6).normal(0, 0.2, N_GENES)
    moved = log[2].copy()
    moved.X = sparse.csr_matrix(moved.X.toarray() + change)
    moved.obs["source_cell"] = moved.obs_names
    result = vx.tl.evaluate_perturbation(
        *log, groupby="group", log_transformed=True, floors={"cells": moved, "change": change}, **FAST
    )
    for measure in ("weighted_r2_change", "r2_mean", "r2_sd"):
        found = result.scores(measure)["score"]
        assert found["cells"] == pytest.approx(found["change"]), measure
    counts = vx.tl.evaluate_perturbation(cells["predicted"], cells["drug"], cells["ctrl"], groupby="group", **FAST)
    assert counts.scores().loc["prediction", "score"] == pytest.approx(result.scores().loc["prediction", "score"])


def test_several_targets_are_ranked_and_one_prediction_for_all_ranks_as_chance(
    rates: dict[str, np.ndarray],
) -> None:
    rng = np.random.default_rng(8)
    base = rates["ctrl"]
    names = ["gene0", "t1", "t2+gene5", "t3"]
    factors = {name: np.exp(rng.normal(0, 0.6, N_GENES)) for name in names}
    control = _counts(rng, base, 60, drug="ctrl")
    observed = ad.concat([_counts(rng, base * factors[name], 60, drug=name) for name in names])
    good = [_counts(rng, base * factors[name], 60, drug=name) for name in names]
    same = [good[0].copy() for _ in names]
    for adata, name in zip(same, names, strict=True):
        adata.obs["drug"] = name
    result = vx.tl.evaluate_perturbation(
        {"good": good, "same": same}, observed, control, perturbation_key="drug", **FAST
    )
    rank = result.scores("rank")
    assert rank.loc["good", "score"] == 1
    assert rank.loc["same", "score"] == pytest.approx(5 / 8)
    assert rank.loc["good", "ceiling"] > 0.95
    assert rank.loc["control", "score"] == pytest.approx(5 / 8)


def test_cells_of_another_library_need_its_column(cells: dict[str, AnnData]) -> None:
    whole = [adata.copy() for adata in (cells["predicted"], cells["drug"], cells["ctrl"])]
    for adata in whole:
        adata.obs["n"] = np.asarray(adata.X.sum(1)).ravel()
    few = [adata[:, :20].copy() for adata in whole]
    full = vx.tl.evaluate_perturbation(*whole, groupby="group", library_key="n", **FAST)
    part = vx.tl.evaluate_perturbation(*few, groupby="group", library_key="n", **FAST)
    changes = full.changes[full.changes["gene"].isin(GENES[:20])]["measured"]
    np.testing.assert_allclose(part.changes["measured"], changes)
    # genes that were not predicted are not compared
    subset = vx.tl.evaluate_perturbation(few[0], whole[1], whole[2], groupby="group", library_key="n", **FAST)
    pd.testing.assert_frame_equal(subset.changes, part.changes)


def test_the_result_is_a_function_of_the_seed_and_inputs_stay_as_they_are(cells: dict[str, AnnData]) -> None:
    before = {name: adata.copy() for name, adata in cells.items()}
    runs = [
        vx.tl.evaluate_perturbation(cells["predicted"], cells["drug"], cells["ctrl"], groupby="group", rng=rng, **FAST)
        for rng in (3, np.random.default_rng(3), 4)
    ]
    pd.testing.assert_frame_equal(runs[0].table, runs[1].table)
    assert not runs[0].table["low"].equals(runs[2].table["low"])
    for name, adata in cells.items():
        assert (adata.X != before[name].X).nnz == 0
        pd.testing.assert_frame_equal(adata.obs, before[name].obs)


def test_the_result_can_be_written_to_a_file(tmp_path: Path, cells: dict[str, AnnData]) -> None:
    methods = {"a/b": cells["predicted"]}
    result = vx.tl.evaluate_perturbation(methods, cells["drug"], cells["ctrl"], groupby="group", **FAST)
    adata = AnnData(np.ones((1, 1)), uns={"evaluation": result.to_uns()})
    adata.write_h5ad(tmp_path / "e.h5ad")
    read = ad.read_h5ad(tmp_path / "e.h5ad").uns["evaluation"]
    np.testing.assert_allclose(read["table"]["score"], result.table["score"])
    assert read["verdicts"]["method"].tolist() == ["a/b"]
    assert "a/b" in repr(result)
    assert "a/b" in result._repr_html_()


def _drop_layer(adata: AnnData) -> AnnData:
    out = adata.copy()
    del out.layers["control"]
    return out


BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "no controls": (lambda c: ((_drop_layer(c["predicted"]), c["drug"]), {}), ValueError, "control= was not given"),
    "treated controls": (
        lambda c: ((c["predicted"], c["drug"], ad.concat([c["ctrl"], c["drug"]])), {"perturbation_key": "drug"}),
        ValueError,
        "control cells only",
    ),
    "column": (lambda c: ((c["predicted"], c["drug"], c["ctrl"]), {"groupby": "cluster"}), KeyError, "cluster"),
    "columns": (
        lambda c: ((c["predicted"], c["drug"], c["ctrl"]), {"groupby": ["group"]}),
        TypeError,
        "name of a column",
    ),
    "genes": (lambda c: ((c["predicted"], c["drug"][:, :5], c["ctrl"]), {}), KeyError, "lack 55 of the 60"),
    "log values as counts": (
        lambda c: ((c["predicted"], AnnData(c["drug"].X / 3, c["drug"].obs, c["drug"].var), c["ctrl"]), {}),
        ValueError,
        "not whole numbers",
    ),
    "counts as log values": (
        lambda c: ((c["predicted"], c["drug"], c["ctrl"]), {"log_transformed": True}),
        ValueError,
        "look like counts",
    ),
    "few cells": (lambda c: ((c["predicted"], c["drug"][:5], c["ctrl"]), {}), ValueError, "fewer than 10"),
    "no such group": (
        lambda c: ((c["predicted"], c["other"], c["ctrl"]), {"perturbation_key": "drug"}),
        ValueError,
        "No treated cell",
    ),
    "measure": (lambda c: ((c["predicted"], c["drug"], c["ctrl"]), {"measure": "r2"}), ValueError, "choose one of"),
    "floors": (lambda c: ((c["predicted"], c["drug"], c["ctrl"]), {"floors": [1]}), TypeError, "mapping of names"),
    "shape of a floor": (
        lambda c: ((c["predicted"], c["drug"], c["ctrl"]), {"floors": {"f": np.ones(3)}}),
        ValueError,
        "a change for each of 60 genes",
    ),
    "no prediction": (lambda c: (({}, c["drug"], c["ctrl"]), {}), ValueError, "at least one method"),
    "no cells": (lambda c: ((c["predicted"][:0], c["drug"], c["ctrl"]), {}), ValueError, "has 0 cells"),
    "no treated cells": (lambda c: ((c["predicted"], None, c["ctrl"]), {}), TypeError, "observed= holds a NoneType"),
    "text as a floor": (
        lambda c: ((c["predicted"], c["drug"], c["ctrl"]), {"floors": {"f": ["a"] * N_GENES}}),
        TypeError,
        "does not hold numbers",
    ),
    "path": (lambda c: (("cells.h5ad", c["drug"], c["ctrl"]), {}), TypeError, "AnnData is expected"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_names_what_is_expected(name: str, cells: dict[str, AnnData]) -> None:
    make, error, message = BAD[name]
    args, kwargs = make(cells)
    with pytest.raises(error, match=message):
        vx.tl.evaluate_perturbation(*args, **(FAST | kwargs))


@pytest.mark.parametrize(
    ("measure", "genes", "said"),
    [
        ("pearson", None, "the measures are"),
        ("pearson_change", "top7", "it has ['all',"),
        ("rank", None, "the measures are"),
    ],
)
def test_an_unknown_measure_names_the_known_ones_once(
    shared: vx.tl.PerturbationEvaluation, measure: str, genes: str | None, said: str
) -> None:
    with pytest.raises(KeyError) as raised:
        shared.scores(measure, genes)
    message = raised.value.args[0]
    assert said in message
    assert message.count("'r2_sd'") == (said == "the measures are")


def test_groups_of_few_cells_are_left_out(cells: dict[str, AnnData]) -> None:
    few = cells["drug"][np.r_[0:50, 50:55]]
    result = vx.tl.evaluate_perturbation(cells["predicted"], few, cells["ctrl"], groupby="group", **FAST)
    assert set(result.table["group"]) == {"a"}


def test_cells_without_a_group_are_left_out(cells: dict[str, AnnData]) -> None:
    parts = {name: adata.copy() for name, adata in cells.items()}
    for adata in parts.values():
        adata.obs["group"] = adata.obs["group"].where(adata.obs["group"] == "a")
    few = [parts[name] for name in ("predicted", "drug", "ctrl")]
    found = vx.tl.evaluate_perturbation(*few, groupby="group", **FAST)
    assert set(found.table["group"]) == {"a"}
    only = [adata[adata.obs["group"] == "a"] for adata in few]
    alone = vx.tl.evaluate_perturbation(*only, groupby="group", **FAST)
    np.testing.assert_allclose(found.changes["measured"], alone.changes["measured"])


def test_a_single_predicted_profile_is_scored(cells: dict[str, AnnData]) -> None:
    one = cells["predicted"][cells["predicted"].obs["group"] == "a"][:1].copy()
    one.X = sparse.csr_matrix(cells["drug"][cells["drug"].obs["group"] == "a"].X.mean(0))
    result = vx.tl.evaluate_perturbation(one, cells["drug"], cells["ctrl"], groupby="group", **FAST)
    assert _row(result, "pearson_change")["score"] > 0.6
    assert np.isnan(_row(result, "energy_distance")["score"])


@pytest.mark.parametrize("kind", ["dense", "integers", "columns", "view", "file"])
def test_matrices_of_every_kind_give_the_same_scores(kind: str, cells: dict[str, AnnData], tmp_path: Path) -> None:
    given = [cells[name].copy() for name in ("predicted", "drug", "ctrl")]
    expected = vx.tl.evaluate_perturbation(*given, groupby="group", **FAST)
    for i, adata in enumerate(given):
        if kind == "view":
            given[i] = adata[:, ::1]
        elif kind == "file":
            adata.write_h5ad(tmp_path / f"{i}.h5ad")
            given[i] = ad.read_h5ad(tmp_path / f"{i}.h5ad", backed="r")
        else:
            dense = adata.X.toarray()
            adata.X = {"dense": dense, "integers": dense.astype(np.int16), "columns": sparse.csc_matrix(dense)}[kind]
    found = vx.tl.evaluate_perturbation(*given, groupby="group", **FAST)
    pd.testing.assert_series_equal(found.table["score"], expected.table["score"])


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
    assert _row(result, "pearson_change")["score"] > 0.5


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
    stored = _stating(cells | parts)
    # the fit gives cells without molecules the size factor of others
    stored.obs.loc[stored.obs["library_size"] == 0, "library_size"] = stored.obs["library_size"].max()
    np.testing.assert_allclose(_own(stored, cells), stored.uns["perturbation"]["change"][1])
    assert not any("is not scored" in message for message in warned)


@pytest.mark.parametrize("edit", ["emptied", "left out"])
def test_a_stated_change_that_is_not_scored_is_a_warning(
    edit: str, cells: dict[str, AnnData], warned: list[str]
) -> None:
    stored = _stating(cells)
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
