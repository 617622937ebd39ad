"""``vx.pl.trajectory``: expression along a path, and the path in the latent space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from vxpress._entry import entry
from vxpress._keys import DEFAULT_KEY, Keys
from vxpress.bridge.ask.arguments import named_genes
from vxpress.bridge.read.columns import find_column, get_array, get_numbers, is_mask
from vxpress.pl._colours import SECOND, Shades, few_colours
from vxpress.pl._labels import label_ends
from vxpress.pl._shared import check_switches, finish, listed, panels, plain, put_legend, short

N_GENES = 8
MAX_GENES = 24  # more lines cannot be distinguished
EMPTY = "almost no cells here"
SHOWN = ("source", "target", "groupby", "target_sum")  # settings of the path that are written on the axes
COLUMNS = ("position", "density_percentile", "empty")


@entry
def trajectory(
    adata: AnnData,
    genes: str | Sequence[str] | None = None,
    *,
    cells: AnnData | None = None,
    relative: bool = True,
    key: str = DEFAULT_KEY,
    ncols: int | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> list[Axes] | Figure | None:
    """Draw expression along a path, and the path among the cells; steps through empty space are marked.

    Parameters
    ----------
    adata
        A path: the result of :func:`vxpress.tl.interpolate`.
    genes
        Genes to draw, at most 24, each labelled at the end of its line. By default the eight genes whose expression
        changes most along the path: by the ratio of largest to smallest value, after adding a hundredth of the largest
        value of all.
    cells
        The AnnData with the fitted cells, for a second panel: the path in a plane of the latent space. The horizontal
        axis is the direction from source to target, so the path is drawn at full length. The vertical axis is the
        direction at right angles to it in which the cells vary most. Both are in units of the latent space, in which
        the prior has a standard deviation of 1.
    relative
        Whether to draw every gene as a share of its largest value on the path, so that genes of all expression levels
        are visible. Otherwise values have the scale of the ``target_sum`` of :func:`vxpress.tl.interpolate`.
    key
        Name of the fit: the ``key_added`` of the call that made it.
    ncols
        Number of panels per row; by default two, or one if ``figsize`` is narrow.
    figsize
        Width and height of the new figure in inches; by default (5.4, 3.8), twice as wide with ``cells``.
    ax
        Axes to draw on, two of them with ``cells``; by default those of a new figure.
    show
        Whether to show the figure; by default ``sc.settings.autoshow``.
    return_fig
        Whether to return the figure, without showing it.

    Returns
    -------
    ``None`` if shown, the :class:`~matplotlib.figure.Figure` if ``return_fig``, else the list of
    :class:`~matplotlib.axes.Axes`. Steps that :func:`vxpress.tl.interpolate` flagged as empty are shaded in the first
    panel, and drawn as crosses in the second.

    Raises
    ------
    KeyError
        If ``adata`` is not a path, a gene is not in it, or ``cells`` has no posterior.
    ValueError
        If there are more than 24 genes, the number of axes or ``figsize`` is wrong, or the cells belong to a fit with
        another number of latent dimensions.
    TypeError
        If ``genes`` are not names, or ``ax`` is not axes.

    See Also
    --------
    vxpress.tl.interpolate : compute a path.

    Examples
    --------
    >>> import vxpress as vx
    >>> adata = vx.datasets.pbmc68k_reduced()
    >>> vx.tl.fit_vae(adata, max_epochs=5, denoised=False)
    >>> path = vx.tl.interpolate(adata, "CD4+/CD25 T Reg", "CD14+ Monocyte", groupby="bulk_labels")
    >>> along, plane = vx.pl.trajectory(path, ["CD3D", "LYZ"], cells=adata, show=False)
    >>> [line.get_label() for line in along.lines]
    ['CD3D', 'LYZ']
    """
    check_switches(show=show, return_fig=return_fig)
    keys = Keys.of(key)
    _check(adata, keys)
    chosen = _most_changing(adata) if genes is None else _known(adata, genes)
    mean_nd = None if cells is None else _latent(cells, adata, keys)
    n, why = (1, "") if mean_nd is None else (2, ", for cells= draws a second panel")
    with panels(ax, n, size=(5.4, 3.8), figsize=figsize, ncols=ncols, why=why) as axes:
        _draw_expression(axes[0], adata, chosen, relative=relative)
        if mean_nd is not None:
            _draw_plane(axes[1], adata, mean_nd, keys)
        return finish(axes, show=show, return_fig=return_fig)


def _check(path: AnnData, keys: Keys) -> None:
    if not isinstance(path, AnnData):
        msg = f"The AnnData that vx.tl.interpolate returned is expected as the first argument; found {type(path).__name__}."
        raise TypeError(msg)
    missing = [name for name in COLUMNS if name not in path.obs]
    if not missing and path.n_obs > 1 and keys.latent not in path.obsm:
        msg = f"The path has no obsm[{keys.latent!r}] (found: {list(path.obsm)}). Pass the same key= as to vx.tl.interpolate."
        raise KeyError(msg)
    if missing or path.n_obs < 2:
        what = f"obs lacks {missing}" if missing else f"it has {path.n_obs} step(s)"
        msg = f"This is not a path ({what}). Make one: path = vx.tl.interpolate(adata, source, target, groupby=...)."
        raise KeyError(msg)


def _known(path: AnnData, genes: str | Sequence[str]) -> list[str]:
    found = [genes] if isinstance(genes, str) else listed(genes)
    if not is_mask(genes) and (not found or not all(isinstance(name, str) for name in found)):
        msg = f"genes={short(genes)} was given; names of genes of the path are expected, for example {list(path.var_names[:3])}."
        raise TypeError(msg)
    names = named_genes(path, genes)
    unknown = names[~names.isin(path.var_names)]
    if len(unknown) or not len(names):
        msg = f"genes={list(unknown[:3])} are not in the path, which has {path.n_vars} genes (for example {list(path.var_names[:3])})."
        raise KeyError(msg)
    if len(names) > MAX_GENES:
        msg = f"genes= has {len(names)} genes; at most {MAX_GENES} lines can be drawn. Pass fewer, or draw sc.pl.heatmap of the path."
        raise ValueError(msg)
    return list(names)


def _most_changing(path: AnnData) -> list[str]:
    x = np.nan_to_num(np.asarray(path.X, dtype=np.float64))
    high, low = x.max(0), x.min(0)
    # log values of a Gaussian fit may be negative and are compared by their difference
    change = high - low if (low < 0).any() else np.log((high + 0.01 * high.max()) / (low + 0.01 * high.max()))
    return [str(path.var_names[i]) for i in np.argsort(-change, kind="stable")[:N_GENES]]


def _edges(position_s: np.ndarray) -> np.ndarray:
    """Return the ends of the interval that each step represents."""
    middle = 0.5 * (position_s[1:] + position_s[:-1])
    return np.concatenate(([position_s[0]], middle, [position_s[-1]]))


def _draw_expression(ax: Axes, path: AnnData, genes: list[str], *, relative: bool) -> None:
    position_s, empty_s = get_numbers(path.obs, "position"), find_column(path.obs, "empty").to_numpy(bool)
    edges, pale = _edges(position_s), Shades.of(ax).pale
    shaded = [ax.axvspan(edges[i], edges[i + 1], color=pale, linewidth=0, label=EMPTY) for i in np.flatnonzero(empty_s)]
    lines = []
    for name, colour in zip(genes, few_colours(len(genes)), strict=True):
        y = np.asarray(path[:, name].X, dtype=np.float64).reshape(-1)
        largest = np.abs(y).max()
        y = y / largest if relative and largest > 0 else y
        lines += ax.plot(position_s, y, color=colour, linewidth=1.6, label=name)
    params = _params(path)
    # non-breaking spaces, so that names are not wrapped
    ends = [
        f"{i}: {_end(params, name)}".replace(" ", "\u00a0") for i, name in enumerate(("source", "target")) if params
    ]
    ax.set_xlabel(f"position on the path ({', '.join(ends)})" if ends else "position on the path")
    ax.set_ylabel("expression (share of each gene's largest)" if relative else _unit(path))
    ax.margins(x=0)
    plain(ax)
    put_legend(ax, shaded[:1], side="above")
    label_ends(ax, lines)


def _end(params: dict[str, str], name: str) -> str:
    """Return the name of an end, preceded by its column if it is a number, as names of clusters are."""
    end = str(params[name])
    return f"{params['groupby']} {end}" if "groupby" in params and end.isdecimal() else end


def _unit(path: AnnData) -> str:
    """Return the label with the unit of expression, from the target sum in the settings of the path."""
    target_sum = _params(path).get("target_sum", "")
    try:
        return f"expected expression (counts per {float(target_sum):,.5g})"
    except ValueError:
        return "expected expression"


def _params(path: AnnData) -> dict[str, str]:
    found = [v["params"] for k, v in path.uns.items() if str(k).endswith("_interpolate") and "params" in v]
    return {name: str(value) for name, value in found[0].items() if name in SHOWN} if found else {}


def _latent(cells: AnnData, path: AnnData, keys: Keys) -> np.ndarray:
    if keys.latent not in cells.obsm:
        msg = f"cells.obsm has no {keys.latent!r}. Pass the AnnData that was fitted, or write it with vx.tl.encode(cells, model=...)."
        raise KeyError(msg)
    mean_nd = get_array(cells.obsm, keys.latent, "Write it again: vx.tl.encode(cells, model=...).").astype(np.float64)
    d = get_array(path.obsm, keys.latent, "Make the path again: vx.tl.interpolate.").shape[1]
    if mean_nd.shape[1] != d or not len(mean_nd):
        msg = (
            f"cells.obsm[{keys.latent!r}] has shape {mean_nd.shape}, but the path has {d} dimensions. Pass the AnnData of the fit "
            "from which the path was made."
        )
        raise ValueError(msg)
    return mean_nd


def _draw_plane(ax: Axes, path: AnnData, mean_nd: np.ndarray, keys: Keys) -> None:
    path_sd = get_array(path.obsm, keys.latent, "Make the path again: vx.tl.interpolate.").astype(np.float64)
    way = path_sd[-1] - path_sd[0]
    along = way / np.linalg.norm(way)
    centred = mean_nd - mean_nd.mean(0)
    centred = centred - np.outer(centred @ along, along)
    across = np.linalg.svd(centred, full_matrices=False)[2][0] if mean_nd.shape[1] > 1 else np.zeros_like(along)
    plane = np.stack([along, across], axis=1)
    cells_n2, path_s2 = mean_nd @ plane, path_sd @ plane
    empty_s = find_column(path.obs, "empty").to_numpy(bool)
    size, shades = float(np.clip(8000 / len(cells_n2), 0.5, 12)), Shades.of(ax)
    grey = ax.scatter(
        cells_n2[:, 0], cells_n2[:, 1], s=size, color=shades.pale, linewidths=0, rasterized=True, label="cell"
    )
    ax.plot(*path_s2.T, color=shades.ink, linewidth=1.0)
    full, flagged = path_s2[~empty_s], path_s2[empty_s]
    handles = [grey, ax.scatter(full[:, 0], full[:, 1], s=22, color=shades.ink, zorder=3, label="step of the path")]
    if len(flagged):
        handles.append(ax.scatter(flagged[:, 0], flagged[:, 1], s=34, color=SECOND, marker="x", zorder=3, label=EMPTY))
    params = _params(path)
    halo = [withStroke(linewidth=2.5, foreground=shades.face)]
    for name, at, side in (("source", 0, -1), ("target", -1, 1)):
        if params:
            # one label below and one above the path, so that they do not overlap if the path is short
            end: Any = path_s2[at]
            place: dict[str, Any] = {"xytext": (0, 7 * side), "textcoords": "offset points", "zorder": 4}
            align: dict[str, Any] = {"ha": "left" if side < 0 else "right", "va": "top" if side < 0 else "bottom"}
            ax.annotate(params[name], end, path_effects=halo, fontsize="small", **place, **align)
    ax.margins(x=0.12)
    ax.set_xlabel("latent space: from source to target")
    ax.set_ylabel("latent space: largest spread at right angles to the path")
    plain(ax)
    put_legend(ax, handles, side="above")
