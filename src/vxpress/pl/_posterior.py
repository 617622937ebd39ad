"""``vx.pl.posterior``: a used and a collapsed latent dimension, side by side."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from anndata import AnnData
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import gaussian_kde, norm

from vxpress._keys import DEFAULT_KEY
from vxpress.bridge.fit import Fit
from vxpress.bridge.prepare import as_tuple
from vxpress.metrics._latent import kl_per_cell
from vxpress.pl._shared import INK, PALE, active_of, aggregate_of, finish, plain, posterior_of

N_CELLS = 5
MAX_AGGREGATE = 5_000
N_GRID = 601


def posterior(
    adata: AnnData,
    *,
    cells: str | Sequence[str] | None = None,
    key: str = DEFAULT_KEY,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> list[Axes] | Figure | None:
    """Draw posteriors of a few cells, and all of them together, against the prior, in the most and in the least used latent dimension.

    These are the two pictures of a variational autoencoder: where a dimension is used, each cell has a narrow posterior of
    its own, and only their mixture over cells resembles the prior; where it has collapsed, every posterior is the prior.
    The titles say which of the two each panel shows, also where both are of one kind.

    Parameters
    ----------
    adata
        Cells with a stored posterior and a fit of :func:`~vxpress.tl.fit_vae`.
    cells
        Names of the cells whose posteriors are drawn; by default five, spread evenly over the most used dimension.
    key
        Name of the fit.
    ax
        Two axes to draw on (one, if the fit has one dimension); by default those of a new figure.
    show
        Whether to show the figure; by default ``sc.settings.autoshow``.
    return_fig
        Whether to return the figure, without showing it.

    Returns
    -------
    ``None`` if shown, the :class:`~matplotlib.figure.Figure` if ``return_fig``, else the list of
    :class:`~matplotlib.axes.Axes`: the dimension with the highest, then that with the lowest mean divergence over cells.
    Curves are densities of N(mean, variance) per cell; the filled one is their mean over all cells (over 5,000 at most). A
    learned prior is drawn as the density of 5,000 draws of it in that dimension, smoothed by Scott's rule.

    Raises
    ------
    KeyError
        If ``adata`` holds no such fit, posterior or cell.
    ValueError
        If the stored posterior belongs to another fit, or the number of axes is wrong.

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
    fit, mean_nd, var_nd = posterior_of(adata, key)
    analytic = fit.model.prior.analytic
    against = () if analytic else aggregate_of(mean_nd, var_nd)
    kl_d = kl_per_cell(mean_nd, var_nd, *against).mean(0)
    draws_md = None if analytic else _prior_draws(fit)
    active = active_of(fit)
    order = [int(kl_d.argmax()), int(kl_d.argmin())] if len(kl_d) > 1 else [0]
    rows = _rows(adata, cells, mean_nd[:, order[0]])
    axes = _axes(ax, len(order))
    for panel, i in zip(axes, order, strict=True):
        prior_sd = 1.0 if draws_md is None else float(draws_md[:, i].std())
        sd = float(np.median(np.sqrt(var_nd[:, i])))
        _draw(panel, mean_nd[:, i], np.sqrt(var_nd[:, i]), rows, [str(name) for name in adata.obs_names[rows]])
        _draw_prior(panel, None if draws_md is None else draws_md[:, i])
        panel.set_title(
            f"dimension {i}: KL {kl_d[i]:.2f} nats per cell\n{_comment(active, i, sd, prior_sd, highest=i == order[0])}",
            fontsize="medium",
        )
        panel.set_xlabel(f"latent dimension {i}")
    axes[0].set_ylabel("density")
    axes[-1].legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return finish(axes, show=show, return_fig=return_fig)


def _comment(active: np.ndarray, i: int, sd: float, prior_sd: float, *, highest: bool) -> str:
    """What this panel shows, in words that hold whatever the fit; ``sd`` is that of a typical posterior."""
    if active[i]:
        kind = "most used" if highest else "least used, none collapsed" if active.all() else "least used, not collapsed"
    else:
        kind = "collapsed" if active.any() else "collapsed, like all"
    return f"{kind}: posterior sd {sd:.2f}, prior {prior_sd:.2g}"


def _rows(adata: AnnData, cells: str | Sequence[str] | None, mean_n: np.ndarray) -> np.ndarray:
    """Rows of the cells to draw, by rising posterior mean where they are ours to choose."""
    if cells is None:
        k = min(N_CELLS, len(mean_n))
        ranks = np.round((np.arange(k) + 0.5) / k * len(mean_n) - 0.5).astype(int)
        return np.asarray(np.argsort(mean_n, kind="stable")[ranks])
    names = as_tuple(cells)
    unknown = [name for name in names if name not in adata.obs_names]
    if unknown or not names:
        msg = f"cells={unknown or list(names)} should be names of cells in adata.obs_names, for example {list(adata.obs_names[:2])}."
        raise KeyError(msg)
    return np.asarray(adata.obs_names.get_indexer_for(list(names)))


def _axes(ax: Axes | Sequence[Axes] | None, n: int) -> list[Axes]:
    if ax is None:
        figure = plt.figure(figsize=(2.2 + 3.6 * n, 3.6), layout="constrained")
        return list(figure.subplots(1, n, squeeze=False)[0])
    axes = [ax] if isinstance(ax, Axes) else list(ax)
    if len(axes) != n:
        msg = f"ax= has {len(axes)} axes; pass a list of {n}."
        raise ValueError(msg)
    return axes


def _draw(ax: Axes, mean_n: np.ndarray, sd_n: np.ndarray, rows: np.ndarray, names: list[str]) -> None:
    """Aggregate posterior and the posteriors of ``rows``, over a range that shows all of them."""
    ends = [np.quantile(mean_n - 3 * sd_n, 0.01), (mean_n[rows] - 3 * sd_n[rows]).min()]
    tops = [np.quantile(mean_n + 3 * sd_n, 0.99), (mean_n[rows] + 3 * sd_n[rows]).max()]
    z = np.linspace(min(-3.5, *ends), max(3.5, *tops), N_GRID)
    every = np.unique(np.linspace(0, len(mean_n) - 1, min(len(mean_n), MAX_AGGREGATE)).astype(int))
    aggregate = np.mean([norm.pdf(z, mean_n[n], sd_n[n]) for n in every], axis=0)
    ax.fill_between(z, aggregate, color=PALE, linewidth=0, label="all cells together")
    colours = colormaps["viridis"](np.linspace(0.0, 0.85, len(rows)))
    for n, name, colour in zip(rows, names, colours, strict=True):
        ax.plot(z, norm.pdf(z, mean_n[n], sd_n[n]), color=colour, linewidth=1.4, label=name)
    ax.set_xlim(z[0], z[-1])


@torch.no_grad()
def _prior_draws(fit: Fit) -> np.ndarray:
    """Draws of a learned prior, (5,000, d)."""
    draws: np.ndarray = fit.model.prior.sample(MAX_AGGREGATE, torch.Generator().manual_seed(0)).double().numpy()
    return draws


def _draw_prior(ax: Axes, draws_m: np.ndarray | None) -> None:
    """N(0, 1), or where there are draws of a learned prior their density."""
    z = np.linspace(*ax.get_xlim(), N_GRID)
    density = norm.pdf(z) if draws_m is None else gaussian_kde(draws_m)(z)
    name = "prior N(0, 1)" if draws_m is None else "prior, learned"
    ax.plot(z, density, color=INK, linewidth=1.4, linestyle="--", label=name)
    ax.set_ylim(bottom=0)
    plain(ax)
