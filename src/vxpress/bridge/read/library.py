"""Find the size factor l of each cell."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scanpy import logging as logg

from vxpress._keys import LIBRARY_SIZE
from vxpress.bridge.read.columns import get_column, is_real
from vxpress.bridge.read.counts import CountData

# source of the size factors of a fit with gene panels
MEASURED = "modelled genes of the panel, and other genes of all panels"
# relative tolerance between sums of float32 counts and a stored total
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Library:
    """Size factor per cell; ``source`` names where it was read, and ``factor`` is the number it was multiplied by.

    ``beyond`` is True if it counts molecules outside the modelled genes, so that a remainder is needed.
    """

    values_n: np.ndarray
    source: str
    beyond: bool
    factor: float = 1.0


def resolve_library(
    obs: pd.DataFrame, counts: CountData, library: str, *, modelled_only: bool, measured_n: np.ndarray | None = None
) -> Library:
    """Return the size factors of the cells of a fit.

    ``"observed"`` and ``"latent"`` use ``obs["library_size"]`` if it exists, otherwise the sum of the genes present. Any
    other name is a column of ``obs``. With ``modelled_only``, the first two use the sum of the modelled genes. With gene panels,
    they use ``measured_n``, which counts the same genes outside the model in all cells.
    """
    if library in ("observed", "latent"):
        if modelled_only:
            return Library(counts.inside_n, "modelled genes", beyond=False)
        if measured_n is not None:
            return _counted(measured_n, counts, MEASURED)
        if LIBRARY_SIZE not in obs.columns:
            return _counted(counts.total_n, counts, "genes present")
        return _counted(_molecules(obs, counts), counts, f"obs[{LIBRARY_SIZE!r}]")
    values = _positive(obs, library, counts.inside_n)
    whole = bool(np.allclose(values, np.rint(values), rtol=0, atol=1e-3))
    if whole and _covers(values, counts.inside_n):
        return _counted(values, counts, f"obs[{library!r}]")
    if whole:
        logg.warning(
            f"obs[{library!r}] holds whole numbers, but in some cells less than the molecules counted; it is used as a size "
            "factor, rescaled to the mean library size."
        )
    some = counts.total_n > 0
    factor = float(counts.total_n[some].mean() / values[some].mean())
    # a factor does not count molecules: there is a remainder only if genes that are present are not modelled
    beyond = counts.outside is not None
    return Library(values * factor, f"obs[{library!r}], rescaled to the mean library", beyond, factor)


def log_library(values_n: np.ndarray, *, empty: float = 1.0) -> torch.Tensor:
    """Compute log size factors, (n, 1) float32; ``empty`` replaces the size factor of a cell without molecules.

    For an encoder its value has no effect; for a count distribution it has to be so small that no molecule is expected.
    """
    return torch.from_numpy(np.log(np.where(values_n > 0, values_n, empty)).astype(np.float32))[:, None]


def _counted(values_n: np.ndarray, counts: CountData, source: str) -> Library:
    return Library(values_n, source, bool((values_n > counts.inside_n * (1 + TOLERANCE) + 0.5).any()))


def read_library(obs: pd.DataFrame, counts: CountData, source: str, library: str, factor: float) -> np.ndarray:
    """Return the size factors of other cells, by the rule that the fit used for its own, if it has no gene panels."""
    if source == "modelled genes":
        return counts.inside_n
    if source == "genes present":
        return counts.total_n
    if library in ("observed", "latent"):
        return _molecules(obs, counts)
    return _positive(obs, library, counts.inside_n) * factor


def _covers(values_n: np.ndarray, inside_n: np.ndarray) -> bool:
    return bool((values_n >= inside_n * (1 - TOLERANCE) - 0.5).all())


def _molecules(obs: pd.DataFrame, counts: CountData) -> np.ndarray:
    values = _positive(obs, LIBRARY_SIZE, counts.inside_n)
    if not _covers(values, counts.inside_n):
        n_less = int((values < counts.inside_n * (1 - TOLERANCE) - 0.5).sum())
        msg = (
            f"obs[{LIBRARY_SIZE!r}] is smaller than the molecules counted in the modelled genes in {n_less} cells, so it "
            "was computed from other counts. Compute it again: vx.pp.library_size(adata, overwrite=True)."
        )
        raise ValueError(msg)
    return values


def _positive(obs: pd.DataFrame, key: str, inside_n: np.ndarray) -> np.ndarray:
    column = get_column(obs, key, argument=None if key == LIBRARY_SIZE else "library", numeric=True)
    if not is_real(column.dtype):
        name = f"adata.obs[{key!r}]"
        msg = f"library: obs[{key!r}] has dtype {column.dtype}; numbers above 0 are expected. Convert it: {name} = {name}.astype(float)."
        raise ValueError(msg)
    values = column.to_numpy(dtype=np.float64)
    bad = ~np.isfinite(values) | (values < 0) | ((values == 0) & (inside_n > 0))
    if bad.any():
        msg = (
            f"library: obs[{key!r}] is zero, negative or infinite in {int(bad.sum())} cell(s) with counts (for example "
            f"{values[bad][0]:g}); numbers above 0 are expected. vx.pp.library_size(adata, overwrite=True) counts molecules."
        )
        raise ValueError(msg)
    return values
