"""The cells of an evaluation: predicted, treated and control cells of every group and target, on one scale."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from vxpress.bridge.read.adata import check_gene_names
from vxpress.bridge.read.columns import get_names, get_numbers
from vxpress.bridge.read.matrix import canonical, check_counts, get_matrix, matrix_name
from vxpress.metrics import log1p_normalized

# name of the only group or target if there are none, and of a missing one
ALL, MISSING = "all", "\0"
SOURCE = "source_cell"
# no logarithm of a count is as large
TOO_LARGE = 30.0
ARGUMENTS = {"treated": "observed", "control": "control"}


@dataclass(frozen=True)
class Scale:
    """How values are read: the layer of treated and control cells, their library, and whether they are logarithms."""

    layer: str | None
    library_key: str | None
    log_transformed: bool

    @staticmethod
    def block(adata: AnnData, rows: np.ndarray, layer: str | None = None) -> sparse.csr_matrix:
        """Return values of some cells as they are, CSR."""
        return canonical(get_matrix(adata, layer)[rows])

    def read(self, adata: AnnData, rows: np.ndarray, columns: np.ndarray, layer: str | None, role: str) -> Any:
        """Return log values of some cells and genes as float64 CSR; ``role`` names the cells in messages."""
        block = self.block(adata, rows, layer)
        # the name of the argument, so that calls in messages run
        given = ARGUMENTS.get(role)
        where = matrix_name(layer).replace("adata", given, 1) if given else f"{matrix_name(layer)} of the {role} cells"
        if not self.log_transformed and role != "predicted":
            check_counts(block, where, adata)
        x = block[:, columns].astype(np.float64)
        if not np.isfinite(x.data).all():
            msg = f"{where} holds NaN or infinite values; finite numbers are expected."
            raise ValueError(msg)
        if self.log_transformed:
            _check_logarithms(block, where)
            return x
        if x.data.size and x.data.min() < 0:
            msg = f"{where} holds negative values; counts or expected counts are expected. If all cells hold log1p values, pass log_transformed=True."
            raise ValueError(msg)
        library = None if self.library_key is None else get_numbers(adata.obs, self.library_key)[rows]
        return log1p_normalized(x, library)


def _check_logarithms(block: sparse.csr_matrix, where: str) -> None:
    data = block.data
    if data.size and data.max() > 1 and (data == np.rint(data)).all():
        msg = f"log_transformed=True, but {where} holds only whole numbers, which look like counts. Pass log_transformed=False, or the log1p values."
        raise ValueError(msg)
    if data.size and data.max() > TOO_LARGE:
        msg = f"log_transformed=True, but {where} holds values up to {data.max():.3g}, too large for log1p values of normalised counts. Pass all matrices as log1p values, for example vx.metrics.log1p_normalized(counts), or log_transformed=False."
        raise ValueError(msg)


def check_cells(argument: str, adata: object) -> None:
    """Raise unless an argument is an AnnData with cells."""
    if not isinstance(adata, AnnData):
        hint = " Read a file with anndata.read_h5ad(path)." if isinstance(adata, str | os.PathLike) else ""
        msg = f"{argument}= holds a {type(adata).__name__}; an AnnData is expected.{hint}"
        raise TypeError(msg)
    if adata.n_obs == 0 or adata.n_vars == 0:
        msg = f"{argument}= has {adata.n_obs} cells and {adata.n_vars} genes; at least one of each is expected."
        raise ValueError(msg)


@dataclass(frozen=True)
class Part:
    """One AnnData of predictions, with the genes all populations are compared on."""

    adata: AnnData
    stored: Mapping[str, Any]

    @classmethod
    def of(cls, adata: Any) -> Part:
        """Check that this is an AnnData with gene names, and find what is stored about the prediction."""
        check_cells("predicted", adata)
        check_gene_names(adata)
        stored = adata.uns.get("perturbation", {})
        return cls(adata, stored if isinstance(stored, Mapping) else {})

    def param(self, name: str) -> Any:
        """Return a stored parameter of the prediction, or None."""
        params = self.stored.get("params", {})
        return params.get(name) if isinstance(params, Mapping) else None

    def names(self, key: str) -> list[str]:
        """Return names that are stored with the prediction: of its groups, or of its genes as they were."""
        return [str(name) for name in np.asarray(self.stored.get(key, []), dtype=object).reshape(-1)]

    def columns(self, genes: pd.Index) -> np.ndarray | None:
        """Return where genes are in the stored changes, whose order no later selection of genes alters."""
        columns = pd.Index(self.names("genes"), dtype=object).get_indexer(genes.astype(str))
        return None if not len(columns) or (columns < 0).any() else columns


def methods_of(predicted: Any) -> dict[str, list[Part]]:
    """Return the parts of every method: of one AnnData, of a list (several targets), or of a mapping of either."""
    if isinstance(predicted, Mapping):
        if not predicted:
            msg = "predicted= is an empty mapping; at least one method with its predicted cells is expected."
            raise ValueError(msg)
        return {str(name): _parts(value) for name, value in predicted.items()}
    parts = _parts(predicted)
    name = parts[0].param("method")
    return {str(name) if isinstance(name, str) else "prediction": parts}


def _parts(value: Any) -> list[Part]:
    several = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if not several:
        msg = "An empty list of predictions was given; at least one AnnData is expected."
        raise ValueError(msg)
    return [Part.of(one) for one in several]


@dataclass(frozen=True)
class Unit:
    """One target in one group: rows of the treated and of the control cells."""

    group: str
    target: str
    observed_n: np.ndarray
    control_n: np.ndarray


@dataclass(frozen=True)
class Keys:
    """Columns of ``obs`` with groups and targets, and the label of control cells, as given or as stored."""

    groupby: str | None
    perturbation_key: str | None
    control: str | None

    @classmethod
    def of(cls, groupby: str | None, perturbation_key: str | None, part: Part) -> Keys:
        """Take the columns given, or those stored with the prediction."""
        for argument, key in (("groupby", groupby), ("perturbation_key", perturbation_key)):
            if key is not None and not isinstance(key, str):
                msg = f"{argument}={key!r} was given; the name of a column of obs, or None, is expected."
                raise TypeError(msg)
        group, key = (
            part.param(name) if given is None else given
            for name, given in (("groupby", groupby), ("perturbation_key", perturbation_key))
        )
        control = part.param("control")
        return cls(
            group if isinstance(group, str) and group else None,
            key if isinstance(key, str) and key else None,
            control if isinstance(control, str) else None,
        )

    def labels(self, adata: AnnData, role: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the group and the target of every cell, object arrays; ``"all"`` if there is no such column.

        Cells whose group or target is missing belong to no unit.
        """
        group = _labels(adata, self.groupby, f"groupby={self.groupby!r} of the {role} cells")
        key = self.perturbation_key
        # treated and control cells need no such column if there is one target
        if key is not None and role != "predicted" and key not in adata.obs:
            key = None
        return group, _labels(adata, key, f"perturbation_key={key!r} of the {role} cells")


