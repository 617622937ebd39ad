"""``vx.pl.latent``: the cells in the latent space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from vxpress._keys import DEFAULT_KEY, Keys
from vxpress.bridge.columns import check_drawable, find_column
from vxpress.bridge.prepare import as_tuple
from vxpress.metrics._latent import kl_per_cell
from vxpress.pl._shared import finish, posterior_of

UMAP = "umap"


def latent(
    adata: AnnData,
    *,
    color: str | Sequence[str] | None = None,
    key: str = DEFAULT_KEY,
    layer: str | None = None,
    dimensions: tuple[int, int] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
    **kwargs: Any,
) -> Axes | list[Axes] | Figure | None:
    """Draw the cells in the latent space, coloured by annotations or genes.

    Where ``obsm["X_umap"]`` was made from this fit (``sc.pp.neighbors(adata, use_rep="X_vae")``, then ``sc.tl.umap``), that
    is drawn. Otherwise, the two latent dimensions with the highest divergence from the prior, which say most about cells.

    Parameters
    ----------
    adata
        Cells with a stored posterior and a fit of :func:`~vxpress.tl.fit_vae`.
    color
        Columns of ``obs`` or genes; a panel for each. Colours of categories are those in ``uns``, which
        :func:`scanpy.pl.embedding` chooses where there are none.
    key
        Name of the fit.
    layer
        Layer that genes are coloured by, for example ``"vae_normalized"``; by default what :func:`scanpy.pl.embedding` takes.
    dimensions
        Two columns of ``obsm["X_vae"]`` to draw, counted from 0, whether or not there is a UMAP.
    ax
        Axes to draw on, for one panel; by default those of a new figure.
    show
        Whether to show the figure; by default ``sc.settings.autoshow``.
    return_fig
        Whether to return the figure, without showing it.
    **kwargs
        Passed on to :func:`scanpy.pl.embedding`.

    Returns
    -------
    ``None`` if shown, the :class:`~matplotlib.figure.Figure` if ``return_fig``, else the :class:`~matplotlib.axes.Axes`, or
    a list of them for several colours. Axes of latent dimensions are labelled with their divergence, in nats per cell.

    Raises
    ------
    KeyError
        If ``adata`` holds no such fit, posterior, column or gene.
    ValueError
        If the stored posterior belongs to another fit, the dimensions do not exist, or there is only one and no UMAP.

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
    _, mean_nd, var_nd = posterior_of(adata, key)
    keys = Keys.of(key)
    _check_colors(adata, as_tuple(color), kwargs.get("gene_symbols"))
    arguments: dict[str, Any] = {"color": color, "layer": layer, "ax": ax, "show": False} | _gap(adata, color) | kwargs
    if dimensions is None and f"X_{UMAP}" in adata.obsm and umap_is_of(adata.uns, keys):
        axes = sc.pl.embedding(adata, UMAP, **arguments)
        return finish(axes, show=show, return_fig=return_fig)
    kl_d = kl_per_cell(mean_nd, var_nd).mean(0)
    first, second = _two_dimensions(kl_d, dimensions, keys)
    axes = sc.pl.embedding(adata, keys.latent, dimensions=(first, second), **arguments)
    for panel in axes if isinstance(axes, list) else [axes]:
        panel.set_xlabel(f"dimension {first} ({kl_d[first]:.2f} nats)")
        panel.set_ylabel(f"dimension {second} ({kl_d[second]:.2f} nats)")
    return finish(axes, show=show, return_fig=return_fig)


def _gap(adata: AnnData, color: str | Sequence[str] | None) -> dict[str, float]:
    """Room between panels for the widest legend among them; scanpy leaves as much for a colour bar."""
    columns = [adata.obs[name] for name in as_tuple(color) if name in adata.obs]
    names = [c.cat.categories for c in columns if isinstance(c.dtype, pd.CategoricalDtype) and len(c.cat.categories)]
    if not names or len(as_tuple(color)) < 2:
        return {}
    size = FontProperties(size=plt.rcParams["legend.fontsize"]).get_size_in_points()
    # scanpy writes legends of more than 14 and 30 names in two and three columns
    inches = [
        (1 + (len(n) > 14) + (len(n) > 30)) * (max(len(str(name)) for name in n) * 0.6 * size / 72 + 0.5) for n in names
    ]
    return {"wspace": max(0.14, 0.05 + max(inches) / plt.rcParams["figure.figsize"][0])}


def umap_is_of(uns: Mapping[str, Any], keys: Keys) -> bool:
    """Whether the graph that scanpy's UMAP is laid out from was made from the latent of this fit."""
    params = uns.get("neighbors", {}).get("params", {})
    return bool(params.get("use_rep") == keys.latent)


def _check_colors(adata: AnnData, colors: tuple[str, ...], gene_symbols: str | None) -> None:
    for name in colors:
        if name in adata.obs.columns:
            check_drawable(adata.obs, name)
    genes = (
        adata.var_names
        if gene_symbols is None
        else find_column(adata.var, gene_symbols, argument="gene_symbols", of="var")
    )
    raw = () if adata.raw is None else adata.raw.var_names
    known = {*adata.obs.columns, *genes, *raw}
    unknown = [name for name in colors if name not in known]
    if unknown:
        msg = f"color={unknown} names neither a column of adata.obs (found: {list(adata.obs.columns)}) nor a gene."
        raise KeyError(msg)


def _two_dimensions(kl_d: np.ndarray, dimensions: tuple[int, int] | None, keys: Keys) -> tuple[int, int]:
    d = len(kl_d)
    if d < 2:
        msg = (
            f"The fit has one latent dimension, which no plane shows. Draw a UMAP: sc.pp.neighbors(adata, use_rep={keys.latent!r}); "
            "sc.tl.umap(adata). vx.pl.posterior(adata) shows the one dimension."
        )
        raise ValueError(msg)
    if dimensions is None:
        first, second = (int(i) for i in np.argsort(-kl_d, kind="stable")[:2])
        return first, second
    chosen: list[Any] = list(dimensions)
    if len(chosen) != 2 or any(not isinstance(i, (int, np.integer)) or not 0 <= i < d for i in chosen):
        msg = f"dimensions={dimensions!r} should be two whole numbers from 0 to {d - 1}."
        raise ValueError(msg)
    return int(chosen[0]), int(chosen[1])
