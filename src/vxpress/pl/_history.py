"""``vx.pl.history``: the course of the training."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vxpress._entry import entry
from vxpress._keys import DEFAULT_KEY
from vxpress._mudata import MuData
from vxpress.bridge.fits.fit import Fit
from vxpress.bridge.fits.modalities import takes_mudata
from vxpress.pl._colours import MAIN, SECOND, Shades
from vxpress.pl._shared import check_switches, finish, fit_of, panels, plain, put_legend

# the first epochs are far below the others; the view starts at this quantile of the curves
LOW_QUANTILE = 0.05


@entry
@takes_mudata("cells")
def history(
    adata: AnnData | MuData,
    *,
    modality: str | None = None,
    key: str = DEFAULT_KEY,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Draw the evidence lower bound (ELBO) per epoch, of training and held-out cells, with the KL weight.

    Both curves have KL weight 1, independent of the weight used in training, so they may fall while that weight rises.
    Training cells are averaged over the epoch, with dropout. Held-out cells are evaluated at its end, without dropout.
    The vertical line marks the epoch whose weights were kept.

    Parameters
    ----------
    adata
        Annotated matrix with a fit of :func:`~vxpress.tl.fit_vae`.
    modality
        If ``adata`` is a MuData, the modality whose fit is drawn; not needed for a fit of several modalities, or if one
        modality alone holds a fit of this name.
    key
        Name of the fit: the ``key_added`` of the call that made it.
    figsize
        Width and height of the new figure in inches; by default (6, 3.6).
    ax
        Axes to draw on; by default those of a new figure. The KL weight is drawn on a twin of these axes.
    show
        Whether to show the figure; by default ``sc.settings.autoshow``.
    return_fig
        Whether to return the figure, without showing it.

    Returns
    -------
    ``None`` if shown, the :class:`~matplotlib.figure.Figure` if ``return_fig``, else the :class:`~matplotlib.axes.Axes`
    with the two curves: nats per cell against epochs from 1; higher is better. There is no curve of held-out cells if
    the fit held out none. The view leaves out the lowest values, which are those of the first epochs. The weight has no
    unit.

    Raises
    ------
    KeyError
        If ``adata`` has no fit with this name.
    TypeError
        If ``ax`` is not an axes.
    ValueError
        If ``figsize`` is not a valid size, or ``ax`` has more than one axes.

    See Also
    --------
    vxpress.pl.kl : divergence of each latent dimension of the fit.

    Examples
    --------
    >>> import vxpress as vx
    >>> adata = vx.datasets.pbmc68k_reduced()
    >>> vx.tl.fit_vae(adata, max_epochs=5, denoised=False)
    >>> ax = vx.pl.history(adata, show=False)
    >>> [line.get_label() for line in ax.get_lines()]
    ['training cells', 'held-out cells', 'kept: epoch 5']
    """
    check_switches(show=show, return_fig=return_fig)
    fit = fit_of(adata, key)
    with panels(ax, 1, size=(6.0, 3.6), figsize=figsize) as (panel,):
        _draw(panel, fit)
        return finish(panel, show=show, return_fig=return_fig)


def _draw(ax: Axes, fit: Fit) -> None:
    train, validation, weight = (fit.history[name] for name in ("elbo_train", "elbo_validation", "kl_weight"))
    epochs = np.arange(1, len(train) + 1)
    marker = "o" if len(epochs) == 1 else ""
    shades = Shades.of(ax)
    twin = ax.twinx()
    twin.fill_between(epochs, weight, color=shades.pale, alpha=0.5, linewidth=0)
    twin.plot(epochs, weight, color=shades.quiet, linewidth=1, marker=marker)
    twin.set_ylim(0, 1.05 * max(1.0, float(weight.max())))
    twin.set_ylabel("KL weight", color=shades.quiet)
    twin.tick_params(axis="y", colors=shades.quiet)
    twin.grid(visible=False)
    twin.spines[["top", "left"]].set_visible(False)
    twin.spines["right"].set_color(shades.quiet)
    # draw the curves on top of the weight
    ax.set_zorder(twin.get_zorder() + 1)
    ax.patch.set_visible(False)

    lines = ax.plot(epochs, train, color=MAIN, linewidth=1.5, marker=marker, label="training cells")
    if np.isfinite(validation).any():
        lines += ax.plot(epochs, validation, color=SECOND, linewidth=1.5, marker=marker, label="held-out cells")
    kept = fit.params.best_epoch + 1
    lines.append(ax.axvline(kept, color=shades.ink, linewidth=1, linestyle=":", label=f"kept: epoch {kept}"))
    _set_view(ax, np.concatenate([train, validation]))
    ax.set_xlabel("epoch")
    ax.set_ylabel("ELBO (nats per cell)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlim(0.5, len(epochs) + 0.5)
    put_legend(ax, lines, side="above")
    plain(ax)


def _set_view(ax: Axes, values: np.ndarray) -> None:
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return
    low, high = float(np.quantile(values, LOW_QUANTILE)), float(values.max())
    if high > low:
        margin = 0.06 * (high - low)
        ax.set_ylim(low - margin, high + margin)
