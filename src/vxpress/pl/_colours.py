"""Colours that are distinguishable with any kind of colour vision, on light and dark backgrounds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgba

MAIN = "#2a6f97"
SOFT = "#86b0cc"
SECOND = "#c8553d"

# The first ten are Petroff's (arXiv 2107.02270). Each further colour is the one farthest from those before it and from
# the light grey of missing values, by its smallest distance in CAM02-UCS over normal, deuteranopic, protanopic and
# tritanopic vision (Machado 2009). In the worst of the four, the closest two of the first 10, 20 and all 24 colours
# have distances of 14.5, 11.1 and 9.4; those of scanpy's defaults for 10 and 20 categories have 4.3 and 0.6.
PALETTE = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
    *("#6d1831", "#3d3d61", "#923d49", "#496186", "#b6b6ff", "#e7ce86", "#860000", "#7949ff", "#9e86aa", "#610092"),
    *("#555561", "#86b6c2", "#c28679", "#6d9e3d"),
)


@dataclass(frozen=True)
class Shades:
    """Greys between the background of some axes and its opposite."""

    ink: str
    quiet: str
    pale: str
    face: str

    @classmethod
    def of(cls, ax: Axes) -> Shades:
        """Choose greys that are visible on these axes, dark or light."""
        face = _behind(ax)
        luminance = float(np.dot(face, [0.299, 0.587, 0.114]))
        opposite = np.zeros(3) if luminance > 0.5 else np.ones(3)
        grey = lambda share: to_hex(tuple((face + share * (opposite - face)).tolist()))
        return cls(ink=grey(0.8), quiet=grey(0.396), pale=grey(0.149), face=grey(0.0))


def _behind(ax: Axes) -> np.ndarray:
    """Return the background colour of the axes or, if they are transparent, of their figure."""
    for colour in (ax.get_facecolor(), ax.figure.get_facecolor(), ax.figure.figure.get_facecolor()):  # type: ignore[attr-defined]
        *rgb, alpha = to_rgba(colour)
        if alpha > 0.5:
            return np.array(rgb)
    return np.ones(3)


def few_colours(n: int) -> list[str]:
    """Return ``n`` colours for lines: those of the palette or, for larger ``n``, of a colour map."""
    if n <= len(PALETTE):
        return list(PALETTE[:n])
    return [to_hex(colour) for colour in colormaps["viridis"](np.linspace(0.0, 0.9, n))]


def is_categorical(values: pd.Series) -> bool:
    """Whether scanpy draws a column of ``obs`` as categories, which includes strings and booleans."""
    dtype = values.dtype
    return bool(
        isinstance(dtype, pd.CategoricalDtype)
        or pd.api.types.is_bool_dtype(dtype)
        or pd.api.types.is_object_dtype(dtype)
        or pd.api.types.is_string_dtype(dtype)
    )


def ensure_colours(adata: AnnData, column: str) -> None:
    """Write colours of a categorical column to ``uns``, where scanpy reads them; existing colours are kept.

    With more than 24 categories nothing is written, and scanpy chooses the colours.
    """
    if not is_categorical(adata.obs[column]):
        return
    n, name = len(pd.Categorical(adata.obs[column]).categories), f"{column}_colors"
    found = adata.uns.get(name)
    if found is not None and (not isinstance(found, list | tuple | np.ndarray | pd.Series) or np.ndim(found) != 1):
        msg = (
            f"adata.uns[{name!r}] is a {type(found).__name__}; a list of {n} colours, one per category, is expected. Set it, "
            f"or remove it with del adata.uns[{name!r}]."
        )
        raise ValueError(msg)
    known = [] if found is None else [str(colour) for colour in found]
    if len(known) < n <= len(PALETTE):
        adata.uns[name] = [*known, *(colour for colour in PALETTE if colour not in known)][:n]
