"""``vx.pl.latent``: cells in the latent space."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from matplotlib.artist import ArtistInspector
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from vxpress._entry import entry
from vxpress._keys import DEFAULT_KEY, Keys
from vxpress._mudata import MuData
from vxpress._similar import similar_names
from vxpress.bridge.fits.modalities import takes_mudata
from vxpress.bridge.read.columns import check_drawable, find_column, get_array
from vxpress.metrics import kl_per_cell
from vxpress.pl._colours import ensure_colours, is_categorical
from vxpress.pl._shared import (
    check_switches,
    finish,
    inches_of,
    legend_size,
    listed,
    names_of,
    panels,
    posterior_of,
    put_legend,
    titled,
    wrap_labels,
)

UMAP = "umap"
PANEL = (3.1, 2.9)  # inches, without the legend
PAGE = 13.0  # largest width of a row of panels, in inches
MAX_POINT = 30.0  # square points
SCANPYS_AREA = 18.0  # area of the axes in scanpy's default figure, in square inches
MAX_LABEL = 30  # characters per line of a legend
# arguments of scanpy that take one value per panel
PER_PANEL = ("vmin", "vmax", "vcenter", "norm", "title")
NOT_TAKEN = {
    "components": "choose two latent dimensions with dimensions=(0, 1)",
    "projection": "always two dimensions are drawn",
    "save": "save the figure with vx.pl.latent(adata, return_fig=True).savefig('latent.pdf')",
    "basis": "the fit determines what is drawn; use sc.pl.embedding for another embedding",
}


@entry
@takes_mudata("features")
def latent(
    adata: AnnData | MuData,
    *,
    modality: str | None = None,
    color: str | Sequence[str] | None = None,
    key: str = DEFAULT_KEY,
    layer: str | None = None,
    dimensions: tuple[int, int] | None = None,
    ncols: int | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
    **kwargs: Any,
) -> Axes | list[Axes] | Figure | None:
    """Draw cells in the latent space, coloured by annotations or genes.

    If ``obsm["X_umap"]`` was computed from this fit (``sc.pp.neighbors(adata, use_rep="X_vae")`` or
    ``use_rep="X_vae_ensemble"``, then ``sc.tl.umap``), the UMAP is drawn. Otherwise the two latent dimensions with the highest divergence from the prior are drawn, which
    carry the most information about cells.

    Parameters
    ----------
    adata
        Cells with a stored posterior and a fit of :func:`~vxpress.tl.fit_vae`.
    modality
        If ``adata`` is a MuData, the modality whose fit is drawn, or, for a fit of several modalities, whose features are
        meant; by default RNA.
    color
        Columns of ``obs`` or genes, one panel for each. Colours of categories are read from ``uns[f"{color}_colors"]``,
        as in :func:`scanpy.pl.embedding`. If there are none, colours that are distinguishable with any kind of colour
        vision are written there for up to 24 categories; with more categories, scanpy's colours.
    key
        Name of the fit: the ``key_added`` of the call that made it.
    layer
        Layer for the colours of genes, for example ``"vae_normalized"``; by default that of
        :func:`scanpy.pl.embedding`.
    dimensions
        Two columns of ``obsm["X_vae"]`` to draw, counted from 0, even if there is a UMAP.
    ncols
        Number of panels per row; by default as many as fit on 13 inches, or on the width of ``figsize``.
    figsize
        Width and height of the new figure in inches; by default chosen from the number of panels and the widths of
        their legends.
    ax
        Axes to draw on, one for each panel; by default those of a new figure.
    show
        Whether to show the figure; by default ``sc.settings.autoshow``.
    return_fig
        Whether to return the figure, without showing it.
    **kwargs
        Passed to :func:`scanpy.pl.embedding`, for example ``size=5``, ``legend_loc="on data"``, ``vmax="p99"``.

    Returns
    -------
    ``None`` if shown, the :class:`~matplotlib.figure.Figure` if ``return_fig``, else the
    :class:`~matplotlib.axes.Axes`, or a list of them for several colours. Axes of latent dimensions are labelled with
    their divergence, in nats per cell; those of a UMAP have no unit.

    Raises
    ------
    KeyError
        If ``adata`` has no such fit, posterior, column, gene or layer.
    ValueError
        If the stored posterior belongs to another fit, the dimensions do not exist, or there is only one dimension and
        no UMAP; if the number of axes or ``figsize`` is wrong.
    TypeError
        If ``color`` is not a name or names, ``ax`` is not an axes or axes, or :func:`scanpy.pl.embedding` does not
        accept an argument.

    See Also
    --------
    vxpress.pl.kl : the divergence of all dimensions.

    Examples
    --------
    >>> import vxpress as vx
    >>> adata = vx.datasets.pbmc68k_reduced()
    >>> vx.tl.fit_vae(adata, max_epochs=5)
    >>> ax = vx.pl.latent(adata, color="bulk_labels", dimensions=(0, 1), show=False)
    >>> ax.get_xlabel()
    'dimension 0 (... nats)'
    >>> axes = vx.pl.latent(adata, color=["bulk_labels", "CD3D"], layer="vae_normalized", show=False)
    >>> len(axes)
    2
    """
    check_switches(show=show, return_fig=return_fig)
    _, mean_nd, var_nd = posterior_of(adata, key)
    keys = Keys.of(key)
    colors = (None,) if color is None else names_of("color", color, "columns of adata.obs or genes")
    _check_arguments(kwargs)
    _check_colors(adata, colors, layer, kwargs)
    labels, arguments = _what(adata, mean_nd, var_nd, dimensions, keys)
    adata = _drawable(adata, colors, kwargs, keys.latent if labels else f"X_{UMAP}")
    widths = [PANEL[0] + _legend_width(adata, name, kwargs) for name in colors]
    columns = ncols if ncols is not None or figsize is not None else max(1, int(PAGE // max(widths)))
    with panels(
        ax, len(colors), size=(max(widths), PANEL[1]), figsize=figsize, ncols=columns, why=", one per colour"
    ) as axes:
        for i, (panel, name) in enumerate(zip(axes, colors, strict=True)):
            if name in adata.obs and "palette" not in kwargs:
                ensure_colours(adata, str(name))
            size = {} if {"size", "s"} & set(kwargs) else {"size": _size(panel, adata.n_obs)}
            own = size | {k: _nth(v, i, len(colors)) if k in PER_PANEL else v for k, v in kwargs.items()}
            # scanpy reads columns of obs directly: a layer is for genes
            scanpys = {"colorbar_loc": None} | own
            sc.pl.embedding(adata, color=name, layer=layer, ax=panel, show=False, **arguments, **scanpys)
            # a new figure has space on the right
            _tidy(panel, labels, own, side="right" if ax is None and figsize is None else None)
        return finish(axes if len(axes) > 1 else axes[0], show=show, return_fig=return_fig)


def _what(
    adata: AnnData, mean_nd: np.ndarray, var_nd: np.ndarray, dimensions: tuple[int, int] | None, keys: Keys
) -> tuple[tuple[str, str] | None, dict[str, Any]]:
    """Return the labels of the two axes (``None`` for a UMAP) and the arguments of scanpy that select what is drawn."""
    if dimensions is None and f"X_{UMAP}" in adata.obsm and umap_is_of(adata.uns, keys):
        return None, {"basis": UMAP}
    kl_d = kl_per_cell(mean_nd, var_nd).mean(0)
    chosen = _two_dimensions(kl_d, dimensions, keys)
    first, second = (f"dimension {i} ({kl_d[i]:.2f} nats)" for i in chosen)
    return (first, second), {"basis": keys.latent, "dimensions": chosen}


def _drawable(adata: AnnData, colors: tuple[str | None, ...], kwargs: Mapping[str, Any], positions: str) -> AnnData:
    """Return the AnnData or, if scanpy cannot draw it as it is, a copy with the requested genes.

    Scanpy takes ``obsm[positions]`` for an array, but it may be a data frame or sparse. It also writes colours to the AnnData,
    which would turn a view into a copy.
    """
    array = isinstance(adata.obsm[positions], np.ndarray)
    if array and not adata.is_view:
        return adata
    symbols = kwargs.get("gene_symbols")
    genes = adata.var_names if symbols is None else adata.var[symbols]
    copied = adata[:, genes.isin([name for name in colors if name is not None])].copy()
    if not array:
        copied.obsm[positions] = get_array(adata.obsm, positions, "sc.tl.umap(adata) writes a UMAP again.")
    return copied


def _nth(value: Any, i: int, n: int) -> Any:
    """Return the value for one panel if there is one value per panel, else the value itself."""
    return value[i] if n > 1 and isinstance(value, list | tuple) and len(value) == n else value


def _legend_width(adata: AnnData, name: str | None, kwargs: Mapping[str, Any]) -> float:
    """Estimate the width in inches of the legend or the colour bar next to a panel."""
    if name is None or kwargs.get("legend_loc", "right margin") != "right margin":
        return 0.3
    if name not in adata.obs or not is_categorical(adata.obs[name]):
        return 0.7
    labels = [_wrapped(str(label)) for label in pd.Categorical(adata.obs[name]).categories]
    return 0.2 + legend_size(labels, PANEL[1], kwargs.get("legend_fontsize") or "small")[1]


def _wrapped(label: str) -> str:
    return "\n".join(textwrap.wrap(label, MAX_LABEL)) or label


def _size(ax: Axes, n_obs: int) -> float:
    """Compute the area of a point in square points: scanpy's rule, scaled by the area of the axes."""
    width, height = inches_of(ax)
    return float(min(MAX_POINT, 120_000 / n_obs * width * height / SCANPYS_AREA))


