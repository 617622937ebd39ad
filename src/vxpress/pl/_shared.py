"""Shared code of the figures: reading the fit, axes, legends, and return values."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.font_manager import FontProperties
from matplotlib.legend import Legend
from matplotlib.transforms import ScaledTranslation
from scanpy import settings

from vxpress._keys import Keys
from vxpress.bridge.fits.find_fit import find_fit
from vxpress.bridge.fits.fit import Fit
from vxpress.bridge.fits.stored_cells import stored_latent
from vxpress.bridge.read.adata import check_anndata

# width of an average letter, in font sizes
LETTER = 0.56
LEGEND_ROW = 1.35  # height of a line of a legend, in font sizes
# a legend is placed on the right if this share of the width of the axes is left, even if below it would leave more
ROOMY = 0.6
# a smaller font is used if less of the axes would be left
LEAST_LEFT = 0.4
NARROW = 3.0  # inches; narrower axes have smaller titles
MAX_INCHES = 100.0

AnyAxes = TypeVar("AnyAxes", bound=Axes | list[Axes])


def fit_of(adata: AnnData, key: str) -> Fit:
    """Return the fit with this name in ``adata``; if there is none, a ``KeyError`` names the call that writes one."""
    check_anndata(adata)
    return find_fit(adata, None, key)


def posterior_of(adata: AnnData, key: str) -> tuple[Fit, np.ndarray, np.ndarray]:
    """Return the fit, and the posterior mean and variance of the cells in ``adata``, float64 (n, d)."""
    fit = fit_of(adata, key)
    mean_nd, var_nd = stored_latent(adata, fit, Keys.of(key))
    if adata.n_obs == 0:
        msg = "adata has no cells, so there is nothing to draw. Pass cells with a stored posterior."
        raise ValueError(msg)
    return fit, mean_nd.astype(np.float64), var_nd.astype(np.float64)


def aggregate_of(mean_nd: np.ndarray, var_nd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute mean and variance of all posteriors together, per dimension, each (d,)."""
    return mean_nd.mean(0), mean_nd.var(0) + var_nd.mean(0)


def active_of(fit: Fit) -> np.ndarray:
    """Return which dimensions are active according to the stored diagnosis, (d,)."""
    return np.asarray(fit.diagnostics["active"], dtype=bool)


def headline(diagnostics: Mapping[str, Any], width: int = 66) -> str:
    """Return the verdict up to its first full stop or semicolon, wrapped; the point of a number does not end it."""
    text = str(diagnostics["verdict"])
    text = text.split(". ", 1)[0].split("; ", 1)[0].rstrip(".")
    return "\n".join(textwrap.wrap(text, width))


def names_of(argument: str, value: object, what: str) -> tuple[str, ...]:
    """Return names that are given as a string or as a sequence or array of strings.

    ``what`` says what they name, in the plural.
    """
    if isinstance(value, str):
        return (value,)
    found = listed(value)
    if not found or not all(isinstance(name, str) for name in found):
        msg = f"{argument}={short(value)} was given; {what} are expected: a name, or a list of at least one name."
        raise (ValueError if found == [] else TypeError)(msg)
    return tuple(str(name) for name in found)


def listed(value: Any) -> list[Any] | None:
    """Return the elements of a list, tuple, index, series or array.

    Return ``None`` for anything else and for a single value.
    """
    if isinstance(value, list | tuple | pd.Index | pd.Series):
        return list(value)
    if isinstance(value, np.ndarray) and value.ndim:
        return list(value.ravel())
    return None


def short(value: object, width: int = 60) -> str:
    text = repr(value).replace("\n", " ")
    return text if len(text) <= width else text[: width - 3] + "..."


# --- axes


