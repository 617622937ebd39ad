"""``vx.pl.trajectory``: expression along a path, and the path in the latent space."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from anndata import AnnData
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vxpress._keys import DEFAULT_KEY, Keys
from vxpress.bridge.arguments import named_genes
from vxpress.bridge.columns import find_column, get_array, get_numbers
from vxpress.pl._shared import INK, PALE, QUIET, SECOND, finish, new_axes, plain

N_GENES = 8
COLUMNS = ("position", "density_percentile", "empty")


def trajectory(
    adata: AnnData,
    genes: str | Sequence[str] | None = None,
    *,
    cells: AnnData | None = None,
    relative: bool = True,
    key: str = DEFAULT_KEY,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> list[Axes] | Figure | None:
    """Draw expression along a path, and the path among the cells, with the steps that cross empty space marked.

    Parameters
    ----------
    adata
        A path: what :func:`vxpress.tl.interpolate` returned.
    genes
        Genes to draw; by default the eight whose expression changes most along the path, by largest over smallest value after
        adding a hundredth of the largest value of all.
    cells
        The AnnData with the cells that were fitted, for a second panel: the path in the plane of the latent space spanned by
        the way from source to target, drawn at full length, and by the direction across it in which cells spread most.
    relative
        Draw every gene as a share of its largest value on the path, so that genes of any level are seen; otherwise as it is.
    key
        Name of the fit.
    ax
        Axes to draw on, two of them with ``cells``; by default those of a new figure.
    show
        Whether to show the figure; by default ``sc.settings.autoshow``.
    return_fig
        Whether to return the figure, without showing it.

    Returns
    -------
    ``None`` if shown, the :class:`~matplotlib.figure.Figure` if ``return_fig``, else the list of
    :class:`~matplotlib.axes.Axes`. Flagged steps are shaded, and crosses in the plane.

    Raises
    ------
    KeyError
        If ``adata`` is no path, a gene is not in it, or ``cells`` lack the posterior.
    ValueError
        If the number of axes is wrong, or the cells are of a fit with another number of latent dimensions.

    See Also
    --------
    vxpress.tl.interpolate : makes the path.

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
    keys = Keys.of(key)
    _check(adata, keys)
    chosen = _most_changing(adata) if genes is None else _known(adata, genes)
    axes = _axes(ax, 1 if cells is None else 2)
    _draw_expression(axes[0], adata, chosen, relative=relative)
    if cells is not None:
        _draw_plane(axes[1], adata, _latent(cells, adata, keys), keys)
    return finish(axes, show=show, return_fig=return_fig)


def _check(path: AnnData, keys: Keys) -> None:
    if not isinstance(path, AnnData):
        msg = f"The AnnData that vx.tl.interpolate returned is expected as first argument; found {type(path).__name__}."
        raise TypeError(msg)
    missing = [name for name in COLUMNS if name not in path.obs]
    if not missing and path.n_obs > 1 and keys.latent not in path.obsm:
        msg = f"The path has no obsm[{keys.latent!r}] (found: {list(path.obsm)}): pass key= as to vx.tl.interpolate."
        raise KeyError(msg)
    if missing or path.n_obs < 2:
        what = f"obs lacks {missing}" if missing else f"it has {path.n_obs} step(s)"
        msg = f"This is no path ({what}). Make one: path = vx.tl.interpolate(adata, source, target, groupby=...)."
        raise KeyError(msg)


def _known(path: AnnData, genes: str | Sequence[str]) -> list[str]:
    names = named_genes(path, genes)
    unknown = names[~names.isin(path.var_names)]
    if len(unknown) or not len(names):
        msg = f"genes={list(unknown[:3])} are not in the path, which holds {path.n_vars} genes (for example {list(path.var_names[:3])})."
        raise KeyError(msg)
    return list(names)


def _most_changing(path: AnnData) -> list[str]:
    x = np.nan_to_num(np.asarray(path.X, dtype=np.float64))
    high, low = x.max(0), x.min(0)
    # log values, of a Gaussian fit, may be negative and are compared by their difference
    change = high - low if (low < 0).any() else np.log((high + 0.01 * high.max()) / (low + 0.01 * high.max()))
    return [str(path.var_names[i]) for i in np.argsort(-change, kind="stable")[:N_GENES]]


def _axes(ax: Axes | Sequence[Axes] | None, n: int) -> list[Axes]:
    if ax is None and n == 1:
        return [new_axes(None, (5.4, 3.6))]
    if ax is None:
        return list(plt.figure(figsize=(10.0, 3.8), layout="constrained").subplots(1, 2))
    axes = [ax] if isinstance(ax, Axes) else list(ax)
    if len(axes) != n:
        msg = f"ax= has {len(axes)} axes; pass {'one' if n == 1 else 'a list of two, for cells= draws a second panel'}."
        raise ValueError(msg)
    return axes


