"""A MuData as an AnnData: its cells with the features of one modality, and where their results belong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from vxpress._keys import LIBRARY_SIZE
from vxpress._mudata import MuData
from vxpress.bridge.read.modalities import cells_of, modality_of, spread, without_gaps

# attribute of the AnnData that says where it comes from
_JOINT = "_vxpress_joint"


@dataclass(frozen=True, eq=False)
class Joint:
    """The MuData behind such an AnnData, its modalities in the fit (RNA first), and the one whose features are shown.

    Its attributes are the slots to write results to: those of cells are slots of the MuData, those of features belong to
    the modality.
    """

    mdata: MuData
    names: tuple[str, ...]
    shown: str

    @property
    def part(self) -> AnnData:
        """The modality that is shown."""
        return modality_of(self.mdata, self.shown)

    @property
    def obs(self) -> pd.DataFrame:
        """Columns of all cells."""
        return self.mdata.obs

    @property
    def obsm(self) -> Any:
        """Arrays of all cells."""
        return self.mdata.obsm

    @property
    def obsp(self) -> Any:
        """Graphs of all cells."""
        return self.mdata.obsp

    @property
    def uns(self) -> Any:
        """Fits and records."""
        return self.mdata.uns

    @property
    def var(self) -> pd.DataFrame:
        """Columns of the features that are shown."""
        return self.part.var

    @property
    def varm(self) -> Any:
        """Arrays of the features that are shown."""
        return self.part.varm

    @property
    def layers(self) -> Any:
        """Matrices of the cells that have the modality."""
        return self.part.layers if self.shown in self.mdata.mod else {}

    def cut(self, matrix: Any, modality: str | None = None) -> Any:
        """Return the rows of the cells that have a modality, by default the one that is shown, in its order."""
        at = cells_of(self.mdata, self.shown if modality is None else modality)
        n = self.mdata.n_obs
        return matrix if len(at) == n and bool((at == np.arange(n)).all()) else matrix[at]


def joint_of(adata: AnnData) -> Joint | None:
    """Return the MuData behind an AnnData; None for any other AnnData."""
    return getattr(adata, _JOINT, None)


def cells_at(adata: AnnData, rows: np.ndarray) -> AnnData:
    """Return some cells; those of a MuData still have all of its modalities."""
    joint, part = joint_of(adata), adata[rows]
    if joint is not None:
        part = part.copy()
        setattr(part, _JOINT, Joint(joint.mdata[rows], joint.names, joint.shown))
    return part


def has_shown(adata: AnnData) -> np.ndarray:
    """Return which cells have the modality that is shown, bool (n,); all cells of any other AnnData."""
    joint = joint_of(adata)
    return np.ones(adata.n_obs, dtype=bool) if joint is None else has_modality(joint, joint.shown)


def has_modality(joint: Joint, name: str) -> np.ndarray:
    """Return which cells of the MuData are in a modality, bool (n,)."""
    found = np.zeros(joint.mdata.n_obs, dtype=bool)
    if name in joint.mdata.mod:
        found[cells_of(joint.mdata, name)] = True
    return found


def as_anndata(
    mdata: MuData, names: Sequence[str], shown: str, genes: np.ndarray | None = None, library: str = LIBRARY_SIZE
) -> AnnData:
    """Return the cells of a MuData with the features of one of its modalities; matrices are not copied if cells agree.

    ``genes`` are the features of a modality that the MuData may lack, and ``library`` is a column with size factors, 0 in
    cells without the modality.

    Rows of cells without the modality are empty in ``X``. ``obs`` has the columns of the MuData, then those of the modality
    and of the others: texts and categories that one of them lacks are filled in from the next.
    """
    if shown not in mdata.mod and genes is not None:
        part = AnnData(
            sparse.csr_matrix((0, len(genes)), dtype=np.float32), var=pd.DataFrame(index=pd.Index(genes.astype(str)))
        )
    else:
        part = modality_of(mdata, shown)
    if part.isbacked:
        msg = (
            f"mdata.mod[{shown!r}] is backed, but modalities that are modelled together are read into memory. Load it: "
            f"mdata.mod[{shown!r}] = mdata.mod[{shown!r}].to_memory()."
        )
        raise ValueError(msg)
    at, n = cells_of(mdata, shown) if shown in mdata.mod else np.zeros(0, dtype=np.int64), mdata.n_obs
    order = [name for name in dict.fromkeys((shown, *names)) if name in mdata.mod]
    adata = AnnData(
        X=None if part.X is None else spread(without_gaps(part.X), at, n),
        obs=_columns(mdata, order, shown, library),
        var=part.var,
        obsm={name: value for name, value in mdata.obsm.items() if np.ndim(value) == 2},
        obsp=dict(mdata.obsp.items()),
        varm=dict(part.varm.items()),
        layers={name: spread(layer, at, n, gaps=np.nan) for name, layer in part.layers.items() if name is not None},
        uns=_records(part.uns) | dict(mdata.uns),
    )
    setattr(adata, _JOINT, Joint(mdata, tuple(names), shown))
    return adata


def _records(uns: Any) -> dict[str, Any]:
    """Return the entries of a modality that are not fits: these belong to it alone."""
    return {
        name: value
        for name, value in uns.items()
        if not (isinstance(value, Mapping) and str(value.get("format", "")).startswith("vxpress-fit-"))
    }


def _columns(mdata: MuData, order: Sequence[str], shown: str, library: str) -> pd.DataFrame:
    """Return the columns of all cells, of the MuData and of its modalities."""
    found = {str(name): mdata.obs[name] for name in mdata.obs.columns.unique()}
    own: dict[str, pd.Series] = {}
    for name in order:
        columns = modality_of(mdata, name).obs
        for column in columns.columns.unique():
            if str(column) in found or not isinstance(columns[column], pd.Series):
                continue
            values = columns[column].reindex(mdata.obs_names)
            if column not in own:
                own[column] = values
            elif not (pd.api.types.is_numeric_dtype(values.dtype) or pd.api.types.is_numeric_dtype(own[column].dtype)):
                own[column] = own[column].astype(object).where(own[column].notna(), values.astype(object))
    # no molecules were counted in a cell that lacks the modality
    has_n = np.isin(mdata.obs_names, modality_of(mdata, shown).obs_names if shown in mdata.mod else [])
    for column in (LIBRARY_SIZE, library):
        if not has_n.any():
            own[column] = pd.Series(0.0, index=mdata.obs_names)
        elif column in own and column in modality_of(mdata, shown).obs.columns:
            own[column] = own[column].where(has_n, 0.0)
    return pd.DataFrame(found | own, index=mdata.obs_names)
