"""``vx.pl.volcano``: fold changes of the genes of a group against their significance."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vxpress._checks import check_range
from vxpress._entry import entry
from vxpress._keys import check_name
from vxpress._mudata import MuData
from vxpress._names import find_name
from vxpress.bridge.fits.modalities import takes_mudata
from vxpress.bridge.read.adata import check_anndata
from vxpress.bridge.read.columns import find_column
from vxpress.pl._colours import MAIN, SECOND, Shades
from vxpress.pl._labels import label_points
from vxpress.pl._shared import check_switches, finish, panels, plain, put_legend, titled

# p-values of 0 (below the smallest float) are drawn this far above the others
HEADROOM = 1.06
# fold changes beyond this multiple of the 99th percentile of the coloured ones are drawn at the edge: in scanpy's
# ranking a gene without counts in one group changes by a factor of 2^20 and more, and would compress all others to a
# line
FAR = 1.25
MAX_AVOIDED = 300  # number of points near the top that labels avoid


@entry
@takes_mudata("features")
def volcano(
    adata: AnnData | MuData,
    group: Hashable = None,
    *,
    modality: str | None = None,
    key: str = "rank_genes_groups",
    n_genes: int = 10,
    max_pval: float = 0.05,
    min_score: float | None = None,
    min_logfoldchange: float = 1.0,
    gene_symbols: str | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Draw log fold changes of the genes of a group against their significance, and label the most significant ones.

    The function reads a ranking in the format of :func:`scanpy.tl.rank_genes_groups`, written by any function. The
    height of a gene is -log10 of the adjusted p-value; without one, -log10 of the p-value; without p-values, the
    absolute score.

    Parameters
    ----------
    adata
        Cells with a ranking of genes in ``uns``.
    group
        Group of the ranking; can be left out if there is only one.
    modality
        If ``adata`` is a MuData, the modality whose comparison is drawn, for example ``"protein"``.
    key
        Name of the ranking in ``uns``.
    n_genes
        Number of genes to label: the highest of those beyond both thresholds. If heights are equal, the gene with the
        larger fold change is first.
    max_pval
        Largest (adjusted) p-value that is coloured; 0.05 is conventional. No effect if the ranking has no p-values.
    min_score
        Smallest absolute score that is coloured if the ranking has no p-values; by default there is no such threshold.
    min_logfoldchange
        Smallest absolute log2 fold change that is coloured; 1 is a factor of two.
    gene_symbols
        Column of ``var`` with the labels of genes; by default the names in the ranking.
    figsize
        Width and height of the new figure in inches; by default (6, 4.4).
    ax
        Axes to draw on; by default those of a new figure.
    show
        Whether to show the figure; by default ``sc.settings.autoshow``.
    return_fig
        Whether to return the figure, without showing it.

    Returns
    -------
    ``None`` if shown, the :class:`~matplotlib.figure.Figure` if ``return_fig``, else the
    :class:`~matplotlib.axes.Axes`. Fold changes are log2 and p-values -log10, so neither has a unit. Triangles mark
    p-values of 0 (below the smallest float) and fold changes beyond 1.25 times the 99th percentile of the coloured
    ones, which are drawn at the edge. Genes without a finite fold change are left out. The numbers of genes at the edge
    and left out are written below the axis.

    Raises
    ------
    KeyError
        If ``uns`` has no such ranking, group or column.
    ValueError
        If there are several groups and ``group`` is missing, there is no finite fold change, or an argument is out of
        range.
    TypeError
        If ``ax`` is not an axes.

    Examples
    --------
    >>> import scanpy as sc
    >>> import vxpress as vx
    >>> adata = vx.datasets.pbmc68k_reduced()
    >>> sc.pp.normalize_total(adata, target_sum=1e4)
    >>> sc.pp.log1p(adata)
    >>> sc.tl.rank_genes_groups(adata, "bulk_labels", method="t-test")
    >>> ax = vx.pl.volcano(adata, "CD19+ B", n_genes=3, show=False)
    >>> len(ax.texts)
    3
    """
    check_switches(show=show, return_fig=return_fig)
    check_range("n_genes", n_genes, 0, 1_000, integer=True)
    check_range("max_pval", max_pval, 0.0, 1.0)
    check_range("min_logfoldchange", min_logfoldchange, 0.0, 1e6)
    if min_score is not None:
        check_range("min_score", min_score, 0.0, 1e12)
    ranking = _ranking(adata, key)
    group = _group(ranking, group, key)
    table, label = _table(ranking, group, key)
    n_left_out = int((~np.isfinite(table["change"]) | table["height"].isna()).sum())
    table = table[np.isfinite(table["change"]) & table["height"].notna()].reset_index(drop=True)
    if table.empty:
        msg = f"adata.uns[{key!r}] has no finite log fold change for the group {group!r}; there is nothing to draw."
        raise ValueError(msg)
    if gene_symbols is not None:
        table["gene"] = _symbols(adata, table["gene"], gene_symbols)
    beyond = np.isinf(table["height"])
    highest = table.loc[~beyond, "height"].max() if (~beyond).any() else 300.0
    table.loc[beyond, "height"] = max(highest, 1.0) * HEADROOM
    threshold = min_score if label == "score" else (-np.log10(max_pval) if max_pval > 0 else None)
    passed = (table["change"].abs() >= min_logfoldchange) & (table["height"] >= (threshold or 0.0))

    edge = _edge(table["change"], passed)
    notes = [f"{n_left_out:,} genes without a finite value are left out"] if n_left_out else []
    if n_far := int((table["change"].abs() > edge).sum()):
        notes.append(f"{n_far:,} beyond ±{edge:.3g} are drawn at the edge")
    reference = ranking.get("params", {}).get("reference", "rest")
    with panels(ax, 1, size=(6.0, 4.4), figsize=figsize) as (panel,):
        _draw(panel, table, passed, beyond, edge)
        for x in {-min_logfoldchange, min_logfoldchange}:
            panel.axvline(x, **_line(panel))
        if threshold is not None:
            panel.axhline(threshold, **_line(panel))
        panel.set_xlabel("\n".join(["log2 fold change", *(f"({note})" for note in notes)]))
        panel.set_ylabel(label if label == "score" else f"-log10 {label}")
        titled(panel, f"{group} against {reference}", "left")
        plain(panel)
        _legend(panel, table["change"], passed)
        places = np.column_stack([table["change"].clip(-edge, edge), table["height"]])
        chosen, high = _most_significant(table[passed], n_genes), table["height"].nlargest(MAX_AVOIDED)
        label_points(panel, places[chosen.index], list(chosen["gene"]), places[high.index])
        return finish(panel, show=show, return_fig=return_fig)


