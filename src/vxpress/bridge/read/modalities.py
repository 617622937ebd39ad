"""Read the modalities of a MuData: one of them by name, or several with their cells aligned."""

from __future__ import annotations

from typing import Any

import pandas as pd
from anndata import AnnData

from vxpress._mudata import MuData, is_mudata
from vxpress._similar import similar_names


def check_mudata(mdata: MuData) -> None:
    """Raise ``ValueError`` unless the modalities are AnnData objects that share cells, each with a name of its own."""
    if getattr(mdata, "axis", 0) != 0:
        msg = f"The MuData has axis={mdata.axis}: its modalities share genes. Modalities that share cells (axis=0) are expected."
        raise ValueError(msg)
    nested = [name for name, part in mdata.mod.items() if is_mudata(part)]
    if nested:
        msg = f"mdata.mod[{nested[0]!r}] is a MuData itself; an AnnData is expected as each modality. Pass mdata.mod[{nested[0]!r}] instead."
        raise ValueError(msg)
    if not mdata.mod:
        msg = "The MuData has no modalities; at least one is expected: mudata.MuData({'rna': adata})."
        raise ValueError(msg)
    for name, part in mdata.mod.items():
        if not part.obs_names.is_unique:
            repeated = part.obs_names[part.obs_names.duplicated()].unique()
            msg = (
                f"mdata.mod[{name!r}].obs_names are not unique (for example {list(repeated[:3])}), so cells cannot be matched "
                f"between modalities. Make them unique: mdata.mod[{name!r}].obs_names_make_unique(), then mdata.update()."
            )
            raise ValueError(msg)


def modality_of(mdata: MuData, name: object) -> AnnData:
    """Return a modality by name; raises ``KeyError`` with the names that exist."""
    if isinstance(name, str) and name in mdata.mod:
        return mdata.mod[name]
    found = list(mdata.mod)
    msg = f"modality={name!r} is not a modality of the MuData (found: {found}).{similar_names([name], found)}"
    raise KeyError(msg)


def cells_of(mdata: MuData, name: str) -> Any:
    """Return the positions of the cells of a modality among the cells of the MuData, int64.

    Raises ``ValueError`` if some are absent, because the modality was changed without ``mdata.update()``.
    """
    at = pd.Index(mdata.obs_names).get_indexer(mdata.mod[name].obs_names)
    if (at < 0).any():
        cells = list(mdata.mod[name].obs_names[at < 0][:3])
        msg = f"mdata.mod[{name!r}] has {int((at < 0).sum())} cell(s) that mdata.obs_names lacks (for example {cells}). Call mdata.update()."
        raise ValueError(msg)
    return at
