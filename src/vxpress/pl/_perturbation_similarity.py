"""``vx.pl.perturbation_similarity``: which perturbations have similar effects, as an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vxpress._checks import check_range
from vxpress._entry import entry
from vxpress._keys import DEFAULT_KEY, Keys
from vxpress._mudata import MuData
from vxpress.bridge.fits.modalities import takes_mudata
from vxpress.bridge.read.adata import check_anndata
from vxpress.pl._colours import Shades
from vxpress.pl._shared import check_switches, finish, inches_of, panels, titled

LABELS = 60


@entry
@takes_mudata("cells")
def perturbation_similarity(
    adata: AnnData | MuData,
    *,
    modality: str | None = None,
    min_reliability: float = 0.5,
    key: str = DEFAULT_KEY,
    name: str | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> list[Axes] | Figure | None:
    """Draw the similarity of the effects of perturbations, similar ones next to each other.

    Perturbations whose embedding is not reliable are named in grey, and a dot marks pairs whose interval excludes 0.

    Parameters
    ----------
    adata
        Cells after :func:`vxpress.tl.perturbation_similarity`.
    modality
        If ``adata`` is a MuData, the modality whose fit is drawn; not needed for a fit of several modalities, or if one
        modality alone holds a fit of this name.
    min_reliability
        Names of perturbations with a lower reliability are grey, and their pairs have no dots.
    key
        Name of the fit.
    name
        Name of the result: the ``key_added`` of that call, if one was given.
    figsize
        Width and height of the new figure in inches; by default chosen from the number of perturbations.
    ax
        Axes to draw on; by default those of a new figure.
    show
        Whether to show the figure; by default ``sc.settings.autoshow``.
    return_fig
        Whether to return the figure, without showing it.

    Returns
    -------
    ``None`` if shown, the :class:`~matplotlib.figure.Figure` if ``return_fig``, else a list with the
    :class:`~matplotlib.axes.Axes`.

    Raises
    ------
    KeyError
        If there is no such result.
    ValueError
        If ``min_reliability`` is not from 0 to 1, or ``figsize`` is wrong.
    TypeError
        If ``ax`` is not an axes or a list of them.

    See Also
    --------
    vxpress.tl.perturbation_similarity : the numbers.

    Examples
    --------
    >>> import vxpress as vx
    >>> adata = vx.datasets.simulate(400, 60, n_groups=4, rng=0)
    >>> vx.tl.fit_vae(adata, perturbation_key="group", control="group_0", max_epochs=3)
    >>> vx.tl.perturbation_similarity(adata)
    >>> (ax,) = vx.pl.perturbation_similarity(adata, show=False)
    >>> sorted(label.get_text() for label in ax.get_yticklabels())
    ['group_1', 'group_2', 'group_3']
    """
    check_switches(show=show, return_fig=return_fig)
    check_range("min_reliability", min_reliability, 0.0, 1.0)
    record = _recorded(adata, key, name)
    side = float(np.clip(1.2 + 0.24 * len(record["names"]), 3.2, 14.0))
    with panels(ax, 1, size=(side + 1.0, side), figsize=figsize) as axes:
        _draw(axes[0], record, min_reliability)
        return finish(axes, show=show, return_fig=return_fig)


def _recorded(adata: AnnData, key: str, name: str | None) -> Mapping[str, Any]:
    check_anndata(adata)
    where = f"{Keys.of(key).uns}_perturbation_similarity" if name is None else name
    record = adata.uns.get(where)
    if not isinstance(record, Mapping) or "reliability" not in record:
        named = "" if key == DEFAULT_KEY else f", key={key!r}"
        msg = f"adata.uns has no {where!r}. Write it with vx.tl.perturbation_similarity(adata{named})."
        raise KeyError(msg)
    return record


def _draw(ax: Axes, record: Mapping[str, Any], min_reliability: float) -> None:
    names, shades = [str(name) for name in record["names"]], Shades.of(ax)
    found, low, high = (np.asarray(record[part], dtype=float) for part in ("similarity", "low", "high"))
    reliable = np.asarray(record["reliability"], dtype=float) >= min_reliability
    image = ax.imshow(found, cmap="RdBu_r", vmin=-1.0, vmax=1.0, interpolation="nearest")
    sure = ((low > 0) | (high < 0)) & reliable & reliable[:, None] & ~np.eye(len(names), dtype=bool)
    size = 72 * inches_of(ax)[0] / len(names)
    y, x = np.nonzero(sure)
    ax.scatter(x, y, s=float(np.clip((0.15 * size) ** 2, 0.5, 12)), color="black", linewidths=0)
    step = max(1, -(-len(names) // LABELS))
    at = np.arange(0, len(names), step)
    letters = float(np.clip(0.8 * size * step, 4, 9))
    ax.set_xticks(at, [names[i] for i in at], rotation=90, fontsize=letters)
    ax.set_yticks(at, [names[i] for i in at], fontsize=letters)
    for labels in (ax.get_xticklabels(), ax.get_yticklabels()):
        for i, label in zip(at, labels, strict=True):
            if not reliable[i]:
                label.set_color(shades.quiet)
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.8)
    bar.set_label("cosine of the embeddings")
    bar.outline.set_visible(False)
    ax.grid(visible=False)
    titled(ax, "similarity of perturbations", "left")
