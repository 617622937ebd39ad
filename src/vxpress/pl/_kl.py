"""``vx.pl.kl``: the information in each latent dimension."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from anndata import AnnData
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from vxpress._entry import entry
from vxpress._keys import DEFAULT_KEY
from vxpress._mudata import MuData
from vxpress.bridge.fits.fit import Fit
from vxpress.bridge.fits.modalities import takes_mudata
from vxpress.metrics import kl_per_cell
from vxpress.pl._colours import SECOND, SOFT, Shades
from vxpress.pl._shared import (
    active_of,
    aggregate_of,
    check_switches,
    finish,
    fit_of,
    headline,
    inches_of,
    panels,
    plain,
    posterior_of,
    put_legend,
    titled,
    wrap_labels,
)

MAX_LABELS = 40
# least upper end of the axis, in nats, so that collapsed dimensions look collapsed
LEAST_TOP = 0.1


@entry
@takes_mudata("cells")
def kl(
    adata: AnnData | MuData,
    *,
    modality: str | None = None,
    key: str = DEFAULT_KEY,
    over_training: bool = False,
    compare_key: str | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Draw the divergence of the posterior from the prior, per latent dimension, with its spread over cells.

    A dimension with a bar at 0 carries no information: the posterior of every cell equals the prior. Bars and spread
    are computed from the cells in ``adata``. Active dimensions, and the verdict in the title, are those of the stored
    diagnosis, whose ``kl_per_dim`` is computed on the held-out cells. If ``fit_vae(..., cure=True)`` changed the fit, a
    line shows the divergence per dimension before.

    Parameters
    ----------
    adata
        Cells with a stored posterior and a fit of :func:`~vxpress.tl.fit_vae`.
    modality
        If ``adata`` is a MuData, the modality whose fit is drawn; not needed for a fit of several modalities, or if one
        modality alone holds a fit of this name.
    key
        Name of the fit: the ``key_added`` of the call that made it.
    over_training
        Whether to draw the divergence of every dimension over the epochs instead, for held-out cells.
    compare_key
        Name of another fit, drawn as a line: its dimensions, the highest first, from its own held-out cells.
    figsize
        Width and height of the new figure in inches; by default chosen from the number of dimensions.
    ax
        Axes to draw on; by default those of a new figure.
    show
        Whether to show the figure; by default ``sc.settings.autoshow``.
    return_fig
        Whether to return the figure, without showing it.

    Returns
    -------
    ``None`` if shown, the :class:`~matplotlib.figure.Figure` if ``return_fig``, else the
    :class:`~matplotlib.axes.Axes`. Bars are sorted, the highest first, and labelled with the column of ``obsm``.
    Heights are means over cells in nats, lines extend from the first to the third quartile over cells, and dots are
    medians. Only the prior N(0, I) has a divergence per dimension. Under any other prior, the bars show the divergence
    from the normal distribution with the mean and variance of all cells in that dimension. With ``over_training``, the
    axes have an image with one row per dimension (on top the one with the highest divergence at the kept epoch), one
    column per epoch, and a line at the kept epoch.

    Raises
    ------
    KeyError
        If ``adata`` has no such fit or posterior.
    ValueError
        If the stored posterior belongs to another fit; if the fit has no record for ``over_training``; if ``figsize``
        or the number of axes is wrong.
    TypeError
        If ``ax`` is not an axes.

    See Also
    --------
    vxpress.tl.diagnose : compute the verdict for the cells in ``adata``.
    vxpress.pl.posterior : posteriors in the dimensions with the highest and the lowest bar.

    References
    ----------
    Burda, Grosse & Salakhutdinov, Importance weighted autoencoders, ICLR 2016 (active units).

    Examples
    --------
    >>> import vxpress as vx
    >>> adata = vx.datasets.pbmc68k_reduced()
    >>> vx.tl.fit_vae(adata, max_epochs=5, denoised=False)
    >>> ax = vx.pl.kl(adata, show=False)
    >>> len(ax.patches)
    20
    """
    check_switches(show=show, return_fig=return_fig)
    if over_training:
        fit = fit_of(adata, key)
        found = _recorded(fit)
        with panels(ax, 1, size=(6.4, min(8.0, 2.2 + 0.16 * found.shape[1])), figsize=figsize) as (panel,):
            _draw_over_training(panel, fit, found)
            return finish(panel, show=show, return_fig=return_fig)
    fit, mean_nd, var_nd = posterior_of(adata, key)
    other = _other(adata, fit, compare_key)
    with panels(ax, 1, size=(min(12.0, 3.6 + 0.24 * mean_nd.shape[1]), 3.6), figsize=figsize) as (panel,):
        _draw_bars(panel, fit, mean_nd, var_nd, other)
        return finish(panel, show=show, return_fig=return_fig)


