"""``vx.pl.posterior``: posteriors in the most and the least used latent dimension."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from anndata import AnnData
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.stats import gaussian_kde, norm

from vxpress._entry import entry
from vxpress._keys import DEFAULT_KEY
from vxpress._mudata import MuData
from vxpress.bridge.fits.fit import Fit
from vxpress.bridge.fits.modalities import takes_mudata
from vxpress.bridge.read.selection import Cells, select_cells
from vxpress.metrics import kl_per_cell
from vxpress.pl._colours import Shades, few_colours
from vxpress.pl._shared import (
    active_of,
    aggregate_of,
    check_switches,
    finish,
    panels,
    plain,
    posterior_of,
    put_legend,
    titled,
)

N_CELLS = 5
MAX_CELLS = 24  # more curves cannot be distinguished
MAX_AGGREGATE = 5_000
N_GRID = 601


@entry
@takes_mudata("cells")
def posterior(
    adata: AnnData | MuData,
    *,
    modality: str | None = None,
    cells: Cells | None = None,
    key: str = DEFAULT_KEY,
    ncols: int | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> list[Axes] | Figure | None:
    """Draw posteriors of a few cells and of all cells with the prior, in the most and the least used dimension.

    In a used dimension each cell has its own narrow posterior, and only their mixture over all cells resembles the
    prior. In an empty dimension every posterior equals the prior; this is harmless unless all are empty. The title of
    each panel says which case it shows.

    Parameters
    ----------
    adata
        Cells with a stored posterior and a fit of :func:`~vxpress.tl.fit_vae`.
    modality
        If ``adata`` is a MuData, the modality whose fit is drawn; not needed for a fit of several modalities, or if one
        modality alone holds a fit of this name.
    cells
        Cells whose posteriors are drawn, at most 24: their names, their positions, a boolean array over all cells, or
        the name of a boolean column of ``obs``. By default five cells, spread evenly over the most used dimension.
    key
        Name of the fit: the ``key_added`` of the call that made it.
    ncols
        Number of panels per row; by default two, or one if ``figsize`` is narrow.
    figsize
        Width and height of the new figure in inches; by default (9.4, 3.6).
    ax
        Two axes to draw on (one if the fit has one dimension); by default those of a new figure.
    show
        Whether to show the figure; by default ``sc.settings.autoshow``.
    return_fig
        Whether to return the figure, without showing it.

    Returns
    -------
    ``None`` if shown, the :class:`~matplotlib.figure.Figure` if ``return_fig``, else the list of
    :class:`~matplotlib.axes.Axes`: first the dimension with the highest, then that with the lowest mean divergence over
    cells. Curves are densities (per unit of the latent dimension) of N(mean, variance) per cell. The filled curve is
    their mean over all cells (over 5,000 at most). A learned prior is drawn as the density of 5,000 draws from it in
    that dimension, with the bandwidth of Scott's rule.

    Raises
    ------
    KeyError
        If ``adata`` has no such fit, posterior or cell.
    ValueError
        If the stored posterior belongs to another fit; if the number of axes or of cells, or ``figsize`` is wrong.
    TypeError
        If ``cells`` does not select cells, or ``ax`` is not axes.

    See Also
    --------
    vxpress.pl.kl : the divergence of all dimensions.

    Examples
    --------
    >>> import vxpress as vx
    >>> adata = vx.datasets.pbmc68k_reduced()
    >>> vx.tl.fit_vae(adata, max_epochs=5, denoised=False)
    >>> used, least_used = vx.pl.posterior(adata, show=False)
    >>> used.get_title().splitlines()[0]
    'dimension ...: KL ... nats per cell'
    """
    check_switches(show=show, return_fig=return_fig)
    fit, mean_nd, var_nd = posterior_of(adata, key)
    analytic = fit.model.prior.analytic
    against = () if analytic else aggregate_of(mean_nd, var_nd)
    kl_d = kl_per_cell(mean_nd, var_nd, *against).mean(0)
    order = [int(kl_d.argmax()), int(kl_d.argmin())] if len(kl_d) > 1 else [0]
    rows = _spread(mean_nd[:, order[0]]) if cells is None else select_cells(adata, cells, "cells", in_order=True)
    if len(rows) > MAX_CELLS:
        msg = f"cells= selects {len(rows)} cells; at most {MAX_CELLS} curves can be drawn. Select fewer."
        raise ValueError(msg)
    names = [str(name) for name in adata.obs_names[rows]]
    draws_md = None if analytic else _prior_draws(fit)
    active = active_of(fit)
    with panels(ax, len(order), size=(4.7, 3.6), figsize=figsize, ncols=ncols, why=", one per dimension") as axes:
        for panel, i in zip(axes, order, strict=True):
            prior_sd = 1.0 if draws_md is None else float(draws_md[:, i].std())
            sd = float(np.median(np.sqrt(var_nd[:, i])))
            handles = _draw(panel, mean_nd[:, i], np.sqrt(var_nd[:, i]), rows, names)
            handles += _draw_prior(panel, None if draws_md is None else draws_md[:, i])
            comment = _comment(active, i, sd, prior_sd, highest=i == order[0])
            titled(panel, f"dimension {i}: KL {kl_d[i]:.2f} nats per cell\n{comment}")
            panel.set_xlabel(f"latent dimension {i}")
            panel.set_ylabel("density")
            plain(panel)
        # a new figure has space on the right
        put_legend(axes[-1], handles, side="right" if ax is None and figsize is None and ncols is None else None)
        return finish(axes, show=show, return_fig=return_fig)


def _comment(active: np.ndarray, i: int, sd: float, prior_sd: float, *, highest: bool) -> str:
    """Describe what this panel shows, for any fit; ``sd`` is that of a typical posterior."""
    if active[i]:
        kind = "most used" if highest else "least used, none empty" if active.all() else "least used, not empty"
    else:
        kind = "empty" if active.any() else "collapsed, like all"
    return f"{kind}: posterior sd {sd:.2f}, prior {prior_sd:.2g}"


def _spread(mean_n: np.ndarray) -> np.ndarray:
    """Choose rows of a few cells, spread evenly over a dimension, by increasing posterior mean."""
    k = min(N_CELLS, len(mean_n))
    ranks = np.round((np.arange(k) + 0.5) / k * len(mean_n) - 0.5).astype(int)
    return np.asarray(np.argsort(mean_n, kind="stable")[ranks])


def _draw(ax: Axes, mean_n: np.ndarray, sd_n: np.ndarray, rows: np.ndarray, names: list[str]) -> list[Artist]:
    """Draw the aggregate posterior and the posteriors of ``rows``, over a range that shows all of them."""
    ends = [np.quantile(mean_n - 3 * sd_n, 0.01), (mean_n[rows] - 3 * sd_n[rows]).min()]
    tops = [np.quantile(mean_n + 3 * sd_n, 0.99), (mean_n[rows] + 3 * sd_n[rows]).max()]
    z = np.linspace(min(-3.5, *ends), max(3.5, *tops), N_GRID)
    every = np.unique(np.linspace(0, len(mean_n) - 1, min(len(mean_n), MAX_AGGREGATE)).astype(int))
    aggregate = np.mean([norm.pdf(z, mean_n[n], sd_n[n]) for n in every], axis=0)
    pale = Shades.of(ax).pale
    handles: list[Artist] = [ax.fill_between(z, aggregate, color=pale, linewidth=0, label="all cells together")]
    for n, name, colour in zip(rows, names, few_colours(len(rows)), strict=True):
        handles += ax.plot(z, norm.pdf(z, mean_n[n], sd_n[n]), color=colour, linewidth=1.4, label=name)
    ax.set_xlim(z[0], z[-1])
    return handles


@torch.no_grad()
def _prior_draws(fit: Fit) -> np.ndarray:
    """Draw from a learned prior, (5,000, d)."""
    draws: np.ndarray = fit.model.prior.sample(MAX_AGGREGATE, torch.Generator().manual_seed(0)).double().numpy()
    return draws


def _draw_prior(ax: Axes, draws_m: np.ndarray | None) -> list[Line2D]:
    """Draw the density of the prior: of N(0, 1), or of the draws of a learned prior."""
    z = np.linspace(*ax.get_xlim(), N_GRID)
    density = norm.pdf(z) if draws_m is None else gaussian_kde(draws_m)(z)
    name = "prior N(0, 1)" if draws_m is None else "prior, learned"
    lines = ax.plot(z, density, color=Shades.of(ax).ink, linewidth=1.4, linestyle="--", label=name)
    ax.set_ylim(bottom=0)
    return lines
