"""Read the modalities of a MuData: one of them by name, or several with their cells aligned."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scanpy import logging as logg
from scipy import sparse

from vxpress._mudata import MuData, is_mudata
from vxpress._similar import similar_names
from vxpress.core.likelihoods import LIKELIHOODS

# likelihoods of modalities by the words in their names; those that hold RNA come first in a fit
OF_RNA = dict.fromkeys(("rna", "gex"), "nb")
OF_PROTEIN = dict.fromkeys(("prot", "protein", "proteins", "adt", "antibody"), "nb_mixture")
OF_ATAC = dict.fromkeys(("atac", "peaks"), "bernoulli")
KNOWN = OF_RNA | OF_PROTEIN | OF_ATAC


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


def cells_of(mdata: MuData, name: str) -> np.ndarray:
    """Return the positions of the cells of a modality among the cells of the MuData, int64.

    Raises ``ValueError`` if some are absent, because the modality was changed without ``mdata.update()``.
    """
    at = np.asarray(pd.Index(mdata.obs_names).get_indexer(mdata.mod[name].obs_names), dtype=np.int64)
    if (at < 0).any():
        cells = list(mdata.mod[name].obs_names[at < 0][:3])
        msg = f"mdata.mod[{name!r}] has {int((at < 0).sum())} cell(s) that mdata.obs_names lacks (for example {cells}). Call mdata.update()."
        raise ValueError(msg)
    return at


def requested_modalities(mdata: MuData, modalities: Mapping[str, str] | Iterable[str] | None) -> dict[str, str]:
    """Return name and likelihood of each modality of a joint fit, RNA first.

    A mapping gives the likelihoods; for names alone, and by default for all modalities with a known name, they follow
    from the name.
    """
    if modalities is None:
        found = {name: usual for name in mdata.mod if (usual := _usual_likelihood(name)) is not None}
        left_out = [name for name in mdata.mod if name not in found]
        if left_out:
            logg.warning(
                f"The modalities {left_out} are left out of the fit, because their names say nothing about their likelihood. Name "
                f"it to include them: modalities={ {**found, left_out[0]: 'nb'} }."
            )
    elif isinstance(modalities, Mapping):
        found = {str(name): likelihood for name, likelihood in modalities.items()}
    elif not isinstance(modalities, Iterable):
        msg = f"modalities={modalities!r}: names of modalities with their likelihoods are expected, {{'rna': 'nb', 'protein': 'nb_mixture'}}."
        raise TypeError(msg)
    else:
        names = [modalities] if isinstance(modalities, str) else [str(name) for name in modalities]
        unknown = [name for name in names if name in mdata.mod and _usual_likelihood(name) is None]
        if unknown:
            msg = f"modalities= names {unknown[0]!r}, whose likelihood does not follow from its name. Give it: modalities={{{unknown[0]!r}: 'nb', ...}}."
            raise ValueError(msg)
        found = {name: _usual_likelihood(name) or "" for name in names}
    for name in found:
        modality_of(mdata, name)
    if len(found) < 2:
        one = next(iter(found), next(iter(mdata.mod)))
        msg = (
            f"A joint fit needs two or more modalities; found {list(found)} among those of the MuData, {list(mdata.mod)}. Fit one "
            f"modality with modality={one!r}, or give the likelihood of each: modalities={{'rna': 'nb', 'protein': 'nb_mixture'}}."
        )
        raise ValueError(msg)
    for likelihood in found.values():
        LIKELIHOODS.check(likelihood)
    return dict(sorted(found.items(), key=lambda item: not _words(item[0]) & set(OF_RNA)))


def _words(name: str) -> set[str]:
    return set(re.split(r"[\W_]+", name.lower()))


def _usual_likelihood(name: str) -> str | None:
    """Return the likelihood that the name of a modality stands for, None if it does not say."""
    return next((likelihood for word, likelihood in KNOWN.items() if word in _words(name)), None)


def core_name(name: str) -> str:
    """Return the name of a modality in the core, where it is an identifier."""
    clean = re.sub(r"\W", "_", name)
    return clean if clean.isidentifier() and clean != "rna" else f"m_{clean}"


def in_memory(matrix: Any) -> Any:
    """Return a matrix, or read one that is on disk or computed by dask."""
    for read in ("to_memory", "compute"):
        if hasattr(matrix, read) and not sparse.issparse(matrix):
            return getattr(matrix, read)()
    return matrix


def measured_cells(matrix: Any) -> np.ndarray:
    """Return which cells have a value that is not NaN, bool (n,): rows of NaN stand for cells that were not measured."""
    n = matrix.shape[0]
    if matrix.shape[1] == 0 or getattr(matrix, "dtype", np.dtype(bool)).kind != "f":
        return np.ones(n, dtype=bool)
    if sparse.issparse(matrix):
        rows = matrix.tocsr()
        missing = sparse.csr_matrix((np.isnan(rows.data).astype(np.int64), rows.indices, rows.indptr), shape=rows.shape)
        n_missing = np.asarray(missing.sum(1)).reshape(-1)
        return np.asarray(n_missing < matrix.shape[1])
    return np.asarray(~np.isnan(matrix).all(axis=1)) if isinstance(matrix, np.ndarray) else np.ones(n, dtype=bool)


def without_gaps(matrix: Any) -> Any:
    """Return a matrix whose rows of NaN are empty."""
    measured_n = measured_cells(matrix)
    if measured_n.all():
        return matrix
    at = np.flatnonzero(measured_n)
    return spread(matrix[at], at, matrix.shape[0])


def spread(matrix: Any, at: np.ndarray, n: int, *, gaps: float = 0.0) -> Any:
    """Return a matrix with its rows at the positions ``at`` among ``n``; other rows are empty, or ``gaps`` if it is dense."""
    if len(at) == n and bool((at == np.arange(n)).all()):
        return matrix
    matrix = in_memory(matrix)
    if sparse.issparse(matrix):
        place = sparse.csr_matrix((np.ones(len(at), np.int8), (at, np.arange(len(at)))), shape=(n, len(at)))
        return (place.astype(matrix.dtype) @ matrix.tocsr()).tocsr()
    values = np.asarray(matrix)
    out = np.full((n, *values.shape[1:]), gaps if values.dtype.kind == "f" else 0, dtype=values.dtype)
    out[at] = values
    return out
