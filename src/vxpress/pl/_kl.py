"""``vx.pl.kl``: what each latent dimension carries."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from vxpress._keys import DEFAULT_KEY
from vxpress.bridge.fit import Fit
from vxpress.metrics._latent import kl_per_cell
from vxpress.pl._shared import (
    INK,
    PALE,
    SECOND,
    SOFT,
    active_of,
    aggregate_of,
    finish,
    fit_of,
    headline,
    new_axes,
    plain,
    posterior_of,
)

MAX_LABELS = 40
# the axis reaches at least this far, in nats, so that collapsed dimensions look it
LEAST_TOP = 0.1


def kl(
    adata: AnnData,
    *,
    key: str = DEFAULT_KEY,
    over_training: bool = False,
    compare_key: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Draw the divergence of the posterior from the prior, per latent dimension, with its spread over cells.

    A dimension whose bar is at 0 carries nothing: the posterior of every cell lies on the prior.
    Bars and spread are those of the cells in ``adata``; active dimensions, and the verdict in the title, are those of the
    stored diagnosis, whose ``kl_per_dim`` is that of the held-out cells. Where ``fit_vae(..., cure=True)`` changed the fit, a
    line shows what its dimensions carried before.

    Parameters
    ----------
    adata
        Cells with a stored posterior and a fit of :func:`~vxpress.tl.fit_vae`.
    key
        Name of the fit.
    over_training
        Whether to draw the divergence of every dimension over the epochs instead, of held-out cells.
    compare_key
        Name of another fit, drawn as a line: its dimensions, the highest first, of its own held-out cells.
    ax
        Axes to draw on; by default those of a new figure.
    show
        Whether to show the figure; by default ``sc.settings.autoshow``.
    return_fig
        Whether to return the figure, without showing it.

    Returns
    -------
    ``None`` if shown, the :class:`~matplotlib.figure.Figure` if ``return_fig``, else the :class:`~matplotlib.axes.Axes`.
    Bars are sorted, the highest first, and labelled with the column of ``obsm``; heights are means over cells in nats,
    lines reach from the first to the third quartile over cells, and dots are medians. Under a prior other than N(0, I)
    dimensions have no divergence of their own, and what is drawn is that from the normal distribution with the mean and variance of
    all cells in that dimension. With ``over_training``, an image: a row per dimension, the highest at the end on top, a
    column per epoch, and a line at the epoch that was kept.

    Raises
    ------
    KeyError
        If ``adata`` holds no such fit or posterior.
    ValueError
        If the stored posterior belongs to another fit, or the fit did not record what ``over_training`` draws.

    See Also
    --------
    vxpress.tl.diagnose : the verdict, for the cells at hand.
    vxpress.pl.posterior : the posteriors behind the highest and the lowest bar.

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
    10
    """
    if over_training:
        return finish(_over_training(fit_of(adata, key), ax), show=show, return_fig=return_fig)
    fit, mean_nd, var_nd = posterior_of(adata, key)
    analytic = fit.model.prior.analytic
    kl_nd = kl_per_cell(mean_nd, var_nd) if analytic else kl_per_cell(mean_nd, var_nd, *aggregate_of(mean_nd, var_nd))
    order = np.argsort(-kl_nd.mean(0), kind="stable")
    active = active_of(fit)[order]
    low, median, high = np.quantile(kl_nd[:, order], [0.25, 0.5, 0.75], axis=0)
    d = len(order)
    ax = new_axes(ax, (min(12.0, 3.6 + 0.24 * d), 3.6))
    x = np.arange(d)
    ax.bar(x, kl_nd.mean(0)[order], width=0.72, color=[SOFT if is_active else PALE for is_active in active])
    ax.vlines(x, low, high, color=INK, linewidth=1.2)
    ax.plot(x, median, linestyle="", marker="o", markersize=3.5, color=INK)
    other = _other(adata, fit, compare_key)
    if other is not None:
        values, label = other
        ax.step(np.arange(len(values)), values, where="mid", color=SECOND, linewidth=1.6, label=label)
        d = max(d, len(values))
    step = -(-len(order) // MAX_LABELS)
    ax.set_xticks(x[::step], [str(i) for i in order[::step]], fontsize="small" if len(order) > 12 else "medium")
    ax.set_xlim(-0.7, d - 0.3)
    ax.set_ylim(0, max(LEAST_TOP, ax.get_ylim()[1]))
    ax.set_xlabel("latent dimension, highest first")
    ax.set_ylabel(
        "KL from the prior (nats per cell)" if analytic else "KL from N(mean, var) of all cells (nats per cell)"
    )
    ax.set_title(headline(fit.diagnostics), fontsize="medium", loc="left")
    _legend(ax, active, adata.n_obs)
    plain(ax)
    return finish(ax, show=show, return_fig=return_fig)


def _other(adata: AnnData, fit: Fit, compare_key: str | None) -> tuple[np.ndarray, str] | None:
    """Divergence per dimension, the highest first, of the fit to compare with, and its name in the legend."""
    if compare_key is not None:
        diagnostics, name = fit_of(adata, compare_key).diagnostics, compare_key
    elif "before_cure" in fit.diagnostics and len(np.atleast_1d(fit.diagnostics["cure"]["kept"])) > 1:
        diagnostics, name = fit.diagnostics["before_cure"], "before the cure"
    else:
        return None
    values = np.asarray(diagnostics["kl_per_dim"], dtype=float)
    return np.sort(values)[::-1], f"{name} ({int(diagnostics['active_units'])} of {len(values)} active)"


def _over_training(fit: Fit, ax: Axes | None) -> Axes:
    """An image of the divergence: dimensions by epochs."""
    found = fit.history.get("kl_per_dim")
    if found is None or np.ndim(found) != 2 or not np.isfinite(found).all():
        msg = (
            "The fit holds no divergence per dimension over training: it was stored by an earlier version, held out no cells, "
            "or has a prior under which dimensions have none of their own. Fit again with vx.tl.fit_vae(adata), whose prior is N(0, I)."
        )
        raise ValueError(msg)
    kept = fit.params.best_epoch
    order = np.argsort(-found[kept], kind="stable")
    n_epochs, d = found.shape
    ax = new_axes(ax, (6.4, min(8.0, 2.2 + 0.16 * d)))
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
    step = -(-d // MAX_LABELS)
    ax.set_yticks(np.arange(d)[::step], [str(i) for i in order[::step]], fontsize="small")
    ax.set_xlabel(f"epoch (kept: {kept + 1})")
    ax.set_ylabel("latent dimension")
    ax.set_title(headline(fit.diagnostics), fontsize="medium", loc="left")
    bar = ax.figure.colorbar(image, ax=ax)
    bar.set_label("KL from the prior (nats per cell)")
    bar.outline.set_visible(False)
    ax.grid(visible=False)
    return ax


def _legend(ax: Axes, active: np.ndarray, n_cells: int) -> None:
    kinds = ((SOFT, "active", int(active.sum())), (PALE, "inactive", int((~active).sum())))
    handles: list[Artist] = [Patch(color=colour, label=f"{kind} ({k}), mean") for colour, kind, k in kinds if k]
    compared = [line for line in ax.get_lines() if not str(line.get_label()).startswith("_")]
    spread = ax.plot(
        [], [], color=INK, linewidth=1.2, marker="o", markersize=3.5, label=f"quartiles of {n_cells} cells"
    )
    handles += [*spread, *compared]
    ax.legend(handles=handles, frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
