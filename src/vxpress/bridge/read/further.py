"""The counts of the modalities that cells have in addition to RNA, aligned with the cells of a MuData."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scanpy import logging as logg
from scipy import sparse

from vxpress.bridge.read.adata import check_gene_names
from vxpress.bridge.read.counts import CountData, read_counts
from vxpress.bridge.read.joint import Joint
from vxpress.bridge.read.library import log_library
from vxpress.bridge.read.modalities import cells_of, core_name, measured_cells, modality_of, spread
from vxpress.core.config import RNA
from vxpress.core.data import Joined, Source


@dataclass(frozen=True)
class FurtherCounts:
    """The counts of one modality and which cells have it; cells without a molecule count as cells without it."""

    features: np.ndarray
    counts: CountData
    has_n: np.ndarray


@dataclass(frozen=True)
class Further:
    """The modalities other than RNA, by their names in the core."""

    parts: Mapping[str, FurtherCounts]

    @property
    def any_n(self) -> np.ndarray:
        """Which cells have one of them, bool (n,)."""
        return np.logical_or.reduce([part.has_n for part in self.parts.values()])

    def codes(self, has_rna_n: np.ndarray) -> np.ndarray:
        """Return a number for each cell that says which modalities it has, int64 (n,)."""
        masks = [has_rna_n, *(part.has_n for part in self.parts.values())]
        return np.asarray(sum(mask.astype(np.int64) << i for i, mask in enumerate(masks)))

    def join(self, rna: Source, has_rna_n: np.ndarray) -> Joined:
        """Return the cells with all modalities; a cell with none counts as one with empty RNA."""
        sources = {
            name: part.counts.cells(log_library(part.counts.inside_n), rna.covariates)
            for name, part in self.parts.items()
        }
        masks = {RNA: has_rna_n | ~self.any_n, **{name: part.has_n for name, part in self.parts.items()}}
        return Joined(rna, sources, {name: torch.from_numpy(mask) for name, mask in masks.items()})


def read_further(
    joint: Joint, names: Sequence[str], layer: str | None, features: Mapping[str, np.ndarray] | None = None
) -> Further:
    """Read the modalities ``names`` of a MuData, in this order; ``features`` are those of a fit by core name.

    A modality that the MuData lacks is one that no cell has, if its features are known.
    """
    parts = {}
    for name in names:
        core = core_name(name)
        known = None if features is None else features[core]
        if known is not None and name not in joint.mdata.mod:
            logg.warning(
                f"The MuData has no modality {name!r}, which the fit has: its cells are treated as without it."
            )
            parts[core] = no_counts(joint.mdata.n_obs, known)
        else:
            parts[core] = _read(joint, name, layer, known)
    return Further(parts)


def no_counts(n: int, features: np.ndarray) -> FurtherCounts:
    """Return a modality that none of ``n`` cells has."""
    empty, zero = sparse.csr_matrix((n, len(features)), dtype=np.float32), np.zeros(n)
    return FurtherCounts(features, CountData(empty, None, zero, zero), np.zeros(n, dtype=bool))


def _read(joint: Joint, name: str, layer: str | None, known: np.ndarray | None) -> FurtherCounts:
    part, n = modality_of(joint.mdata, name), joint.mdata.n_obs
    try:
        check_gene_names(part)
    except ValueError as error:
        raise ValueError(str(error).replace("adata.", f"mdata.mod[{name!r}].")) from error
    if part.isbacked:
        msg = (
            f"mdata.mod[{name!r}] is backed, but modalities that are modelled together are read into memory. Load it: "
            f"mdata.mod[{name!r}] = mdata.mod[{name!r}].to_memory()."
        )
        raise ValueError(msg)
    where = layer if layer in part.layers else None
    matrix = part.X if where is None else part.layers[where]
    if matrix is None:
        msg = (
            f"mdata.mod[{name!r}].X is empty; counts are expected. Pass layer= to name the layer that holds the counts."
        )
        raise ValueError(msg)
    measured = _measured(matrix, name)
    cells = AnnData(matrix if measured.all() else matrix[measured], var=pd.DataFrame(index=part.var_names))
    position = None if known is None else _positions(part, name, known)
    try:
        counts = read_counts(cells, None, np.ones(cells.n_vars if known is None else len(known), bool), position)
    except ValueError as error:
        msg = str(error).replace("adata.", f"mdata.mod[{name!r}].")
        raise ValueError(msg) from error
    at = cells_of(joint.mdata, name)[measured]
    inside = spread(counts.inside, at, n)
    total_n = spread(counts.inside_n, at, n)
    has_n = total_n > 0
    n_empty = int((~has_n[at]).sum()) + int((~measured).sum())
    if n_empty:
        logg.info(f"    {n_empty} cell(s) have no count in the modality {name!r} and are treated as without it")
    if known is None and not has_n.any():
        msg = f"No cell has a count in mdata.mod[{name!r}]. Check its X and layer=, or leave the modality out: modalities=."
        raise ValueError(msg)
    features = np.array(part.var_names, dtype=object) if known is None else known
    return FurtherCounts(features, CountData(inside, None, total_n, total_n), has_n)


def _measured(matrix: object, name: str) -> np.ndarray:
    """Return which cells are measured: rows of NaN stand for cells that are not."""
    measured_n = measured_cells(matrix)
    if not isinstance(matrix, np.ndarray) or matrix.dtype.kind != "f":
        return measured_n
    some = np.isnan(matrix).any(1) & measured_n
    if some.any():
        msg = (
            f"mdata.mod[{name!r}].X is NaN in some features of {int(some.sum())} cell(s); counts are expected, or NaN in all "
            "features of a cell that was not measured. Remove the features that are not measured in all batches."
        )
        raise ValueError(msg)
    return measured_n


def _positions(part: AnnData, name: str, known: np.ndarray) -> np.ndarray:
    """Return the columns of the features of a fit; raises ``ValueError`` if one is missing."""
    position = np.asarray(part.var_names.get_indexer(known), dtype=np.int64)
    if (position < 0).any():
        msg = (
            f"{int((position < 0).sum())} of the {len(known)} features of the modality {name!r} of the fit are missing from "
            f"mdata.mod[{name!r}].var_names (for example {list(known[position < 0][:3])}). Pass all of them, or cells without the "
            "modality, which lack it entirely."
        )
        raise ValueError(msg)
    return position
