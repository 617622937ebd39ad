"""``vx.pl.covariates``: what each covariate of a fit is worth, and what it is confounded with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from vxpress._entry import entry
from vxpress._keys import DEFAULT_KEY
from vxpress._mudata import MuData
from vxpress.bridge.fits.modalities import takes_mudata
from vxpress.bridge.health.covariates import NAME
from vxpress.pl._colours import MAIN, Shades
from vxpress.pl._shared import check_switches, finish, fit_of, inches_of, panels, plain, titled, wrap_labels

# the axis is linear up to this many nats
LINEAR = 1.0


@entry
@takes_mudata("cells")
def covariates(
    adata: AnnData | MuData,
    *,
    modality: str | None = None,
    key: str = DEFAULT_KEY,
    figsize: tuple[float, float] | None = None,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> list[Axes] | Figure | None:
    """Draw what each categorical covariate is worth in held-out cells, and how far covariates determine other variables.

    A covariate whose interval includes 0 does not help to describe held-out cells and can be left out. A covariate that
    determines the condition removes its effect, see ``biology_keys`` of :func:`vxpress.tl.diagnose`.

    Parameters
    ----------
    adata
        Cells with a fit of :func:`~vxpress.tl.fit_vae` that has categorical covariates.
    modality
        If ``adata`` is a MuData, the modality whose fit is drawn; not needed for a fit of several modalities, or if one
        modality alone holds a fit of this name.
    key
        Name of the fit: the ``key_added`` of the call that made it.
    figsize
        Width and height of the new figure in inches; by default chosen from the number of covariates.
    ax
        Axes to draw on, one for each panel, or one for the first panel only; by default those of a new figure.
    show
        Whether to show the figure; by default ``sc.settings.autoshow``.
    return_fig
        Whether to return the figure, without showing it.

    Returns
    -------
    ``None`` if shown, the :class:`~matplotlib.figure.Figure` if ``return_fig``, else a list of one or two
    :class:`~matplotlib.axes.Axes`:

    * worth of every covariate in nats per held-out cell with its 95 % interval, linear up to 1 nat and logarithmic beyond,
      with number of categories and p-value in the label;
    * if covariates are compared with other variables, an image: how far the covariate of the row determines the variable
      of the column, from 0 to 1.

    Raises
    ------
    KeyError
        If there is no such fit.
    ValueError
        If the fit has no categorical covariates, or its diagnosis is of an earlier version; if ``figsize`` or the number of
        axes is wrong.
    TypeError
        If ``ax`` is not an axes or a list of them.

    See Also
    --------
    vxpress.tl.diagnose : the numbers, also for variables that the fit did not receive.

    Examples
    --------
    >>> import vxpress as vx
    >>> adata = vx.datasets.pbmc_batches()
    >>> vx.tl.fit_vae(adata, "batch", max_epochs=5, denoised=False)
    >>> vx.tl.diagnose(adata, gaps=False, biology_keys=["cell_type"])
    >>> worth, association = vx.pl.covariates(adata, show=False)
    >>> [label.get_text() for label in association.get_xticklabels()]
    ['cell_type']
    """
    check_switches(show=show, return_fig=return_fig)
    record = _recorded(fit_of(adata, key).diagnostics, fit_of(adata, key).covariates.categorical, key)
    n_panels = 1 if isinstance(ax, Axes) or "association" not in record else 2
    height = 1.3 + 0.34 * max(2, len(record["name"]))
    with panels(ax, n_panels, size=(4.4, height), figsize=figsize) as axes:
        _draw_worth(axes[0], record)
        if n_panels == 2:
            _draw_association(axes[1], record)
        return finish(axes, show=show, return_fig=return_fig)


def _recorded(diagnostics: Mapping[str, Any], categorical: Sequence[Any], key: str) -> Mapping[str, Any]:
    record = diagnostics.get(NAME)
    if isinstance(record, Mapping):
        return record
    named = "" if key == DEFAULT_KEY else f", key={key!r}"
    msg = (
        f"The diagnosis of the fit has no record of its covariates: it was written by an earlier version. Write it with "
        f"vx.tl.diagnose(adata{named})."
        if categorical
        else "The fit has no categorical covariates, so there is nothing to draw. Fit with batch_key= or categorical_covariate_keys=."
    )
    raise ValueError(msg)


def _draw_worth(ax: Axes, record: Mapping[str, Any]) -> None:
    """Draw points with intervals, the first covariate on top."""
    names, sizes = record["name"], record["n_categories"]
    y = np.arange(len(names))
    shades = Shades.of(ax)
    labels = [f"{_short_name(name)} ({n})" for name, n in zip(names, sizes, strict=True)]
    if "worth" in record:
        worth, low, high, p = (np.asarray(record[name], dtype=float) for name in ("worth", "low", "high", "p"))
        ax.hlines(y, low, high, color=MAIN, linewidth=1.6)
        ax.plot(worth, y, linestyle="", marker="o", markersize=5, color=MAIN)
        labels = [f"{label}\n{_p_in_words(value)}" for label, value in zip(labels, p, strict=True)]
        for row in np.flatnonzero(~np.isfinite(worth)):
            place = ax.get_yaxis_transform()
            ax.text(
                0.5, float(row), "no cells to compare", transform=place, ha="center", va="center", color=shades.quiet
            )
        reach = max(LINEAR, float(np.nanmax(np.abs([low, high]), initial=0.0)))
        if reach > 5 * LINEAR:
            ax.set_xscale("symlog", linthresh=LINEAR)
            ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        lowest = min(-0.1 * LINEAR, float(np.nanmin(low, initial=0.0)))
        ax.set_xlim(1.15 * lowest, 1.15 * reach)
    else:
        ax.text(
            0.5, 0.5, "no held-out cells:\nworth was not computed", ha="center", va="center", transform=ax.transAxes
        )
        ax.set_xlim(0, LINEAR)
    ax.axvline(0.0, color=shades.ink, linewidth=1.0, linestyle="--", zorder=0.5)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_yticks(y, labels, fontsize="small")
    ax.set_xlabel("worth (nats per held-out cell)")
    titled(ax, "worth of each covariate", "left")
    plain(ax)


def _p_in_words(p: float) -> str:
    return "" if not np.isfinite(p) else f"p ≤ {p:.3f}" if p <= 0.001 else f"p = {p:.2g}"


def _short_name(name: object, letters: int = 24) -> str:
    """Return the name of a column, cut if it is long."""
    text = str(name)
    return text if len(text) <= letters else text[: letters - 1] + "…"


def _draw_association(ax: Axes, record: Mapping[str, Any]) -> None:
    """Draw an image with one row per covariate and one column per variable that it may determine."""
    rows = [str(name) for name in record["name"]]
    columns = list(dict.fromkeys(str(name) for name in record["associated"]))
    found = np.full((len(rows), len(columns)), np.nan)
    for by, of, share in zip(*(record[name] for name in ("associated_by", "associated", "association")), strict=True):
        found[rows.index(str(by)), columns.index(str(of))] = share
    image = ax.imshow(found, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto", interpolation="nearest")
    size = float(np.clip(72 * inches_of(ax)[0] / len(columns) / 3, 4, 9))
    for (i, j), share in np.ndenumerate(found):
        if np.isfinite(share):
            ax.text(
                j, i, f"{share:.2f}", ha="center", va="center", fontsize=size, color="white" if share > 0.6 else "black"
            )
    ax.set_xticks(
        np.arange(len(columns)), [_short_name(name) for name in columns], fontsize="small", rotation=30, ha="right"
    )
    ax.set_yticks(np.arange(len(rows)), [_short_name(name) for name in rows], fontsize="small")
    bar = ax.figure.colorbar(image, ax=ax)
    bar.set_label("share determined")
    bar.outline.set_visible(False)
    ax.grid(visible=False)
    titled(ax, "how far a covariate (row) determines a variable (column)", "left")
    wrap_labels(ax)
