"""``vx.pl.kl``: what each latent dimension carries."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from vxpress._keys import DEFAULT_KEY
from vxpress.metrics._latent import kl_per_cell
from vxpress.pl._shared import INK, PALE, SOFT, active_of, finish, headline, new_axes, plain, posterior_of

MAX_LABELS = 40
# the axis reaches at least this far, in nats, so that collapsed dimensions look it
LEAST_TOP = 0.1


def kl(
    adata: AnnData,
    *,
    key: str = DEFAULT_KEY,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Draw the divergence of the posterior from the prior, per latent dimension, with its spread over cells.

    A dimension whose bar is at 0 carries nothing: the posterior of every cell lies on the prior.
    Bars and spread are those of the cells in ``adata``; active dimensions, and the verdict in the title, are those of the
    stored diagnosis, whose ``kl_per_dim`` is that of the held-out cells.

    Parameters
    ----------
    adata
        Cells with a stored posterior and a fit of :func:`~vxpress.tl.fit_vae`.
    key
        Stem of the fit.
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
    lines reach from the first to the third quartile over cells, and dots are medians.

    Raises
    ------
    KeyError
        If ``adata`` holds no such fit or posterior.
    ValueError
        If the stored posterior belongs to another fit.

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
    fit, mean_nd, var_nd = posterior_of(adata, key)
    kl_nd = kl_per_cell(mean_nd, var_nd)
    order = np.argsort(-kl_nd.mean(0), kind="stable")
    active = active_of(fit)[order]
    low, median, high = np.quantile(kl_nd[:, order], [0.25, 0.5, 0.75], axis=0)
    d = len(order)
    ax = new_axes(ax, (min(12.0, 3.6 + 0.24 * d), 3.6))
    x = np.arange(d)
    ax.bar(x, kl_nd.mean(0)[order], width=0.72, color=[SOFT if is_active else PALE for is_active in active])
    ax.vlines(x, low, high, color=INK, linewidth=1.2)
    ax.plot(x, median, linestyle="", marker="o", markersize=3.5, color=INK)
    step = -(-d // MAX_LABELS)
    ax.set_xticks(x[::step], [str(i) for i in order[::step]], fontsize="small" if d > 12 else "medium")
    ax.set_xlim(-0.7, d - 0.3)
    ax.set_ylim(0, max(LEAST_TOP, ax.get_ylim()[1]))
    ax.set_xlabel("latent dimension, highest first")
    ax.set_ylabel("KL from the prior (nats per cell)")
    ax.set_title(headline(fit.diagnostics), fontsize="medium", loc="left")
    _legend(ax, active, adata.n_obs)
    plain(ax)
    return finish(ax, show=show, return_fig=return_fig)


def _legend(ax: Axes, active: np.ndarray, n_cells: int) -> None:
    kinds = ((SOFT, "active", int(active.sum())), (PALE, "inactive", int((~active).sum())))
    handles: list[Artist] = [Patch(color=colour, label=f"{kind} ({k}), mean") for colour, kind, k in kinds if k]
    spread = ax.plot(
        [], [], color=INK, linewidth=1.2, marker="o", markersize=3.5, label=f"quartiles of {n_cells} cells"
    )
    ax.legend(handles=[*handles, *spread], frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