def control_of(control: AnnData | None, parts: Sequence[Part], keys: Keys, layer: str | None) -> AnnData:
    """Return the control cells: those given, or those that travel with the predictions, without the predicted target.

    ``layer`` is where the counts of control cells are read; those that travel along are there too.
    """
    if control is not None:
        check_cells("control", control)
        return control
    found = []
    for part in parts:
        if "control" not in part.adata.layers or SOURCE not in part.adata.obs:
            msg = "control= was not given, and predicted holds no control cells (layers['control'] and obs['source_cell']). Pass the real control cells."
            raise ValueError(msg)
        obs = part.adata.obs.set_index(part.adata.obs[SOURCE].astype(str).to_numpy())
        adata = AnnData(
            sparse.csr_matrix(part.adata.layers["control"]),
            obs=obs.drop(columns=[keys.perturbation_key], errors="ignore"),
            var=part.adata.var[[]],
        )
        found.append(adata[~adata.obs_names.duplicated()].copy())
    out = found[0]
    if len(found) > 1:
        obs = pd.concat([adata.obs for adata in found])
        x = sparse.vstack([adata.X for adata in found], format="csr")
        first = ~obs.index.duplicated()
        out = AnnData(x[first], obs=obs[first], var=found[0].var)
    if layer is not None:
        out.layers[layer] = out.X
    return out


