"""The volcano plot shows the numbers of the ranking, written by any function."""

from __future__ import annotations

import itertools
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import scanpy as sc
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.text import Text

import vxpress as vx
from vxpress.pl._colours import MAIN, SECOND

PALE = "#d9d9d9"
volcano: Any = vx.pl.volcano


@pytest.fixture
def ranked(adata: AnnData) -> AnnData:
    sc.pp.normalize_total(adata, target_sum=1e3)
    sc.pp.log1p(adata)
    sc.tl.rank_genes_groups(adata, "group", method="t-test")
    return adata


def groups(adata: AnnData) -> list[str]:
    return list(adata.uns["rank_genes_groups"]["names"].dtype.names)


def points(ax: Axes) -> np.ndarray:
    return np.concatenate([np.asarray(part.get_offsets()) for part in ax.collections])


def colors(ax: Axes) -> np.ndarray:
    return np.concatenate([part.get_facecolors() for part in ax.collections])  # type: ignore[attr-defined]


def hand_made(change: list[float], **fields: list[float]) -> AnnData:
    """Build a ranking of the group "a" in scanpy's format."""
    adata = AnnData(np.zeros((2, len(change)), dtype=np.float32))
    names = [f"g{i}" for i in range(len(change))]
    record = lambda values, kind: np.rec.fromarrays([np.array(values)], dtype=[("a", kind)])
    adata.uns["rank_genes_groups"] = {
        "params": {"reference": "b"},
        "names": record(names, "O"),
        "logfoldchanges": record(change, "f4"),
        **{name: record(values, "f8") for name, values in fields.items()},
    }
    return adata


def test_points_are_scanpys_numbers(ranked):
    group = groups(ranked)[1]
    table = {name: ranked.uns["rank_genes_groups"][name][group] for name in ("logfoldchanges", "pvals_adj")}
    ax = volcano(ranked, group, show=False)
    np.testing.assert_allclose(points(ax)[:, 0], table["logfoldchanges"], rtol=1e-6)
    np.testing.assert_allclose(points(ax)[:, 1], -np.log10(table["pvals_adj"]), rtol=1e-6)
    assert ax.get_ylabel() == "-log10 adjusted p-value"


def test_genes_beyond_both_thresholds_are_coloured_by_side():
    adata = hand_made([2, -2, 2, 0.5], pvals_adj=[1e-3, 1e-4, 0.2, 1e-9])
    ax = volcano(adata, show=False)
    np.testing.assert_allclose(colors(ax), [to_rgba(c) for c in (SECOND, MAIN, PALE, PALE)])
    assert {text.get_text() for text in ax.texts} == {"g0", "g1"}
    assert ax.get_title(loc="left") == "a against b"
    everything = volcano(adata, max_pval=1.0, min_logfoldchange=0.0, show=False)
    assert len(everything.texts) == 4


def test_the_highest_genes_are_labelled_and_the_larger_change_breaks_ties():
    adata = hand_made([2, 3, 4, 5], pvals_adj=[1e-9, 1e-3, 1e-9, 1e-2])
    ax = volcano(adata, n_genes=1, show=False)
    assert [text.get_text() for text in ax.texts] == ["g2"]
    assert not volcano(adata, n_genes=0, show=False).texts


def test_p_values_of_zero_are_drawn_above_all_others():
    adata = hand_made([2, 3], pvals_adj=[0.0, 1e-20])
    ax = volcano(adata, show=False)
    assert len(ax.collections) == 2
    heights = dict(points(ax))
    assert heights[2.0] > heights[3.0] == pytest.approx(20)


def test_without_p_values_height_is_the_size_of_the_score():
    adata = hand_made([2, -3, 0.1], scores=[5.0, -7.0, 9.0])
    ax = volcano(adata, show=False)
    np.testing.assert_allclose(points(ax)[:, 1], [5, 7, 9])
    assert ax.get_ylabel() == "score"
    assert {text.get_text() for text in ax.texts} == {"g0", "g1"}
    assert [text.get_text() for text in volcano(adata, min_score=6.0, show=False).texts] == ["g1"]


def test_changes_that_are_not_finite_are_left_out_and_counted():
    adata = hand_made([2, np.nan, np.inf], pvals_adj=[0.01, 0.01, 0.01])
    ax = volcano(adata, show=False)
    assert len(points(ax)) == 1
    assert "2 genes" in ax.get_xlabel()


