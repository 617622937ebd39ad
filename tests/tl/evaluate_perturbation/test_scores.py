"""Scores against their definitions, floors and verdicts."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse
from sklearn.metrics import r2_score

import vxpress as vx

from ._cells import FAST, GENES, N_GENES, counts, mean, row, stating


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
        assert row(shared, measure, genes)["score"] == pytest.approx(value, rel=1e-6), (measure, genes)


def _error(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sqrt(x.var(0, ddof=1) / len(x) + y.var(0, ddof=1) / len(y))


def test_each_group_has_its_own_controls(cells: dict[str, AnnData], shared: vx.tl.PerturbationEvaluation) -> None:
    for group in ("a", "b"):
        changes = shared.changes[(shared.changes["group"] == group) & (shared.changes["kind"] == "prediction")]
        np.testing.assert_allclose(changes["measured"], mean(cells["drug"], group) - mean(cells["ctrl"], group))
        np.testing.assert_allclose(changes["predicted"], mean(cells["predicted"], group) - mean(cells["ctrl"], group))
    assert shared.scores("r2_change").loc["prediction", "score"] == pytest.approx(
        np.mean([row(shared, "r2_change", group=group)["score"] for group in ("a", "b")])
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
    change = pd.DataFrame({g: mean(cells["drug"], g) - mean(cells["ctrl"], g) for g in "ab"}, index=GENES).T
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
    change = pd.DataFrame({g: mean(cells["drug"], g) - mean(cells["ctrl"], g) for g in "ab"}, index=GENES).T
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


def test_stored_changes_follow_a_new_order_of_genes(cells: dict[str, AnnData]) -> None:
    stored = stating(cells)
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
    control = counts(rng, base, 60, drug="ctrl")
    observed = ad.concat([counts(rng, base * factors[name], 60, drug=name) for name in names])
    good = [counts(rng, base * factors[name], 60, drug=name) for name in names]
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