def _edge(change: pd.Series, passed: pd.Series) -> float:
    """Return the absolute fold change beyond which genes are drawn at the edge."""
    size = change.abs()
    far = FAR * float(size[passed if passed.any() else slice(None)].quantile(0.99))
    return far if 0 < far < float(size.max()) else float(size.max())


def _line(ax: Axes) -> dict[str, Any]:
    return {"color": Shades.of(ax).quiet, "linewidth": 0.8, "linestyle": "--", "zorder": 0}


def _draw(ax: Axes, table: pd.DataFrame, passed: pd.Series, beyond: pd.Series, edge: float) -> None:
    """Draw points coloured by side; triangles point in the direction of values outside the axes."""
    far, change, height = table["change"].abs() > edge, table["change"].clip(-edge, edge), table["height"]
    colors = np.where(passed, np.where(change > 0, SECOND, MAIN), Shades.of(ax).pale)
    markers = (
        ("o", ~beyond & ~far),
        ("^", beyond),
        (">", far & ~beyond & (change > 0)),
        ("<", far & ~beyond & (change < 0)),
    )
    for marker, chosen in markers:
        if chosen.any():
            ax.scatter(
                change[chosen], height[chosen], s=9 if marker == "o" else 14, c=colors[chosen], marker=marker, lw=0
            )
    ax.margins(y=0.08)
    ax.set_ylim(bottom=min(0.0, height.min()))