def _edges(position_s: np.ndarray) -> np.ndarray:
    """Ends of the stretch that each step stands for."""
    middle = 0.5 * (position_s[1:] + position_s[:-1])
    return np.concatenate(([position_s[0]], middle, [position_s[-1]]))


def _draw_expression(ax: Axes, path: AnnData, genes: list[str], *, relative: bool) -> None:
    position_s = get_numbers(path.obs, "position")
    empty_s = find_column(path.obs, "empty").to_numpy(bool)
    edges = _edges(position_s)
    label = "hardly a cell there"
    for i in np.flatnonzero(empty_s):
        ax.axvspan(edges[i], edges[i + 1], color=PALE, linewidth=0, label=label)
        label = "_nolegend_"
    colours = colormaps["viridis"](np.linspace(0.0, 0.9, len(genes)))
    for name, colour in zip(genes, colours, strict=True):
        y = np.asarray(path[:, name].X, dtype=np.float64).reshape(-1)
        largest = np.abs(y).max()
        ax.plot(position_s, y / largest if relative and largest > 0 else y, color=colour, linewidth=1.6, label=name)
    params = _params(path)
    ax.set_xlabel(f"position, {params['source']} to {params['target']}" if params else "position")
    ax.set_ylabel("expression, share of largest" if relative else "expected expression")
    ax.margins(x=0)
    ax.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    plain(ax)


def _params(path: AnnData) -> dict[str, str]:
    found = [v["params"] for k, v in path.uns.items() if str(k).endswith("_interpolate") and "params" in v]
    return {name: str(found[0][name]) for name in ("source", "target")} if found else {}


def _latent(cells: AnnData, path: AnnData, keys: Keys) -> np.ndarray:
    if keys.latent not in cells.obsm:
        msg = f"cells.obsm lacks {keys.latent!r}. Pass the AnnData that was fitted, or write it with vx.tl.encode(cells, model=...)."
        raise KeyError(msg)
    mean_nd = get_array(cells, keys.latent, "Write it again: vx.tl.encode(cells, model=...).").astype(np.float64)
    d = get_array(path, keys.latent, "Make the path again: vx.tl.interpolate.").shape[1]
    if mean_nd.shape[1] != d or not len(mean_nd):
        msg = f"cells.obsm[{keys.latent!r}] has shape {mean_nd.shape}, the path {d} dimensions: they are of different fits."
        raise ValueError(msg)
    return mean_nd


def _draw_plane(ax: Axes, path: AnnData, mean_nd: np.ndarray, keys: Keys) -> None:
    path_sd = get_array(path, keys.latent, "Make the path again: vx.tl.interpolate.").astype(np.float64)
    way = path_sd[-1] - path_sd[0]
    along = way / np.linalg.norm(way)
    centred = mean_nd - mean_nd.mean(0)
    centred = centred - np.outer(centred @ along, along)
    across = np.linalg.svd(centred, full_matrices=False)[2][0] if mean_nd.shape[1] > 1 else np.zeros_like(along)
    plane = np.stack([along, across], axis=1)
    cells_n2, path_s2 = mean_nd @ plane, path_sd @ plane
    empty_s = find_column(path.obs, "empty").to_numpy(bool)
    size = float(np.clip(8000 / len(cells_n2), 0.5, 12))
    ax.scatter(cells_n2[:, 0], cells_n2[:, 1], s=size, color=PALE, linewidths=0, rasterized=True)
    ax.plot(*path_s2.T, color=INK, linewidth=1.0)
    ax.scatter(path_s2[~empty_s, 0], path_s2[~empty_s, 1], s=22, color=INK, zorder=3, label="step")
    if empty_s.any():
        ax.scatter(
            path_s2[empty_s, 0],
            path_s2[empty_s, 1],
            s=34,
            color=SECOND,
            marker="x",
            zorder=3,
            label="hardly a cell there",
        )
    params = _params(path)
    for name, at, side in (("source", 0, -1), ("target", -1, 1)):
        if params:
            ax.annotate(
                params[name], path_s2[at], (6 * side, 6), textcoords="offset points", ha="right" if side < 0 else "left"
            )
    ax.set_xlabel("latent space, along the way")
    ax.set_ylabel("across it")
    ax.tick_params(colors=QUIET)
    ax.legend(frameon=False, fontsize="small")
    plain(ax)
