"""The figure of predicted against measured changes shows the numbers of the evaluation."""

from __future__ import annotations

from typing import Any

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from scipy import sparse

import vxpress as vx
from vxpress.pl._colours import MAIN, SECOND

perturbation: Any = vx.pl.perturbation
N_GENES = 40
FLOOR = 0.2


def _cells(rate_g: np.ndarray, seed: int, group: str) -> AnnData:
    x = np.random.default_rng(seed).poisson(rate_g, size=(30, N_GENES)).astype(np.float32)
    obs = pd.DataFrame({"type": [group] * 30}, index=[f"{group}{seed}_{i}" for i in range(30)])
    return AnnData(sparse.csr_matrix(x), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(N_GENES)]))


@pytest.fixture(scope="module")
def evaluation() -> vx.tl.PerturbationEvaluation:
    rng = np.random.default_rng(0)
    base, factor = rng.gamma(2, 5, N_GENES), np.exp(rng.normal(0, 0.8, N_GENES))
    groups = ("a", "b")
    control, observed, good, poor = (
        ad.concat([_cells(base * factor**power, seed + i, group) for i, group in enumerate(groups)])
        for seed, power in ((10, 0), (20, 1), (30, 0.9), (40, -3))
    )
    floor = pd.DataFrame(np.tile(FLOOR * np.log(factor), (2, 1)), index=list(groups), columns=control.var_names)
    return vx.tl.evaluate_perturbation(
        {"good": good, "poor": poor},
        observed,
        control,
        groupby="type",
        floors={"up": floor},
        n_resamples=20,
        n_top=(10,),
    )


def _points(ax: Axes) -> list[np.ndarray]:
    return [np.asarray(part.get_offsets()) for part in ax.collections]


def test_every_method_and_group_has_a_panel_with_its_changes(evaluation: vx.tl.PerturbationEvaluation) -> None:
    axes = perturbation(evaluation, show=False)
    assert [ax.get_title(loc="left").splitlines()[0] for ax in axes] == ["good, a", "poor, a", "good, b", "poor, b"]
    changes = evaluation.changes
    rows = changes[(changes["method"] == "good") & (changes["group"] == "a")]
    points = _points(axes[0])[0]
    expected = rows[["measured", "predicted"]].to_numpy()
    np.testing.assert_allclose(points[np.lexsort(points.T)], expected[np.lexsort(expected.T)])
    assert isinstance(axes[0].figure.figure, Figure)
    plt.close("all")


def test_the_most_changed_genes_are_coloured_and_named(evaluation: vx.tl.PerturbationEvaluation) -> None:
    ax = perturbation(evaluation, "good", "a", n_top=12, n_genes=4, show=False)
    changes = evaluation.changes
    rows = changes[(changes["method"] == "good") & (changes["group"] == "a")].sort_values("rank")
    colours = ax.collections[0].get_facecolors()
    counts = [int((colours == to_rgba(colour)).all(1).sum()) for colour in (SECOND, MAIN)]
    assert counts == [int((rows["measured"][:12] > 0).sum()), int((rows["measured"][:12] < 0).sum())]
    assert {text.get_text() for text in ax.texts} == set(rows["gene"][:4])
    assert rows["t"].abs().is_monotonic_decreasing
    plt.close("all")


def test_the_best_floor_and_the_ceiling_are_marked(evaluation: vx.tl.PerturbationEvaluation) -> None:
    ax = perturbation(evaluation, "good", "a", n_top=12, n_genes=0, show=False)
    table = evaluation.table
    score = table[
        (table["method"] == "good") & (table["group"] == "a") & (table["measure"] == "weighted_r2_change")
    ].iloc[0]
    assert score["floor"] == "up"
    floor = evaluation.changes.query("method == 'up' and group == 'a'").sort_values("rank")["predicted"][:12]
    np.testing.assert_allclose(np.sort(_points(ax)[-1][:, 1]), np.sort(floor))
    assert len(_points(ax)[-1]) == 12
    (bar,) = ax.child_axes
    assert [text.get_text() for text in bar.texts] == [
        f"floor {score['floor_score']:.2f}",
        f"ceiling {score['ceiling']:.2f}",
    ]
    assert f"{score['score']:.2f}, {score['verdict']}" in ax.get_title(loc="left").replace("\n", " ")
    plt.close("all")


def test_changes_far_beyond_the_measured_ones_are_drawn_at_the_edge(
    evaluation: vx.tl.PerturbationEvaluation,
) -> None:
    ax = perturbation(evaluation, "poor", "a", n_genes=0, show=False)
    rows = evaluation.changes.query("method == 'poor' and group == 'a'")
    low, high = ax.get_ylim()
    outside = (rows["predicted"] < low) | (rows["predicted"] > high)
    assert outside.any()
    assert sum(len(part) for part in _points(ax)[:-1]) == N_GENES
    for part in _points(ax):
        assert ((part[:, 1] >= low) & (part[:, 1] <= high)).all()
    plt.close("all")


def test_a_floor_can_be_drawn_and_axes_are_used(evaluation: vx.tl.PerturbationEvaluation) -> None:
    figure, axes = plt.subplots(1, 2)
    found = perturbation(evaluation, "up", ["b", "a"], ax=list(axes), show=False)
    assert [ax.figure for ax in found] == [figure, figure]
    floor = evaluation.changes.query("method == 'up' and group == 'a'")["predicted"]
    np.testing.assert_allclose(np.sort(_points(axes[0])[0][:, 1]), np.sort(floor))
    assert perturbation(evaluation, "up", "a", return_fig=True, figsize=(3, 3)).get_size_inches().tolist() == [3, 3]
    plt.close("all")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "best"}, KeyError, "not in the evaluation"),
        ({"group": "c"}, KeyError, "found: \\['a', 'b'\\]"),
        ({"n_top": -1}, ValueError, "n_top"),
        ({"ax": 3}, TypeError, "Axes"),
    ],
)
def test_bad_arguments_are_named(
    evaluation: vx.tl.PerturbationEvaluation, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        perturbation(evaluation, **arguments, show=False)
    assert not plt.get_fignums()


def test_anything_but_an_evaluation_is_refused(evaluation: vx.tl.PerturbationEvaluation) -> None:
    with pytest.raises(TypeError, match="evaluate_perturbation"):
        perturbation(evaluation.table)