def test_labels_do_not_overlap_and_are_near_their_points():
    rng = np.random.default_rng(0)
    change, height = rng.normal(3.0, 0.5, 25), rng.uniform(1e-12, 1e-10, 25)
    ax = volcano(hand_made(list(change), pvals_adj=list(height)), n_genes=25, show=False)
    ax.figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in ax.texts]
    assert len(boxes) == 25
    for one, other in itertools.combinations(boxes, 2):
        # the bounding box of text is slightly larger than its letters
        width = min(one.x1, other.x1) - max(one.x0, other.x0)
        height_of_both = min(one.y1, other.y1) - max(one.y0, other.y0)
        assert width <= 2 or height_of_both <= 0.35 * one.height
    for text, box in zip(ax.texts, boxes, strict=True):
        n = int(text.get_text()[1:])
        x, y = ax.transData.transform((change[n], -np.log10(height[n])))
        far = np.hypot(max(box.x0 - x, x - box.x1, 0), max(box.y0 - y, y - box.y1, 0)) * 72 / ax.figure.dpi
        assert far < 110


@pytest.mark.parametrize("changes", [[2.0] * 8, [2.0], [-3.0, 3.0]])
def test_every_gene_is_labelled_once(changes):
    ax = volcano(hand_made(changes, pvals_adj=[1e-9] * len(changes)), show=False)
    assert sorted(text.get_text() for text in ax.texts) == [f"g{i}" for i in range(len(changes))]


def test_a_change_far_beyond_the_others_is_drawn_at_the_edge_and_counted():
    ax = volcano(hand_made([2.0, -2.5, -28.0], pvals_adj=[1e-3, 1e-4, 0.9]), show=False)
    assert -4 < ax.get_xlim()[0] < -3
    assert "(1 beyond ±3.12 are drawn at the edge)" in ax.get_xlabel()
    assert min(points(ax)[:, 0]) == pytest.approx(-1.25 * np.quantile([2, 2.5], 0.99))
    assert len(ax.collections) == 2


def test_genes_can_be_labelled_by_a_column(ranked):
    ranked.var["symbol"] = [f"S{i}" for i in range(ranked.n_vars)]
    ax = volcano(ranked, groups(ranked)[0], gene_symbols="symbol", max_pval=1.0, min_logfoldchange=0.0, show=False)
    known = set(ranked.var["symbol"])
    assert ax.texts
    assert {text.get_text() for text in ax.texts} <= known


def test_draws_on_the_given_axes_and_returns_as_scanpy_does(ranked, monkeypatch):
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(True))
    group = groups(ranked)[0]
    _, given = plt.subplots()
    assert volcano(ranked, group, ax=given, show=False) is given
    assert isinstance(volcano(ranked, group, return_fig=True), Figure)
    assert not shown
    assert volcano(ranked, group, show=True) is None
    assert shown == [True]


def test_drawing_changes_nothing(ranked):
    before = ranked.copy()
    volcano(ranked, groups(ranked)[0], show=False)
    assert set(ranked.uns) == set(before.uns)
    for name, values in before.uns["rank_genes_groups"].items():
        if name != "params":
            assert (ranked.uns["rank_genes_groups"][name] == values).all()


def test_bad_input_is_named(ranked):
    with pytest.raises(KeyError, match=r"vx\.tl\.rank_genes_groups"):
        volcano(ranked, key="none", show=False)
    with pytest.raises(ValueError, match="group="):
        volcano(ranked, show=False)
    with pytest.raises(KeyError, match="found"):
        volcano(ranked, "none", show=False)
    with pytest.raises(KeyError, match="gene_symbols"):
        volcano(ranked, groups(ranked)[0], gene_symbols="none", show=False)
    with pytest.raises(ValueError, match="max_pval"):
        volcano(ranked, groups(ranked)[0], max_pval=2, show=False)
    with pytest.raises(ValueError, match="finite"):
        volcano(hand_made([np.nan], pvals_adj=[0.1]), show=False)
    with pytest.raises(TypeError, match="AnnData"):
        volcano(ranked.X, show=False)
    logreg = hand_made([1.0], scores=[1.0])
    del logreg.uns["rank_genes_groups"]["logfoldchanges"]
    with pytest.raises(KeyError, match="logreg"):
        volcano(logreg, show=False)