def _labels(adata: AnnData, key: str | None, argument: str) -> np.ndarray:
    if key is None:
        return np.full(adata.n_obs, ALL, dtype=object)
    return get_names(adata.obs, key, argument=argument, gaps=True).labels(MISSING)


def units_of(keys: Keys, parts: Sequence[Part], observed: AnnData, control: AnnData) -> list[Unit]:
    """Return the units that have predictions, in the order of the predictions."""
    group_n, target_n = keys.labels(observed, "treated")
    group0_n, target0_n = keys.labels(control, "control")
    wanted: dict[tuple[str, str], None] = {}
    for part in parts:
        group_m, target_m = keys.labels(part.adata, "predicted")
        pairs = pd.DataFrame({"group": group_m, "target": target_m}).drop_duplicates()
        wanted |= dict.fromkeys(
            pair for pair in zip(pairs["group"], pairs["target"], strict=True) if MISSING not in pair
        )
    targets = list(dict.fromkeys(target for _, target in wanted))
    is_control = _controls(keys, target0_n, targets)
    if not (target_n != ALL).any():
        if len(targets) > 1:
            msg = f"There are predictions of {len(targets)} targets, but obs[{keys.perturbation_key!r}] of the treated cells is missing, so it is unclear which target each has."
            raise KeyError(msg)
        target_n = np.full(len(target_n), targets[0], dtype=object)
    units = []
    for group, target in wanted:
        rows = np.flatnonzero((group_n == group) & (target_n == target))
        units.append(Unit(group, target, rows, np.flatnonzero((group0_n == group) & is_control)))
    if not any(len(unit.observed_n) for unit in units):
        found = pd.DataFrame({"group": group_n, "target": target_n}).drop_duplicates().head(10)
        msg = f"No treated cell has a predicted group and target. Predicted: {list(wanted)[:10]}; treated cells: {list(zip(found['group'], found['target'], strict=True))}."
        raise ValueError(msg)
    return units


def _controls(keys: Keys, target_n: np.ndarray, targets: Sequence[str]) -> np.ndarray:
    """Return which of the control cells are control cells; other perturbations among them are an error or left out."""
    found = set(target_n) - {MISSING}
    if keys.control is not None and keys.control in found:
        return np.asarray(target_n == keys.control)
    treated = sorted(found & set(targets) - {ALL})
    if treated or len(found) > 1:
        msg = (
            f"control= should hold control cells only, but obs[{keys.perturbation_key!r}] has {sorted(found)[:10]}. "
            f"Select them: control[control.obs[{keys.perturbation_key!r}] == 'name of the control'].copy()."
        )
        raise ValueError(msg)
    return np.asarray(target_n != MISSING)


def columns_of(adata: AnnData, genes: pd.Index, role: str) -> np.ndarray:
    """Return the columns of ``genes``; raises ``KeyError`` if some are missing."""
    check_gene_names(adata)
    columns = adata.var_names.get_indexer(genes)
    missing = genes[columns < 0]
    if len(missing):
        msg = f"The {role} cells lack {len(missing)} of the {len(genes)} predicted genes (for example {list(missing[:3])}). Pass cells with all of them, or predicted[:, genes]."
        raise KeyError(msg)
    return np.asarray(columns)