def _tidy(ax: Axes, labels: tuple[str, str] | None, own: Mapping[str, Any], *, side: str | None) -> None:
    """Label the axes, wrap the title, and place the legend or the colour bar where there is space."""
    if labels is not None:
        ax.set_xlabel(labels[0])
        ax.set_ylabel(labels[1])
    wrap_labels(ax)
    if title := ax.get_title():
        ax.set_title("")
        titled(ax, title)
    drawn = [points for points in ax.collections if points.get_array() is not None]
    if drawn and "colorbar_loc" not in own:
        # inset of the axes, so that it stays next to them in a column with wide legends
        ax.figure.colorbar(drawn[-1], cax=ax.inset_axes((1.03, 0.0, 0.04, 1.0)))
    found = ax.get_legend()
    if found is None or own.get("legend_loc", "right margin") != "right margin":
        return
    handles: list[Any] = list(found.legend_handles)
    for handle, text in zip(handles, found.get_texts(), strict=True):
        handle.set_label(_wrapped(text.get_text()))
    found.remove()
    put_legend(ax, handles, side=side, fontsize=own.get("legend_fontsize"), handletextpad=0.2)


def umap_is_of(uns: Mapping[str, Any], keys: Keys) -> bool:
    """Whether the neighbour graph, from which scanpy computes a UMAP, was made from the latent space of this fit.

    It may be that of one model or of several side by side.
    """
    params = uns.get("neighbors", {}).get("params", {})
    return params.get("use_rep") in (keys.latent, keys.of_ensemble()[0])


