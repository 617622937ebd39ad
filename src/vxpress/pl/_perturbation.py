"""``vx.pl.perturbation``: predicted against measured changes of genes."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vxpress._checks import check_range
from vxpress._entry import entry
from vxpress._names import find_name
from vxpress.bridge.ask.evaluation.evaluation import PerturbationEvaluation
from vxpress.bridge.ask.evaluation.result import LABELS, PREDICTION
from vxpress.pl._colours import MAIN, SECOND, Shades
from vxpress.pl._labels import label_points
from vxpress.pl._shared import check_switches, finish, listed, panels, plain, put_legend, titled

MAX_PANELS = 24
# predicted changes beyond this multiple of the largest measured one are drawn at the edge
FAR = 1.3
# place of the bar with the score: left, bottom, width and height as shares of the panel
BAR = (0.56, 0.04, 0.42, 0.16)
MAX_AVOIDED = 200  # number of points that labels avoid


@entry
def perturbation(
    evaluation: PerturbationEvaluation,
    method: str | Sequence[str] | None = None,
    group: Hashable = None,
    *,
    target: Hashable = None,
    n_top: int = 50,
    n_genes: int = 8,
    ncols: int | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | None:
    """Draw the predicted against the measured change of every gene, with the best floor and the ceiling.

    There is one panel per method, group and target. A perfect prediction is on the diagonal; one whose points lie on a
    flatter line predicts too small a change.

    Parameters
    ----------
    evaluation
        Result of :func:`vxpress.tl.evaluate_perturbation`.
    method
        Name of a method or floor, or a list; by default all methods.
    group, target
        Group and target to draw, or a list of groups; by default all.
    n_top
        Number of genes to colour: those that change most, by the t statistic between real cells.
    n_genes
        Number of genes to label: the first of the same order.
    ncols
        Number of panels per row; by default one per method, at most four, and for one method up to four groups.
    figsize
        Width and height of the whole new figure in inches; by default 3.6 x 3.4 per panel.
    ax
        Axes to draw on, or a list of as many as there are panels; by default those of a new figure.
    show
        Whether to show the figure; by default ``sc.settings.autoshow``.
    return_fig
        Whether to return the figure, without showing it.

    Returns
    -------
    ``None`` if shown, the :class:`~matplotlib.figure.Figure` if ``return_fig``, else the
    :class:`~matplotlib.axes.Axes`, or a list if there are several panels. Changes are differences of means of
    ``log1p(10,000 x / library)``. Small diamonds are the changes that the best floor predicts for the coloured genes.
    The bar in the corner is the score by which the evaluation compares methods, with its interval, between the best
    floor and the ceiling. Triangles mark predicted changes beyond the axes.

    Raises
    ------
    TypeError
        If ``evaluation`` is not such a result, or ``ax`` not axes.
    KeyError
        If there is no such method, group or target.
    ValueError
        If more than 24 panels would be drawn, or an argument is out of range.

    See Also
    --------
    vxpress.tl.evaluate_perturbation : the scores.

    Examples
    --------
    >>> import numpy as np
    >>> import vxpress as vx
    >>> adata = vx.datasets.pbmc68k_reduced()
    >>> observed, control = (adata[adata.obs["bulk_labels"] == name] for name in ("CD19+ B", "CD14+ Monocyte"))
    >>> half = np.arange(observed.n_obs) % 2 == 0
    >>> result = vx.tl.evaluate_perturbation(observed[half], observed[~half], control, n_resamples=20)
    >>> ax = vx.pl.perturbation(result, n_genes=3, show=False)
    >>> len(ax.texts)
    3
    """
    check_switches(show=show, return_fig=return_fig)
    check_range("n_top", n_top, 0, 100_000, integer=True)
    check_range("n_genes", n_genes, 0, 1_000, integer=True)
    if not isinstance(evaluation, PerturbationEvaluation):
        msg = f"The result of vx.tl.evaluate_perturbation is expected; found {type(evaluation).__name__}."
        raise TypeError(msg)
    chosen = _chosen(evaluation, method, group, target)
    methods = len({rows["method"].iloc[0] for rows in chosen})
    if ncols is None and figsize is None:
        ncols = min(4, len(chosen) if methods == 1 else methods)
    with panels(ax, len(chosen), size=(3.6, 3.4), figsize=figsize, ncols=ncols) as axes:
        labels = []
        for panel, rows in zip(axes, chosen, strict=True):
            labels.append(_draw(panel, evaluation, rows, n_top, n_genes))
        _legend(axes, pd.concat(chosen), n_top, whole=ax is None and len(axes) > 1)
        for panel, (places, names, avoid) in zip(axes, labels, strict=True):
            label_points(panel, places, names, avoid)
        single = len(axes) == 1 and not (isinstance(ax, list | tuple | np.ndarray))
        return finish(axes[0] if single else axes, show=show, return_fig=return_fig)


def _chosen(evaluation: PerturbationEvaluation, method: object, group: object, target: object) -> list[pd.DataFrame]:
    """Return the changes of every panel."""
    changes = evaluation.changes
    keep = changes["kind"].eq(PREDICTION) | (method is not None)
    for column, wanted in (("method", method), ("group", group), ("target", target)):
        if wanted is None:
            continue
        known = list(dict.fromkeys(changes[column]))
        names = []
        for one in listed(wanted) or [wanted]:
            name = find_name(one, known)
            if name is None:
                msg = f"{column}={one!r} is not in the evaluation (found: {known})."
                raise KeyError(msg)
            names.append(name)
        keep &= changes[column].isin(names)
    found = [part for _, part in changes[keep].groupby(["method", "kind", "group", "target"], sort=False)]
    if len(found) > MAX_PANELS:
        msg = f"{len(found)} panels would be drawn (methods x groups x targets); at most {MAX_PANELS} are. Choose with method=, group= and target=."
        raise ValueError(msg)
    return found


def _score(evaluation: PerturbationEvaluation, rows: pd.DataFrame) -> pd.Series:
    """Return the row of the table with the score of the verdict for a panel."""
    table, first = evaluation.table, rows.iloc[0]
    keep = table["measure"].eq(evaluation.params["measure"]) & table["genes"].eq(evaluation.params["genes"])
    for column in ("method", "kind", "group", "target"):
        keep &= table[column].eq(first[column])
    if not keep.any():  # ranks need several targets
        return pd.Series({"score": np.nan, "floor": "", "ceiling": np.nan, "verdict": ""})
    return table[keep].iloc[0]


def _draw(
    ax: Axes, evaluation: PerturbationEvaluation, rows: pd.DataFrame, n_top: int, n_genes: int
) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Draw one panel; returns the points to label, their names, and the points that labels avoid."""
    shades, score = Shades.of(ax), _score(evaluation, rows)
    measured, predicted = rows["measured"].to_numpy(), rows["predicted"].to_numpy()
    top = rows["rank"].to_numpy() <= n_top
    low, high = _limits(measured, predicted)
    inside = (predicted >= low[1]) & (predicted <= high[1])
    margin = 0.02 * (high[1] - low[1])
    y = np.clip(predicted, low[1] + margin, high[1] - margin)
    colors = np.where(top, np.where(measured > 0, SECOND, MAIN), shades.pale)
    ax.axline((0.0, 0.0), slope=1.0, color=shades.quiet, linewidth=0.8, linestyle="--", zorder=0)
    for line in (ax.axhline, ax.axvline):
        line(0.0, color=shades.pale, linewidth=0.8, zorder=0)
    for marker, which in (("o", inside), ("^", ~inside & (predicted > 0)), ("v", ~inside & (predicted < 0))):
        order = np.flatnonzero(which)[np.argsort(top[which], kind="stable")]
        if len(order):
            ax.scatter(measured[order], y[order], s=9, c=colors[order], marker=marker, lw=0)
    if score["floor"]:
        floor = _floor(evaluation, rows, str(score["floor"]))
        shown = top & (floor >= low[1]) & (floor <= high[1])
        ax.scatter(measured[shown], floor[shown], s=9, marker="D", facecolor="none", edgecolor=shades.quiet, lw=0.6)
    ax.set_xlim(low[0], high[0])
    ax.set_ylim(low[1], high[1])
    ax.set_xlabel("measured change")
    ax.set_ylabel("predicted change")
    titled(ax, _title(evaluation, rows, score), "left")
    plain(ax)
    drawn = _bar(ax, score, shades)
    first = np.argsort(rows["rank"].to_numpy(), kind="stable")[:n_genes]
    places = np.column_stack([measured, y])
    avoid = places[np.argsort(rows["rank"].to_numpy(), kind="stable")[:MAX_AVOIDED]]
    if drawn:
        x, height = np.meshgrid(np.linspace(BAR[0], BAR[0] + BAR[2], 12), np.linspace(BAR[1], BAR[1] + BAR[3], 5))
        within = np.column_stack([x.ravel(), height.ravel()])
        limits = np.array([ax.get_xlim(), ax.get_ylim()])
        avoid = np.concatenate([avoid, limits[:, 0] + within * (limits[:, 1] - limits[:, 0])])
    return places[first], list(rows["gene"].to_numpy()[first]), avoid


