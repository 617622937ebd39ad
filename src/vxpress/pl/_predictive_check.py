"""``vx.pl.predictive_check``: observed and posterior predictive counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vxpress._entry import entry
from vxpress._keys import DEFAULT_KEY, Keys
from vxpress._mudata import MuData
from vxpress.bridge.ask.predictive_check import is_discrete
from vxpress.bridge.fits.modalities import takes_mudata
from vxpress.bridge.read.adata import check_anndata
from vxpress.pl._colours import MAIN, SECOND, SOFT, Shades
from vxpress.pl._shared import check_switches, finish, panels, plain, put_legend, titled

N_PANELS = 6
# with more points a scatter plot is unreadable and its file large
MAX_POINTS = 20_000


@entry
@takes_mudata("cells")
def predictive_check(
    adata: AnnData | MuData,
    *,
    modality: str | None = None,
    key: str = DEFAULT_KEY,
    ncols: int | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Sequence[Axes] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> list[Axes] | Figure | None:
    """Draw the results of :func:`~vxpress.tl.predictive_check`: observed counts against the model's predictions.

    Observation and prediction agree for points on the dashed line. If the variance is above its prediction, or the
    histogram is high at both ends, the count distribution has too little spread (for example, a Poisson distribution on
    overdispersed counts). If the histogram is high in the middle, it has too much spread.

    Parameters
    ----------
    adata
        Annotated matrix with results of :func:`~vxpress.tl.predictive_check`.
    modality
        If ``adata`` is a MuData, the modality whose fit is drawn; not needed for a fit of several modalities, or if one
        modality alone holds a fit of this name.
    key
        Name of the fit: the ``key_added`` of the call that made it.
    ncols
        Number of panels per row; by default three, or as many as fit on the width of ``figsize``.
    figsize
        Width and height of the new figure in inches; by default (10.5, 6.6).
    ax
        Six axes to draw on; by default those of a new figure.
    show
        Whether to show the figure; by default ``sc.settings.autoshow``.
    return_fig
        Whether to return the figure, without showing it.

    Returns
    -------
    ``None`` if shown, the :class:`~matplotlib.figure.Figure` if ``return_fig``, else the list of six
    :class:`~matplotlib.axes.Axes`: mean, variance and share of zeros of every gene; share of zeros of every cell; the
    probability integral transform of the entries that the model expects to be expressed, with the coverage of its
    intervals in the title; and the coverage of every gene against its mean. Zeros are not shown on logarithmic axes.

    Raises
    ------
    KeyError
        If there are no results of :func:`~vxpress.tl.predictive_check`.
    ValueError
        If the number of axes or ``figsize`` is wrong.
    TypeError
        If ``ax`` is not a sequence of axes.

    Examples
    --------
    >>> import vxpress as vx
    >>> adata = vx.datasets.pbmc68k_reduced()
    >>> vx.tl.fit_vae(adata, max_epochs=5, denoised=False)
    >>> vx.tl.predictive_check(adata, n_draws=5)
    >>> len(vx.pl.predictive_check(adata, show=False))
    6
    """
    check_switches(show=show, return_fig=return_fig)
    found = _found(adata, key)
    # values of a density can be negative, so their axes are linear
    scale = "log" if is_discrete(found["params"]) else "linear"
    columns = 3 if ncols is None and figsize is None else ncols
    with panels(ax, N_PANELS, size=(3.5, 3.3), figsize=figsize, ncols=columns, least_width=2.6) as axes:
        _draw(axes, found, scale)
        return finish(axes, show=show, return_fig=return_fig)


def _draw(axes: list[Axes], found: Mapping[str, Any], scale: str) -> None:
    genes, cells = found["genes"], found["cells"]
    unit = "counts" if scale == "log" else ""
    _identity(axes[0], genes, "mean", "genes: mean", scale=scale, unit=unit)
    _identity(axes[1], genes, "variance", "genes: variance", scale=scale, unit=unit and "counts²")
    _identity(axes[2], genes, "zero_fraction", "genes: share of zeros", scale="linear")
    _identity(axes[3], cells, "zero_fraction", "cells: share of zeros", scale="linear")
    _transform(axes[4], found)
    _coverage(axes[5], genes, scale)
    for panel in axes:
        plain(panel)


def _found(adata: AnnData, key: str) -> Mapping[str, Any]:
    check_anndata(adata)
    name = f"{Keys.of(key).uns}_predictive_check"
    found = adata.uns.get(name)
    if not isinstance(found, Mapping) or "genes" not in found:
        call = "vx.tl.predictive_check(adata)" if key == DEFAULT_KEY else f"vx.tl.predictive_check(adata, key={key!r})"
        msg = f"adata.uns[{name!r}] does not exist. Compute it first: {call}."
        raise KeyError(msg)
    return found


def _identity(ax: Axes, table: pd.DataFrame, name: str, title: str, *, scale: str, unit: str = "") -> None:
    """Draw predicted against observed values, and the line where they agree."""
    x, y = table[name].to_numpy(), table[f"{name}_predicted"].to_numpy()
    some = np.isfinite(x) & np.isfinite(y)
    if scale == "log":
        some &= (x > 0) & (y > 0)
    x, y = x[some], y[some]
    every = np.unique(np.linspace(0, max(len(x) - 1, 0), min(len(x), MAX_POINTS)).astype(int))
    ax.scatter(x[every], y[every], s=5, color=MAIN, alpha=0.35, linewidths=0, rasterized=True)
    ax.set_xscale(scale)
    ax.set_yscale(scale)
    if len(x):
        ends = [min(x.min(), y.min()), max(x.max(), y.max())]
        ax.plot(ends, ends, color=Shades.of(ax).ink, linewidth=1.0, linestyle="--")
    unit = unit and f" ({unit})"
    ax.set_xlabel(f"observed{unit}")
    ax.set_ylabel(f"posterior predictive{unit}")
    titled(ax, title)


def _transform(ax: Axes, found: Mapping[str, Any]) -> None:
    """Draw a histogram of the probability integral transform, with coverage in the title."""
    pit, coverage = np.asarray(found["pit"]), found["coverage"]
    if not int(found["n_expressed"]):
        ax.text(
            0.5, 0.5, "the model expects\nno entry to be expressed", ha="center", va="center", transform=ax.transAxes
        )
        titled(ax, "coverage")
        return
    edges = np.linspace(0, 1, len(pit) + 1)
    ax.bar(edges[:-1], pit, width=edges[1], align="edge", color=SOFT, edgecolor=Shades.of(ax).face, linewidth=0.5)
    ax.axhline(1.0, color=Shades.of(ax).ink, linewidth=1.0, linestyle="--")
    ax.set_xlim(0, 1)
    shares = "\n".join(f"{row['expressed']:.1%} in the {name} % interval" for name, row in coverage.iterrows())
    titled(ax, f"expressed entries:\n{shares}")
    ax.set_xlabel("probability integral transform")
    ax.set_ylabel("density")


def _coverage(ax: Axes, genes: pd.DataFrame, scale: str) -> None:
    """Draw the coverage of every gene against its mean."""
    mean = genes["mean"].to_numpy()
    handles = []
    for level, colour in ((50, SECOND), (90, MAIN)):
        points = ax.scatter(
            mean,
            genes[f"coverage_{level}"],
            s=5,
            color=colour,
            alpha=0.35,
            linewidths=0,
            label=f"{level} % interval",
            rasterized=True,
        )
        handles.append(points)
        ax.axhline(level / 100, color=Shades.of(ax).quiet, linewidth=1.0, linestyle="--")
    if scale == "log":
        # genes without counts cannot be drawn on a logarithmic axis
        ax.set_xscale("log", nonpositive="mask")
    ax.set_ylim(0, 1.02)
    ax.set_xlabel("observed mean (counts)" if scale == "log" else "observed mean")
    ax.set_ylabel("share inside the interval")
    titled(ax, "genes: coverage")
    put_legend(ax, handles, markerscale=3)