def _ranking(adata: AnnData, key: str) -> Mapping[str, Any]:
    check_anndata(adata)
    check_name("key", key)
    ranking = adata.uns.get(key)
    if not isinstance(ranking, Mapping) or "names" not in ranking:
        msg = (
            f"adata.uns[{key!r}] is not a ranking of genes. Make one with vx.tl.rank_genes_groups(adata, 'column of obs'), "
            "or choose another with key=."
        )
        raise KeyError(msg)
    if "logfoldchanges" not in ranking:
        msg = (
            f"adata.uns[{key!r}] has no log fold changes (found: {sorted(ranking)}); method='logreg' writes none. "
            "Rank with method='t-test' or 'wilcoxon'."
        )
        raise KeyError(msg)
    return ranking


def _group(ranking: Mapping[str, Any], group: Hashable, key: str) -> str:
    """Return the given group, or the only one."""
    groups = list(ranking["names"].dtype.names)
    if group is None and len(groups) == 1:
        return str(groups[0])
    if group is None:
        msg = f"adata.uns[{key!r}] ranks {len(groups)} groups; choose one of {groups} with group=."
        raise ValueError(msg)
    name = find_name(group, groups)
    if name is None:
        msg = f"group={group!r} is not in adata.uns[{key!r}] (found: {groups})."
        raise KeyError(msg)
    return name


def _table(ranking: Mapping[str, Any], group: str, key: str) -> tuple[pd.DataFrame, str]:
    """Return name, fold change and height of every gene of the group, and what the height is."""
    change = np.asarray(ranking["logfoldchanges"][group], dtype=np.float64)
    gene = np.asarray(ranking["names"][group]).astype(str)
    for name, label in (("pvals_adj", "adjusted p-value"), ("pvals", "p-value")):
        if name in ranking:
            with np.errstate(divide="ignore"):
                # a p-value of 1 gives a height of 0, not of -0
                height = -np.log10(np.asarray(ranking[name][group], dtype=np.float64)) + 0.0
            return pd.DataFrame({"gene": gene, "change": change, "height": height}), label
    if "scores" not in ranking:
        msg = f"adata.uns[{key!r}] has neither p-values nor scores (found: {sorted(ranking)})."
        raise KeyError(msg)
    height = np.abs(np.asarray(ranking["scores"][group], dtype=np.float64))
    return pd.DataFrame({"gene": gene, "change": change, "height": height}), "score"


def _symbols(adata: AnnData, genes: pd.Series, column: str) -> np.ndarray:
    """Return the labels of genes; genes that are not in ``var`` (perhaps from ``raw``) keep the name in the ranking."""
    known = find_column(adata.var, column, argument="gene_symbols", of="var").astype(str).to_dict()
    return np.array([known.get(gene, gene) for gene in genes], dtype=object)


def _most_significant(table: pd.DataFrame, n_genes: int) -> pd.DataFrame:
    order = np.lexsort((-table["change"].abs(), -table["height"]))
    return table.iloc[order[:n_genes]]


def _legend(ax: Axes, change: pd.Series, passed: pd.Series) -> None:
    pale = Shades.of(ax).pale
    kinds = ((SECOND, "up", passed & (change > 0)), (MAIN, "down", passed & (change < 0)), (pale, "other", ~passed))
    handles = [
        Line2D([], [], color=color, marker="o", markersize=4, linestyle="", label=f"{name} ({int(which.sum()):,})")
        for color, name, which in kinds
        if which.any()
    ]
    put_legend(ax, handles)