def _check_arguments(kwargs: Mapping[str, Any]) -> None:
    """Raise ``TypeError`` for arguments that neither scanpy nor its scatter plot accept."""
    for name, instead in NOT_TAKEN.items():
        if name in kwargs:
            msg = f"{name}= is not an argument of vx.pl.latent: {instead}."
            raise TypeError(msg)
    known = {*inspect.signature(sc.pl.embedding).parameters, *inspect.signature(Axes.scatter).parameters}
    known |= {*ArtistInspector(PathCollection).get_setters()}
    unknown = [name for name in kwargs if name not in known]
    if unknown:
        msg = f"{unknown} are arguments of neither vx.pl.latent nor scanpy.pl.embedding."
        raise TypeError(msg)


def _check_colors(adata: AnnData, colors: tuple[str | None, ...], layer: str | None, kwargs: Mapping[str, Any]) -> None:
    symbols = kwargs.get("gene_symbols")
    if layer is not None and layer not in adata.layers:
        msg = f"layer={layer!r} is not in adata.layers (found: {list(adata.layers)})."
        raise KeyError(msg)
    for name in colors:
        if name in adata.obs.columns:
            check_drawable(adata.obs, str(name))
    genes = adata.var_names if symbols is None else find_column(adata.var, symbols, argument="gene_symbols", of="var")
    raw = () if adata.raw is None or layer is not None else adata.raw.var_names
    known = {*adata.obs.columns, *genes, *raw}
    unknown = [name for name in colors if name is not None and name not in known]
    if unknown:
        msg = (
            f"color={unknown} names neither a column of adata.obs (found: {list(adata.obs.columns)}) nor a gene."
            f"{similar_names(unknown, known)}"
        )
        raise KeyError(msg)


def _two_dimensions(kl_d: np.ndarray, dimensions: tuple[int, int] | None, keys: Keys) -> tuple[int, int]:
    d = len(kl_d)
    if d < 2:
        msg = (
            "The fit has one latent dimension; two are needed for a scatter plot. Compute a UMAP: sc.pp.neighbors(adata, "
            f"use_rep={keys.latent!r}); sc.tl.umap(adata). vx.pl.posterior(adata) shows the single dimension."
        )
        raise ValueError(msg)
    if dimensions is None:
        first, second = (int(i) for i in np.argsort(-kl_d, kind="stable")[:2])
        return first, second
    chosen: list[Any] = listed(dimensions) or []
    if len(chosen) != 2 or any(not isinstance(i, int | np.integer) or not 0 <= i < d for i in chosen):
        msg = f"dimensions={dimensions!r} should be two whole numbers from 0 to {d - 1}."
        raise ValueError(msg)
    return int(chosen[0]), int(chosen[1])