def _limits(measured: np.ndarray, predicted: np.ndarray) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the lower and the upper limits of both axes; the lower part of the panel has room for the bar."""
    reach = FAR * max(float(np.abs(measured).max()), 1e-6)
    ends = [float(end(values)) for values in (measured, np.clip(predicted, -reach, reach)) for end in (np.min, np.max)]
    bottom, top = min(ends[0], ends[2], 0.0), max(ends[1], ends[3], 0.0)
    pad_x, pad_y = 0.06 * max(ends[1] - ends[0], 1e-6), 0.06 * max(top - bottom, 1e-6)
    return (ends[0] - pad_x, bottom - 4 * pad_y), (ends[1] + pad_x, top + pad_y)


def _floor(evaluation: PerturbationEvaluation, rows: pd.DataFrame, name: str) -> np.ndarray:
    changes, first = evaluation.changes, rows.iloc[0]
    keep = changes["kind"].ne(PREDICTION) & changes["method"].eq(name)
    for column in ("group", "target"):
        keep &= changes[column].eq(first[column])
    return changes.loc[keep, "predicted"].to_numpy()


def _title(evaluation: PerturbationEvaluation, rows: pd.DataFrame, score: pd.Series) -> str:
    first = rows.iloc[0]
    parts = [first["method"]]
    parts += [first[column] for column in ("group", "target") if len(set(evaluation.changes[column])) > 1]
    title = ", ".join(map(str, parts))
    if np.isfinite(score["score"]):
        measure = str(evaluation.params["measure"])
        title += f"\n{LABELS.get(measure, measure)} {score['score']:.2f}"
        if score["verdict"]:
            title += f", {score['verdict']}" if score["verdict"] != "undecided" else ", undecided"
    return title


def _bar(ax: Axes, score: pd.Series, shades: Shades) -> bool:
    """Draw the score with its interval between the best floor and the ceiling, unless one is missing."""
    if not score["floor"] or not np.isfinite([score["score"], score["floor_score"], score["ceiling"]]).all():
        return False
    ends = [score[name] for name in ("floor_score", "score", "ceiling", "low", "high")]
    low, high = float(np.nanmin(ends)), float(np.nanmax(ends))
    room = max(high - low, 1e-9)
    bar = ax.inset_axes(BAR)
    bar.set_xlim(low - 0.08 * room, high + 0.08 * room)
    bar.set_ylim(-1, 1)
    bar.axhline(0.0, color=shades.pale, linewidth=3.0, zorder=0)
    bar.plot([score["low"], score["high"]], [0, 0], color=SECOND, linewidth=1.6)
    bar.plot([score["score"]], [0], marker="o", markersize=4, color=SECOND)
    for name, value, up in (("floor", score["floor_score"], -1), ("ceiling", score["ceiling"], 1)):
        bar.plot([value, value], [-0.45, 0.45], color=shades.ink, linewidth=1.0)
        share = (value - low) / room
        side = "left" if share < 0.3 else "right" if share > 0.7 else "center"
        bar.text(value, up * 0.55, f"{name} {value:.2f}", fontsize="x-small", ha=side, va="bottom" if up > 0 else "top")
    bar.axis("off")
    return True


def _legend(axes: Sequence[Axes], rows: pd.DataFrame, n_top: int, *, whole: bool) -> None:
    """Add a legend next to the last panel, or below all panels of a new figure."""
    shades, top, up = Shades.of(axes[0]), rows["rank"] <= n_top, rows["measured"] > 0
    kinds = [
        (SECOND, "o", "most changed, up", (top & up).any()),
        (MAIN, "o", "most changed, down", (top & ~up).any()),
        (shades.pale, "o", "other genes", (~top).any()),
        (shades.quiet, "D", "best floor", rows["kind"].eq(PREDICTION).any() and top.any()),
    ]
    handles = [
        Line2D(
            [],
            [],
            color=color,
            marker=marker,
            markersize=4,
            linestyle="",
            label=label,
            markerfacecolor="none" if marker == "D" else color,
        )
        for color, marker, label, shown in kinds
        if shown
    ]
    if whole:
        axes[0].figure.figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    else:
        put_legend(axes[-1], handles)
