"""The pair of AnnDatas for cell-eval: its own numbers are those of the evaluation with shared controls."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

import vxpress as vx

GENES = [f"g{i}" for i in range(30)]
TARGETS = ["g3", "drug", "other"]
# computed by cell-eval 0.8.2 from the pair below, as test_cell_eval_computes_these_numbers does where it is installed
RECORDED = {
    "pearson_delta": {"drug": 0.179258555, "g3": 0.540310442, "other": 0.321235627},
    "mse": {"drug": 5.56475496, "g3": 2.11598754, "other": 3.85522389},
    "mse_delta": {"drug": 5.56475496, "g3": 2.11598754, "other": 3.85522389},
    "discrimination_score_l1": {"drug": 0.333333333, "g3": 0.666666667, "other": 0.666666667},
}
OURS = {
    "pearson_delta": "pearson_change",
    "mse": "mse_mean",
    "mse_delta": "mse_change",
    "discrimination_score_l1": "rank",
}


def _cells(n: int, step: int, **obs: str) -> AnnData:
    """Counts made by whole-number arithmetic, so that recorded numbers hold for every random number generator."""
    i, j = np.arange(n)[:, None], np.arange(len(GENES))[None]
    x = (i * 7 + j * (3 + step) + i * j * (1 + step)) % (5 + (j + step) % 4)
    frame = pd.DataFrame({name: [value] * n for name, value in obs.items()}, index=[f"{obs}_{k}" for k in range(n)])
    return AnnData(sparse.csr_matrix(x.astype(np.float32)), obs=frame, var=pd.DataFrame(index=GENES))


@pytest.fixture(scope="module")
def cells() -> dict[str, AnnData]:
    observed = ad.concat([_cells(20 + k, k + 1, pert=name) for k, name in enumerate(TARGETS)])
    predicted = ad.concat([_cells(24, step, pert=name) for step, name in zip((3, 1, 6), TARGETS, strict=True)])
    return {"control": _cells(30, 0, pert="ctrl"), "observed": observed, "predicted": predicted}


def _pair(cells: dict[str, AnnData]) -> tuple[AnnData, AnnData]:
    return vx.tl.cell_eval_pair(cells["predicted"], cells["observed"], cells["control"], perturbation_key="pert")


def test_both_hold_the_same_controls_on_the_scale_of_cell_eval(cells: dict[str, AnnData]) -> None:
    pred, real = _pair(cells)
    log = {name: vx.metrics.log1p_normalized(adata.X).toarray() for name, adata in cells.items()}
    for adata, name in ((pred, "predicted"), (real, "observed")):
        assert adata.var_names.tolist() == GENES
        assert adata.obs_names.is_unique
        controls = (adata.obs["pert"] == "control").to_numpy()
        np.testing.assert_allclose(adata.X[controls].toarray(), log["control"], rtol=1e-6)
        np.testing.assert_allclose(adata.X[~controls].toarray(), log[name], rtol=1e-6)
        assert set(adata.obs["pert"]) == {*TARGETS, "control"}
        # cell-eval takes whole numbers for counts, and values from 15 on for a mixture
        assert (np.modf(adata.X.data)[0] > 1e-3).any()
        assert adata.X.max() < 15


def test_groups_and_the_label_of_the_control_travel_along(cells: dict[str, AnnData]) -> None:
    parts = {name: adata.copy() for name, adata in cells.items()}
    for adata in parts.values():
        adata.obs["type"] = np.where(np.arange(adata.n_obs) % 2, "a", "b")
    parts["predicted"].uns["perturbation"] = {
        "params": {"groupby": "type", "perturbation_key": "pert", "control": "ctrl"}
    }
    only = parts["observed"][parts["observed"].obs["pert"] != "drug"]
    pred, real = vx.tl.cell_eval_pair(parts["predicted"], only, parts["control"])
    for adata in (pred, real):
        assert pd.crosstab(adata.obs["type"], adata.obs["pert"]).gt(0).all().all()
        assert set(adata.obs["pert"]) == {"g3", "other", "ctrl"}


def test_scores_with_shared_controls_are_the_recorded_ones_of_cell_eval(cells: dict[str, AnnData]) -> None:
    _check(_ours(cells), RECORDED)


def _ours(cells: dict[str, AnnData]) -> dict[str, dict[str, float]]:
    result = vx.tl.evaluate_perturbation(
        cells["predicted"],
        cells["observed"],
        cells["control"],
        perturbation_key="pert",
        split_controls=False,
        n_resamples=20,
        n_top=(5,),
    )
    table = result.table[(result.table["kind"] == "prediction") & (result.table["genes"] == "all")]
    return {
        theirs: table[table["measure"] == ours].set_index("target")["score"].to_dict() for theirs, ours in OURS.items()
    }


def _check(ours: dict[str, dict[str, float]], theirs: dict[str, dict[str, float]]) -> None:
    assert set(theirs) == set(OURS)
    for name, scores in theirs.items():
        assert set(scores) == set(TARGETS)
        for target, value in scores.items():
            # cell-eval computes in single precision
            assert ours[name][target] == pytest.approx(value, rel=1e-4, abs=1e-6), (name, target)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_cell_eval_computes_these_numbers(tmp_path: Path, cells: dict[str, AnnData]) -> None:
    cell_eval = pytest.importorskip("cell_eval", reason="cell-eval, the package of the Virtual Cell Challenge")
    pred, real = _pair(cells)
    evaluator = cell_eval.MetricsEvaluator(
        pred, real, control_pert="control", pert_col="pert", num_threads=1, outdir=str(tmp_path), skip_de=True
    )
    results = evaluator.compute(profile="anndata", write_csv=False, skip_metrics=["clustering_agreement"])[0]
    table = results.to_pandas().set_index("perturbation")
    theirs = {name: table[name].to_dict() for name in OURS}
    _check(_ours(cells), theirs)
    _check(theirs, RECORDED)


def test_several_methods_and_predicted_log_values_are_refused(cells: dict[str, AnnData]) -> None:
    real = cells["observed"], cells["control"]
    methods = {"one": cells["predicted"], "two": cells["predicted"]}
    with pytest.raises(ValueError, match="make one pair for each method"):
        vx.tl.cell_eval_pair(methods, *real, perturbation_key="pert")
    log = cells["predicted"].copy()
    log.X = vx.metrics.log1p_normalized(log.X)
    with pytest.raises(ValueError, match="looks log-transformed"):
        vx.tl.cell_eval_pair(log, *real, perturbation_key="pert")
