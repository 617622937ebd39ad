"""``vx.pl.dose_response``: change of genes along the dose of a perturbation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vxpress._entry import entry
from vxpress.pl._colours import MAIN, Shades
from vxpress.pl._shared import check_switches, finish, panels, plain, titled

COLUMNS = ("gene", "dose", "change", "low", "high", "measured", "measured_error", "n_cells", "extrapolated")
# half of an interval of 95 % in standard errors
WIDTH = 1.96


@entry
def dose_response(
    table: pd.DataFrame,
    *,
    log_dose: bool = True,
    figsize: tuple[float, float] | None = None,
    ncols: int | None = None,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> list[Axes] | Figure | None:
    """Draw the predicted change of genes along the dose of a perturbation, with measured changes.

    Parameters
    ----------
    table
        The table of :func:`vxpress.tl.dose_response`.
    log_dose
        Whether the axis of doses is logarithmic above the lowest measured dose, and linear below it.
    figsize
        Width and height of the new figure in inches; by default chosen from the number of genes.
    ncols
        Number of panels in a row.
    ax
        Axes to draw on, one for each gene; by default those of a new figure.
    show
        Whether to show the figure; by default ``sc.settings.autoshow``.
    return_fig
        Whether to return the figure, without showing it.

    Returns
    -------
    ``None`` if shown, the :class:`~matplotlib.figure.Figure` if ``return_fig``, else a list of
    :class:`~matplotlib.axes.Axes`, one for each gene: the predicted curve, dashed above the doses of the fit, with its
    interval, and the measured changes with intervals of 95 %.

    Raises
    ------
    ValueError
        If the table lacks columns, or ``figsize``, ``ncols`` or the number of axes is wrong.
    TypeError
        If ``table`` is not a table, or ``ax`` is not an axes or a list of them.

    See Also
    --------
    vxpress.tl.dose_response : the numbers.

    Examples
    --------
    >>> import numpy as np, vxpress as vx
    >>> adata = vx.datasets.simulate(400, 60, rng=0)
    >>> adata.obs["dose"] = np.random.default_rng(0).choice([0.0, 1.0, 10.0], 400)
    >>> adata.obs["drug"] = np.where(adata.obs["dose"] > 0, "A", "control")
    >>> vx.tl.fit_vae(adata, perturbation_key="drug", dose_key="dose", control="control", max_epochs=3)
    >>> table = vx.tl.dose_response(adata, "A", genes=adata.var_names[:2])
    >>> axes = vx.pl.dose_response(table, show=False)
    >>> len(axes)
    2
    """
    check_switches(show=show, return_fig=return_fig)
    if not isinstance(table, pd.DataFrame):
        msg = f"The table of vx.tl.dose_response is expected; found {type(table).__name__}."
        raise TypeError(msg)
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing or not len(table):
        msg = f"The table of vx.tl.dose_response is expected; this one {f'lacks the columns {missing}' if missing else 'has no rows'}."
        raise ValueError(msg)
    genes = list(dict.fromkeys(table["gene"]))
    with panels(ax, len(genes), size=(2.9, 2.4), figsize=figsize, ncols=ncols) as axes:
        for one, gene in zip(axes, genes, strict=True):
            _draw(one, table[table["gene"] == gene].sort_values("dose"), log_dose=log_dose)
            titled(one, str(gene), "left")
            name = table.attrs.get("perturbation")
            one.set_xlabel("dose" if name is None else f"dose of {name}")
            one.set_ylabel("change of log expression")
        return finish(axes, show=show, return_fig=return_fig)


def _draw(ax: Axes, rows: pd.DataFrame, *, log_dose: bool) -> None:
    dose, change = rows["dose"].to_numpy(dtype=float), rows["change"].to_numpy(dtype=float)
    outside = rows["extrapolated"].to_numpy(dtype=bool)
    ax.axhline(0.0, color=Shades.of(ax).ink, linewidth=0.8, linestyle="--", zorder=0.5)
    ax.fill_between(dose, rows["low"], rows["high"], color=MAIN, alpha=0.2, linewidth=0)
    ax.plot(dose, change, color=MAIN, linewidth=1.6, linestyle="--" if outside.all() else "-")
    # above the range of the fit
    above = outside & (dose > dose[~outside].max(initial=0.0))
    if above.any() and not outside.all():
        first = max(0, int(np.flatnonzero(above)[0]) - 1)
        ax.plot(dose[first:], change[first:], color=ax.get_facecolor(), linewidth=2.0)
        ax.plot(dose[first:], change[first:], color=MAIN, linewidth=1.6, linestyle="--")
    seen = rows[rows["n_cells"] > 0]
    ax.errorbar(
        seen["dose"],
        seen["measured"],
        yerr=WIDTH * seen["measured_error"],
        linestyle="",
        marker="o",
        markersize=4,
        color=Shades.of(ax).ink,
        elinewidth=1.0,
    )
    positive = dose[dose > 0]
    if log_dose and len(positive) and positive.max() > 5 * positive.min():
        lowest = seen.loc[seen["dose"] > 0, "dose"]
        linear = float(lowest.min()) if len(lowest) else float(positive.min())
        ax.set_xscale("symlog", linthresh=linear)
        # powers of ten below would be drawn over the 0; doses may be in single precision
        powers = np.arange(np.ceil(np.log10(linear) - 1e-6), np.floor(np.log10(positive.max()) + 1e-6) + 1)
        if len(powers) > 1:
            ax.set_xticks([0.0, *10.0**powers] if dose.min() <= 0 else list(10.0**powers))
    plain(ax)