@contextmanager
def panels(
    ax: object,
    n: int,
    *,
    size: tuple[float, float],
    figsize: object = None,
    ncols: object = None,
    least_width: float = 2.4,
    why: str = "",
) -> Iterator[list[Axes]]:
    """Provide ``n`` axes: those given, or those of a new figure, which is closed if drawing fails or is interrupted.

    ``size`` is the size of one panel of a new figure in inches; ``figsize`` is the size of the whole figure if the user
    chose one. A row has ``ncols`` panels, by default as many as have a width of at least ``least_width`` inches.
    """
    _check_figsize(figsize, ax)
    columns = _columns(ncols, n, figsize, least_width)
    if ax is not None:
        yield _given_axes(ax, n, why)
        return
    rows = -(-n // columns)
    inches: Any = (size[0] * columns, size[1] * rows) if figsize is None else figsize
    figure = plt.figure(figsize=inches, layout="constrained")
    try:
        grid = figure.add_gridspec(rows, columns)
        yield [figure.add_subplot(grid[i // columns, i % columns]) for i in range(n)]
    except BaseException:
        plt.close(figure)
        raise


def _check_figsize(figsize: object, ax: object) -> None:
    if figsize is None:
        return
    if ax is not None:
        msg = "figsize= is the size of a new figure, but ax= gives axes of an existing one. Leave one of the two out."
        raise ValueError(msg)
    found = listed(figsize)
    numbers = found is not None and all(
        isinstance(side, int | float | np.integer | np.floating) and not isinstance(side, bool) for side in found
    )
    if found is None or len(found) != 2 or not numbers or not all(0 < side <= MAX_INCHES for side in found):
        msg = f"figsize={short(figsize)} was given; width and height in inches are expected, for example (3.5, 2.8)."
        raise ValueError(msg)


def _columns(ncols: object, n: int, figsize: Any, least_width: float) -> int:
    if ncols is None:
        return n if figsize is None else int(np.clip(figsize[0] / least_width, 1, n))
    if not isinstance(ncols, int | np.integer) or isinstance(ncols, bool) or ncols < 1:
        msg = f"ncols={short(ncols)} was given; a whole number of at least 1 is expected."
        raise ValueError(msg)
    return min(int(ncols), n)


def _given_axes(ax: object, n: int, why: str) -> list[Axes]:
    expected = "one matplotlib Axes is" if n == 1 else f"a list of {n} matplotlib Axes is"
    cure = f"fig, ax = plt.subplots({'' if n == 1 else f'1, {n}'})"
    found = [ax] if isinstance(ax, Axes) else listed(ax)
    if found is None or not all(isinstance(one, Axes) for one in found):
        hint = " (a figure: pass the axes on it)" if isinstance(ax, FigureBase) else ""
        msg = f"ax={short(ax)} was given{hint}; {expected} expected{why}. Make them with {cure}."
        raise TypeError(msg)
    if len(found) != n or len({id(one) for one in found}) != n:
        twice = "the same axes twice" if len(found) == n else f"{len(found)} axes"
        msg = f"ax= has {twice}; {expected} expected{why}. Make them with {cure}."
        raise ValueError(msg)
    for one in found:
        if one.figure is None or one.name != "rectilinear":
            kind = "axes that were removed from their figure" if one.figure is None else f"{one.name} axes"
            msg = f"ax= holds {kind}; plain axes are expected. Make them with {cure}."
            raise ValueError(msg)
    return found


# --- legends and texts


def inches_of(ax: Axes) -> tuple[float, float]:
    """Return width and height of the axes, before a layout engine makes space for labels and legends."""
    box, dpi = ax.get_window_extent(), ax.figure.figure.dpi
    return float(box.width / dpi), float(box.height / dpi)


def wrapped(text: str, inches: float, fontsize: str | float) -> str:
    """Wrap text to lines of this length at most; longer words are not broken."""
    letters = max(8, int(inches * 72 / (LETTER * _points(fontsize))))
    lines = [textwrap.wrap(line, letters, break_long_words=False, break_on_hyphens=False) for line in text.splitlines()]
    return "\n".join(part for line in lines for part in line)


def _points(fontsize: str | float) -> float:
    return float(FontProperties(size=fontsize).get_size_in_points())


def titled(ax: Axes, title: str, loc: Literal["left", "center"] = "center") -> None:
    """Write a title, wrapped to the width of the axes, so that titles do not overlap."""
    width = inches_of(ax)[0]
    fontsize = "medium" if width > NARROW else "small"
    ax.set_title(wrapped(title, width, fontsize), fontsize=fontsize, loc=loc)


def wrap_labels(ax: Axes) -> None:
    """Wrap the labels of both axes to the lengths of the axes."""
    for axis, inches in zip((ax.xaxis, ax.yaxis), inches_of(ax), strict=True):
        axis.label.set_text(wrapped(axis.label.get_text(), inches, axis.label.get_fontsize()))


def plain(ax: Axes) -> None:
    """Draw two spines and no grid, independent of scanpy's style sheets, and wrap labels so that they fit."""
    ax.grid(visible=False)
    ax.spines[["top", "right"]].set_visible(False)
    wrap_labels(ax)


def legend_size(labels: Sequence[str], height: float, fontsize: str | float) -> tuple[int, float]:
    """Return the number of columns of a legend at most ``height`` inches high, and its width in inches."""
    row = LEGEND_ROW * _points(fontsize) / 72
    lines = sum(label.count("\n") + 1 for label in labels)
    columns = max(1, int(np.ceil(lines * row / max(height, 2 * row))))
    return columns, columns * _entry(labels, fontsize)


def _entry(labels: Sequence[str], fontsize: str | float) -> float:
    """Estimate the width in inches of the widest entry of a legend, with its marker."""
    longest = max((len(line) for label in labels for line in label.splitlines()), default=0)
    return (LETTER * longest + 3.5) * _points(fontsize) / 72


def put_legend(
    ax: Axes, handles: Sequence[Artist], *, side: str | None = None, fontsize: str | float | None = None, **kwargs: Any
) -> Legend | None:
    """Add a legend outside the axes: on the given ``side``, or on the right or below, where it leaves more space."""
    if not handles:
        return None
    wrap_labels(ax)
    labels = [str(handle.get_label()) for handle in handles]
    width, height = inches_of(ax)
    common: dict[str, Any] = {"frameon": False, "borderaxespad": 0.3, "columnspacing": 1.2} | kwargs
    for size in (fontsize,) if fontsize is not None else ("small", "x-small"):
        columns, needed = legend_size(labels, height, size)
        below = int(np.clip(1.2 * width / _entry(labels, size), 1, len(labels)))
        rows = sum(label.count("\n") + 1 for label in labels) / below
        left = {"right": 1 - needed / width, "below": 1 - LEGEND_ROW * rows * _points(size) / 72 / height}
        best = side or ("right" if left["right"] >= min(ROOMY, left["below"] - 0.1) else "below")
        if best == "above" or left[best] >= LEAST_LEFT:
            break
    common |= {"handles": handles, "fontsize": size, "ncols": columns if best == "right" else below}
    if best == "right":
        return ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), **common)
    if best == "above":
        return ax.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), **common)
    # below the label of the x axis; in inches, because the height of the axes may still change
    box = ax.xaxis.get_tightbbox(ax.figure.figure.canvas.get_renderer())  # type: ignore[attr-defined]
    depth = 0.0 if box is None else max(0.0, ax.get_window_extent().y0 - box.y0)
    down = ScaledTranslation(0, -depth / ax.figure.figure.dpi - 0.04, ax.figure.figure.dpi_scale_trans)
    return ax.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), bbox_transform=ax.transAxes + down, **common)


# --- return values


def check_switches(*, show: object, return_fig: object) -> None:
    """Raise ``TypeError`` unless these are values that :func:`finish` accepts."""
    for name, value, known in (("show", show, "True, False or None"), ("return_fig", return_fig, "True or False")):
        if not isinstance(value, bool | np.bool_) and not (name == "show" and value is None):
            msg = f"{name}={short(value)} was given; {known} is expected."
            raise TypeError(msg)


def finish(axes: AnyAxes, *, show: bool | None, return_fig: bool) -> AnyAxes | Figure | None:
    """Return the figure, or show it, or return the axes, as scanpy does."""
    if return_fig:
        # the figure of axes may be a subfigure, whose ``figure`` is the whole figure
        return (axes[0] if isinstance(axes, list) else axes).figure.figure
    if settings.autoshow if show is None else show:
        plt.show()
        return None
    return axes