def _draw_bars(
    ax: Axes, fit: Fit, mean_nd: np.ndarray, var_nd: np.ndarray, other: tuple[np.ndarray, str] | None
) -> None:
    analytic = fit.model.prior.analytic
    kl_nd = kl_per_cell(mean_nd, var_nd) if analytic else kl_per_cell(mean_nd, var_nd, *aggregate_of(mean_nd, var_nd))
    order = np.argsort(-kl_nd.mean(0), kind="stable")
    active = active_of(fit)[order]
    low, median, high = np.quantile(kl_nd[:, order], [0.25, 0.5, 0.75], axis=0)
    shades = Shades.of(ax)
    x = np.arange(len(order))
    ax.bar(x, kl_nd.mean(0)[order], width=0.72, color=[SOFT if is_active else shades.pale for is_active in active])
    ax.vlines(x, low, high, color=shades.ink, linewidth=1.2)
    size = float(np.clip(60 / len(order), 1.5, 3.5))
    ax.plot(x, median, linestyle="", marker="o", markersize=size, color=shades.ink)
    reach, compared = len(order), []
    if other is not None:
        values, label = other
        compared = ax.step(np.arange(len(values)), values, where="mid", color=SECOND, linewidth=1.6, label=label)
        reach = max(reach, len(values))
    step = _label_step(len(order), inches_of(ax)[0])
    ax.set_xticks(x[::step], [str(i) for i in order[::step]], fontsize="small" if len(order) > 12 else "medium")
    ax.set_xlim(-0.7, reach - 0.3)
    ax.set_ylim(0, max(LEAST_TOP, ax.get_ylim()[1]))
    ax.set_xlabel("latent dimension, highest first")
    ax.set_ylabel(
        "KL from the prior\n(nats per cell)" if analytic else "KL from N(mean, var)\nof all cells (nats per cell)"
    )
    titled(ax, headline(fit.diagnostics, 1_000), "left")
    plain(ax)
    _legend(ax, active, len(mean_nd), shades, compared)


def _label_step(n: int, inches: float) -> int:
    """Return the distance of labelled ticks, so that labels fit: two digits need a fifth of an inch."""
    return -(-n // min(MAX_LABELS, max(2, int(inches / 0.19))))


def _other(adata: AnnData, fit: Fit, compare_key: str | None) -> tuple[np.ndarray, str] | None:
    """Return the divergence per dimension, the highest first, of the fit to compare with, and its label."""
    if compare_key is not None:
        diagnostics, name = fit_of(adata, compare_key).diagnostics, compare_key
    elif "before_cure" in fit.diagnostics and len(np.atleast_1d(fit.diagnostics["cure"]["kept"])) > 1:
        diagnostics, name = fit.diagnostics["before_cure"], "before the cure"
    else:
        return None
    values = np.asarray(diagnostics["kl_per_dim"], dtype=float)
    return np.sort(values)[::-1], f"{name} ({int(diagnostics['active_units'])} of {len(values)} active)"


def _recorded(fit: Fit) -> np.ndarray:
    """Return the recorded divergence per epoch and dimension, (epochs, d)."""
    found = fit.history.get("kl_per_dim")
    if found is None or np.ndim(found) != 2 or not np.isfinite(found).all():
        msg = (
            "The fit has no record of the divergence per dimension over training: it was stored by an earlier version, held out "
            "no cells, or has a prior without a divergence per dimension. Fit again with vx.tl.fit_vae(adata), whose prior is "
            "N(0, I)."
        )
        raise ValueError(msg)
    return np.asarray(found)


def _draw_over_training(ax: Axes, fit: Fit, found: np.ndarray) -> None:
    """Draw an image of the divergence, dimensions by epochs."""
    kept = fit.params.best_epoch
    order = np.argsort(-found[kept], kind="stable")
    n_epochs, d = found.shape
    image = ax.imshow(
        found[:, order].T,
        aspect="auto",
        interpolation="nearest",
        cmap="viridis",
        vmin=0.0,
        vmax=max(LEAST_TOP, float(np.quantile(found, 0.99))),
        extent=(0.5, n_epochs + 0.5, d - 0.5, -0.5),
    )
    ax.axvline(kept + 1, color="white", linewidth=1.2, linestyle=":")
    step = _label_step(d, inches_of(ax)[1])
    ax.set_yticks(np.arange(d)[::step], [str(i) for i in order[::step]], fontsize="small")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel(f"epoch (kept: {kept + 1})")
    ax.set_ylabel("latent dimension")
    titled(ax, headline(fit.diagnostics, 1_000), "left")
    bar = ax.figure.colorbar(image, ax=ax)
    bar.set_label("KL from the prior\n(nats per cell)")
    bar.outline.set_visible(False)
    ax.grid(visible=False)
    wrap_labels(ax)


def _legend(ax: Axes, active: np.ndarray, n_cells: int, shades: Shades, compared: Sequence[Artist]) -> None:
    kinds = ((SOFT, "active", int(active.sum())), (shades.pale, "inactive", int((~active).sum())))
    handles: list[Artist] = [Patch(color=colour, label=f"{kind} ({k}), mean") for colour, kind, k in kinds if k]
    spread = ax.plot(
        [], [], color=shades.ink, linewidth=1.2, marker="o", markersize=3.5, label=f"quartiles of {n_cells:,} cells"
    )
    put_legend(ax, [*handles, *spread, *compared])
