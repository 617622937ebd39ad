"""What the figures have in common: where they are drawn, their colours, and how they are handed back."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any, TypeVar

import matplotlib.pyplot as plt
import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scanpy import settings

from vxpress._keys import Keys
from vxpress.bridge.find import find_fit
from vxpress.bridge.fit import Fit
from vxpress.bridge.stored import stored_posterior

INK = "#333333"
QUIET = "#9a9a9a"
PALE = "#d9d9d9"
MAIN = "#2a6f97"
SOFT = "#86b0cc"
SECOND = "#c8553d"

AnyAxes = TypeVar("AnyAxes", bound=Axes | list[Axes])


def fit_of(adata: AnnData, key: str) -> Fit:
    """The fit of this name in ``adata``; a ``KeyError`` names the call that writes one."""
    if not isinstance(adata, AnnData):
        msg = f"An AnnData is expected as first argument; found {type(adata).__name__}."
        raise TypeError(msg)
    return find_fit(adata, None, key)


def posterior_of(adata: AnnData, key: str) -> tuple[Fit, np.ndarray, np.ndarray]:
    """The fit, and the posterior mean and variance of the cells at hand, float64 (n, d)."""
    fit = fit_of(adata, key)
    mean_nd, var_nd = stored_posterior(adata, fit, Keys.of(key))
    if adata.n_obs == 0:
        msg = "adata has no cells; there is nothing to draw. Pass cells with a stored posterior."
        raise ValueError(msg)
    return fit, mean_nd.astype(np.float64), var_nd.astype(np.float64)


def aggregate_of(mean_nd: np.ndarray, var_nd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of all cells' posteriors together, per dimension, each (d,)."""
    return mean_nd.mean(0), mean_nd.var(0) + var_nd.mean(0)


def active_of(fit: Fit) -> np.ndarray:
    """Which dimensions the stored diagnosis, to which the verdict belongs, calls active, (d,)."""
    return np.asarray(fit.diagnostics["active"], dtype=bool)


def headline(diagnostics: Mapping[str, Any], width: int = 66) -> str:
    """The verdict up to its first stop, wrapped; numbers such as 0.5 do not end it."""
    text = str(diagnostics["verdict"])
    text = text.split(". ", 1)[0].split("; ", 1)[0].rstrip(".")
    return "\n".join(textwrap.wrap(text, width))


def new_axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """The axes given, or those of a new figure of this size in inches."""
    if ax is not None:
        return ax
    return plt.figure(figsize=size, layout="constrained").add_subplot()


def plain(ax: Axes) -> None:
    """Two spines, no grid: what scanpy's style sheets would otherwise decide for us."""
    ax.grid(visible=False)
    ax.spines[["top", "right"]].set_visible(False)


def finish(axes: AnyAxes, *, show: bool | None, return_fig: bool) -> AnyAxes | Figure | None:
    """Hand back the figure, or show it, or hand back the axes, as scanpy does."""
    if return_fig:
        # the first figure may be a subfigure, whose own is the whole one
        return (axes[0] if isinstance(axes, list) else axes).figure.figure
    if settings.autoshow if show is None else show:
        plt.show()
        return None
    return axes
